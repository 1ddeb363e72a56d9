"""The main job on volumes: a structure, organ or tumour type held out, learnt from 1, 3 and 5 patients.

    python benchmarks/real_volumes.py hippocampus chaos atlas --out DIR --json FILE
    python benchmarks/real_volumes.py synthetic --learners ranked-regions local-prototype --out DIR

Data of ../shared/data (see its SOURCES.md; CHAOS and parts of the atlas are non-commercial); `synthetic` is a
cohort as sample_data, larger and of a fresh seed. Each set leaves runs and reports under DIR; those that are
there are taken as they are. The table gives Dice with 95 % intervals clustered by patient. Learners beside
the first are trained on the same patients and judged on the very same episodes.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from over_types import over_types
from rich.console import Console
from rich.progress import track
from rich.table import Table

from medmeta import open_cohort
from medmeta.evaluation import Catalogue, draw_segmentation, evaluate
from medmeta.evaluation.cells import Cells, cells_of
from medmeta.evaluation.differences import difference
from medmeta.evaluation.intervals import interval
from medmeta.evaluation.manifest import Manifest, open_manifest
from medmeta.evaluation.protocol import replay
from medmeta.training import Recipe, Run, Schedule, open_run, plan_for, split, train
from medmeta.volumes import Cohort, Store

HERE = Path(__file__).resolve().parent
SHARED = HERE.parents[1] / "shared" / "data"
FRESH = 20261127
"""Seed of the larger synthetic cohort; sample_data has another."""
ABSENT = 4
"""Patients free of the target who are judged, too, at most."""


@dataclass(frozen=True)
class Job:
    """A cohort, what is held out of it, what is judged of that, and how it is trained."""

    path: Path
    held_out: tuple[str, ...]
    judged: tuple[str, ...]
    recipe: Recipe


def recipe(spacing: tuple[float, float, float] | None, patch: tuple[int, ...], steps: int) -> Recipe:
    """Ordinary supervised training, then first-order Proto-MAML for a fifth of the steps."""
    return Recipe(
        learner="proto-maml",
        options={"order": "first", "adapt_steps": 10},
        warm=Schedule(steps=steps, rate=4e-3),
        schedule=Schedule(steps=steps // 5, rate=1e-3),
        shot=(1, 3),
        spacing=spacing,
        patch=patch,
    )


def jobs(names: list[str], steps: int, work: Path) -> dict[str, Job]:
    """The sets asked for; the atlas becomes a cohort first."""
    made = {}
    if "hippocampus" in names:
        made["hippocampus"] = Job(
            SHARED / "volumes" / "hippocampus",
            ("label_2",),
            ("label_2",),
            recipe((1, 1, 1), (32, 48, 32), steps),
        )
    if "chaos" in names:
        made["chaos"] = Job(
            SHARED / "volumes" / "nc" / "chaos_t2",
            ("label_4",),
            ("label_4",),
            recipe((2.5, 2.5, 7.7), (96, 96, 16), steps),
        )
    if "atlas" in names:
        cohort = work / "atlas_cohort"
        if not cohort.exists():
            script = HERE / "npz_cohort.py"
            atlas = SHARED / "images" / "atlas"
            subprocess.run([sys.executable, str(script), str(atlas), "--out", str(cohort)], check=True)
        kin = (
            "brain_glioma_MR",
            "brain_meningioma_MR",
            "brain_pituitary_MR",
            "glioma_T2_fets",
            "glioma_T2_utsw",
        )
        held = tuple(t for t in open_cohort(cohort).tumours if t in kin)
        made["atlas"] = Job(cohort, held, ("glioma_T2_fets",), recipe(None, (128, 128), steps))
    if "synthetic" in names:
        cohort = work / "synthetic_cohort"
        if not cohort.exists():
            script = HERE.parent / "sample_data" / "make.py"
            options = ["--patients", "200", "--seed", str(FRESH), "--out", str(cohort)]
            subprocess.run([sys.executable, str(script), *options], check=True)
        held = ("rimose", "sericate", "nodose", "fluted")
        made["synthetic"] = Job(cohort, held, held, recipe(None, (32, 32, 32), steps))
    return made


def trained(job: Job, cohort: Cohort, out: Path) -> Run:
    """The first learner's run, trained or taken as it is."""
    return open_run(out) if out.exists() else train(cohort, job.recipe, out=out, hold_out=job.held_out)


def beside(job: Job, cohort: Cohort, first: Run, learner: str, steps: int, out: Path) -> Run:
    """Another learner trained on the very same patients, by as many outer steps as ordinary training took."""
    if out.exists():
        return open_run(out)
    patch = None if learner == "ranked-regions" else job.recipe.patch  # whole scans, as it asks for
    own = replace(
        job.recipe, learner=learner, options={}, warm=None, patch=patch, schedule=Schedule(steps=steps)
    )
    volumes, _ = split(cohort, own, job.held_out)
    store = Store(plan_for(volumes, own), salt=first.config["salt"])  # so that patients have the same keys
    return train(cohort, own, out=out, hold_out=job.held_out, store=store)


def drawn(run: Run, cohort: Cohort, tumour: str, episodes: int, seed: int) -> Manifest:
    """The episodes of one type, with a few patients free of it."""
    volumes = run.unseen(cohort.volumes)
    return draw_segmentation(
        volumes, [tumour], run.plan, shots=(1, 3, 5), episodes=episodes, absent=ABSENT, seed=seed
    )


Scores = dict[tuple[str, str], list[tuple[str, str, float]]]
"""By number of labels and method: patient, draw and Dice of every case that has the target."""


def judged(run: Run, others: Sequence[Run], cohort: Cohort, manifest: Manifest, report: Path) -> Scores:
    """Every method's cases: of the report of the first run, and of the others on the same episodes."""
    tumour = manifest.tumours[0]
    if not report.exists():
        evaluate(run, cohort, report, tumour=tumour, manifest=manifest)
    made: Scores = {}
    with (report / "cases.csv").open() as file:
        for row in csv.DictReader(file):
            if row["dice"] and int(row["support"]) < manifest.draws and int(row["shots"]) in (1, 3, 5):
                key = (row["shots"], row["method"])
                made.setdefault(key, []).append((row["patient"], row["support"], float(row["dice"])))
    known = open_manifest(report / "manifest.json")
    catalogue = Catalogue(cohort.volumes)
    for other in others:
        store = Store(other.plan, salt=run.config["salt"])
        name = other.learner.name
        for case in replay({name: other.learner}, known, catalogue, store, track=track).cases:
            if case.values["dice"] is not None:
                key = (str(case.shot), name)
                made.setdefault(key, []).append((case.patient, str(case.draw), case.values["dice"]))
    return made


def cells(cases: Sequence[tuple[str, str, float]]) -> Cells:
    patients, draws, values = zip(*sorted(cases), strict=True)  # the same order for every method
    return cells_of(patients, draws, values)


def over(by_type: dict[str, Scores]) -> dict[str, dict[str, dict[str, Any]]]:
    """The same of the mean over types, each counting once, on the cases that every method has."""
    made: dict[str, dict[str, dict[str, Any]]] = {}
    for shot in sorted({s for scores in by_type.values() for s, _ in scores}):
        methods = set.intersection(*({m for s, m in scores if s == shot} for scores in by_type.values()))
        found = {m: _values(by_type, shot, m) for m in methods}
        shared = sorted(set.intersection(*(set(own) for own in found.values())))
        rows = {m: over_types([(*key, own[key]) for key in shared]) for m, own in found.items()}
        for method, row in rows.items():
            best = max((m for m in rows if m != method), key=lambda m: rows[m]["mean"])
            apart = [(*key, found[method][key] - found[best][key]) for key in shared]
            row.update(best_other=best, ahead=over_types(apart))
        made[shot] = rows
    return made


def _values(by_type: dict[str, Scores], shot: str, method: str) -> dict[tuple[str, str, int], float]:
    """Dice by type, patient and draw."""
    return {
        (tumour, patient, int(draw)): value
        for tumour, scores in by_type.items()
        for patient, draw, value in scores[shot, method]
    }


def figures(scores: Scores) -> dict[str, dict[str, dict[str, Any]]]:
    """Dice with its interval by number of labels and method, and how far the learners are from the best."""
    made: dict[str, dict[str, dict[str, Any]]] = {}
    for shot, method in scores:
        found = {m: cells(scores[s, m]) for s, m in scores if s == shot}
        best = max((m for m in found if m != method), key=lambda m: float(np.nanmean(found[m])))
        made.setdefault(shot, {})[method] = {
            **interval(found[method], bounds=(0.0, 1.0)).to_json(),
            "patients": found[method].shape[1],
            "best_other": best,
            "ahead": difference(method, best, found).interval.to_json(),
        }
    return made


def main(arguments: list[str] | None = None) -> int:
    """Train, adapt, judge; print one table a set and type."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sets", nargs="+", choices=("hippocampus", "chaos", "atlas", "synthetic"))
    parser.add_argument("--learners", nargs="*", default=[], help="further learners, on the same episodes")
    parser.add_argument("--types", nargs="*", default=None, help="of those held out, judge these alone")
    parser.add_argument("--out", type=Path, default=None, help="keep runs and reports here")
    parser.add_argument("--steps", type=int, default=500, help="supervised steps; a fifth as many outer ones")
    parser.add_argument("--episodes", type=int, default=3, help="supports drawn for each number of shots")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a tenth of the steps, one support")
    parser.add_argument("--json", type=Path, default=None)
    given = parser.parse_args(arguments)
    if set(given.sets) != {"synthetic"} and not SHARED.is_dir():
        sys.stderr.write(f"no real data at {SHARED}\n")
        return 2
    steps, episodes = (given.steps // 10, 1) if given.quick else (given.steps, given.episodes)
    work = given.out or Path(tempfile.mkdtemp())
    work.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {}
    for name, job in jobs(given.sets, steps, work).items():
        job = replace(job, recipe=replace(job.recipe, seed=given.seed))
        cohort = open_cohort(job.path)
        run = trained(job, cohort, work / f"{name}_run")
        others = [beside(job, cohort, run, n, steps, work / f"{name}_{n}") for n in given.learners]
        by_type: dict[str, Scores] = {}
        for tumour in given.types or job.judged:
            began = time.process_time()
            manifest = drawn(run, cohort, tumour, episodes, given.seed)
            by_type[tumour] = judged(run, others, cohort, manifest, work / f"{name}_{tumour}_report")
            rows = figures(by_type[tumour])
            found[f"{name} {tumour}"] = {"results": rows, "draws": episodes, "seed": given.seed}
            show(f"{name}: {tumour!r} held out, {episodes} draws, seed {given.seed}", rows)
            Console().print(f"{time.process_time() - began:.0f} CPU seconds")
        if len(by_type) > 1:
            rows = over(by_type)
            found[f"{name}, mean over types"] = {"results": rows, "draws": episodes, "seed": given.seed}
            show(f"{name}: mean over {len(by_type)} types, {episodes} draws, seed {given.seed}", rows)
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


def show(title: str, rows: dict[str, dict[str, dict[str, Any]]]) -> None:
    """Dice by shots and method, and how far ahead of the best other one."""
    board = Table(title=title)
    for column in ("method", *(f"{shot} labelled" for shot in rows)):
        board.add_column(column)
    for method in next(iter(rows.values())):
        own = [rows[shot].get(method) for shot in rows]
        board.add_row(
            method, *["" if c is None else f"{said(c)}\n{said(c['ahead'])} {c['best_other']}" for c in own]
        )
    patients = max(c["patients"] for by in rows.values() for c in by.values())
    board.caption = f"{patients} patients; below, how far ahead of the best other one"
    Console(width=140).print(board)


def said(row: dict[str, Any]) -> str:
    ends = [f"{row[e]:.2f}" if row[e] is not None else "n/a" for e in ("mean", "low", "high")]
    return f"{ends[0]} ({ends[1]} to {ends[2]})"


if __name__ == "__main__":
    sys.exit(main())
