"""The protocol: a held-out tumour type, a few drawn patients to learn from, all others to be judged on."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from monai.inferers import SlidingWindowInferer
from torch import Tensor

from medmeta.episodes import Examples, classification_task, generator_of, segmentation_task
from medmeta.evaluation import metrics
from medmeta.evaluation.answers import Answers
from medmeta.evaluation.catalogue import Catalogue
from medmeta.evaluation.manifest import Episode, Key, Manifest
from medmeta.evaluation.pixels import WholeScan
from medmeta.evaluation.records import Case, EvaluationError, Judged, Method, Picture, ScanMethod
from medmeta.evaluation.supports import draw_classification, draw_segmentation
from medmeta.evaluation.truths import Truths
from medmeta.evaluation.viewer import Reel, reel, slice_axis
from medmeta.learners import Predictor
from medmeta.volumes import Plan, Store, Volume, restore
from medmeta.volumes.progress import Track, silent
from medmeta.volumes.reading import read_image

__all__ = [
    "Case",
    "EvaluationError",
    "Judged",
    "Method",
    "Picture",
    "judge_classification",
    "judge_segmentation",
    "outline",
    "replay",
]

TOLERANCE = 2.0
"""Millimetres within which a surface counts as right, unless said otherwise."""
NO_WORST = frozenset({"hd95_mm", "volume_error_ml", "false_lesions", "false_volume_ml"})
"""Figures that can be ever so bad: of a missing prediction they say nothing; all others count the worst."""
Judge = Method | ScanMethod | Answers


def judge_segmentation(
    methods: Mapping[str, Judge],
    volumes: Sequence[Volume],
    tumours: Sequence[str],
    store: Store,
    *,
    shots: Sequence[int] = (1, 3, 5),
    episodes: int = 10,
    absent: int | None = None,
    crops: int = 2,
    seed: int = 0,
    track: Track = silent,
) -> Judged:
    """Adapt every method to every type, and outline the tumour in every other patient's whole scan.

    All methods get the very same supports and queries; a support of fewer shots is part of that of more.
    Judged on each scan's own grid, in mm; patients who are free of every target are judged, too.

    Args:
        methods: by name.
        volumes: whom nobody trained on: of the held-out types, and free of every target.
        tumours: the held-out types.
        store: prepared volumes; its plan is the one the methods were trained with.
        shots: labelled patients to learn from.
        episodes: supports drawn for each number of shots.
        absent: target-free patients judged at most; None for all.
        crops: pieces a support patient.
        seed: of the draws.
        track: shows progress.

    Raises:
        EpisodeError: where patients do not suffice for the shots.
    """
    catalogue = Catalogue(volumes)
    options: dict[str, Any] = {"shots": shots, "episodes": episodes, "seed": seed, "catalogue": catalogue}
    manifest = draw_segmentation(volumes, tumours, store.plan, absent=absent, crops=crops, **options)
    return replay(methods, manifest, catalogue, store, track=track)


def judge_classification(
    methods: Mapping[str, Judge],
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
    catalogue = Catalogue((*volumes, *known))
    options: dict[str, Any] = {"shots": shots, "episodes": episodes, "seed": seed, "catalogue": catalogue}
    manifest = draw_classification(volumes, tumours, store.plan, known=known, **options)
    return replay(methods, manifest, catalogue, store, track=track)


def replay(
    methods: Mapping[str, Judge],
    manifest: Manifest,
    catalogue: Catalogue,
    store: Store,
    *,
    tolerance: float = TOLERANCE,
    track: Track = silent,
) -> Judged:
    """Judge methods on the episodes of a manifest, all on the very same supports and queries.

    Args:
        methods: by name; learners, baselines, or the answers of another program.
        manifest: the episodes.
        catalogue: of volumes that hold all its cases.
        store: prepared volumes; its plan is the one the methods were trained with.
        tolerance: mm within which a surface counts as right.
        track: shows progress.

    Raises:
        EvaluationError: where cases are missing, a patient is on both sides, or a query never shows the type.
    """
    catalogue.check(manifest)
    check_plan(store.plan, manifest.task)
    _has_targets(manifest)
    judge: _Segmenting | _Classifying = (
        _Segmenting(manifest, catalogue, store, tolerance)
        if manifest.task == "segmentation"
        else _Classifying(manifest, catalogue, store)
    )
    cases: list[Case] = []
    spent: dict[str, list[float]] = {n: [] for n, m in methods.items() if not isinstance(m, Answers)}
    work = [(episode, name) for episode in manifest.episodes for name in methods]
    for episode, name in track(work, description="adapting and judging", total=len(work)):
        method, began = methods[name], time.monotonic()
        if isinstance(method, Answers):
            cases += judge.cases(method, episode, name)
            continue
        predictor = judge.adapt(method, episode)
        spent[name].append(time.monotonic() - began)
        cases += judge.cases(predictor, episode, name)
    # how long another program took is not known
    seconds = {n: sum(spent[n]) / max(1, len(spent[n])) if n in spent else None for n in methods}
    return Judged(manifest.task, tuple(cases), tuple(judge.pictures), seconds, tolerance)


def _has_targets(manifest: Manifest) -> None:
    for episode in manifest.episodes:
        kinds = [k.kind for k in episode.query]
        for tumour in episode.tumours:
            if tumour not in kinds:
                raise EvaluationError(
                    f"a patient with {tumour!r} among those judged in episode {episode.name}",
                    found=f"{len(kinds)} without it",
                    cure="Ask for fewer shots, or add patients of the type.",
                )
            if manifest.task == "classification" and set(kinds) == {tumour}:
                raise EvaluationError(
                    f"a patient without {tumour!r} among those judged in episode {episode.name}",
                    found=f"{len(kinds)} with it",
                    cure="Ask for fewer shots, or add patients of other types.",
                )


def outline(predictor: Callable[[Tensor], Any], volume: Volume, store: Store, native: Any) -> Tensor | None:
    """Boolean ``(x, y, z)`` on the scan's own grid: where the predictor sees the tumour.

    None where it gives what is no number, as a learner that ran away does: called free of the tumour it would
    be the best there is on those who are.
    """
    prepared = store.read(volume)
    probability = torch.softmax(logits_of(predictor, prepared.image, store.plan), 0)
    if bool(probability.isnan().any()):
        return None
    return restore(probability, prepared.affine, native).as_tensor().argmax(0) > 0


def logits_of(predictor: Callable[[Tensor], Any], image: Tensor, plan: Plan) -> Tensor:
    """Logits ``(way, *space)`` of a prepared scan ``(channel, *space)``, window by window unless taken whole.

    Windows overlap by a quarter: half, as bundles do it, takes twice as long in 3D.
    """
    window = SlidingWindowInferer(plan.patch, sw_batch_size=4, overlap=0.25, mode="gaussian")
    with torch.no_grad():
        whole = isinstance(predictor, WholeScan)
        logits = predictor(image[None]) if whole else window(image[None], predictor)
    return torch.as_tensor(logits)[0]


# -- segmentation ---------------------------------------------------------------------------------


class _Segmenting:
    """Adapts to episodes of one tumour type, and judges outlines on each scan's own grid."""

    def __init__(self, manifest: Manifest, catalogue: Catalogue, store: Store, tolerance: float) -> None:
        self.manifest, self.catalogue, self.store, self.tolerance = manifest, catalogue, store, tolerance
        self.most = max(e.shot for e in manifest.episodes)
        self.truths = Truths()
        self.pictures: list[Picture] = []

    def adapt(self, method: Method | ScanMethod, episode: Episode) -> Any:
        """Learn from the support: crops of each patient, the same at every number of shots."""
        volumes = [self.catalogue[k] for k in episode.support]
        if isinstance(method, ScanMethod):
            return method.learn([self.store.read(v) for v in volumes])
        task = segmentation_task(volumes, episode.tumours[0], self.store, crops=self.manifest.crops)
        parts = [
            task.examples([v], generator_of(self.manifest.seed, episode.draw, int(k.image, 16)))
            for k, v in zip(episode.support, volumes, strict=True)
        ]
        return method.adapt(_joined(parts))

    def cases(self, predictor: Any, episode: Episode, name: str) -> list[Case]:
        """Judge every query."""
        made = []
        for key in episode.query:
            volume = self.catalogue[key]
            grid = self.truths.grid(volume)
            truth = self.truths.truth(volume, present=episode.label(key) == 1)
            found = (
                predictor.mask(episode, key, grid)
                if isinstance(predictor, Answers)
                else outline(predictor, volume, self.store, grid)
            )
            made.append(self._case(episode, name, volume, truth, found))
        return made

    def _case(self, episode: Episode, name: str, volume: Volume, truth: Tensor, found: Tensor | None) -> Case:
        affine = torch.as_tensor(self.truths.grid(volume).affine)
        spacing = tuple(float(s) for s in affine[:3, :3].norm(dim=0))
        given = torch.zeros_like(truth) if found is None else found
        values = judged_values(given, truth, spacing, self.tolerance)
        if found is None:
            values |= _unsaid(values)
        case = Case(
            episode.tumours[0],
            episode.shot,
            name,
            episode.draw,
            self.store.patient(volume),
            values,
            truth=bool(truth.any()),
            missing=found is None,
        )
        shown = episode.draw == 0 and episode.shot == self.most
        if shown and bool((truth | given).any()):
            self.pictures.append(_picture(case, truth, given, reel(volume, truth, given, spacing)))
        return case


def _joined(parts: Sequence[Examples]) -> Examples:
    return Examples(
        torch.cat([p.image for p in parts]),
        torch.cat([p.label for p in parts]),
        parts[0].classes,
        tuple(name for p in parts for name in p.patients),
    )


def judged_values(
    found: Tensor, truth: Tensor, spacing: Sequence[float], tolerance: float
) -> dict[str, float | None]:
    """Every figure of one outline; None where it says nothing (see :mod:`medmeta.evaluation.scores`).

    Where there is no target only false alarms, their volume and false lesions are said: overlap and distance
    of nothing with nothing would raise every mean.

    Args:
        found, truth: boolean ``(x, y, z)``.
        spacing: mm of a voxel along each axis.
        tolerance: mm within which a surface counts as right.
    """
    hit, lesions, false = metrics.lesions(found, truth)
    volume = metrics.volume_ml(found, spacing)
    if not bool(truth.any()):
        nothing = dict.fromkeys(("dice", "dice_target_slices", "nsd", "hd95_mm", "volume_error_ml"))
        alarm = float(bool(found.any()))
        return {**nothing, "false_lesions": float(false), "false_volume_ml": volume, "false_alarm": alarm}
    distance, surface = metrics.surface(found, truth, spacing, tolerance)
    return {
        "dice": metrics.dice(found, truth),
        "dice_target_slices": metrics.target_slices_dice(found, truth, slice_axis(truth.shape, spacing)),
        "nsd": surface,
        "hd95_mm": distance,
        "volume_error_ml": volume - metrics.volume_ml(truth, spacing),
        "lesions": float(lesions),
        "lesions_hit": float(hit),
        "false_lesions": float(false),
    }


def _unsaid(values: Mapping[str, float | None]) -> dict[str, float | None]:
    """What differs where nothing was said of a scan from where it was called free.

    A scan that nothing was said of counts as a false alarm where it is free; no figure without a worst value
    is made up for it, for 0 false lesions would be the best there is.
    """
    made: dict[str, float | None] = dict.fromkeys(values.keys() & NO_WORST)
    return made | ({"false_alarm": 1.0} if "false_alarm" in values else {})


def _picture(case: Case, truth: Tensor, found: Tensor, kept: Reel) -> Picture:
    """The slice that shows most of the truth, read from the scan's file again."""
    spacing = kept.spacing
    axis = slice_axis(truth.shape, spacing)
    shown = truth if bool(truth.any()) else found
    number = int(shown.sum([a for a in range(3) if a != axis]).argmax())
    rest = [s for a, s in enumerate(spacing) if a != axis]
    image = read_image(kept.volume).as_tensor()[0]
    # copies: a view of a slice would keep all of its scan in memory
    cut = [v.select(axis, number).numpy().T.copy() for v in (image, truth, found)]
    return Picture(case, cut[0], cut[1], cut[2], rest[1] / rest[0], kept)


# -- classification -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Classifying:
    """Adapts to episodes of types to tell apart, and asks of every query which it is."""

    manifest: Manifest
    catalogue: Catalogue
    store: Store
    pictures: tuple[Picture, ...] = ()

    def adapt(self, method: Any, episode: Episode) -> Predictor:
        """Learn from the support; a class of all others is not one type."""
        volumes = [self.catalogue[k] for k in episode.support]
        rest = "rest" if episode.classes[0] == "rest" else None
        classes = episode.classes[1:] if rest else episode.classes
        task = classification_task(volumes, classes, self.store, against=rest)
        predictor: Predictor = method.adapt(task.examples(volumes, generator_of(self.manifest.seed)))
        return predictor

    def cases(self, predictor: Any, episode: Episode, name: str) -> list[Case]:
        """Ask of every query; a case for each held-out type."""
        if isinstance(predictor, Answers):
            return self._answered(predictor, episode, name)
        prepared = [self.store.read(self.catalogue[k]) for k in episode.query]
        with torch.no_grad():
            logits = torch.cat([predictor(p.image[None]) for p in prepared])
        chances, answers = torch.softmax(logits, 1), logits.argmax(1).tolist()
        return [
            self._case(episode, name, tumour, key, chance, episode.classes[answer])
            for tumour in episode.tumours
            for key, chance, answer in zip(
                episode.query, chances[:, episode.classes.index(tumour)].tolist(), answers, strict=True
            )
        ]

    def _answered(self, answers: Answers, episode: Episode, name: str) -> list[Case]:
        return [
            self._case(
                episode,
                name,
                tumour,
                key,
                answers.probability(episode, key, tumour),
                answers.answer(episode, key),
            )
            for tumour in episode.tumours
            for key in episode.query
        ]

    def _case(
        self, episode: Episode, name: str, tumour: str, key: Key, chance: float | None, answer: str | None
    ) -> Case:
        """A case; where there is no probability, or none that is a number, the worst there can be."""
        kind = episode.classes[episode.label(key)]
        several = len(episode.classes) > 2
        missing = chance is None or math.isnan(chance)
        return Case(
            tumour,
            episode.shot,
            name,
            episode.draw,
            self.store.patient(self.catalogue[key]),
            truth=kind == tumour,
            probability=float(kind != tumour) if missing else chance,
            kind=kind if several else None,
            answer=answer if several and not missing else None,
            missing=missing,
        )


def check_plan(plan: Plan, task: str) -> None:
    """Refuse to judge one task with the plan of the other."""
    if plan.whole != (task == "classification"):
        raise EvaluationError(
            f"a run that does {task}", found="one of the other task", cure="Name another run."
        )
