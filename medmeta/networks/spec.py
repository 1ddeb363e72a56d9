"""Networks as plain dictionaries: what MONAI's ConfigParser builds, here, in a run and in a bundle alike."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from monai.bundle import ConfigParser
from torch import nn

from medmeta.networks.feature import NetworkError
from medmeta.volumes.component import asked_again

HOMES = ("monai.networks.", "torch.nn.")
"""Where a network may come from: what a hospital that has only MONAI has, too."""
OURS = "medmeta.learners."
"""Where predictors are defined that no other package has."""


def build(spec: Mapping[str, Any], *, ours: bool = False) -> nn.Module:
    """Make the network that a specification describes.

    Args:
        spec: ``{"_target_": "monai.networks.nets.UNet", ...}``: a class of MONAI or ``torch.nn`` and its
            keyword arguments; arguments may be such specifications themselves. Expressions (``$``) and
            references (``@``, ``%``) are refused: a specification is data, it runs nothing.
        ours: take what :mod:`medmeta.learners` defines, too.

    Raises:
        NetworkError: where the class is of another home or refuses the arguments.

    Example:
        >>> build({"_target_": "torch.nn.Linear", "in_features": 4, "out_features": 2})
        Linear(in_features=4, out_features=2, bias=True)
    """
    plain = dict(spec)
    if "_target_" not in plain:
        raise NetworkError(
            "a specification with a '_target_'",
            found=f"the keys {', '.join(sorted(map(str, plain))) or 'none'}",
            cure="Write e.g. {'_target_': 'monai.networks.nets.UNet', 'spatial_dims': 3, ...}.",
        )
    _check(plain, ours)
    try:
        network = asked_again(lambda: ConfigParser({"network": plain}).get_parsed_content("network"))
    except (RuntimeError, ModuleNotFoundError) as error:
        cause = error.__cause__ or error
        raise NetworkError(
            f"arguments that {plain['_target_']} takes",
            found=" ".join(str(cause).split())[:200],
            cure="Look at the class's own documentation.",
        ) from error
    if not isinstance(network, nn.Module):
        raise NetworkError(
            "a specification of a network", found=type(network).__name__, cure="Name a class of nn.Module."
        )
    return network


def _check(value: Any, ours: bool) -> None:
    """Refuse what would run code or come from elsewhere."""
    if isinstance(value, str) and value.startswith(("$", "@", "%")):
        raise NetworkError(
            "plain values in a network's specification", found=repr(value), cure="Write the value itself."
        )
    if isinstance(value, Mapping):
        target = value.get("_target_")
        if "_target_" in value and not is_network_part(target, ours=ours):
            raise NetworkError(
                "a network of MONAI or torch.nn",
                found=repr(target),
                cure="Name a class under monai.networks. or torch.nn., e.g. monai.networks.nets.ResNet where "
                "there is a function resnet18, too, or pass your own nn.Module in Python.",
            )
        if "_mode_" in value:  # MONAI would hand over the class itself, or call it in a debugger
            raise NetworkError(
                "a specification that is built as it is", found="the key '_mode_'", cure="Leave it out."
            )
        for item in value.values():
            _check(item, ours)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _check(item, ours)


def is_network_part(target: object, *, ours: bool = False) -> bool:
    """Whether a dotted name is that of a class of networks, of a module's own or handed on from another one.

    A module's imports can be reached by a dotted name, too (``torch.nn.functional.torch.hub.load``): so what
    is before the last dot must be a module that calls itself by just that name, and what is behind it must
    say that it was defined in one of the homes (``monai.networks.nets.hovernet.download_url`` was not). A
    function does what it likes: ``monai.networks.utils.save_state`` writes a file.

    Args:
        target: what stands for ``_target_``.
        ours: take the functions of :mod:`medmeta.learners` that make predictors, too.

    Example:
        >>> is_network_part("torch.nn.Linear"), is_network_part("torch.nn.functional.relu")
        (True, False)
    """
    homes = (*HOMES, OURS) if ours else HOMES
    if not isinstance(target, str) or not target.startswith(homes):
        return False
    place, _, name = target.rpartition(".")
    try:
        module = importlib.import_module(place)
    except Exception:  # noqa: BLE001 - whatever an import of something made up, ends in
        return False
    found = getattr(module, name, None)
    part = isinstance(found, type) and issubclass(found, nn.Module)
    made = place.startswith(OURS) and name.endswith("_predictor") and callable(found)
    home = f"{getattr(found, '__module__', None)}."
    return module.__name__ == place and (part or made) and home.startswith(homes)


def unet(spatial_dims: int, channels: int, base: int = 8, *, feature: int | None = None) -> dict[str, Any]:
    """Describe a small UNet for segmentation: features on the voxel grid of the image.

    Three halvings: every side of an image must be a multiple of 8. The first layer halves already, so that a
    gradient step costs a fifth of one at full resolution; in the same minutes, three times the outer steps
    more than make up for it. Instance norm keeps no running statistics, and every meta-gradient is right
    on it.

    Args:
        spatial_dims: 2 or 3.
        channels: channels of the image.
        base: channels after the first halving, doubled at each further one.
        feature: features a voxel, ``2 * base`` by default.

    Example:
        >>> import torch
        >>> build(unet(2, 1))(torch.zeros(1, 1, 32, 32)).shape
        torch.Size([1, 16, 32, 32])
    """
    return {
        "_target_": "monai.networks.nets.UNet",
        "spatial_dims": spatial_dims,
        "in_channels": channels,
        "out_channels": feature or 2 * base,
        "channels": [base, 2 * base, 4 * base, 8 * base],
        "strides": [2, 2, 2],
        "num_res_units": 0,
        "norm": "instance",
    }


def encoder(
    spatial_dims: int, channels: int, base: int = 16, *, feature: int | None = None
) -> dict[str, Any]:
    """Describe a small densely connected encoder for classification: one feature vector an image.

    Group norm, not instance norm: averaging a channel that was just normalised over the voxels would
    throw away what it found.

    Args:
        spatial_dims: 2 or 3.
        channels: channels of the image.
        base: channels each layer adds, a multiple of 4.
        feature: length of the feature vector, ``4 * base`` by default.

    Example:
        >>> import torch
        >>> build(encoder(3, 2))(torch.zeros(5, 2, 32, 32, 32)).shape
        torch.Size([5, 64])
    """
    return {
        "_target_": "monai.networks.nets.DenseNet",
        "spatial_dims": spatial_dims,
        "in_channels": channels,
        "out_channels": feature or 4 * base,
        "init_features": 2 * base,
        "growth_rate": base,
        "block_config": [2, 2, 2],
        "bn_size": 2,
        "norm": ["group", {"num_groups": 4}],
    }


def lesion_encoder(channels: int, patch: Sequence[int], base: int = 16) -> dict[str, Any]:
    """Describe a small convolutional encoder for lesions cut out of their scans: one feature vector an image.

    Three halvings, then one linear layer from all that is left: little, and enough where a lesion
    fills the patch; group norm for the reason of :func:`encoder`.

    Args:
        channels: channels of the image, the outline included.
        patch: voxels of an image, multiples of 8.
        base: channels after the first halving, a multiple of 4, doubled at each further one; the feature
            vector has four times as many.

    Example:
        >>> import torch
        >>> build(lesion_encoder(2, (24, 24, 24)))(torch.zeros(5, 2, 24, 24, 24)).shape
        torch.Size([5, 64])
    """
    return {
        "_target_": "monai.networks.nets.Regressor",
        "in_shape": [channels, *patch],
        "out_shape": [4 * base],
        "channels": [base, 2 * base, 4 * base],
        "strides": [2, 2, 2],
        "num_res_units": 0,
        "act": "relu",
        "norm": ["group", {"num_groups": 4}],
    }
