"""The answer on the user's own labelled cases, before they commit to a method or to labelling more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medmeta.errors import nearest
from medmeta.evaluation.advice import Advice, advise
from medmeta.evaluation.baselines import NAMES, SCRATCH, CopiedMask, methods_of, names_of
from medmeta.evaluation.drawing import at_least_one
from medmeta.evaluation.evaluate import LEARNT
from medmeta.evaluation.pixels import Trees
from medmeta.evaluation.proof import check_names
from medmeta.evaluation.protocol import Judge, judge_classification, judge_segmentation
from medmeta.evaluation.records import EvaluationError, Judged
from medmeta.evaluation.supports import available
from medmeta.evaluation.words import answer, cautions
from medmeta.learners import create_learner
from medmeta.networks import build, encoder, unet
from medmeta.training import Run
from medmeta.volumes import Cohort, Store, Volume, make_plan
from medmeta.volumes.progress import Track, silent

LADDER = (1, 3, 5, 10, 20)
"""Labels that are tried, as far as patients suffice."""


@dataclass(frozen=True)
class OwnAnswer:
    """What was found on the user's own cases.

    Args:
        advice: the answer.
        judged: what it rests on.
        patients: labelled patients of the type.
        paragraph: the answer in words, warnings after it.
    """

    advice: Advice
    judged: Judged
    patients: int
    paragraph: str

    def to_json(self) -> dict[str, Any]:
        """By name, for other programs."""
        return {**self.advice.to_json(), "labelled": self.patients, "says": self.paragraph}


def ladder(patients: int) -> tuple[int, ...]:
    """Numbers of labels to try: a fifth of the patients, one at least, are left to be judged.

    Example:
        >>> ladder(3), ladder(6), ladder(14), ladder(60)
        ((1, 2), (1, 3, 5), (1, 3, 5, 11), (1, 3, 5, 10, 20))
    """
    most = min(patients - max(1, round(patients / 5)), LADDER[-1])
    steps = [k for k in LADDER if k < most]
    while len(steps) > 1 and steps[-1] * 1.5 > most:  # too near to tell apart
        steps.pop()
    return (*steps, most)


def advise_on(
    cohort: Cohort,
    tumour: str,
    *,
    run: Run | None = None,
    episodes: int = 5,
    seed: int = 0,
    cache: str | Path | None = None,
    track: Track = silent,
) -> OwnAnswer:
    """Say which method to use on a cohort's own labelled cases, and whether to label more.

    Every method learns from some of the labelled patients, drawn anew ``episodes`` times, and is judged on
    the others (Monte Carlo cross-validation), at rising numbers of labels.

    Args:
        cohort: with labelled patients of the type.
        tumour: the type. Where it has masks it is outlined, else told from all other patients.
        run: its learner is tried too, where it has not seen the type; None tries plain methods alone.
        episodes: supports drawn for each number of labels.
        seed: of the draws.
        cache: folder to keep prepared volumes in.
        track: shows progress.

    Raises:
        EvaluationError: where the type is not in the cohort, was trained on, or has fewer than 3 patients.
    """
    at_least_one((1,), episodes)
    volumes = _volumes(cohort, tumour, run)
    task = run.task if run is not None else _task(volumes, tumour)
    plan = run.plan if run is not None else make_plan(volumes, whole=task == "classification")
    patients = available(volumes, tumour, plan=plan)
    if patients < 3:
        others = " and 3 others, to tell them from" if task == "classification" else ""
        raise EvaluationError(
            f"at least 3 labelled patients with {tumour!r}{others}, to learn from some and judge the others",
            found=f"{patients}{' of the fewer' if others else ''}",
            cure="Label more; 'medmeta select' proposes whom.",
        )
    store = Store(plan, cache, salt=run.config["salt"] if run is not None else None)
    names = NAMES if run is None else names_of(run)
    methods = _methods(run, store, task, seed)
    options: dict[str, Any] = {"shots": ladder(patients), "episodes": episodes, "seed": seed, "track": track}
    if task == "segmentation":  # nothing that is advised rests on patients without the target
        judged = judge_segmentation(methods, volumes, [tumour], store, absent=0, **options)
    else:
        judged = judge_classification(methods, volumes, [tumour], store, **options)
    learnt = {*LEARNT, run.learner.name} if run is not None else LEARNT
    found = advise(judged, learnt)
    if not found:
        raise EvaluationError(
            f"cases of {tumour!r} that can be scored",
            found="none",
            cure="Check masks with 'medmeta inspect'.",
        )
    said = [*answer(found[0], names), *cautions([judged])]
    return OwnAnswer(found[0], judged, patients, " ".join(s for s in said if s))


def _volumes(cohort: Cohort, tumour: str, run: Run | None) -> tuple[Volume, ...]:
    """Who may be learnt from and judged."""
    if tumour not in cohort.tumours:
        cure = nearest(tumour, cohort.tumours) if cohort.tumours else "Name the types in the cohort."
        raise EvaluationError(f"the tumour type {tumour!r} in the cohort", found="none", cure=cure)
    if run is None:
        return cohort.volumes
    check_names(run, [tumour])
    return run.unseen(cohort.volumes)


def _task(volumes: tuple[Volume, ...], tumour: str) -> str:
    masked = any(v.mask is not None for v in volumes if v.tumour == tumour)
    return "segmentation" if masked else "classification"


def _methods(run: Run | None, store: Store, task: str, seed: int) -> Mapping[str, Judge]:
    """The run's learner and every baseline; without a run what needs no training at all."""
    if run is not None:
        return {**methods_of(run, seed)}
    plan, make = store.plan, unet if task == "segmentation" else encoder
    network = build(make(plan.spatial_dims, plan.inputs))
    plain: dict[str, Judge] = {
        "finetune-scratch": create_learner("finetune-scratch", network, **SCRATCH),
        "pixel-trees": Trees(seed),
    }
    return {**plain, "copied-mask": CopiedMask()} if task == "segmentation" else plain
