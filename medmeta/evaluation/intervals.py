"""Intervals that know that voxels of one patient are not many patients, and that the support was drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

RESAMPLES = 1000


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval; None where a metric says nothing.

    Args:
        mean: over all cases.
        low, high: 2.5th and 97.5th percentile of the bootstrap.
    """

    mean: float | None
    low: float | None
    high: float | None

    def to_json(self) -> dict[str, float | None]:
        """The three numbers by name."""
        return {"mean": self.mean, "low": self.low, "high": self.high}


def clustered(
    patients: Sequence[str],
    draws: Sequence[int],
    statistic: Callable[[np.ndarray[Any, Any]], float | None],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Interval:
    """Bootstrap a statistic over patients and over draws of the support, both with replacement.

    All cases of a patient are taken or left together (Davison & Hinkley 1997, section 3.8), and all cases
    of a draw of the support too, so both variances are in the interval.

    Args:
        patients: key of each case.
        draws: number of the support draw of each case.
        statistic: of the case numbers that it is given (some repeatedly); None where undefined.
        seed: of the resampling.
        resamples: bootstrap samples.

    Example:
        >>> values = np.array([0.5, 0.7, 0.6, 0.8])
        >>> clustered(["a", "b", "a", "b"], [0, 0, 1, 1], lambda i: float(values[i].mean())).mean
        0.65
    """
    where: dict[tuple[str, int], list[int]] = {}
    for number, key in enumerate(zip(patients, draws, strict=True)):
        where.setdefault(key, []).append(number)
    names, drawn = sorted(set(patients)), sorted(set(draws))
    mean = statistic(np.arange(len(patients)))
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(resamples):
        some = generator.choice(len(names), len(names))
        supports = generator.choice(len(drawn), len(drawn))
        cases = [i for d in supports for p in some for i in where.get((names[p], drawn[d]), ())]
        if cases and (value := statistic(np.array(cases))) is not None:
            found.append(value)
    if mean is None or not found:
        return Interval(mean, None, None)
    low, high = np.percentile(found, [2.5, 97.5])
    return Interval(round(float(mean), 4), round(float(low), 4), round(float(high), 4))
