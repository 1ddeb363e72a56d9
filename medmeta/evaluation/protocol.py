"""The protocol: a held-out tumour type, a few drawn patients to learn from, all others to be judged on."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from medmeta.evaluation.answers import Answers
from medmeta.evaluation.catalogue import Catalogue
from medmeta.evaluation.diagnoses import Classifying
from medmeta.evaluation.manifest import Manifest
from medmeta.evaluation.outlines import Segmenting
from medmeta.evaluation.records import Case, EvaluationError, Judged, Method, ScanMethod
from medmeta.evaluation.supports import draw_classification, draw_segmentation
from medmeta.volumes import Plan, Store, Volume
from medmeta.volumes.progress import Track, silent

TOLERANCE = 2.0
"""Millimetres within which a surface counts as right, unless said otherwise."""
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
    judge: Segmenting | Classifying = (
        Segmenting(manifest, catalogue, store, tolerance)
        if manifest.task == "segmentation"
        else Classifying(manifest, catalogue, store)
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


def check_plan(plan: Plan, task: str) -> None:
    """Refuse to judge one task with the plan of the other."""
    if plan.whole != (task == "classification"):
        raise EvaluationError(
            f"a run that does {task}", found="one of the other task", cure="Name another run."
        )
