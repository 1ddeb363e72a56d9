"""Which method to use with this many labels, how sure that is, what it saves, and whether to label more."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from medmeta.evaluation.curve import Curve, ahead, learning_curves
from medmeta.evaluation.differences import Difference
from medmeta.evaluation.intervals import Interval
from medmeta.evaluation.labels_saved import Needed, Slope, labels_needed, slope
from medmeta.evaluation.records import Case, Judged
from medmeta.evaluation.scores import FIRST, SCORES

FURTHER = (10, 20)
"""Labels at which the best plain way is judged besides, to see how many it needs."""


@dataclass(frozen=True)
class Advice:
    """The answer for one tumour type.

    Args:
        tumour: the type.
        metric: the name of the score that decides.
        chance: what it is of a method that knows nothing.
        shot: labelled patients, the most that every method was judged with.
        use: the method with the best mean score there.
        score: of that method.
        rival, lead: the next best, and how far ahead the method is; None where there is no other. What p is
            adjusted for is that the method is compared with every other one.
        learnt, behind: the best meta-trained method where it is not the one to use, and its score minus that
            one's, likewise.
        plain: the best way that needs no meta-training, other programs left out; None where there was none.
        needed: labels it needs to score as the best meta-trained method does.
        slope: what the last labels brought to the method to use.
        fewer: the best method at each smaller number of labels, with its score.
        patients, draws: judged.
    """

    tumour: str
    metric: str
    chance: float
    shot: int
    use: str
    score: Interval
    rival: str | None
    lead: Difference | None
    learnt: str | None
    behind: Difference | None
    plain: str | None
    needed: Needed | None
    slope: Slope | None
    fewer: Mapping[int, tuple[str, Interval]]
    patients: int
    draws: int

    @property
    def of_use(self) -> bool:
        """Whether the best method scores above chance, by the two digits that are shown."""
        return round(self.score.mean or 0.0, 2) > self.chance

    def to_json(self) -> dict[str, Any]:
        """By name, for other programs."""
        return {
            "tumour": self.tumour,
            "metric": self.metric,
            "shots": self.shot,
            "use": self.use,
            "of_use": self.of_use,
            "score": self.score.to_json(),
            "next_best": self.rival,
            "lead": _difference(self.lead),
            "meta_trained": self.learnt,
            "behind": _difference(self.behind),
            "plain": self.plain,
            "plain_needs": self.needed.to_json() if self.needed else None,
            "gain_per_doubling": self.slope.gain.to_json() if self.slope else None,
            "label_more": self.slope.verdict if self.slope else "unknown",
            "patients": self.patients,
            "supports": self.draws,
        }


def _difference(one: Difference | None) -> dict[str, Any] | None:
    return {**one.interval.to_json(), "p": one.p, "p_adjusted": one.adjusted} if one else None


def advise(judged: Judged, learnt: Collection[str], *, further: Judged | None = None) -> list[Advice]:
    """The answer for every tumour type of an evaluation.

    Args:
        judged: every method at the same numbers of labels, on the same supports and patients.
        learnt: names of the methods that were meta-trained; all others of ours are plain.
        further: the same of plain methods at more labels.
    """
    by_tumour: dict[str, list[Case]] = {}
    for case in judged.cases:
        by_tumour.setdefault(case.tumour, []).append(case)
    made = []
    for tumour, cases in by_tumour.items():
        more = [c for c in further.cases if c.tumour == tumour] if further else []
        answer = _one(tumour, judged.task, cases, more, learnt, judged.programs)
        if answer is not None:
            made.append(answer)
    return made


def _one(
    tumour: str,
    task: str,
    cases: Sequence[Case],
    more: Sequence[Case],
    learnt: Collection[str],
    programs: Collection[str],
) -> Advice | None:
    metric = FIRST[task]
    score = SCORES[task][metric]
    all_cases = [*cases, *more]
    curves = learning_curves(all_cases, metric)
    shots = sorted({c.shot for c in cases})
    shot = next((s for s in reversed(shots) if any(s in c.shots for c in curves.values())), None)
    if shot is None:
        return None
    order = _ranked(curves, shot)
    use, rival = order[0], order[1] if len(order) > 1 else None
    beside = ahead(curves, use, shot)
    mine = next((m for m in order if m in learnt), None)
    plain = next((m for m in order if m not in learnt and m not in programs), None)
    return Advice(
        tumour,
        score.label,
        score.chance,
        shot,
        use,
        curves[use].at(shot),
        rival,
        beside[rival] if rival else None,
        mine if mine != use else None,
        beside[mine].turned if mine and mine != use else None,
        plain,
        labels_needed(curves[plain], curves[mine], shot) if plain and mine else None,
        slope(curves[use]),
        {s: (m, curves[m].at(s)) for s in shots if s < shot for m in _ranked(curves, s)[:1]},
        len({c.patient for c in cases}),
        len({c.draw for c in cases}),
    )


def _ranked(curves: Mapping[str, Curve], shot: int) -> list[str]:
    """Methods that were judged at a number of labels, the best first."""
    there = [m for m, curve in curves.items() if shot in curve.shots]
    return sorted(there, key=lambda m: -float(np.nanmean(curves[m].cells[shot])))


def judge_further(
    judged: Judged,
    learnt: Collection[str],
    available: int,
    judge: Callable[[str, list[int]], Judged],
) -> Judged | None:
    """Judge the best plain way at more labels, where a meta-trained method is ahead of it at the most so far.

    Where no meta-trained method is ahead of it, more labels would tell nothing of what is saved.

    Args:
        judged: every method at the same numbers of labels.
        learnt: names of those that were meta-trained.
        available: patients of the class that has fewest.
        judge: judges one method at some numbers of labels, on the same draws.

    Returns:
        Cases of those plain ways that are the best for some type; None where there are none.
    """
    wanted: dict[str, list[int]] = {}
    for one in advise(judged, learnt):
        shots = _beyond(one.shot, available)
        if one.plain and one.needed and one.needed.labels is None and shots:
            wanted[one.plain] = shots
    made = [judge(method, shots) for method, shots in sorted(wanted.items())]
    if not made:
        return None
    seconds = {name: time for one in made for name, time in one.seconds.items()}
    return replace(judged, cases=tuple(c for one in made for c in one.cases), pictures=(), seconds=seconds)


def _beyond(shot: int, available: int) -> list[int]:
    """More labels than ``shot`` that leave a fifth of the patients, and at least two, to be judged."""
    most = available - max(2, available // 5)
    rooms = [k for k in FURTHER if shot < k <= most]
    return rooms or ([most] if most >= 1.5 * shot else [])
