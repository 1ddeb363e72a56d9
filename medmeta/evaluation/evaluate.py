"""A trained run on a cohort it has not seen: the protocol beside baselines, report and results written."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from medmeta.errors import MedmetaError, new_folder, work_folder
from medmeta.evaluation.advice import advise, judge_further
from medmeta.evaluation.answers import Answers, check_programs
from medmeta.evaluation.baselines import NAMES, SCRATCH, methods_of, names_of, tuned, validation_episodes
from medmeta.evaluation.catalogue import Catalogue
from medmeta.evaluation.drawing import at_least_one, drawn, manifest_of, new_volumes, tumours_of, who
from medmeta.evaluation.manifest import Manifest, joined
from medmeta.evaluation.patients import cases_csv
from medmeta.evaluation.proof import Proof, prove
from medmeta.evaluation.protocol import TOLERANCE, Judge, replay
from medmeta.evaluation.records import EvaluationError, Judged, Method, ScanMethod
from medmeta.evaluation.report import Part, Report, render
from medmeta.evaluation.results import results, versions
from medmeta.evaluation.supports import available
from medmeta.training import Run
from medmeta.volumes import Cohort, Store
from medmeta.volumes.progress import Track, silent

LEARNT = frozenset({"safeguarded"})
"""Methods beside the run's own learner that start from what was meta-trained; all others are plain."""

FIGURES = "results.json"


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
            where it exists. Where the best plain way is judged at more labels, ``manifest-further.json``
            has those episodes.
        tumour: the type; it must be none that the run was trained on, under any name. None takes the
            manifest's.
        shots: labelled patients to learn from.
        episodes: supports drawn for each number of shots.
        manifest: episodes to replay, in place of ``shots``, ``episodes`` and ``seed``: rates are chosen with
            its seed and shots, too.
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
    _check(folder, shots, episodes, beside.tolerance)
    ours = names_of(run)
    check_programs(list(beside.predictions), {*ours, *ours.values()})
    began = time.monotonic()
    store = Store(run.plan, cache, salt=run.config["salt"])
    catalogue = Catalogue(v for v in cohort.volumes if run.plan.takes(v))
    if manifest is None:
        manifest = manifest_of(
            run, cohort, tumour, shots=shots, episodes=episodes, seed=seed, catalogue=catalogue
        )
    seed, shots = manifest.seed, sorted({e.shot for e in manifest.episodes})  # its own, where one is replayed
    asked = _Asked(run, cohort, manifest, catalogue, store, track)
    tumours = tumours_of(run, manifest, tumour)
    with _written(folder) as work:
        (work / "manifest.json").write_text(manifest.text(), encoding="utf-8")
        catalogue.check(manifest)
        theirs = {name: Answers(where, manifest) for name, where in beside.predictions.items()}
        judged_on = new_volumes(run, manifest, catalogue)
        proof = prove(run, tumours, judged_on, store, trained_on=beside.trained_on, track=track)
        # first, for a mask that cannot be read is not to be found after hours of adapting
        answered = asked.judge(theirs, beside.tolerance) if theirs else None
        gone = {catalogue[k].patient for k in manifest.cases}
        others = [v for v in cohort.volumes if v.patient not in gone]  # nobody who is judged chooses a rate
        tasks = validation_episodes(run, others, store, shots, seed=seed)
        methods, tuning = tuned(methods_of(run, seed), tasks, track=track)
        found = asked.answer(methods, answered, beside.tolerance)
        content = results(
            [found.judged],
            held_out=tuple(dict.fromkeys((*run.held_out, *tumours))),  # a new type need not have been named
            seed=manifest.seed,
            seconds=time.monotonic() - began,
            manifests=[manifest],
            proofs=[proof],
            further=list(filter(None, [found.further])),
            tuning={run.task: tuning},
        )
        learnt = {run.learner.name, *LEARNT}
        content["answer"] = [a.to_json() for a in advise(found.judged, learnt, further=found.further)]
        if found.manifest is not None:
            content["manifest_further"] = {run.task: found.manifest.summary()}
        text = {"cases.csv": cases_csv([found.judged, *filter(None, [found.further])])}
        if found.manifest is not None:
            text["manifest-further.json"] = found.manifest.text()
        text[FIGURES] = json.dumps(content, indent=1, allow_nan=False) + "\n"
        for name, whole in text.items():  # before the page, which reads scans again
            (work / name).write_text(whole, encoding="utf-8")
        page = _page(asked, found, proof, tuning, list(theirs))
        (work / "report.html").write_text(page, encoding="utf-8")
    return content


@contextlib.contextmanager
def _written(folder: Path) -> Iterator[Path]:
    """A folder that is there under its name once all of it is written; figures are kept in any case."""
    work = work_folder(folder, EvaluationError)
    kept = f"All that was found is in {work.name} beside it: move it."
    try:
        yield work
    except BaseException as error:
        if isinstance(error, Exception) and (work / FIGURES).is_file():
            found = error.found if isinstance(error, MedmetaError) else type(error).__name__
            raise EvaluationError("a page of what was found", found=found, cure=kept) from error
        shutil.rmtree(work, ignore_errors=True)
        raise
    try:
        os.replace(work, folder)
    except OSError as error:
        wanted, found = f"a folder that does not exist: {folder.name}", "one that came to be meanwhile"
        raise EvaluationError(wanted, found=found, cure=kept) from error


def _check(folder: Path, shots: Sequence[int], episodes: int, tolerance: float) -> None:
    new_folder(folder, EvaluationError)
    at_least_one(shots, episodes)
    if not 0 <= tolerance < math.inf:
        raise EvaluationError(
            "a tolerance of 0 mm or more", found=f"{tolerance:g}", cure="Give --tolerance in mm."
        )


@dataclass(frozen=True)
class _Found:
    """What was found: every method on the episodes; the best plain way at more labels, and its episodes."""

    judged: Judged
    further: Judged | None = None
    manifest: Manifest | None = None


@dataclass(frozen=True)
class _Asked:
    """What is asked: how a run does on the episodes of a manifest, patients from a cohort."""

    run: Run
    cohort: Cohort
    manifest: Manifest
    catalogue: Catalogue
    store: Store
    track: Track

    def judge(self, methods: Mapping[str, Judge], tolerance: float) -> Judged:
        """Judge methods or other programs' answers on the episodes."""
        return replay(
            methods, self.manifest, self.catalogue, self.store, tolerance=tolerance, track=self.track
        )

    def answer(
        self, methods: Mapping[str, Method | ScanMethod], answered: Judged | None, tolerance: float
    ) -> _Found:
        """Judge our methods, then the plain way with more labels; other programs have answered already."""
        ours = self.judge(methods, tolerance)
        return _Found(_together(ours, answered), *self._further(ours, methods, tolerance))

    def _further(
        self, ours: Judged, methods: Mapping[str, Method | ScanMethod], tolerance: float
    ) -> tuple[Judged | None, Manifest | None]:
        """Our best plain way at more labels, of the same types and patients, and its episodes."""
        run, manifest = self.run, self.manifest
        made: list[Manifest] = []

        def judge(method: str, shots: Sequence[int]) -> Judged:
            draws, seed, cases = manifest.draws, manifest.seed, self.catalogue
            more = joined(
                [
                    drawn(run, self._cohort, names, shots=shots, episodes=draws, seed=seed, catalogue=cases)
                    for names in self._questions
                ]
            )
            made.append(replace(more or manifest, crops=manifest.crops))
            return replace(self, manifest=made[-1]).judge({method: methods[method]}, tolerance)

        further = judge_further(ours, {run.learner.name, *LEARNT}, self._available, judge)
        return further, joined(made)

    @property
    def _questions(self) -> tuple[tuple[str, ...], ...]:
        """The types that are scored in the same episodes."""
        return tuple(dict.fromkeys(e.tumours for e in self.manifest.episodes))

    @cached_property
    def _cohort(self) -> Cohort:
        """Those of the manifest, who were proved to be new, and those whom training saw.

        The cohort that a manifest is replayed on may hold others, whom nothing was proved of.
        """
        new = set(self.run.new_patients(self.cohort.volumes))
        kept = [
            v
            for v in self.cohort.volumes
            if v not in new or (self.run.plan.takes(v) and self.catalogue.key(v) in self.manifest.cases)
        ]
        return replace(self.cohort, volumes=tuple(kept))

    @property
    def _available(self) -> int:
        """Patients of the class that has the fewest."""
        most = max(e.shot for e in self.manifest.episodes)
        asked, known = who(self.run, self._cohort, most)
        return min(available(asked, *names, plan=self.run.plan, known=known) for names in self._questions)


def _together(ours: Judged, theirs: Judged | None) -> Judged:
    """Two evaluations of the same episodes as one, the methods of ours first."""
    if theirs is None:
        return ours
    return replace(
        ours,
        cases=(*ours.cases, *theirs.cases),
        pictures=(*ours.pictures, *theirs.pictures),
        seconds={**ours.seconds, **theirs.seconds},
    )


def _page(
    asked: _Asked, found: _Found, proof: Proof, tuning: Mapping[str, Any], theirs: Sequence[str]
) -> str:
    run, judged = asked.run, found.judged
    names = {**names_of(run), **{name: name for name in theirs}}
    shown = {m: names[m] for m in names if m in judged.seconds}
    return render(
        Report(
            f"{', '.join(asked.manifest.tumours)}: {run.task} from a few labelled patients",
            "Research use only",
            [Part(judged, run.learner.name, shown, found.further, LEARNT)],
            _facts(run, found, asked.manifest, tuning),
            proof=proof.lines(),
        )
    )


def _facts(run: Run, found: _Found, manifest: Manifest, tuning: Mapping[str, Any]) -> dict[str, str]:
    shots = sorted({e.shot for e in manifest.episodes})
    return {
        "Tumour type": f"{', '.join(manifest.tumours)}, in no stage of training",
        "Trained on": ", ".join(run.drawn),
        "Learner": f"{run.learner.name} ({run.config['recipe']['schedule']['steps']} outer steps)",
        "Patients judged": str(len({case.patient for case in found.judged.cases})),
        "Supports drawn": f"{manifest.draws} for each of {', '.join(map(str, shots))} shots",
        "Episodes": _where(manifest, found.manifest),
        "Fine-tuning": _chosen(tuning, run.config.get("validated_on", ()), run.learner.name),
        "Preprocessing": str(run.plan).replace("\n", "; "),
        "Seed": str(manifest.seed),
        "Versions": ", ".join(f"{name} {version}" for name, version in versions().items()),
    }


def _where(manifest: Manifest, further: Manifest | None) -> str:
    """In which files the episodes stand."""
    files = {"manifest.json": manifest} | ({"manifest-further.json": further} if further else {})
    said = [f"{len(m.episodes)}, in {name}, sha256 {m.digest[:16]}" for name, m in files.items()]
    return "; with more labels ".join(said)


def _chosen(tuning: Mapping[str, Any], kept: Sequence[str], ours: str) -> str:
    """How rates and steps came about, where some types were kept for validation, or none; of our learner,
    how a bundle gets them, too."""
    if not tuning["chosen"]:
        why = "the run kept no types for validation"
        if kept:
            why = f"the cohort's patients of {', '.join(kept)}, kept for validation, do not suffice"
        defaults = f"rates and steps are the defaults, from scratch {SCRATCH['steps']} steps of Adam"
        return f"{defaults}: {why} to choose them on"
    rows = [
        f"{NAMES.get(name, name)} {one['steps']} steps at {one['rate']:g}"
        for name, one in tuning["chosen"].items()
    ]
    said = f"{'; '.join(rows)}; chosen on {tuning['tasks']} tasks of {', '.join(tuning['types'])}"
    if own := tuning["chosen"].get(ours):
        said += f"; medmeta adapt --rate {own['rate']:g} --steps {own['steps']} makes a bundle so"
    return said
