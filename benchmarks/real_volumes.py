"""The main job on real data: a structure, organ or tumour type held out, learnt from 1, 3 and 5 patients.

    python benchmarks/real_volumes.py hippocampus chaos atlas --out DIR --json FILE

Data of ../shared/data (see its SOURCES.md; CHAOS and parts of the atlas are non-commercial). Each set
leaves a run and a report under DIR; the table gives Dice with 95 % intervals clustered by patient.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from medmeta import open_cohort
from medmeta.evaluation import evaluate
from medmeta.training import Recipe, Schedule, train

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@dataclass(frozen=True)
class Job:
    """A cohort, what is held out of it, and how it is trained."""

    path: Path
    held_out: tuple[str, ...]
    judged: str
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
            "label_2",
            recipe((1, 1, 1), (32, 48, 32), steps),
        )
    if "chaos" in names:
        made["chaos"] = Job(
            SHARED / "volumes" / "nc" / "chaos_t2",
            ("label_4",),
            "label_4",
            recipe((2.5, 2.5, 7.7), (96, 96, 16), steps),
        )
    if "atlas" in names:
        cohort = work / "atlas_cohort"
        if not cohort.exists():
            script = Path(__file__).resolve().parent / "npz_cohort.py"
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
        made["atlas"] = Job(cohort, held, "glioma_T2_fets", recipe(None, (128, 128), steps))
    return made


def main(arguments: list[str] | None = None) -> int:
    """Train, adapt, judge; print one table a set."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sets", nargs="+", choices=("hippocampus", "chaos", "atlas"))
    parser.add_argument("--out", type=Path, default=None, help="keep runs and reports here")
    parser.add_argument("--steps", type=int, default=500, help="supervised steps; a fifth as many outer ones")
    parser.add_argument("--episodes", type=int, default=3, help="supports drawn for each number of shots")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a tenth of the steps, one support")
    parser.add_argument("--json", type=Path, default=None)
    given = parser.parse_args(arguments)
    if not SHARED.is_dir():
        sys.stderr.write(f"no real data at {SHARED}\n")
        return 2
    steps, episodes = (given.steps // 10, 1) if given.quick else (given.steps, given.episodes)
    work = given.out or Path(tempfile.mkdtemp())
    work.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {}
    for name, job in jobs(given.sets, steps, work).items():
        cohort = open_cohort(job.path)
        run = train(
            cohort, replace(job.recipe, seed=given.seed), out=work / f"{name}_run", hold_out=job.held_out
        )
        content = evaluate(
            run, cohort, work / f"{name}_report", tumour=job.judged, episodes=episodes, seed=given.seed
        )
        found[name] = content
        show(name, job.judged, content)
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


def show(name: str, judged: str, content: dict[str, Any]) -> None:
    """Dice by shots and method."""
    rows = content["results"][judged]
    table = Table(
        title=f"{name}: {judged!r} held out, {content['patients']} patients, seed {content['seed']}"
    )
    table.add_column("method")
    for shot in rows:
        table.add_column(f"{shot} labelled")
    for method in next(iter(rows.values())):
        cells = [rows[shot][method]["dice"] for shot in rows]
        table.add_row(method, *[f"{c['mean']:.2f} ({c['low']:.2f}–{c['high']:.2f})" for c in cells])
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
