"""Which patients to label: k-medoids in feature space against random draws, on real types.

    python benchmarks/which_to_label.py hippocampus atlas --json FILE

Data of ../shared/data (see its SOURCES.md; parts of the atlas are non-commercial). Half of the patients are
the pool, drawn anew in each repeat; the chosen support and two drawn ones are learnt from by the same method,
and judged on the same other patients. Dice difference with 95 % intervals: of a type by patient and pool,
over types by type.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from medmeta import open_cohort
from medmeta.evaluation import Trees
from medmeta.evaluation.gain import Trial, gains, trials, verdict
from medmeta.evaluation.pixels import image_features
from medmeta.evaluation.selection import Embed, embedding, untrained
from medmeta.training import open_run
from medmeta.volumes import Cohort, Store, make_plan

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
BLOCK = 10
"""So many neighbouring images are taken for one patient's where patients are unknown: pool and judged must
not share one. Wider than in atlas.py, which counts numbers, not images: too wide costs sets, not honesty."""


def cohort_of(name: str, work: Path) -> Cohort:
    """The hippocampi in 3D, or the atlas in 2D, made a cohort first."""
    if name == "hippocampus":
        return open_cohort(SHARED / "volumes" / "hippocampus")
    folder = work / f"atlas_cohort_{BLOCK}"  # one made with other blocks has other patients
    if not folder.exists():
        script = Path(__file__).resolve().parent / "npz_cohort.py"
        atlas = SHARED / "images" / "atlas"
        command = [sys.executable, str(script), str(atlas), "--block", str(BLOCK), "--out", str(folder)]
        subprocess.run(command, check=True)
    return open_cohort(folder)


def spaces(store: Store, run: Path | None) -> dict[str, Embed]:
    """The feature spaces to choose in."""
    made: dict[str, Embed] = {
        "untrained encoder": embedding(untrained(store.plan), store.plan),
        "grey values": lambda scan: image_features(scan.image.numpy()).astype(np.float64),
    }
    if run is not None:
        made["the run's encoder"] = embedding(open_run(run).learner.network, store.plan)
    return made


def show(title: str, found: dict[str, dict[str, dict[str, Any]]], say: Callable[[Any], None]) -> None:
    """One row a feature space and number of labels, over all types."""
    table = Table(title=title)
    for head in ("chosen in", "labels", "chosen", "drawn", "choosing"):
        table.add_column(head)
    for space, by_type in found.items():
        whole = by_type.get("all") or next(iter(by_type.values()))
        for shot, row in whole.items():
            table.add_row(space, shot, f"{row['chosen']:.3f}", f"{row['drawn']:.3f}", verdict(row))
    say(table)


def main(arguments: list[str] | None = None) -> int:
    """Choose, draw, learn, judge; print one table a set."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sets", nargs="+", choices=("hippocampus", "atlas"))
    parser.add_argument("--out", type=Path, default=None, help="keep the atlas cohort here")
    parser.add_argument("--run", type=Path, default=None, help="choose by the encoder of this run, too")
    parser.add_argument("--types", nargs="+", default=None, help="only these types, and no kin of a run's")
    parser.add_argument("--shots", nargs="+", type=int, default=[1, 3, 5])
    parser.add_argument("--repeats", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="two pools, four types, no more than 3 labels")
    parser.add_argument("--json", type=Path, default=None)
    given = parser.parse_args(arguments)
    if not SHARED.is_dir():
        sys.stderr.write(f"no real data at {SHARED}\n")
        return 2
    torch.set_num_threads(1)
    repeats, shots = (2, [1, 3]) if given.quick else (given.repeats, given.shots)
    work = given.out or Path(tempfile.mkdtemp())
    work.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {}
    for name in given.sets:
        cohort = cohort_of(name, work)
        patients = {t: len({v.patient for v in cohort.of(t)}) for t in given.types or cohort.tumours}
        types = [t for t, n in patients.items() if n // 2 > max(shots)][: 4 if given.quick else None]
        options = (
            {"spacing": (2, 2, 1), "patch": (128, 128)}
            if name == "atlas"
            else {"spacing": (1, 1, 1), "patch": (32, 48, 32)}
        )
        plan = open_run(given.run).plan if given.run else make_plan(cohort.of(*types), **options)
        store = Store(plan, salt="select")
        made: dict[str, list[Trial]] = {}
        found: dict[str, Any] = {}
        for tumour in types:
            one = trials(
                Trees(given.seed), cohort.volumes, tumour, store, spaces(store, given.run), shots=shots,
                repeats=repeats, draws=2, judged=8, seed=given.seed,
            )  # fmt: skip
            for space, some in one.items():
                made.setdefault(space, []).extend(some)
            sys.stderr.write(f"{name}: {tumour} done\n")
            found = {space: gains(some) for space, some in made.items()}
            if given.json:  # what is there already survives a stop
                content[name] = {
                    "types": types,
                    "gain": found,
                    "seed": given.seed,
                    "repeats": repeats,
                    "trials": {space: [asdict(t) for t in some] for space, some in made.items()},
                }
                given.json.write_text(json.dumps(content, indent=1) + "\n")
        show(
            f"{name}: {len(types)} types, pixel trees, {repeats} pools, seed {given.seed}",
            found,
            Console().print,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
