"""What a learner asks of a backbone: features by the shape law, their number, no memory of old batches."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from medmeta.errors import MedmetaError
from medmeta.shape import Feature, Image


class NetworkError(MedmetaError):
    """A network that cannot be built, or that does not keep the shape law."""


_SIZES = (
    "spatial element",
    "must match",
    "must be divisible",
    "can't be greater than actual input size",
    "Output size is too small",
    "shapes cannot be multiplied",
    "channels instead",
)
"""Words of torch and MONAI where images are of sizes that a network does not take."""


def encoded(network: Callable[[Tensor], Any], image: Image, *, dense: bool) -> Feature:
    """Run a backbone and read what it gives as :func:`features`.

    Args:
        network: the backbone, or a function that runs it.
        image: ``(n, channel, *voxel)``.
        dense: whether features are wanted on the voxel grid.

    Raises:
        NetworkError: besides, as of :func:`output_of`.

    Example:
        >>> encoded(nn.Conv2d(1, 4, 3, padding=1), torch.zeros(2, 1, 8, 8), dense=False).shape
        torch.Size([2, 4])
    """
    return features(output_of(network, image), tuple(map(int, image.shape[2:])), dense=dense)


def output_of(network: Callable[[Tensor], Any], image: Image) -> Any:
    """Run a backbone on images that stay as they are.

    A network may write into its own layers' outputs (an activation in place) but not into its input: the
    next inner step would see other images, and whoever gave them has others from then on.

    Args:
        network: the backbone, or a function that runs it.
        image: ``(n, channel, *voxel)``.

    Raises:
        NetworkError: where the network writes into the images, or where they are too small for it or of other
            channels.
    """
    if torch.compiler.is_compiling() or image.is_inference():  # neither counts how often it was written to
        return network(image)
    before = image._version
    try:
        output = network(image)
    except (RuntimeError, ValueError) as error:
        if any(words in str(error) for words in _SIZES):
            raise _of_other_sizes(image, error) from error
        if "mutate a captured Tensor" in str(error):  # in a batch of tasks torch.func sees it first
            raise _written_into() from error
        raise
    if image._version != before:
        raise _written_into()
    return output


def _written_into() -> NetworkError:
    return NetworkError(
        "a network that leaves its input as it is",
        found="one that writes into the images it is given, as 'x *= 2' or a first layer in place does",
        cure="Write 'x = x * 2', or build that layer with inplace=False.",
    )


def _of_other_sizes(image: Image, error: Exception) -> NetworkError:
    size = "x".join(map(str, image.shape[2:]))
    voxels = f" of {size} voxels" if size else ""
    return NetworkError(
        "images large enough for this network, of sides and channels that it takes",
        found=f"images{voxels} and {image.shape[1]} channel(s): {' '.join(str(error).split())[:200]}",
        cure="Give larger ones (a larger patch) whose sides it can halve, or take a network that halves "
        "less, e.g. medmeta.networks.unet or encoder.",
    )


def features(output: Any, voxel: tuple[int, ...], *, dense: bool) -> Feature:
    """Read a backbone's output as features by the shape law.

    Args:
        output: what the network gave; of several tensors (MONAI's ViT) the first counts. It is
            ``(n, feature)``, a map ``(n, feature, *space)``, or tokens ``(n, token, feature)`` of an image of
            two or three axes.
        voxel: the voxel axes of the image.
        dense: whether features are wanted on the voxel grid (to segment) or one vector an image.

    Returns:
        ``(n, feature, *voxel)`` where dense, else ``(n, feature)``: a map is averaged over its voxels,
        tokens over their number.

    Raises:
        NetworkError: where a dense output is not on the image's grid, or where there is no tensor.

    Example:
        >>> features(torch.ones(2, 8, 4, 4), (16, 16), dense=False).shape
        torch.Size([2, 8])
    """
    try:
        first = output if isinstance(output, Tensor) else output[0]
    except (KeyError, IndexError, TypeError):
        first = output
    if not isinstance(first, Tensor):
        raise NetworkError(
            "a network that gives a tensor of features, or several of which the first counts",
            found=f"a {type(first).__name__}",
            cure="Wrap it in a module whose forward returns that tensor.",
        )
    if hasattr(first, "as_tensor"):  # MetaTensor ends here
        first = first.as_tensor()
    if not dense:
        # a transformer's last norm leaves each token a mean of zero: over its features there is nothing
        if are_tokens(first, voxel):
            return first.mean(1)
        return first.flatten(2).mean(2) if first.ndim > 2 else first
    if tuple(first.shape[2:]) != voxel:
        raise NetworkError(
            f"features (n, feature, *{voxel}) on the voxel grid of the image to segment",
            found=f"an output of shape {tuple(first.shape)}",
            cure="Take a network that keeps the image's size, e.g. a UNet, and sides it can halve.",
        )
    return first


def are_tokens(output: Tensor, voxel: Sequence[int]) -> bool:
    """Whether a backbone's output is a sequence ``(n, token, feature)``; of a line it is a map.

    Args:
        output: what the network gave.
        voxel: the voxel axes of the image.

    Example:
        >>> output = torch.zeros(2, 16, 24)
        >>> are_tokens(output, (32, 32)), are_tokens(output, (32,))
        (True, False)
    """
    return output.ndim == 3 and len(voxel) > 1


def feature_size(network: nn.Module, image_shape: Sequence[int] | None = None) -> int:
    """Count the features of a backbone.

    Args:
        network: the backbone.
        image_shape: ``(channel, *voxel)`` of one image to try it on, averaged as :func:`features` does.
            Without, the last layer with weights tells, linear, convolutional or the layer norm of a
            transformer, which is right for every network that ends in one.

    Raises:
        NetworkError: where no layer tells.

    Example:
        >>> from medmeta.networks import build, unet
        >>> feature_size(build(unet(3, 1, base=4)), (1, 16, 16, 16))
        8
    """
    if image_shape is not None:
        training = network.training
        with torch.no_grad():
            try:
                like = next(network.parameters(), torch.zeros(()))
                return encoded(network.eval(), like.new_zeros(2, *image_shape), dense=False).shape[1]
            finally:
                network.train(training)
    for module in reversed(list(network.modules())):
        if next(module.parameters(recurse=False), None) is not None and (size := _size_after(module)):
            return size
    raise NetworkError(
        "a network whose number of features can be told",
        found=f"{type(network).__name__} without a last linear or convolutional layer",
        cure="Give the learner feature=<number of features>.",
    )


def _size_after(layer: nn.Module) -> int | None:
    """Features that a layer gives, where it is of a kind that tells."""
    if isinstance(layer, nn.LayerNorm) and len(layer.normalized_shape) == 1:
        return layer.normalized_shape[0]
    sizes = (getattr(layer, name, None) for name in ("out_channels", "out_features"))
    return next((size for size in sizes if isinstance(size, int)), None)


def running_statistics(network: nn.Module) -> tuple[str, ...]:
    """Name the layers that remember earlier batches (batch norm's running mean and variance).

    Such memory leaks one task into the next and is changed in place by every forward pass, so no learner
    takes a network that has any.

    Example:
        >>> running_statistics(nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)))
        ('1',)
    """
    return tuple(
        name for name, module in network.named_modules() if getattr(module, "running_mean", None) is not None
    )


def group_norm(network: nn.Module, groups: int = 4) -> nn.Module:
    """Put group norm (Wu & He 2018) in the place of every batch norm, in a copy of the network.

    Args:
        network: the backbone; stays as it is. What takes a norm's place is on its device and as precise.
        groups: groups of channels, fewer where a layer's channels do not divide.

    Example:
        >>> group_norm(nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8)))[1]  # doctest: +ELLIPSIS
        GroupNorm(4, 8, eps=1e-05, affine=True...)
    """
    network = copy.deepcopy(network)
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.modules.batchnorm._BatchNorm):
                channels = child.num_features
                layer = nn.GroupNorm(math.gcd(groups, channels), channels, eps=child.eps, affine=child.affine)
                setattr(module, name, layer.to(child.weight) if child.affine else layer)
            elif isinstance(child, nn.modules.instancenorm._InstanceNorm) and child.track_running_stats:
                child.track_running_stats = False
                child.running_mean = child.running_var = child.num_batches_tracked = None
    return network
