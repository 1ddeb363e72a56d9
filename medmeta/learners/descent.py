"""The steps that ``adapt`` takes: slopes of a whole support set, and the direction to go from them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from medmeta.learners.inner import Inner
from medmeta.learners.metagradient import InnerLoop, Weights, autograd_slope, clipped, pulled
from medmeta.learners.quick import QuickLayers


def added_slopes(loops: Sequence[InnerLoop], moving: Weights, meta: Weights) -> Weights:
    """Add up the slopes of the pieces of a set."""
    total: Weights = {}
    for loop in loops:
        leaves = {n: w.detach().requires_grad_() for n, w in moving.items()}
        with torch.enable_grad(), QuickLayers():
            slopes = autograd_slope(loop, leaves, meta, False)
        total = {n: total[n] + s if n in total else s for n, s in slopes.items()}
    return total


class Descent:
    """Direction of each step of a descent: the slope, pulled to the start, cut to a length, or made Adam's.

    Args:
        inner: how the learner learns a task.
        start: the weights that the descent begins with.

    Example:
        >>> down = Descent(Inner(clip=1.0), {"w": torch.zeros(2)})
        >>> down({"w": torch.zeros(2)}, {"w": torch.tensor([3.0, 4.0])})
        {'w': tensor([0.6000, 0.8000])}
    """

    def __init__(self, inner: Inner, start: Weights) -> None:
        self.inner, self.start = inner, start
        self.adam = Adam()

    def __call__(self, moving: Weights, slopes: Weights) -> Weights:
        """Take in the slopes of one more step; the next weights are ``moving`` less a rate times this."""
        pull, limit = self.inner.proximity, self.inner.clip
        if pull:
            slopes = pulled(slopes, moving, self.start, pull)
        if limit:
            slopes = clipped(slopes, limit)
        return self.adam.direction(slopes) if self.inner.optimiser == "adam" else slopes


class Adam:
    """Direction of Adam (Kingma & Ba 2015, algorithm 1), from the slopes seen so far."""

    def __init__(self, decay: tuple[float, float] = (0.9, 0.999), tiny: float = 1e-8) -> None:
        self.decay, self.tiny, self.time = decay, tiny, 0
        self.mean: Weights = {}
        self.square: Weights = {}

    def direction(self, slopes: Weights) -> Weights:
        """Take in the slopes of one more step."""
        self.time += 1
        first, second = self.decay
        for name, slope in slopes.items():
            zero = torch.zeros_like(slope)
            self.mean[name] = first * self.mean.get(name, zero) + (1 - first) * slope
            self.square[name] = second * self.square.get(name, zero) + (1 - second) * slope.square()
        one, two = 1 - first**self.time, 1 - second**self.time
        return {n: self.mean[n] / one / ((self.square[n] / two).sqrt() + self.tiny) for n in slopes}
