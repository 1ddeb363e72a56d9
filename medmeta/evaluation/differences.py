"""How far one method is ahead of another on the very same patients and supports, with a test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from medmeta.evaluation.cells import Cells
from medmeta.evaluation.intervals import Interval, spread


@dataclass(frozen=True)
class Difference:
    """One method's score minus another's, paired by patient and draw.

    Args:
        one, other: the methods.
        interval: of the difference, 95 %; without ends where it is the same for all.
        p: two-sided, that there is none (t test on the two-way clustered variance); None where it cannot be
            told.
        adjusted: the same for all comparisons made at once (Holm 1979).
        patients: in both; of a score that compares classes those of the smallest one.
    """

    one: str
    other: str
    interval: Interval
    p: float | None
    adjusted: float | None
    patients: int

    @property
    def turned(self) -> Difference:
        """The other method's score minus the one's."""
        low, mean, high = (
            None if v is None else 0.0 - v
            for v in (self.interval.high, self.interval.mean, self.interval.low)
        )
        return replace(self, one=self.other, other=self.one, interval=Interval(mean, low, high))

    def to_json(self) -> dict[str, str | float | int | None]:
        """By name, for other programs."""
        return {
            "one": self.one,
            "other": self.other,
            **self.interval.to_json(),
            "p": self.p,
            "p_adjusted": self.adjusted,
            "patients": self.patients,
        }


def difference(one: str, other: str, cells: Mapping[str, Cells]) -> Difference:
    """The paired difference of two methods' cells, on those that both have.

    Args:
        one, other: names in ``cells``.
        cells: ``(draw, patient)`` of each method, all of the same draws and patients.

    Example:
        >>> cells = {"a": np.array([[0.5, 0.6, 0.7]]), "b": np.array([[0.4, 0.55, 0.6]])}
        >>> found = difference("a", "b", cells)
        >>> found.interval.mean, found.p
        (0.0833, 0.0377)
    """
    apart = cells[one] - cells[other]
    return Difference(one, other, *paired(apart), None, int(np.isfinite(apart).any(0).sum()))


def paired(apart: Cells) -> tuple[Interval, float | None]:
    """The mean of paired differences with its 95 % interval, and p that it is 0.

    Args:
        apart: ``(draw, patient)``, nan where one of the two says nothing.

    Returns:
        The interval, without ends where it is the same for all, and p, two-sided, of the t test that it is
        the inverse of; None where there are no ends.

    Example:
        >>> paired(np.array([[0.1, 0.05, 0.1]]))[0].to_json()
        {'mean': 0.0833, 'low': 0.0116, 'high': 0.155}
    """
    found = spread(apart)
    p = found.p if found else None
    if found is None or p is None:
        known = apart[np.isfinite(apart)]
        return Interval(round(float(known.mean()), 4) if len(known) else None, None, None), None
    half = found.quantile * found.variance**0.5
    ends = [round(found.mean + sign * half, 4) for sign in (-1, 1)]
    return Interval(round(found.mean, 4), *ends), float(f"{p:.3g}")


def against(ours: str, cells: Mapping[str, Cells]) -> list[Difference]:
    """One method beside every other, p values adjusted for all of these comparisons.

    Args:
        ours: name in ``cells``.
        cells: as for :func:`difference`.
    """
    return _holm([difference(ours, other, cells) for other in cells if other != ours])


def _holm(found: Sequence[Difference]) -> list[Difference]:
    """Step-down adjusted p values (Holm 1979)."""
    order = sorted((i for i, d in enumerate(found) if d.p is not None), key=lambda i: found[i].p or 0.0)
    adjusted: dict[int, float] = {}
    worst = 0.0
    for rank, i in enumerate(order):
        worst = max(worst, min(1.0, (len(order) - rank) * (found[i].p or 0.0)))
        adjusted[i] = float(f"{worst:.3g}")
    return [replace(d, adjusted=adjusted.get(i)) for i, d in enumerate(found)]
