"""Score against labels, every method resampled together, so that differences keep their pairing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medmeta.evaluation.intervals import RESAMPLES, Interval
from medmeta.evaluation.protocol import Case

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """The mean score of one method on one tumour type at each number of labelled patients.

    Args:
        shots: labelled patients, rising.
        score: ``(shots,)``, over all cases.
        samples: ``(resamples, shots)``, of the bootstrap over patients and draws; row ``i`` of two methods'
            curves is of the same patients and draws. nan where a resample says nothing.
    """

    shots: tuple[int, ...]
    score: Array
    samples: Array

    def at(self, shot: int) -> tuple[float, Array]:
        """Score and resampled scores at a number of labels."""
        place = self.shots.index(shot)
        return float(self.score[place]), self.samples[:, place]


def learning_curves(
    cases: Sequence[Case], metric: str, *, seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, Curve]:
    """The curve of every method, from the cases of one tumour type.

    Patients are resampled with all their cases, and so are draws of the support (Davison & Hinkley 1997,
    section 3.8), the very same ones for every method and number of labels.

    Args:
        cases: of one tumour type.
        metric: the name of a value of each case, averaged; or ``"auroc"``, of the cases' probabilities within
            each draw, averaged over draws.
        seed, resamples: of the bootstrap.

    Example:
        >>> cases = [Case("a", k, "m", 0, str(p), {"dice": k * p / 10}) for k in (1, 2) for p in (1, 2, 3)]
        >>> learning_curves(cases, "dice")["m"].score.round(2).tolist()
        [0.2, 0.4]
    """
    patients, draws = sorted({c.patient for c in cases}), sorted({c.draw for c in cases})
    generator = np.random.default_rng(seed)
    weights = [
        np.stack([np.bincount(generator.choice(n, n), minlength=n) for _ in range(resamples)]).astype(float)
        for n in (len(patients), len(draws))
    ]
    groups: dict[tuple[str, int], list[Case]] = {}
    for case in cases:
        groups.setdefault((case.method, case.shot), []).append(case)
    made: dict[str, dict[int, tuple[float, Array]]] = {}
    score = _areas if metric == "auroc" else _means
    for (method, shot), some in groups.items():
        where = [(draws.index(c.draw), patients.index(c.patient)) for c in some]
        value, samples = score(some, metric, where, weights[1], weights[0])
        if np.isfinite(value):
            made.setdefault(method, {})[shot] = value, samples
    return {method: _curve(by_shot) for method, by_shot in made.items()}


def _curve(by_shot: Mapping[int, tuple[float, Array]]) -> Curve:
    shots = tuple(sorted(by_shot))
    return Curve(
        shots, np.array([by_shot[s][0] for s in shots]), np.stack([by_shot[s][1] for s in shots], axis=1)
    )


def _means(
    cases: Sequence[Case], metric: str, where: Sequence[tuple[int, int]], by_draw: Array, by_patient: Array
) -> tuple[float, Array]:
    """Mean of a value over cases: as it is, and with patients and draws weighted."""
    total = np.zeros((by_draw.shape[1], by_patient.shape[1]))
    count = np.zeros_like(total)
    for case, (draw, patient) in zip(cases, where, strict=True):
        value = case.values.get(metric)
        if value is not None:
            total[draw, patient] += value
            count[draw, patient] += 1
    if not count.any():
        return np.nan, np.full(len(by_draw), np.nan)
    weighed = [
        np.einsum("bd,dp,bp->b", by_draw, table, by_patient, optimize=True) for table in (total, count)
    ]
    return float(total.sum() / count.sum()), _ratio(*weighed)


def _areas(
    cases: Sequence[Case], metric: str, where: Sequence[tuple[int, int]], by_draw: Array, by_patient: Array
) -> tuple[float, Array]:
    """Area under the ROC curve within each draw, averaged over draws: probabilities differ in scale."""
    whole, sampled, known = [], [], []
    for draw in range(by_draw.shape[1]):
        mine = [(c, p) for c, (d, p) in zip(cases, where, strict=True) if d == draw]
        chance = np.array([c.probability for c, _ in mine], dtype=float)
        truth, patient = np.array([c.truth for c, _ in mine], dtype=bool), [p for _, p in mine]
        if truth.all() or not truth.any():
            continue
        over = chance[truth][:, None] - chance[~truth][None]
        wins = (over > 0) + 0.5 * (over == 0)
        some = by_patient[:, patient]
        one, other = some[:, truth], some[:, ~truth]
        whole.append(wins.mean())
        sampled.append(_ratio(((one @ wins) * other).sum(1), one.sum(1) * other.sum(1)))
        known.append(draw)
    if not whole:
        return np.nan, np.full(len(by_draw), np.nan)
    areas, weight = np.stack(sampled, axis=1), by_draw[:, known]
    weight = np.where(np.isfinite(areas), weight, 0.0)
    return float(np.mean(whole)), _ratio((weight * np.nan_to_num(areas)).sum(1), weight.sum(1))


def _ratio(above: Array, below: Array) -> Array:
    return np.divide(above, below, out=np.full(len(above), np.nan), where=below > 0)


def interval_of(value: float, samples: Array) -> Interval:
    """A figure with the 2.5th and 97.5th percentile of its resamples."""
    known = samples[np.isfinite(samples)]
    if not len(known):
        return Interval(round(value, 4), None, None)
    low, high = np.percentile(known, [2.5, 97.5])
    return Interval(round(value, 4), round(float(low), 4), round(float(high), 4))


def chance_of_none(samples: Array) -> float:
    """Two-sided p of a difference by its bootstrap: twice the share of resamples on the rarer side of 0.

    Example:
        >>> chance_of_none(np.array([0.1, 0.2, 0.3, -0.1]))
        0.8
    """
    known: Any = samples[np.isfinite(samples)]
    rarer = min((known <= 0).sum(), (known >= 0).sum())
    return float(min(1.0, 2 * (rarer + 1) / (len(known) + 1)))
