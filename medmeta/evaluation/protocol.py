"""The protocol: a held-out tumour type, a few drawn patients to learn from, all others to be judged on."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from monai.inferers import SlidingWindowInferer
from torch import Tensor

from medmeta.episodes import Examples, Task, classification_task, generator_of, segmentation_task
from medmeta.errors import MedmetaError
from medmeta.evaluation import metrics
from medmeta.evaluation.intervals import Interval, clustered
from medmeta.evaluation.pixels import TreePredictor
from medmeta.evaluation.viewer import Reel, reel, slice_axis
from medmeta.learners import Predictor
from medmeta.volumes import Plan, Store, Volume, restore
from medmeta.volumes.progress import Track, silent
from medmeta.volumes.reading import read_image, read_mask


class EvaluationError(MedmetaError):
    """An evaluation that cannot be done, or that would not be honest."""


class Method(Protocol):
    """Anything that learns from a support: a learner, or a plain baseline."""

    def adapt(self, support: Examples) -> Predictor:
        """Learn from the support."""
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
        seconds: adapting took on average, by method.
    """

    task: str
    cases: tuple[Case, ...]
    pictures: tuple[Picture, ...]
    seconds: Mapping[str, float]

    def table(self, seed: int = 0) -> dict[str, dict[str, dict[str, dict[str, Interval]]]]:
        """Metric with its interval, by tumour, shots and method."""
        groups: dict[tuple[str, int, str], list[Case]] = {}
        for case in self.cases:
            groups.setdefault((case.tumour, case.shot, case.method), []).append(case)
        made: dict[str, dict[str, dict[str, dict[str, Interval]]]] = {}
        for (tumour, shot, method), cases in groups.items():
            rows = _summaries(cases, seed)
            made.setdefault(tumour, {}).setdefault(str(shot), {})[method] = rows
        return made


def judge_segmentation(
    methods: Mapping[str, Method],
    volumes: Sequence[Volume],
    tumours: Sequence[str],
    store: Store,
    *,
    shots: Sequence[int] = (1, 3, 5),
    episodes: int = 2,
    crops: int = 2,
    seed: int = 0,
    track: Track = silent,
) -> Judged:
    """Adapt every method to every type, and outline the tumour in every other patient's whole scan.

    All methods get the very same supports and queries; a support of fewer shots is part of that of more.
    Judged on each scan's own grid, in mm.

    Args:
        methods: by name.
        volumes: of the held-out types.
        tumours: the held-out types.
        store: prepared volumes; its plan is the one the methods were trained with.
        shots: labelled patients to learn from.
        episodes: supports drawn for each number of shots.
        crops: pieces a support patient.
        seed: of the draws.
        track: shows progress.

    Raises:
        EpisodeError: where patients do not suffice for the shots.
    """
    natives: dict[Volume, tuple[Any, Tensor]] = {}
    cases: list[Case] = []
    pictures: list[Picture] = []
    spent: dict[str, list[float]] = {name: [] for name in methods}
    tasks = {name: segmentation_task(volumes, name, store, crops=crops) for name in tumours}
    work = [(t, k, d, m) for t in tumours for k in shots for d in range(episodes) for m in methods]
    for tumour, shot, draw, name in track(work, description="adapting and judging", total=len(work)):
        task = tasks[tumour]
        support, used = task.support(shot, _drawer(task, seed, draw))
        began = time.monotonic()
        predictor = methods[name].adapt(support)
        spent[name].append(time.monotonic() - began)
        for volume in task.without(used).volumes:
            if volume not in natives:
                image = read_image(volume)
                natives[volume] = image, read_mask(volume, image).as_tensor()[0] > 0
            image, truth = natives[volume]
            found = outline(predictor, volume, store, image)
            spacing = _spacing(image)
            case = Case(
                tumour,
                shot,
                name,
                draw,
                store.patient(volume),
                {
                    "dice": metrics.dice(found, truth),
                    "hd95_mm": metrics.hd95(found, truth, spacing),
                    "volume_error_ml": metrics.volume_ml(found, spacing) - metrics.volume_ml(truth, spacing),
                },
            )
            cases.append(case)
            if draw == 0 and shot == max(shots):
                pictures.append(_picture(case, image, truth, found, reel(volume, truth, found, spacing)))
    return Judged("segmentation", tuple(cases), tuple(pictures), _means(spent))


def outline(predictor: Predictor, volume: Volume, store: Store, native: Any) -> Tensor:
    """Boolean ``(x, y, z)`` on the scan's own grid: where the predictor sees the tumour."""
    prepared = store.read(volume)
    window = SlidingWindowInferer(store.plan.patch, sw_batch_size=4, overlap=0.25, mode="gaussian")
    with torch.no_grad():
        image = prepared.image[None]
        logits = predictor(image) if isinstance(predictor, TreePredictor) else window(image, predictor)
    probability = torch.softmax(torch.as_tensor(logits)[0], 0)
    return restore(probability, prepared.affine, native).as_tensor().argmax(0) > 0


def judge_classification(
    methods: Mapping[str, Method],
    volumes: Sequence[Volume],
    tumours: Sequence[str],
    store: Store,
    *,
    known: Sequence[Volume] = (),
    shots: Sequence[int] = (1, 3, 5),
    episodes: int = 10,
    seed: int = 0,
    track: Track = silent,
) -> Judged:
    """Adapt every method to a new tumour type, and ask of every other patient whether it is that.

    Alone, the question is "this type or not": the other class is every volume that is not of the type,
    patients of the other held-out types and those free of any tumour. With ``known`` it is "which of all
    types": the types that were trained on are classes beside the held-out ones, each with as many labelled
    patients, and the probability of the held-out type is what counts.

    Args:
        methods, tumours, store, shots, episodes, seed, track: as :func:`judge_segmentation`.
        volumes: patients to ask of, whom nobody may have trained on: of the held-out types, free of every
            type, and others of the known types.
        known: patients whom the methods trained on: the support of the known types, never judged.
    """
    cases: list[Case] = []
    spent: dict[str, list[float]] = {name: [] for name in methods}
    questions = _questions(volumes, tumours, store, known)
    work = [(q, k, d, m) for q in questions for k in shots for d in range(episodes) for m in methods]
    for question, shot, draw, name in track(work, description="adapting and asking", total=len(work)):
        support, used = question.support.support(shot, _drawer(question.support, seed, draw))
        began = time.monotonic()
        predictor = methods[name].adapt(support)
        spent[name].append(time.monotonic() - began)
        cases += _ask(predictor, question, question.query.without(used), (shot, name, draw), store)
    return Judged("classification", tuple(cases), (), _means(spent))


@dataclass(frozen=True)
class _Question:
    """What is asked, who may be learnt from and who is asked of.

    Args:
        tumours: the held-out types that the answer is scored for.
        support, query: the same classes; nobody of the support drawn is asked of.
    """

    tumours: tuple[str, ...]
    support: Task
    query: Task


def _questions(
    volumes: Sequence[Volume], tumours: Sequence[str], store: Store, known: Sequence[Volume]
) -> list[_Question]:
    if not known:
        tasks = [classification_task(volumes, [name], store, against="rest") for name in tumours]
        return [_Question((name,), task, task) for name, task in zip(tumours, tasks, strict=True)]
    classes = [*tumours, *sorted({v.tumour for v in known if v.tumour and v.tumour not in tumours})]
    new = [v for v in volumes if v.tumour in tumours]
    learnt = [v for v in known if v.tumour not in tumours]
    support = classification_task([*new, *learnt], classes, store)
    asked = tuple(v for v in volumes if v.tumour in classes and store.plan.takes(v))
    query = replace(support, volumes=asked, labels=tuple(classes.index(str(v.tumour)) for v in asked))
    return [_Question(tuple(tumours), support, query)]


def _ask(
    predictor: Predictor, question: _Question, query: Task, row: tuple[int, str, int], store: Store
) -> list[Case]:
    """Ask of every volume of the query; a case for each held-out type."""
    shot, name, draw = row
    prepared = [store.read(v) for v in query.volumes]
    with torch.no_grad():
        logits = torch.cat([predictor(p.image[None]) for p in prepared])
    chances, answers = torch.softmax(logits, 1), logits.argmax(1).tolist()
    several = len(query.classes) > 2
    return [
        Case(
            tumour,
            shot,
            name,
            draw,
            piece.patient,
            truth=query.classes[label] == tumour,
            probability=float(chance[query.classes.index(tumour)]),
            kind=query.classes[label] if several else None,
            answer=query.classes[answer] if several else None,
        )
        for tumour in question.tumours
        for piece, label, chance, answer in zip(prepared, query.labels, chances, answers, strict=True)
    ]


def _drawer(task: Task, seed: int, draw: int) -> torch.Generator:
    """The same draw of a type for every method and number of shots."""
    return generator_of(seed, draw, *task.name.encode())


def _means(spent: Mapping[str, list[float]]) -> dict[str, float]:
    return {name: sum(times) / max(1, len(times)) for name, times in spent.items()}


def _summaries(cases: Sequence[Case], seed: int) -> dict[str, Interval]:
    patients, draws = [c.patient for c in cases], [c.draw for c in cases]
    if cases[0].probability is not None:
        chance = np.array([c.probability for c in cases], dtype=float)
        truth = np.array([c.truth for c in cases])

        def by_draw(metric: Any) -> Any:
            drawn = np.array(draws)
            return lambda i: _mean([metric(chance[i[m]], truth[i[m]]) for m in _split(drawn[i])])

        kinds = np.array([c.kind or "" for c in cases])
        right = np.array([c.kind == c.answer for c in cases])

        def among_all(i: Any) -> float:
            return float(np.mean([right[i][kinds[i] == kind].mean() for kind in np.unique(kinds[i])]))

        accuracy = by_draw(metrics.accuracy) if cases[0].kind is None else among_all
        return {
            "accuracy": clustered(patients, draws, accuracy, seed=seed, resamples=300),
            "auroc": clustered(patients, draws, by_draw(metrics.auroc), seed=seed, resamples=300),
        }
    made = {}
    for name in cases[0].values:
        values = np.array([np.nan if (v := c.values[name]) is None else v for c in cases])
        made[name] = clustered(patients, draws, lambda i, v=values: _mean(v[i]), seed=seed)  # type: ignore[misc]
    return made


def _split(draws: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
    """Where each draw's cases are: probabilities of different supports are not on one scale."""
    return [draws == d for d in np.unique(draws)]


def _mean(values: Iterable[float | None]) -> float | None:
    known = [v for v in values if v is not None and not np.isnan(v)]
    return float(np.mean(known)) if known else None


def _spacing(image: Any) -> tuple[float, ...]:
    affine = torch.as_tensor(image.affine)[:3, :3]
    return tuple(float(s) for s in affine.norm(dim=0))


def _picture(case: Case, image: Any, truth: Tensor, found: Tensor, kept: Reel) -> Picture:
    spacing = kept.spacing
    axis = slice_axis(truth.shape, spacing)
    number = int(truth.sum([a for a in range(3) if a != axis]).argmax())
    rest = [s for a, s in enumerate(spacing) if a != axis]
    cut = [torch.as_tensor(v).select(axis, number).numpy() for v in (image.as_tensor()[0], truth, found)]
    return Picture(case, cut[0].T, cut[1].T, cut[2].T, rest[1] / rest[0], kept)


def check_plan(plan: Plan, task: str) -> None:
    """Refuse to judge one task with the plan of the other."""
    if plan.whole != (task == "classification"):
        raise EvaluationError(
            f"a run that does {task}", found="one of the other task", cure="Name another run."
        )
