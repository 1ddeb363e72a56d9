"""Grown trees as tensors: they go into a state dict, so that a predictor with trees can leave home."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.ensemble import ExtraTreesClassifier
from torch import Tensor, nn

from medmeta.learners.growing import Points

TOGETHER = 6
"""Questions that all points are asked before those that have arrived are put aside."""


class Forest(nn.Module):
    """Trees that tell one class from all else.

    Args:
        trees: how many.
        nodes: of the largest tree; smaller ones are filled up with leaves that nothing leads to.
    """

    feature: Tensor
    threshold: Tensor
    below: Tensor
    above: Tensor
    chance: Tensor

    def __init__(self, trees: int, nodes: int) -> None:
        super().__init__()
        for name in ("feature", "below", "above"):
            self.register_buffer(name, torch.zeros(trees, nodes, dtype=torch.int32))
        self.register_buffer("threshold", torch.zeros(trees, nodes))
        self.register_buffer("chance", torch.zeros(trees, nodes, dtype=torch.float64))
        self.grown: ExtraTreesClassifier | None = None

    @staticmethod
    def of(grown: ExtraTreesClassifier) -> Forest:
        """Write down scikit-learn's trees, grown on labels 0 and 1, and answer by them while they are there.

        Example:
            >>> x = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
            >>> grown = ExtraTreesClassifier(5, random_state=0).fit(x, (x[:, 0] > 0).astype(int))
            >>> home = Forest.of(grown)
            >>> away = Forest(5, home.feature.shape[1])
            >>> _ = away.load_state_dict(home.state_dict())
            >>> bool((home(x) == away(x)).all())
            True
        """
        trees = [own.tree_ for own in grown.estimators_]
        made = Forest(len(trees), max(t.node_count for t in trees))
        for row, tree in enumerate(trees):
            inner, itself = tree.children_left >= 0, np.arange(tree.node_count)
            chance = tree.value[:, 0] / tree.value[:, 0].sum(1, keepdims=True)
            for buffer, values in (
                (made.feature, np.where(inner, tree.feature, 0)),
                (made.threshold, np.where(inner, _down(tree.threshold), 0)),
                (made.below, np.where(inner, tree.children_left, itself)),
                (made.above, np.where(inner, tree.children_right, itself)),
                (made.chance, chance[:, 1]),
            ):
                buffer[row, : tree.node_count] = torch.from_numpy(values)
        made.grown = grown
        return made

    def forward(self, points: Points) -> Points:
        """Probability of the class, ``(voxels)``, by points ``(voxels, features)`` of float32.

        The same to the last bit by the tensors as by scikit-learn, which takes a third of the time.
        """
        if self.grown is not None:
            return self.grown.predict_proba(points)[:, 1].astype(np.float32)
        said = np.zeros(len(points))
        for tree in range(len(self.feature)):
            self._add(said, points, tree)
        return (said / len(self.feature)).astype(np.float32)

    def _add(self, said: NDArray[np.float64], points: Points, tree: int) -> None:
        feature, below, above = (
            getattr(self, name)[tree].numpy().astype(np.intp) for name in ("feature", "below", "above")
        )
        threshold, chance = self.threshold[tree].numpy(), self.chance[tree].numpy()
        child, flat = np.stack([above, below], 1).ravel(), points.ravel()
        going = np.arange(len(points))
        start, node = going * points.shape[1], np.zeros(len(points), np.intp)
        while len(going):
            for _ in range(TOGETHER):  # a leaf leads to itself
                low = flat.take(start + feature.take(node)) <= threshold.take(node)
                node = child.take(2 * node + low)
            on = child.take(2 * node) != node
            said[going[~on]] += chance.take(node[~on])
            going, start, node = going[on], start[on], node[on]


def _down(threshold: NDArray[np.float64]) -> Points:
    """The highest float32 that is not above: no float32 is told apart otherwise by the one than by the other.

    Example:
        >>> float(_down(np.array([0.1]))[0]) <= 0.1 < float(np.nextafter(_down(np.array([0.1])), 1)[0])
        True
    """
    near = threshold.astype(np.float32)
    return np.where(near > threshold, np.nextafter(near, np.float32(-np.inf)), near).astype(np.float32)


__all__ = ["Forest"]
