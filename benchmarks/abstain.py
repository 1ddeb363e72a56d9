"""Abstaining on real scans: adapted on a few hippocampi, asked of other hippocampi and of what is none.

    python benchmarks/abstain.py --json abstain.json

A learner trained on the synthetic cohort of this repository is adapted on some labelled cases of MSD Task04
(T1 MR cut out around the hippocampus), several supports drawn in turn, and looks at scans of other patients:
hippocampi; brains with a tumour, another organ and CT, whole and cut out of the middle as large as a
hippocampus's case is. Data of ../shared/data (see its SOURCES.md; CHAOS and BraTS are non-commercial).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from monai.transforms import CenterSpatialCrop
from rich.console import Console
from rich.table import Table
from scipy.stats import binomtest

from medmeta import open_cohort
from medmeta.clinical import adapt, load_bundle
from medmeta.clinical.whole import segment
from medmeta.episodes import generator_of
from medmeta.training import Recipe, Run, Schedule, open_run, train
from medmeta.volumes import Cohort, load

HERE = Path(__file__).resolve().parents[1]
VOLUMES = HERE.parent / "shared" / "data" / "volumes"
SIDES = (35, 50, 35)
"""Millimetres of a hippocampus's case, about."""


def elsewhere() -> dict[str, list[Path]]:
    """Scans of something else, one a patient."""
    nc, lowgrade = VOLUMES / "nc", VOLUMES / "glioma_lowgrade_silver"
    return {
        "brain MR with tumour (T1c)": [
            *sorted((nc / "glioma_highgrade").glob("*_t1c.nii.gz")),
            *sorted(lowgrade.glob("*_t1c.nii.gz")),
            *sorted((VOLUMES / "brain_rois").glob("*_image.nii.gz")),
        ],
        "brain MR, other sequence (FLAIR)": [
            *sorted((nc / "glioma_highgrade").glob("*_flair.nii.gz")),
            *sorted(lowgrade.glob("*_fla.nii.gz")),
        ],
        "abdominal MR (T2)": sorted((nc / "chaos_t2" / "imagesTr").glob("*.nii.gz")),
        "CT and MR of the trunk": [VOLUMES / "organs_silver" / f"{name}.nii.gz" for name in ("ct", "mr")],
    }


def cut(image: Any) -> Any:
    """The middle of a scan."""
    spacing = image.pixdim.tolist()
    return CenterSpatialCrop([max(1, round(mm / s)) for mm, s in zip(SIDES, spacing, strict=True)])(image)


def trained(folder: Path, steps: int) -> Run:
    """A learner of the synthetic cohort."""
    recipe = Recipe(
        learner="proto-maml",
        options={"order": "first", "adapt_steps": 10},
        warm=Schedule(steps=steps, rate=4e-3),
        schedule=Schedule(steps=steps // 5, rate=1e-3),
        spacing=(2, 2, 2),
        patch=(24, 24, 24),
    )
    return train(open_cohort(HERE / "sample_data"), recipe, out=folder)


def supports(cohort: Cohort, shot: int, draws: int, seed: int) -> Iterator[tuple[Cohort, list[Path]]]:
    """Some patients to learn from, and the scans of all others."""
    patients = cohort.patients
    for number in range(draws):
        order = torch.randperm(len(patients), generator=generator_of(seed, shot, number))[:shot].tolist()
        chosen = {patients[i] for i in order}
        support = tuple(v for v in cohort.volumes if v.patient in chosen)
        rest = sorted({v.image[0] for v in cohort.volumes if v.patient not in chosen})
        yield replace(cohort, volumes=support), rest


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, help="a trained run; made where it is not there")
    parser.add_argument("--shots", type=int, nargs="+", default=[3, 5, 10])
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--whole", action="store_true", help="whole scans too, which takes minutes each")
    parser.add_argument("--quick", action="store_true", help="few steps, one support, 10 scans a group")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    if not VOLUMES.is_dir():
        sys.stderr.write(f"no real data at {VOLUMES}\n")
        return 2
    steps, draws, most = (10, 1, 10) if given.quick else (given.steps, given.draws, 999)
    work = Path(tempfile.mkdtemp())
    folder = given.run or work / "run"
    run = open_run(folder) if folder.exists() else trained(folder, steps)
    cohort = open_cohort(VOLUMES / "hippocampus")
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for shot in given.shots:
        for number, (support, rest) in enumerate(supports(cohort, shot, draws, given.seed)):
            made = adapt(run, support, work / f"{shot}_{number}", tumour="label_1", seed=number)
            predictor = load_bundle(made)
            groups: dict[str, list[Any]] = {"other hippocampi": [load(f) for f in rest[:most]]}
            for name, files in elsewhere().items():
                groups[f"{name}, cut out"] = [cut(load(f)) for f in files[:most]]
                if given.whole and number == 0:
                    groups[f"{name}, whole"] = [load(f) for f in files[:most]]
            for name, scans in groups.items():
                rows = found.setdefault(str(shot), {}).setdefault(name, [])
                for scan in scans:
                    facts = segment(predictor, scan).facts
                    rows.append({k: facts[k] for k in ("abstain", "distance", "threshold")})
    table(found)
    if given.json:
        given.json.write_text(json.dumps({"results": found, "seed": given.seed}, indent=1) + "\n")
    return 0


def table(found: dict[str, dict[str, list[dict[str, Any]]]]) -> None:
    """Share of scans abstained from; patients are those of one support, looked at with each."""
    shown = Table(title="abstained from, % (scans; Wilson's 95 % interval)")
    shown.add_column("scans")
    for shot in found:
        shown.add_column(f"{shot} labelled")
    for name in next(iter(found.values())):
        cells = []
        for groups in found.values():
            flags = [bool(row["abstain"]) for row in groups[name]]
            low, high = binomtest(sum(flags), len(flags)).proportion_ci(0.95, method="wilson")
            cells.append(
                f"{100 * sum(flags) / len(flags):.0f} ({len(flags)}; {100 * low:.0f}-{100 * high:.0f})"
            )
        shown.add_row(name, *cells)
    Console(width=140).print(shown)


if __name__ == "__main__":
    sys.exit(main())
