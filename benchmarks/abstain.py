"""Abstaining on real scans: adapted on a few scans of one kind, asked of others of it and of what is none.

    python benchmarks/abstain.py --json abstain.json
    python benchmarks/abstain.py --home sample-data --run RUN --json abstain.json

A learner trained on the synthetic cohort of this repository is adapted on some labelled scans of one kind,
several supports drawn in turn, and looks at scans of other patients: of that kind; and real brains with a
tumour, another organ and CT. At home it is with cases of MSD Task04 (T1 MR cut out around the hippocampus;
what is asked besides is whole, or cut out of the middle as large), or with the synthetic cohort itself, where
all scans are whole as a hospital has them. Data of ../shared/data (see its SOURCES.md; CHAOS and BraTS are
non-commercial).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
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


def trained(folder: Path, steps: int, hold_out: list[str]) -> Run:
    """A learner of the synthetic cohort."""
    recipe = Recipe(
        learner="proto-maml",
        options={"order": "first", "adapt_steps": 10},
        warm=Schedule(steps=steps, rate=4e-3),
        schedule=Schedule(steps=steps // 5, rate=1e-3),
        spacing=(2, 2, 2),
        patch=(24, 24, 24),
    )
    return train(open_cohort(HERE / "sample_data"), recipe, out=folder, hold_out=hold_out)


def supports(
    cohort: Cohort, tumour: str, shot: int, draws: int, seed: int
) -> Iterator[tuple[Cohort, list[Path]]]:
    """Some patients to learn a type from, and the scans of it of all others."""
    volumes = cohort.of(tumour)
    patients = sorted({v.patient for v in volumes})
    for number in range(draws):
        order = torch.randperm(len(patients), generator=generator_of(seed, shot, number))[:shot].tolist()
        chosen = {patients[i] for i in order}
        support = tuple(v for v in volumes if v.patient in chosen)
        rest = sorted({v.image[0] for v in volumes if v.patient not in chosen})
        yield replace(cohort, volumes=support), rest


@dataclass(frozen=True)
class Home:
    """Scans of one kind.

    Args:
        name: of its scans in the table.
        cohort: with them.
        tumour: type to adapt to.
        cuts: whether its scans are cut out.
    """

    name: str
    cohort: Cohort
    tumour: str
    cuts: bool

    def groups(self, rest: list[Path], most: int, *, whole: bool) -> Iterator[tuple[str, list[Any]]]:
        """What is asked of: scans by group, read when they are asked for."""
        yield f"other {self.name}", [load(file) for file in rest[:most]]
        if not self.cuts:
            free = [v.image[0] for v in self.cohort.volumes if v.tumour is None]
            yield f"{self.name}, free of any tumour", [load(file) for file in free[:most]]
        for name, files in elsewhere().items():
            if self.cuts:
                yield f"{name}, cut out", [cut(load(file)) for file in files[:most]]
            if whole:
                yield f"{name}, whole", [load(file) for file in files[:most]]


def home_of(name: str) -> Home:
    """By its name on the command line."""
    if name == "sample-data":
        return Home("synthetic scans", open_cohort(HERE / "sample_data"), "rimose", cuts=False)
    return Home("hippocampi", open_cohort(VOLUMES / "hippocampus"), "label_1", cuts=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, help="a trained run; made where it is not there")
    parser.add_argument("--home", choices=["hippocampus", "sample-data"], default="hippocampus")
    parser.add_argument("--shots", type=int, nargs="+", default=[3, 5, 10])
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--most", type=int, default=999, help="scans a group")
    parser.add_argument("--whole", action="store_true", help="whole scans too, which takes minutes each")
    parser.add_argument("--quick", action="store_true", help="few steps, one support, 10 scans a group")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    if not VOLUMES.is_dir():
        sys.stderr.write(f"no real data at {VOLUMES}\n")
        return 2
    steps, draws, most = (10, 1, 10) if given.quick else (given.steps, given.draws, given.most)
    work = Path(tempfile.mkdtemp())
    folder = given.run or work / "run"
    home = home_of(given.home)
    new = [] if home.cuts else [home.tumour]
    run = open_run(folder) if folder.exists() else trained(folder, steps, new)
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for shot in given.shots:
        for number, (support, rest) in enumerate(supports(home.cohort, home.tumour, shot, draws, given.seed)):
            made = adapt(run, support, work / f"{shot}_{number}", tumour=home.tumour, seed=number)
            predictor, whole = load_bundle(made), not home.cuts or (given.whole and number == 0)
            for name, scans in home.groups(rest, most, whole=whole):
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
