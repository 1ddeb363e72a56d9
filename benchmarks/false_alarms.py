"""How often a bundle outlines a tumour where there is none, beside how often where there is one.

    python benchmarks/false_alarms.py --run RUN --json false_alarms.json

A run of ``workflows/tumor_segmentation`` is adapted to types that it never saw, several supports drawn in
turn, as ``medmeta adapt`` does it; the bundles look at whole scans of the other patients of the type, and of
patients without a tumour whom training did not see. Told are the scans with any outline, before and after
the bundle's answer "no tumour" below its least volume.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from medmeta import open_cohort
from medmeta.clinical import BundlePredictor, adapt, load_bundle
from medmeta.clinical.whole import segment
from medmeta.episodes import generator_of
from medmeta.evaluation.intervals import clustered
from medmeta.training import open_run
from medmeta.volumes import Volume
from medmeta.volumes.reading import read_image

HERE = Path(__file__).resolve().parents[1]


def looked_at(
    predictor: BundlePredictor, volumes: Sequence[Volume], people: Sequence[str]
) -> list[dict[str, Any]]:
    """What was outlined in each scan, mL: all of it, and what is left of it by the least volume.

    Args:
        predictor: the bundle.
        volumes: the scans.
        people: all patients; a patient's place here is the same in every draw, so intervals cluster by it.
    """
    rows = []
    for volume in volumes:
        number = people.index(volume.patient)
        facts = segment(predictor, read_image(volume)).facts
        left = float(sum(facts["volume_ml"].values()))
        rows.append({"patient": number, "left_ml": left, "all_ml": left + float(facts.get("withheld_ml", 0))})
    return rows


def share(rows: Sequence[dict[str, Any]], key: str) -> str:
    """Of scans with an outline, with a 95 % interval clustered by patient and draw."""
    outlined = np.array([row[key] > 0 for row in rows], dtype=np.float64)
    found = clustered(
        [str(row["patient"]) for row in rows],
        [int(row["draw"]) for row in rows],
        lambda which: float(outlined[which].mean()),
        bounds=(0.0, 1.0),
    )
    ends = "" if found.low is None or found.high is None else f" [{found.low:.2f}-{found.high:.2f}]"
    return f"{found.mean:.2f}{ends} ({int(outlined.sum())} of {len(rows)})"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True, help="a trained run that held the types out")
    parser.add_argument("--cohort", type=Path, default=HERE / "sample_data")
    parser.add_argument("--types", nargs="+", default=["rimose", "sericate"])
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 3, 5])
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="one type, one support of two")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    types, shots, draws = (
        (given.types[:1], [2], 1) if given.quick else (given.types, given.shots, given.draws)
    )
    run, cohort = open_run(given.run), open_cohort(given.cohort)
    free = [v for v in run.new_patients(cohort.volumes) if v.tumour is None]
    work, found = Path(tempfile.mkdtemp()), []
    for tumour in types:
        ill = [v for v in run.unseen(cohort.of(tumour)) if v.mask is not None]
        for draw in range(draws):
            order = torch.randperm(len(ill), generator=generator_of(given.seed, draw)).tolist()
            for shot in shots:
                support = replace(cohort, volumes=tuple(ill[i] for i in order[:shot]))
                made = adapt(run, support, work / f"{tumour}{shot}_{draw}", tumour=tumour, seed=draw)
                others = [ill[i] for i in sorted(order[max(shots) :])]
                for kind, volumes in (("with", others), ("without", free)):
                    rows = looked_at(load_bundle(made), volumes, cohort.patients)
                    found += [{"type": tumour, "labels": shot, "draw": draw, "kind": kind, **r} for r in rows]
    table(found)
    if given.json:
        about = {"results": found, "seed": given.seed, "tumour_free_patients": len(free)}
        given.json.write_text(json.dumps(about, indent=1) + "\n")
    return 0


def table(found: Sequence[dict[str, Any]]) -> None:
    """Shares of scans by type and number of labels."""
    shown = Table(title="scans with an outline: share [95 % interval], before and with the least volume")
    for column in ("type, labels", "with a tumour", "the same, kept", "without", "the same, kept"):
        shown.add_column(column)
    for place in sorted({(row["type"], row["labels"]) for row in found}):
        here = [row for row in found if (row["type"], row["labels"]) == place]
        cells = [
            share([row for row in here if row["kind"] == kind], key)
            for kind in ("with", "without")
            for key in ("all_ml", "left_ml")
        ]
        shown.add_row(f"{place[0]}, {place[1]}", *cells)
    Console(width=170).print(shown)


if __name__ == "__main__":
    sys.exit(main())
