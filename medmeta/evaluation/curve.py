"""Score against labels, every method on one grid of draws and patients, so that differences are paired."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medmeta.evaluation.cells import Cells
from medmeta.evaluation.differences import Difference, against
from medmeta.evaluation.intervals import RESAMPLES, Interval, interval, resampled
from medmeta.evaluation.records import Case, by_patient
from medmeta.evaluation.scores import SCORES, task_of


@dataclass(frozen=True)
class Curve:
    """The score of one method on one tumour type at each number of labelled patients.

    Args:
        method: its name.
        cells: ``(draw, patient)`` at each number of labels; the same draws and patients for every method, nan
            where a patient was learnt from.
        gain: of the score at the most labels over that at the next fewer; None where there is one number.
    """

    method: str
    cells: Mapping[int, Cells]
    gain: Cells | None = None

    @property
    def shots(self) -> tuple[int, ...]:
        """Labelled patients, rising."""
        return tuple(sorted(self.cells))

    @property
    def score(self) -> NDArray[np.float64]:
        """``(shots,)``."""
        return np.array([np.nanmean(self.cells[s]) for s in self.shots])

    def at(self, shot: int) -> Interval:
        """The score with its interval."""
        return interval(self.cells[shot], bounds=(0.0, 1.0))

    def samples(self, seed: int = 0, resamples: int = RESAMPLES) -> NDArray[np.float64]:
        """``(resamples, shots)`` by the bootstrap; a row of two curves is of the same draws and patients."""
        return np.stack([resampled(self.cells[s], seed=seed, resamples=resamples) for s in self.shots], 1)


def learning_curves(cases: Sequence[Case], metric: str) -> dict[str, Curve]:
    """The curve of every method, from the cases of one tumour type.

    Args:
        cases: of one tumour type.
        metric: one of :data:`medmeta.evaluation.scores.SCORES`.

    Example:
        >>> cases = [Case("a", k, "m", 0, str(p), {"dice": k * p / 10}) for k in (1, 2) for p in (1, 2, 3)]
        >>> learning_curves(cases, "dice")["m"].score.round(2).tolist()
        [0.2, 0.4]
    """
    cases = by_patient(cases)
    patients, draws = list(dict.fromkeys(c.patient for c in cases)), sorted({c.draw for c in cases})
    groups: dict[str, dict[int, list[Case]]] = {}
    for case in cases:
        groups.setdefault(case.method, {}).setdefault(case.shot, []).append(case)
    made = {}
    for method, by_shot in groups.items():
        cells = {shot: _cells(some, metric, patients, draws) for shot, some in by_shot.items()}
        known = {shot: table for shot, table in cells.items() if np.isfinite(table).any()}
        if known:
            made[method] = Curve(method, known, _gain([by_shot[shot] for shot in sorted(known)], metric))
    return made


def _gain(by_shot: Sequence[Sequence[Case]], metric: str) -> Cells | None:
    """What each patient counts for the gain from the last number of labels but one to the last."""
    if len(by_shot) < 2:
        return None
    then, now = by_shot[-2:]
    return SCORES[task_of(now)][metric].make(now, then)


def _cells(cases: Sequence[Case], metric: str, patients: Sequence[str], draws: Sequence[int]) -> Cells:
    """What each patient counts, on a grid of all draws and patients."""
    some = SCORES[task_of(cases)][metric].make(cases)
    whose, drawn = {c.patient for c in cases}, {c.draw for c in cases}
    whole = np.full((len(draws), len(patients)), np.nan)
    rows = [draws.index(d) for d in sorted(drawn)]
    columns = [i for i, p in enumerate(patients) if p in whose]  # in the order that the cases are in
    whole[np.ix_(rows, columns)] = some
    return whole


def ahead(curves: Mapping[str, Curve], one: str, shot: int) -> dict[str, Difference]:
    """How far one method is ahead of each other at a number of labels, on the same patients and supports.

    Args:
        curves: of every method.
        one: its name; as it is picked for its score, p values are adjusted for all of these comparisons.
        shot: number of labels that it was judged at; others that were not are left out.
    """
    cells = {name: curve.cells[shot] for name, curve in curves.items() if shot in curve.shots}
    return {d.other: d for d in against(one, cells)}
