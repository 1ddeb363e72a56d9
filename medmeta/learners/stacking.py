"""Tasks of one shape as one batch: their tensors stacked, and how one task is read from its share of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from medmeta.episodes.examples import Episode
from medmeta.learners.batch import Piece
from medmeta.learners.loss import Balance
from medmeta.learners.metagradient import Weights

SIDES = ("support", "query")

_TENSORS: Mapping[str, Callable[[Piece], Tensor]] = {
    "image": lambda piece: piece.image,
    "target": lambda piece: piece.target,
    "weight": lambda piece: piece.share.weight,
    "lesion": lambda piece: piece.share.lesion,
}


def stacked(tasks: Sequence[tuple[Piece, Piece]]) -> Weights:
    """The tensors of supports and queries by name, each with an axis of the tasks before its own."""
    return {
        f"{side} {name}": torch.stack([value(task[i]) for task in tasks])
        for i, side in enumerate(SIDES)
        for name, value in _TENSORS.items()
    }


def task_of(tensors: Weights) -> tuple[Piece, Piece]:
    """Support and query of one task, from its tensors of :func:`stacked`, as inside ``vmap``."""
    support, query = ({name: tensors[f"{side} {name}"] for name in _TENSORS} for side in SIDES)
    return _piece(**support), _piece(**query)


def _piece(image: Tensor, target: Tensor, weight: Tensor, lesion: Tensor) -> Piece:
    return Piece(image, target, Balance(weight, lesion), 1.0)


def unbatchable(network: nn.Module, episodes: Sequence[Episode], *, named: bool = False) -> str:
    """Say why tasks cannot run at once, or nothing.

    Args:
        network: the backbone.
        episodes: the tasks.
        named: whether classes start from rows of the head that are theirs by name.
    """
    shapes = {(e.support.image.shape, e.query.image.shape, len(e.support.classes)) for e in episodes}
    if len(shapes) > 1:
        return "their shots or sizes differ"
    if named and len({e.support.classes for e in episodes}) > 1:
        return "their classes differ, and the head has a row for each by name"
    for name, module in network.named_modules():
        if getattr(module, "use_checkpoint", False) is True:
            return f"layer {name or type(network).__name__} checkpoints activations, which torch.func refuses"
    return ""
