"""The scores of a report: what each is called, which way is better, and how cases make it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from medmeta.evaluation import metrics
from medmeta.evaluation.cells import Cells, cells_of, pseudo_values
from medmeta.evaluation.intervals import Interval, interval
from medmeta.evaluation.records import Case, Judged

ANY, SHARE, POSITIVE = (-np.inf, np.inf), (0.0, 1.0), (0.0, np.inf)
LIMIT = 1.96
"""Standard deviations from the bias to a limit of agreement (Bland & Altman 1986)."""
AGREEMENT = f"{LIMIT} deviations {{}} the mean of a draw's scans, each scan and then each draw counting once"
ONCE = "of several of a patient their mean"
SPECIFICITY = 0.9
"""At which sensitivity is given."""
TOGETHER = 3
"""Patients free of the tumour that are left out at once, where there are twice as many, to see how sure a
sensitivity is: its threshold is a quantile of them, which hardly moves without one (Shao & Wu 1989)."""


class Make(Protocol):
    """Cases of one tumour type, number of shots and method to ``(draw, patient)``.

    With ``before``, cases of the same draws at another number of shots: what each patient counts for how much
    the score is higher than that of those. Groups of patients (see :func:`pseudo_values`) are of all of them
    together: two scores' own groups are not the same patients, and one may have none where the other has.
    """

    def __call__(self, cases: Sequence[Case], before: Sequence[Case] = ()) -> Cells:
        """Make it."""
        ...


@dataclass(frozen=True)
class Score:
    """One figure of a report.

    Args:
        label: its name, with the unit.
        make: what each patient counts.
        bounds: of what is measured.
        better: ``"high"``, ``"low"`` or ``"near 0"``.
        about: in one sentence, what is judged.
        chance: what a method that knows nothing scores; said of those that decide.
    """

    label: str
    make: Make
    bounds: tuple[float, float] = SHARE
    better: str = "high"
    about: str = ""
    chance: float = 0.0


def _value(name: str) -> Make:
    """The mean of a value that each case has."""

    def make(cases: Sequence[Case], before: Sequence[Case] = ()) -> Cells:
        means = _means(cases, name)
        if before:
            then = _means(before, name)
            means = {key: _less(mean, then.get(key)) for key, mean in means.items()}
        return cells_of([p for p, _ in means], [d for _, d in means], list(means.values()))

    return make


def _means(cases: Sequence[Case], name: str) -> dict[tuple[str, int], float | None]:
    """A value's mean over the scans of each patient and draw: nothing says which scan a case is of."""
    values: dict[tuple[str, int], list[float]] = {}
    for case in cases:
        found = values.setdefault((case.patient, case.draw), [])
        if (value := case.values.get(name)) is not None:
            found.append(value)
    return {key: float(np.mean(some)) if some else None for key, some in values.items()}


def _less(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other


def _by_draw(
    statistic: Callable[[Sequence[Case]], float | None], says: Callable[[Case], float | bool | None]
) -> Make:
    """A statistic of those cases of a draw that say something, averaged over draws.

    The others are no patients of it: with many free of the tumour nobody knows more of lesions.
    """

    def make(cases: Sequence[Case], before: Sequence[Case] = ()) -> Cells:
        return _pooled(
            [*cases, *before],
            len(cases) if before else None,
            lambda i, both: statistic([both[int(k)] for k in i]),
            classes=[True if says(c) else None for c in (*cases, *before)],
        )

    return make


def _pooled(
    both: Sequence[Case],
    after: int | None,
    statistic: Callable[[NDArray[np.int64], Sequence[Case]], float | None],
    **how: Any,
) -> Cells:
    """A statistic of all cases of a draw; or of its first ``after`` cases, less that of the others."""

    def of(i: NDArray[np.int64]) -> float | None:
        if after is None:
            return statistic(i, both)
        now, then = i[i < after], i[i >= after]
        if not len(now) or not len(then):
            return None
        return _less(statistic(now, both), statistic(then, both))

    return pseudo_values([c.patient for c in both], [c.draw for c in both], of, **how)


def _chance(
    metric: Callable[[NDArray[np.float64], NDArray[np.bool_]], float | None],
    *,
    compares: bool = True,
    together: int = 1,
) -> Make:
    """A metric of probabilities and truths.

    Args:
        metric: of one draw.
        compares: whether it sets those with the tumour against those without.
        together: so many of the latter are left out at once, where there are twice as many.
    """

    def make(cases: Sequence[Case], before: Sequence[Case] = ()) -> Cells:
        both = [*cases, *before]
        chance = np.array([np.nan if c.probability is None else c.probability for c in both], dtype=float)
        truth = np.array([c.truth for c in both], dtype=bool)
        return _pooled(
            both,
            len(cases) if before else None,
            lambda i, _: metric(chance[i], truth[i]),
            classes=truth.tolist() if compares else None,
            least={False: together},
        )

    return make


def _limit(sign: int) -> Make:
    def limit(cases: Sequence[Case]) -> float | None:
        errors = [v for c in cases if (v := c.values.get("volume_error_ml")) is not None]
        return float(np.mean(errors) + sign * LIMIT * np.std(errors, ddof=1)) if len(errors) > 1 else None

    return _by_draw(limit, lambda case: case.values.get("volume_error_ml") is not None)


def _found_lesions(cases: Sequence[Case]) -> float | None:
    lesions = sum(c.values.get("lesions") or 0 for c in cases)
    return sum(c.values.get("lesions_hit") or 0 for c in cases) / lesions if lesions else None


def _accuracy(cases: Sequence[Case], before: Sequence[Case] = ()) -> Cells:
    """Balanced accuracy: of this type against the rest, or among all types where several were asked for."""
    if cases[0].kind is None:
        return _chance(metrics.accuracy)(cases, before)
    both = [*cases, *before]
    kinds, right = np.array([c.kind for c in both]), np.array([c.kind == c.answer for c in both])

    def among_all(i: NDArray[np.int64], _: Sequence[Case]) -> float:
        return float(np.mean([right[i][kinds[i] == kind].mean() for kind in np.unique(kinds[i])]))

    return _pooled(both, len(cases) if before else None, among_all, classes=kinds.tolist())


SCORES: Mapping[str, Mapping[str, Score]] = {
    "segmentation": {
        "dice": Score(
            "Dice", _value("dice"), about="whole scans of those who have it, nothing known of where it is"
        ),
        "dice_target_slices": Score(
            "Dice on slices with the target",
            _value("dice_target_slices"),
            about="the literature's: only slices that show the target are looked at",
        ),
        "nsd": Score("normalised surface Dice", _value("nsd"), about="surface within tolerance"),
        "hd95_mm": Score("95 % Hausdorff distance (mm)", _value("hd95_mm"), POSITIVE, "low"),
        "volume_error_ml": Score(
            "volume error (mL)", _value("volume_error_ml"), ANY, "near 0", "bias: found minus true"
        ),
        "volume_limit_low_ml": Score(
            "lower limit of agreement (mL)", _limit(-1), ANY, "near 0", AGREEMENT.format("below")
        ),
        "volume_limit_high_ml": Score(
            "upper limit of agreement (mL)", _limit(1), ANY, "near 0", AGREEMENT.format("above")
        ),
        "lesion_sensitivity": Score(
            "lesions found",
            _by_draw(_found_lesions, lambda case: case.values.get("lesions")),
            about="share of lesions that are touched",
        ),
        "false_lesions": Score(
            "false lesions per scan", _value("false_lesions"), POSITIVE, "low", f"all scans; {ONCE}"
        ),
        "false_volume_ml": Score(
            "false volume (mL)",
            _value("false_volume_ml"),
            POSITIVE,
            "low",
            f"scans without the target; {ONCE}",
        ),
        "false_alarm_rate": Score(
            "false alarms", _value("false_alarm"), SHARE, "low", f"share of scans without the target; {ONCE}"
        ),
    },
    "classification": {
        "accuracy": Score("balanced accuracy", _accuracy),
        "auroc": Score("AUROC", _chance(metrics.auroc), chance=0.5),
        "auprc": Score("AUPRC", _chance(metrics.auprc), about="its floor is the share with the type"),
        "sensitivity": Score(
            f"sensitivity at {SPECIFICITY:.0%} specificity",
            _chance(lambda s, t: metrics.sensitivity_at(s, t, SPECIFICITY), together=TOGETHER),
        ),
        "ece": Score(
            "expected calibration error",
            _chance(metrics.calibration_error, compares=False),
            SHARE,
            "low",
            f"in {metrics.BINS} bins of equal width",
        ),
        "brier": Score("Brier score", _chance(metrics.brier, compares=False), SHARE, "low"),
    },
}
"""Every score by task and name; :data:`FIRST` decides."""
FIRST: Mapping[str, str] = {"segmentation": "dice", "classification": "auroc"}


def task_of(cases: Sequence[Case]) -> str:
    """Which task some cases are of."""
    return "segmentation" if cases[0].probability is None else "classification"


def summaries(cases: Sequence[Case], seed: int = 0) -> dict[str, Interval]:
    """Every score of the cases of one tumour type, number of shots and method, with its interval.

    Scores of scans without the target are there only where such scans were judged.

    Example:
        >>> cases = [Case("cyst", 1, "m", 0, p, {"dice": d}) for p, d in (("a", 0.5), ("b", 0.75))]
        >>> summaries(cases)["dice"].mean
        0.625
    """
    task = task_of(cases)
    absent = any(not c.truth for c in cases)
    return {
        name: interval(score.make(cases), bounds=score.bounds, seed=seed)
        for name, score in SCORES[task].items()
        if absent or name not in ("false_volume_ml", "false_alarm_rate")
    }


def calibration(judged: Judged, bins: int = metrics.BINS) -> dict[str, Any]:
    """Data of the reliability diagrams: by tumour, shots and method, a row a bin that has any case."""
    made: dict[str, Any] = {}
    for (tumour, shot, method), cases in judged.groups().items():
        if task_of(cases) != "classification":
            continue
        chance = np.array([c.probability for c in cases], dtype=float)
        rows = metrics.reliability(chance, np.array([c.truth for c in cases]), bins)
        made.setdefault(tumour, {}).setdefault(str(shot), {})[method] = [
            {"probability": round(p, 4), "share": round(t, 4), "cases": n} for p, t, n in rows
        ]
    return made
