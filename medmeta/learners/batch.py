"""A set of examples as the tensors a learner works on, cut into pieces that memory can hold."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from medmeta.episodes import generator_of
from medmeta.episodes.examples import Episode, Examples
from medmeta.learners.loss import Balance, balance, one_hot
from medmeta.learners.protocol import LearnerError
from medmeta.learners.turns import held
from medmeta.networks import running_statistics
from medmeta.shape import Feature, Image

ModuleT = TypeVar("ModuleT", bound=nn.Module)
PIECE = 2**21
"""Numbers of image that go through a network at once when adapting: two volumes of 96 voxels a side."""


@dataclass(frozen=True)
class Piece:
    """Part of a set.

    Args:
        image: ``(n, channel, *voxel)``.
        target: ``(n, way, *space)`` one-hot labels.
        share: the balance of classes in the whole set.
        part: how much of the whole set this is, 0 to 1.
    """

    image: Image
    target: Tensor
    share: Balance
    part: float

    @property
    def dense(self) -> bool:
        """Whether the labels are one a voxel."""
        return self.target.ndim > 2


def whole(examples: Examples, like: Tensor) -> Piece:
    """Take a set as one piece, on the device and in the precision of ``like``."""
    image = examples.image
    if hasattr(image, "as_tensor"):  # MetaTensor ends here
        image = image.as_tensor()
    if image.is_inference():  # of which no slope can be taken
        image = image.clone()
    image = image.to(like)
    if image.ndim == 5:  # a quarter faster on a CPU, the same numbers
        image = image.contiguous(memory_format=torch.channels_last_3d)
    target = one_hot(examples.label.to(like.device), len(examples.classes), like.dtype)
    return Piece(image, target, balance(target), 1.0)


def pieces(examples: Examples, like: Tensor, *, most: int = PIECE) -> list[Piece]:
    """Cut a set into parts of at most ``most`` numbers of image; sums over the parts are those of the set.

    Example:
        >>> examples = Examples(torch.zeros(5, 1, 8, 8), torch.tensor([0, 1, 0, 1, 0]), ("a", "b"))
        >>> [p.part for p in pieces(examples, torch.zeros(()), most=128)]
        [0.4, 0.4, 0.2]
    """
    everything = whole(examples, like)
    image, n = everything.image, len(everything.image)
    size = max(1, int(min(most / max(1, image[:1].numel()), n)))
    return [
        Piece(image[i : i + size], everything.target[i : i + size], everything.share, min(size, n - i) / n)
        for i in range(0, n, size)
    ]


@contextmanager
def still(network: nn.Module) -> Iterator[None]:
    """Hold a network in eval mode: a task is a function of its support, so nothing in it is random.

    One thread at a time, as of :func:`held`: another one would find it in this one's mode.
    """
    with held(network):
        modes = [(m, m.training) for m in network.modules()]
        network.eval()
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode


def copied(module: ModuleT) -> ModuleT:
    """Copy a module; what its last pass left in it, as activations kept for a map, loses its graph.

    Torch copies no tensor that has one: weights normalised by a hook, or what a layer remembers.
    """
    kept = [v for m in module.modules() for v in vars(m).values()]
    kept += [v for many in kept if isinstance(many, (list, tuple)) for v in many]
    left = {id(v): v.detach() for v in kept if isinstance(v, Tensor) and v.grad_fn is not None}
    return copy.deepcopy(module, left)


def own_copy(network: nn.Module) -> nn.Module:
    """Copy a network for a predictor, in eval mode and between two threads' turns at it."""
    with held(network):
        return copied(network).eval()


@contextmanager
def seeded(seed: int, *index: int) -> Iterator[None]:
    """Let torch's own generators draw by a seed, and go on afterwards as if nothing had been drawn.

    Args:
        seed: of the whole.
        index: which of its draws, such as the step and the process; another index, another seed.

    Example:
        >>> def drawn(*seed: int) -> float:
        ...     with seeded(*seed):
        ...         return float(torch.rand(()))
        >>> drawn(0, 7) == drawn(0, 7), drawn(0, 7) == drawn(1, 7), drawn(0, 7) == drawn(0, 8)
        (True, False, False)
    """
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(generator_of(seed, *index).initial_seed() if index else seed)
        yield


def parameter_like(network: nn.Module) -> Tensor:
    """Give a tensor on the device and in the precision of a network.

    Raises:
        LearnerError: where the network has no weights at all.
    """
    for weight in network.parameters():
        return weight
    raise LearnerError(
        "a network with weights", found=type(network).__name__, cure="Give a backbone that can learn."
    )


def check_network(network: nn.Module) -> None:
    """Refuse a backbone that remembers earlier tasks, gives features of several depths at once or has weights
    of no size yet.

    Raises:
        LearnerError: naming the layers and what to change.
    """
    unmade = [name for name, weight in network.named_parameters() if is_lazy(weight)]
    if unmade:
        raise LearnerError(
            "a network whose weights have a size",
            found=f"{unmade[0]} of a lazy layer without one",
            cure="Run it once on an image before, or build that layer with its number of channels.",
        )
    _refuse_running_statistics(network)
    _refuse_deep_supervision(network)


def _refuse_deep_supervision(network: nn.Module) -> None:
    """MONAI's DynUNet stacks them along an axis of their own in training; BasicUNetPlusPlus puts its
    shallowest first."""
    for module in network.modules():
        if getattr(module, "deep_supervision", False) is True:
            raise LearnerError(
                "a network that gives the features of its last layer alone",
                found=f"{type(module).__name__} with deep_supervision=True",
                cure="Build it with deep_supervision=False.",
            )


def _refuse_running_statistics(network: nn.Module) -> None:
    """Refuse batch norm that remembers earlier tasks.

    Raises:
        LearnerError: naming the first such layer and what to put in its place.
    """
    layers = running_statistics(network)
    if layers:
        raise LearnerError(
            "a network without running batch statistics, which leak one task into the next and have no "
            "second derivative",
            found=f"{len(layers)} layer(s) that keep them, first {layers[0]!r}",
            cure="Build it with norm='instance', or pass it through medmeta.networks.group_norm(network).",
        )


def fixed_weights(network: nn.Module) -> frozenset[str]:
    """Name the weights that require no gradient: somebody froze them, and no task moves them.

    Example:
        >>> network = nn.Sequential(nn.Linear(2, 2).requires_grad_(False), nn.Linear(2, 2, bias=False))
        >>> sorted(fixed_weights(network))
        ['0.bias', '0.weight']
    """
    return frozenset(name for name, weight in network.named_parameters() if not weight.requires_grad)


def of_size(feature: Feature, size: int) -> Feature:
    """Give features as they are, of the number that what comes next is for.

    Raises:
        LearnerError: where there are more or fewer.
    """
    if feature.shape[1] != size:
        raise LearnerError(
            f"a network of {size} features for this head",
            found=f"{feature.shape[1]}",
            cure=f"Create the learner with feature={feature.shape[1]}.",
        )
    return feature


def check_support(support: Examples) -> None:
    """Refuse a support set in which a class has no example.

    Raises:
        LearnerError: naming the classes.
    """
    shots = support.shot if len(support.image) else [0] * len(support.classes)
    missing = [c for c, shot in zip(support.classes, shots, strict=True) if not shot]
    if missing:
        raise LearnerError(
            f"at least one labelled example of each class ({', '.join(support.classes)})",
            found=f"none of {', '.join(missing)}",
            cure="Add an example or leave the class out.",
        )


def check_episode(episode: Episode) -> None:
    """Refuse an episode to learn from of which a class has no example, or nothing is asked.

    Raises:
        LearnerError: naming the classes.
    """
    check_support(episode.support)
    if not len(episode.query.image):
        raise LearnerError("a query of one example or more", found="none", cure="Draw query=1 or more.")
