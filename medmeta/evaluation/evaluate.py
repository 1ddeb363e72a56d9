"""A trained run on a cohort it has not seen: the protocol beside baselines, report and results written."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medmeta.errors import nearest
from medmeta.evaluation.patients import cases_csv
from medmeta.evaluation.pixels import Trees
from medmeta.evaluation.protocol import (
    EvaluationError,
    Judged,
    Method,
    judge_classification,
    judge_segmentation,
)
from medmeta.evaluation.report import Part, Report, render
from medmeta.evaluation.results import results, versions
from medmeta.learners import Safeguarded, create_learner
from medmeta.networks import build
from medmeta.training import Run
from medmeta.volumes import Cohort, Store, Volume
from medmeta.volumes.progress import Track, silent

SCRATCH: dict[str, Any] = {"steps": 40, "rate": 3e-3}
"""Fine-tuning on the support in the baselines that do."""

LEARNT = frozenset({"safeguarded"})
"""Methods beside the run's own learner that start from what was meta-trained; all others are plain."""

NAMES = {
    "pretrain-finetune": "pre-trained and fine-tuned network",
    "finetune-scratch": "network from scratch",
    "pixel-trees": "pixel classifier (ExtraTrees)",
}


def evaluate(
    run: Run,
    cohort: Cohort,
    out: str | Path,
    *,
    tumour: str,
    shots: Sequence[int] = (1, 3, 5),
    episodes: int = 10,
    seed: int = 0,
    cache: str | Path | None = None,
    track: Track = silent,
) -> dict[str, Any]:
    """Adapt a run to one tumour type with few labels, judge it on the other patients, write what was found.

    Args:
        run: of :func:`medmeta.training.open_run`.
        cohort: with patients of the type (and, to classify, others); those that training saw are never
            judged, but where lesions are classified they are the support of the types already known.
        out: folder to write: ``report.html``, ``results.json``, ``cases.csv``; refused where it exists.
        tumour: the type; it must be none that the run was trained on.
        shots: labelled patients to learn from.
        episodes: supports drawn for each number of shots.
        seed: of the draws.
        cache: folder to keep prepared volumes in.
        track: shows progress.

    Returns:
        What ``results.json`` holds.

    Raises:
        EvaluationError: where the type was trained on or is not in the cohort, or ``out`` exists.
        EpisodeError: where there are too few patients.
    """
    folder = Path(out)
    _check(run, cohort, tumour, shots, episodes, folder)
    began = time.monotonic()
    store = Store(run.plan, cache, salt=run.config["salt"])
    volumes = run.unseen(cohort.volumes)
    names = {
        run.learner.name: f"meta-trained ({run.learner.name})",
        "safeguarded": "meta-trained, then fine-tuned while those left out gain",
        **NAMES,
    }
    methods: dict[str, Method] = {
        run.learner.name: run.learner,
        "finetune-scratch": create_learner("finetune-scratch", build(run.network), **SCRATCH),
        "pixel-trees": Trees(seed),
    }
    if run.warm is not None:
        methods["pretrain-finetune"] = run.warm
    if run.task == "segmentation":
        methods["safeguarded"] = Safeguarded(run.learner)
    options: dict[str, Any] = {"shots": shots, "episodes": episodes, "seed": seed, "track": track}
    if run.task == "segmentation":
        judged = judge_segmentation(methods, volumes, [tumour], store, **options)
    else:
        known = _known(run, cohort, max(shots)) if run.plan.lesion is not None else ()
        asked = run.new_patients(cohort.volumes) if known else volumes
        judged = judge_classification(methods, asked, [tumour], store, known=known, **options)
    content = results([judged], held_out=run.held_out, seed=seed, seconds=time.monotonic() - began)
    page = render(
        Report(
            f"{tumour}: {run.task} from a few labelled patients",
            "Research use only",
            [Part(judged, run.learner.name, {m: names[m] for m in names if m in methods}, learnt=LEARNT)],
            _facts(run, judged, tumour, shots, episodes, seed),
        )
    )
    write(
        folder,
        {
            "report.html": page,
            "results.json": json.dumps(content, indent=1) + "\n",
            "cases.csv": cases_csv([judged]),
        },
    )
    return content


def _known(run: Run, cohort: Cohort, shots: int) -> tuple[Volume, ...]:
    """Patients whom training saw, of the types that have enough of them: classes beside the new one."""
    new = set(run.new_patients(cohort.volumes))
    if not any(v.tumour in run.types for v in new):  # nobody of the known types is left to be asked of
        return ()
    seen = [v for v in cohort.volumes if v not in new and v.tumour in run.types and run.plan.takes(v)]
    patients: dict[str, set[str]] = {}
    for v in seen:
        patients.setdefault(v.tumour or "", set()).add(v.patient)
    return tuple(v for v in seen if len(patients[v.tumour or ""]) > shots)


def write(folder: Path, files: dict[str, str]) -> None:
    """Write a folder of text files at once: all of it or nothing."""
    work = folder.with_name(f".{folder.name}.{os.getpid()}")
    work.mkdir(parents=True)
    try:
        for name, text in files.items():
            (work / name).write_text(text)
        os.replace(work, folder)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise


def _check(run: Run, cohort: Cohort, tumour: str, shots: Sequence[int], episodes: int, folder: Path) -> None:
    if folder.exists():
        raise EvaluationError(
            f"a folder that does not exist: {folder.name}", found="one that does", cure="Give another --out."
        )
    if tumour not in cohort.tumours:
        raise EvaluationError(
            f"the tumour type {tumour!r} in the cohort", found="none", cure=nearest(tumour, cohort.tumours)
        )
    if tumour in run.types or tumour in run.config.get("validated_on", ()):
        raise EvaluationError(
            f"a run that has not seen {tumour!r}",
            found="it among the types it was trained or validated on",
            cure=f"Train with --hold-out {tumour}.",
        )
    if episodes < 1 or not shots or min(shots) < 1:
        raise EvaluationError(
            "at least 1 episode and 1 shot",
            found=f"{episodes} episodes, shots {', '.join(map(str, shots)) or 'none'}",
            cure="Give --episodes and --shots of 1 or more.",
        )


def _facts(
    run: Run, judged: Judged, tumour: str, shots: Sequence[int], episodes: int, seed: int
) -> dict[str, str]:
    return {
        "Tumour type": f"{tumour}, in no stage of training",
        "Trained on": ", ".join(run.types),
        "Learner": f"{run.learner.name} ({run.config['recipe']['schedule']['steps']} outer steps)",
        "Patients judged": str(len({case.patient for case in judged.cases})),
        "Supports drawn": f"{episodes} for each of {', '.join(map(str, shots))} shots",
        "Fine-tuning": f"from scratch {SCRATCH['steps']} steps of Adam; pixel classifier: 50 trees",
        "Preprocessing": str(run.plan).replace("\n", "; "),
        "Seed": str(seed),
        "Versions": ", ".join(f"{name} {version}" for name, version in versions().items()),
    }
