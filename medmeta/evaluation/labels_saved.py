"""How many labels one way of learning needs to score as another does, and whether to label more."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

from medmeta.evaluation.curve import Curve
from medmeta.evaluation.differences import paired
from medmeta.evaluation.intervals import Interval, resampled

WORTH = 0.01
"""A gain a doubling of the labels below which labelling more hardly pays: a point of Dice or AUROC."""


@dataclass(frozen=True)
class Needed:
    """Labelled patients that a method needs for a score.

    Args:
        labels: interpolated on its learning curve; None where the curve does not get there.
        low, high: 2.5th and 97.5th percentile of the bootstrap; None where that is beyond the curve.
        least, most: numbers of labels the curve begins and ends at.
    """

    labels: float | None
    low: float | None
    high: float | None
    least: int
    most: int

    def to_json(self) -> dict[str, float | None]:
        """By name; ``labels``, ``low`` and ``high`` are None where more than ``most`` are needed."""
        return {
            "labels": self.labels, "low": self.low, "high": self.high, "least": self.least, "most": self.most
        }  # fmt: skip


@dataclass(frozen=True)
class Slope:
    """What the last labels brought.

    Args:
        gain: score a doubling of the labels, between the two largest numbers of labels, with its interval.
        first, last: those two numbers.
    """

    gain: Interval
    first: int
    last: int

    @property
    def verdict(self) -> str:
        """``"more"``, ``"enough"`` or ``"unknown"``."""
        if self.gain.mean is None or self.gain.low is None or self.gain.high is None:
            return "unknown"
        if self.gain.low > 0 and self.gain.mean >= WORTH:
            return "more"
        return "enough" if self.gain.high < WORTH else "unknown"


def labels_needed(plain: Curve, target: Curve, shot: int) -> Needed:
    """Labels that ``plain`` needs to score as ``target`` does with ``shot``.

    The plain curve is made to rise (isotonic regression, Barlow et al. 1972) and read off linearly in the
    logarithm of the labels; the same is done in every resample.

    Example:
        >>> made = lambda name, **at: Curve(name, {int(k[1:]): np.full((2, 3), v) for k, v in at.items()})
        >>> plain = made("plain", _1=0.2, _5=0.5, _20=0.7)
        >>> labels_needed(plain, made("ours", _5=0.6), 5).labels
        10.0
        >>> labels_needed(plain, made("ours", _5=0.8), 5).labels is None
        True
    """
    value = float(np.nanmean(target.cells[shot]))
    goals = resampled(target.cells[shot])
    found = [_read(plain.shots, row, goal) for row, goal in zip(plain.samples(), goals, strict=True)]
    known = np.sort([n for n in found if not np.isnan(n)])
    ends: tuple[float | None, float | None] = (None, None)
    if len(known):  # inf stands for "not reached": percentiles are taken without interpolating into it
        low, high = np.percentile(known, [2.5, 97.5], method="nearest")
        ends = (_finite(low), _finite(high))
    return Needed(_finite(_read(plain.shots, plain.score, value)), *ends, plain.shots[0], plain.shots[-1])


def _finite(number: float) -> float | None:
    return round(float(number), 1) if np.isfinite(number) else None


def _read(shots: tuple[int, ...], scores: NDArray[np.float64], goal: float) -> float:
    """Labels at which a rising curve reaches the goal; inf where it does not, nan where nothing is known."""
    known = np.isfinite(scores)
    if not known.any() or not np.isfinite(goal):
        return float("nan")
    labels = np.log2(np.array(shots, dtype=float)[known])
    rising = isotonic_regression(scores[known]).x
    if goal > rising[-1] + 1e-12:
        return float("inf")
    after = int(np.argmax(rising >= goal - 1e-12))
    if after == 0:
        return float(2 ** labels[0])
    share = (goal - rising[after - 1]) / (rising[after] - rising[after - 1])
    return float(2 ** (labels[after - 1] + share * (labels[after] - labels[after - 1])))


def slope(curve: Curve) -> Slope | None:
    """The gain a doubling between the two largest numbers of labels; None where only one was judged.

    Its mean is None where no support of both was judged on the same patients.

    Example:
        >>> cells = {1: np.array([[0.2, 0.3]]), 4: np.array([[0.6, 0.9]])}
        >>> slope(Curve("m", cells, gain=cells[4] - cells[1])).gain.mean
        0.25
    """
    if len(curve.shots) < 2 or curve.gain is None:
        return None
    first, last = curve.shots[-2:]
    gain, _ = paired(curve.gain / np.log2(last / first))
    return Slope(gain, first, last)
