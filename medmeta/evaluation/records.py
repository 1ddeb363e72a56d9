"""What an evaluation leaves: a case for each judged patient and support, slices of some, who can learn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from torch import Tensor

from medmeta.episodes import Examples
from medmeta.errors import MedmetaError
from medmeta.evaluation.intervals import Interval
from medmeta.evaluation.viewer import Reel
from medmeta.learners import Predictor
from medmeta.volumes import Prepared


class EvaluationError(MedmetaError):
    """An evaluation that cannot be done, or that would not be honest."""


class Method(Protocol):
    """Anything that learns from a support: a learner, or a plain baseline."""

    def adapt(self, support: Examples) -> Predictor:
        """Learn from the support."""
        ...


@runtime_checkable
class ScanMethod(Protocol):
    """A baseline that must know where in the scan a voxel lies, and so learns from whole scans."""

    def learn(self, support: Sequence[Prepared]) -> Callable[[Tensor], Tensor]:
        """Learn from labelled scans on the plan's grid; gives ``(1, channel, *voxel)`` to logits."""
        ...


@dataclass(frozen=True)
class Case:
    """One patient judged after learning from one drawn support.

    Args:
        tumour, shot, method, draw: which type, how many labelled patients, who learnt, which support.
        patient: hashed key.
        values: metric by name; None where it says nothing of this case.
        truth: whether the patient has the tumour.
        probability: of the tumour, when classifying.
        kind, answer: the type that the patient has and the one that was said, where several were asked for.
        missing: whether there was no prediction, or none that is a number; it counts as the worst there can
            be, and where there is no worst (millimetres, false lesions) its value is None.
    """

    tumour: str
    shot: int
    method: str
    draw: int
    patient: str
    values: Mapping[str, float | None] = field(default_factory=dict)
    truth: bool = True
    probability: float | None = None
    kind: str | None = None
    answer: str | None = None
    missing: bool = False


def by_patient(cases: Sequence[Case]) -> list[Case]:
    """Cases by patient, patients of each tumour type as they first come.

    Intervals are made of groups of patients, by their order. In this one every method and every number of
    labels, at which others are missing, has the same groups, whatever figure is made of them.
    """
    place: dict[tuple[str, str], int] = {}
    for case in cases:
        place.setdefault((case.tumour, case.patient), len(place))
    return sorted(cases, key=lambda case: place[case.tumour, case.patient])


def _group(case: Case) -> tuple[str, int, str]:
    return case.tumour, case.shot, case.method


@dataclass(frozen=True)
class Picture:
    """One slice of a judged case, for the report.

    Args:
        case: what was judged.
        image, truth, found: ``(rows, columns)`` of the native slice that shows most of the truth.
        aspect: millimetres of a row over those of a column.
        reel: truth and prediction of the whole scan, packed.
    """

    case: Case
    image: np.ndarray[Any, Any]
    truth: np.ndarray[Any, Any]
    found: np.ndarray[Any, Any]
    aspect: float
    reel: Reel | None = None


@dataclass(frozen=True)
class Judged:
    """All cases of an evaluation, and slices of some.

    Args:
        task: ``"segmentation"`` or ``"classification"``.
        cases: every judged case.
        pictures: of the first draw at the most shots.
        seconds: adapting took on average, by method; None for another program, whose time is not known.
        tolerance: mm within which a surface counts as right.
    """

    task: str
    cases: tuple[Case, ...]
    pictures: tuple[Picture, ...]
    seconds: Mapping[str, float | None]
    tolerance: float = 2.0

    @property
    def programs(self) -> frozenset[str]:
        """Other programs' names: what they were trained on is not known."""
        return frozenset(name for name, seconds in self.seconds.items() if seconds is None)

    def groups(self) -> dict[tuple[str, int, str], list[Case]]:
        """The cases of each tumour type, number of labelled patients and method, patients in one order."""
        found: dict[tuple[str, int, str], list[Case]] = {_group(case): [] for case in self.cases}
        for case in by_patient(self.cases):
            found[_group(case)].append(case)
        return found

    def table(self, seed: int = 0) -> dict[str, dict[str, dict[str, dict[str, Interval]]]]:
        """Metric with its interval, by tumour, shots and method."""
        from medmeta.evaluation.scores import summaries  # which knows the cases

        made: dict[str, dict[str, dict[str, dict[str, Interval]]]] = {}
        for (tumour, shot, method), cases in self.groups().items():
            made.setdefault(tumour, {}).setdefault(str(shot), {})[method] = summaries(cases, seed)
        return made
