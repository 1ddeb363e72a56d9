"""What every learner promises: ``adapt(support)`` gives a predictor and leaves the learner as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

from torch import Tensor, nn

from medmeta.episodes.examples import Episode, Examples
from medmeta.errors import MedmetaError

Predictor: TypeAlias = Callable[[Tensor], Tensor]
"""``(n, channel, *voxel)`` images to ``(n, way, *space)`` logits; fits SlidingWindowInferer as is.

Every predictor of ours is an ``nn.Module`` in eval mode; :func:`medmeta.learners.plain_network` gives
the plain torch/MONAI network of those that can leave home.
"""


class LearnerError(MedmetaError):
    """A learner that cannot be made, trained or adapted as asked."""


@runtime_checkable
class Learner(Protocol):
    """Learning a new tumour type is calling a function. Every learner is an ``nn.Module`` besides.

    Attributes:
        name: the name it is created by.
        network: the backbone, image ``(n, channel, *voxel)`` to feature ``(n, feature, *space)``.
        options: JSON-serialisable keyword arguments that :func:`create_learner` makes the same learner from.
        tasks: which of ``"classification"`` and ``"segmentation"`` it can do.
    """

    name: str
    network: nn.Module
    options: Mapping[str, Any]
    tasks: frozenset[str]

    def adapt(self, support: Examples) -> Predictor:
        """Learn from the support; weights of the learner stay bitwise the same."""
        ...

    def backward(self, episodes: Sequence[Episode], *, scale: float) -> Tensor:
        """Add ``scale`` × the summed meta-gradient to ``.grad``; give the ``(t,)`` query losses.

        Summed, not averaged, so that a meta-batch sharded over ranks adds up to that of one process.
        """
        ...

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """What the outer loop optimises."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything learnt, for the checkpoint."""
        ...
