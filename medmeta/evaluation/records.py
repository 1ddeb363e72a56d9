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

    def groups(self) -> dict[tuple[str, int, str], list[Case]]:
        """The cases of each tumour type, number of labelled patients and method."""
        found: dict[tuple[str, int, str], list[Case]] = {}
        for case in self.cases:
            found.setdefault((case.tumour, case.shot, case.method), []).append(case)
        return found

    def table(self, seed: int = 0) -> dict[str, dict[str, dict[str, dict[str, Interval]]]]:
        """Metric with its interval, by tumour, shots and method."""
        from medmeta.evaluation.scores import summaries  # which knows the cases

        made: dict[str, dict[str, dict[str, dict[str, Interval]]]] = {}
        for (tumour, shot, method), cases in self.groups().items():
            made.setdefault(tumour, {}).setdefault(str(shot), {})[method] = summaries(cases, seed)
        return made
