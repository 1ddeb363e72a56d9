"""A trained run on a cohort it has not seen: the protocol beside baselines, report and results written."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from medmeta.errors import nearest, new_folder
from medmeta.evaluation.advice import advise, judge_further
from medmeta.evaluation.answers import Answers
from medmeta.evaluation.baselines import NAMES, SCRATCH, baselines, tuned, validation_episodes
from medmeta.evaluation.manifest import Catalogue, Manifest, draw_classification, draw_segmentation
from medmeta.evaluation.patients import cases_csv
from medmeta.evaluation.proof import Proof, check_names, prove
from medmeta.evaluation.protocol import TOLERANCE, Judge, check_plan, replay
from medmeta.evaluation.records import EvaluationError, Judged, Method, ScanMethod
from medmeta.evaluation.report import Part, Report, render
from medmeta.evaluation.results import results, versions
from medmeta.learners import Safeguarded
from medmeta.training import Run
from medmeta.training.checkpoint import write_bytes
from medmeta.volumes import Cohort, Store, Volume
from medmeta.volumes.progress import Track, silent

LEARNT = frozenset({"safeguarded"})
"""Methods beside the run's own learner that start from what was meta-trained; all others are plain."""


@dataclass(frozen=True)
class Beside:
    """What is looked at besides the run.

    Args:
        predictions: folders of other programs' predictions by name, of the very same episodes.
        trained_on: the cohorts of training, to look for altered copies of judged images in.
        tolerance: mm within which a surface counts as right.
    """

    predictions: Mapping[str, Path] = field(default_factory=dict)
    trained_on: Sequence[Cohort] = ()
    tolerance: float = TOLERANCE


def evaluate(
    run: Run,
    cohort: Cohort,
    out: str | Path,
    *,
    tumour: str | None = None,
    shots: Sequence[int] = (1, 3, 5),
    episodes: int = 10,
    manifest: Manifest | None = None,
    beside: Beside | None = None,
    seed: int = 0,
    cache: str | Path | None = None,
    track: Track = silent,
) -> dict[str, Any]:
    """Adapt a run to one tumour type with few labels, judge it on the other patients, write what was found.

    The episodes are written first; then it is proved that no stage saw the type, its patients or their
    images; then rates are chosen on the types that the run was validated on, from one grid for all methods;
    then every method and baseline learns from the same supports and is judged on the same patients.

    Args:
        run: of :func:`medmeta.training.open_run`.
        cohort: with patients of the type (and, to classify, others); those that training saw are never
            judged, but where lesions are classified they are the support of the types already known.
        out: folder to write: ``report.html``, ``results.json``, ``cases.csv``, ``manifest.json``; refused
            where it exists.
        tumour: the type; it must be none that the run was trained on, under any name. None takes the
            manifest's.
        shots: labelled patients to learn from.
        episodes: supports drawn for each number of shots.
        manifest: episodes to replay, in place of ``shots``, ``episodes`` and ``seed``.
        beside: other programs' predictions, and more.
        seed: of the draws.
        cache: folder to keep prepared volumes in.
        track: shows progress.

    Returns:
        What ``results.json`` holds.

    Raises:
        EvaluationError: where the type, a patient or an image was trained on, the type is not in the cohort,
            a case of the manifest is missing, or ``out`` exists.
        EpisodeError: where there are too few patients.
    """
    folder, beside = Path(out), beside or Beside()
    _check(folder, shots, episodes)
    began = time.monotonic()
    store = Store(run.plan, cache, salt=run.config["salt"])
    catalogue = Catalogue(v for v in cohort.volumes if run.plan.takes(v))
    if manifest is None:
        manifest = manifest_of(
            run, cohort, tumour, shots=shots, episodes=episodes, seed=seed, catalogue=catalogue
        )
    tumours = _tumours(run, cohort, manifest, tumour)
    with _written(folder) as work:
        (work / "manifest.json").write_text(manifest.text())
        catalogue.check(manifest)
        theirs = {name: Answers(where, manifest) for name, where in beside.predictions.items()}
        judged_on = _new_volumes(run, manifest, catalogue)
        proof = prove(run, tumours, judged_on, store, trained_on=beside.trained_on, track=track)
        tasks = validation_episodes(run, cohort.volumes, store, shots, seed=seed)
        methods, tuning = tuned(_methods(run, seed), tasks, track=track)
        judges: dict[str, Judge] = {**methods, **theirs}
        judged = replay(judges, manifest, catalogue, store, tolerance=beside.tolerance, track=track)
        further = _further(run, cohort, judged, methods, manifest, catalogue, store, track)
        content = results(
            [judged],
            held_out=run.held_out,
            seed=manifest.seed,
            seconds=time.monotonic() - began,
            manifests=[manifest],
            proofs=[proof],
            tuning={run.task: tuning},
        )
        learnt = {run.learner.name, *LEARNT}
        content["answer"] = [a.to_json() for a in advise(judged, learnt, further=further)]
        page = _page(run, judged, further, manifest, proof, tuning, beside)
        (work / "results.json").write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
        (work / "cases.csv").write_text(cases_csv([judged, *filter(None, [further])]))
        (work / "report.html").write_text(page)
    return content


def manifest_of(
    run: Run,
    cohort: Cohort,
    tumour: str | None,
    *,
    shots: Sequence[int] = (1, 3, 5),
    episodes: int = 10,
    seed: int = 0,
    catalogue: Catalogue | None = None,
) -> Manifest:
    """Draw the episodes of one tumour type for a run: nobody whom it saw is judged.

    Args:
        run, cohort, tumour, shots, episodes, seed: as for :func:`evaluate`.
        catalogue: of the cohort's volumes, where there is one.

    Raises:
        EvaluationError, EpisodeError: as there.
    """
    if tumour is None:
        raise EvaluationError("a tumour type", found="none", cure="Give --tumor TYPE, or a manifest.")
    if tumour not in cohort.tumours:
        raise EvaluationError(
            f"the tumour type {tumour!r} in the cohort", found="none", cure=nearest(tumour, cohort.tumours)
        )
    check_names(run, [tumour])
    options: dict[str, Any] = {"shots": shots, "episodes": episodes, "seed": seed, "catalogue": catalogue}
    volumes = run.unseen(cohort.volumes)
    if run.task == "segmentation":
        return draw_segmentation(volumes, [tumour], run.plan, **options)
    known = _known(run, cohort, max(shots)) if run.plan.lesion is not None else ()
    asked = run.new_patients(cohort.volumes) if known else volumes
    return draw_classification(asked, [tumour], run.plan, known=known, **options)


def write_manifest(
    run: Run,
    cohort: Cohort,
    tumour: str,
    out: str | Path,
    *,
    shots: Sequence[int] = (1, 3, 5),
    episodes: int = 10,
    seed: int = 0,
    paths: str | Path | None = None,
) -> Manifest:
    """Write the episodes that :func:`evaluate` would judge, without judging.

    Args:
        run, cohort, tumour, shots, episodes, seed: as for :func:`evaluate`.
        out: file to write, refused where it exists.
        paths: file to write besides, which image file each case is: for other programs that replay the
            episodes, and to be kept where the data is.

    Raises:
        EvaluationError, EpisodeError: as there.
    """
    catalogue = Catalogue(v for v in cohort.volumes if run.plan.takes(v))
    for file in (out, paths):
        if file is not None and Path(file).exists():
            raise EvaluationError(
                f"a file that does not exist: {Path(file).name}", found="one that does", cure="Name another."
            )
    _at_least_one(shots, episodes)
    made = manifest_of(run, cohort, tumour, shots=shots, episodes=episodes, seed=seed, catalogue=catalogue)
    write_bytes(Path(out), made.text().encode())
    if paths is not None:
        write_bytes(Path(paths), catalogue.table(made).encode())
    return made


def _methods(run: Run, seed: int) -> dict[str, Method | ScanMethod]:
    """The run's learner first, then every baseline."""
    methods: dict[str, Method | ScanMethod] = {run.learner.name: run.learner}
    if run.task == "segmentation":
        methods["safeguarded"] = Safeguarded(run.learner)
    return {**methods, **baselines(run, seed)}


def _tumours(run: Run, cohort: Cohort, manifest: Manifest, tumour: str | None) -> tuple[str, ...]:
    """The types that a manifest is of, where it fits the run and what was asked."""
    check_plan(run.plan, manifest.task)
    if tumour is not None and manifest.tumours != (tumour,):
        raise EvaluationError(
            f"a manifest of {tumour!r}",
            found=f"one of {', '.join(manifest.tumours)}",
            cure="Leave --tumor out, or give the manifest of that type.",
        )
    check_names(run, manifest.tumours)
    return manifest.tumours


def _new_volumes(run: Run, manifest: Manifest, catalogue: Catalogue) -> list[Volume]:
    """Everyone learnt from as new, or judged; known types' supports are those that training saw."""
    judged = {k for e in manifest.episodes for k in e.query}
    learnt = {k for e in manifest.episodes for k in e.support if k.kind not in run.types}
    return [catalogue[k] for k in sorted(judged | learnt)]


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


@contextlib.contextmanager
def _written(folder: Path) -> Iterator[Path]:
    """A folder that is there under its name once all of it is written."""
    work = folder.with_name(f".{folder.name}.{os.getpid()}")
    work.mkdir(parents=True)
    try:
        yield work
        os.replace(work, folder)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise


def _check(folder: Path, shots: Sequence[int], episodes: int) -> None:
    new_folder(folder, EvaluationError)
    _at_least_one(shots, episodes)


def _at_least_one(shots: Sequence[int], episodes: int) -> None:
    if episodes < 1 or not shots or min(shots) < 1:
        raise EvaluationError(
            "at least 1 episode and 1 shot",
            found=f"{episodes} episodes, shots {', '.join(map(str, shots)) or 'none'}",
            cure="Give --episodes and --shots of 1 or more.",
        )


def _further(
    run: Run,
    cohort: Cohort,
    judged: Judged,
    methods: Mapping[str, Method | ScanMethod],
    manifest: Manifest,
    catalogue: Catalogue,
    store: Store,
    track: Track,
) -> Judged | None:
    """Our best plain way at more labels, to see how many it needs; other programs have answered already."""
    (tumour,) = manifest.tumours[:1]
    known = _known(run, cohort, max(e.shot for e in manifest.episodes)) if run.plan.lesion is not None else ()
    volumes = [v for v in run.unseen(cohort.volumes) if run.plan.takes(v)]
    classes: dict[str | None, set[str]] = {tumour: set()}
    for v in (*volumes, *known):
        if run.task == "classification" or (v.tumour == tumour and v.mask is not None):
            name = v.tumour if known or v.tumour == tumour else None  # else the rest is a class
            classes.setdefault(name, set()).add(v.patient)

    def judge(method: str, shots: Sequence[int]) -> Judged:
        options: dict[str, Any] = {"episodes": manifest.draws, "seed": manifest.seed, "catalogue": catalogue}
        more = manifest_of(run, cohort, tumour, shots=shots, **options)
        return replay({method: methods[method]}, more, catalogue, store, track=track)

    ours = replace(judged, cases=tuple(c for c in judged.cases if c.method in methods))
    available = min(len(patients) for patients in classes.values())
    return judge_further(ours, {run.learner.name, *LEARNT}, available, judge)


def _page(
    run: Run,
    judged: Judged,
    further: Judged | None,
    manifest: Manifest,
    proof: Proof,
    tuning: Mapping[str, Any],
    beside: Beside,
) -> str:
    names = {
        run.learner.name: f"meta-trained ({run.learner.name})",
        "safeguarded": "meta-trained, then fine-tuned while those left out gain",
        **NAMES,
        **{name: name for name in beside.predictions},
    }
    shown = {m: names[m] for m in names if m in judged.seconds}
    return render(
        Report(
            f"{', '.join(manifest.tumours)}: {run.task} from a few labelled patients",
            "Research use only",
            [Part(judged, run.learner.name, shown, further, LEARNT)],
            _facts(run, judged, manifest, tuning),
            proof=proof.lines(),
        )
    )


def _facts(run: Run, judged: Judged, manifest: Manifest, tuning: Mapping[str, Any]) -> dict[str, str]:
    shots = sorted({e.shot for e in manifest.episodes})
    return {
        "Tumour type": f"{', '.join(manifest.tumours)}, in no stage of training",
        "Trained on": ", ".join(run.types),
        "Learner": f"{run.learner.name} ({run.config['recipe']['schedule']['steps']} outer steps)",
        "Patients judged": str(len({case.patient for case in judged.cases})),
        "Supports drawn": f"{manifest.draws} for each of {', '.join(map(str, shots))} shots",
        "Episodes": f"{len(manifest.episodes)}, in manifest.json, sha256 {manifest.digest[:16]}",
        "Fine-tuning": _chosen(tuning),
        "Preprocessing": str(run.plan).replace("\n", "; "),
        "Seed": str(manifest.seed),
        "Versions": ", ".join(f"{name} {version}" for name, version in versions().items()),
    }


def _chosen(tuning: Mapping[str, Any]) -> str:
    """How rates and steps came about."""
    if not tuning["chosen"]:
        return (
            f"rates and steps are the defaults, from scratch {SCRATCH['steps']} steps of Adam: the run kept "
            "no types for validation to choose them on"
        )
    rows = [
        f"{NAMES.get(name, name)} {one['steps']} steps at {one['rate']:g}"
        for name, one in tuning["chosen"].items()
    ]
    return f"{'; '.join(rows)}; chosen on {tuning['tasks']} tasks of {', '.join(tuning['types'])}"
