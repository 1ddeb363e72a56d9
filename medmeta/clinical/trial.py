"""A bundle tried out: adapted, exported, and run by MONAI alone on a series that it has not seen."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from medmeta.clinical.bundle import BundleError
from medmeta.clinical.export import export
from medmeta.episodes import generator_of, support_examples
from medmeta.evaluation.answers import outlined
from medmeta.evaluation.metrics import dice
from medmeta.training import Run
from medmeta.volumes import Store, Volume
from medmeta.volumes.dicom_series import Choice, choose, find_series
from medmeta.volumes.reading import read_image, read_mask

SHOTS = 5
"""Patients to adapt on, at most."""


@dataclass(frozen=True)
class Tried:
    """What running the bundle gave."""

    tumour: str
    shot: int
    overlap: float | None
    grid: str

    def __str__(self) -> str:
        overlap = "n/a" if self.overlap is None else f"{self.overlap:.2f}"
        return (
            f"adapted to {self.tumour} with {self.shot} patients, run by monai.bundle on a DICOM series "
            f"it had not seen: mask of {self.grid} voxels on the scan's grid, Dice {overlap}"
        )


def try_out(run: Run, volumes: Sequence[Volume], tumour: str, out: Path, *, store: Store, seed: int) -> Tried:
    """Adapt on 5 patients, export, run monai.bundle on a DICOM series of another patient.

    Args:
        run: a segmenter.
        volumes: those that training saw are left out.
        tumour: the type to adapt to.
        out: folder that gets ``bundle`` and ``predicted``.
        store: of the run's plan.
        seed: where crops are cut.

    Raises:
        BundleError: where there are no such patients, or the bundle does not run.
    """
    support, unseen = _apart([v for v in run.unseen(volumes) if v.tumour == tumour])
    prepared = [store.read(v) for v in support]
    examples = support_examples(prepared, store.plan, generator_of(seed, 5))
    predictor = run.learner.adapt(examples)
    bundle = export(
        predictor,
        plan=store.plan,
        network_spec=run.network,
        classes=examples.classes,
        task="segmentation",
        about={"support": sorted(p.patient for p in prepared), "shots": len(support), "seed": seed},
        out=out / "bundle",
    )
    image = read_image(unseen)
    with _alone(unseen) as scan:
        found = outlined(_run_bundle(bundle, scan, out / "predicted"), image)
    truth = read_mask(unseen, image)
    overlap = None if truth is None else dice(found, truth.as_tensor()[0] > 0)
    return Tried(tumour, len(support), overlap, " x ".join(map(str, found.shape)))


def _apart(of_type: Sequence[Volume]) -> tuple[list[Volume], Volume]:
    """A volume of each of 5 patients to adapt on, and a DICOM series of another one."""
    known = sorted(of_type, key=lambda v: v.patient)
    series = [v for v in known if len(v.image) == 1 and v.image[0].is_dir()]
    support: dict[str, Volume] = {}
    for volume in known if series else ():
        if volume.mask is not None and volume.patient != series[0].patient:
            support.setdefault(volume.patient, volume)
    if support:
        return list(support.values())[:SHOTS], series[0]
    raise BundleError(
        "an outlined patient of a held-out type to adapt on, and another one with a DICOM series",
        found=f"{len({v.patient for v in known})} patients and {len(series)} DICOM series",
        cure="Export a bundle with 'medmeta adapt', and run it on any scan.",
    )


@contextmanager
def _alone(volume: Volume) -> Iterator[Path]:
    """The files of a volume's DICOM series in a folder of their own.

    MONAI reads whatever a folder holds, and a study's holds several series; and it calls what it writes by
    the folder, which may bear a patient's name.
    """
    folder = volume.image[0]
    chosen = choose(find_series(folder), folder, Choice(volume.series))
    with tempfile.TemporaryDirectory(prefix="medmeta-") as place:
        scan = Path(place, "image")
        scan.mkdir()
        for number, header in enumerate(chosen.headers):
            shutil.copyfile(header.path, scan / f"{number:05d}.dcm")
        yield scan


def _run_bundle(bundle: Path, series: Path, out: Path) -> Path:
    """Run the bundle as anyone with MONAI would; the mask it wrote.

    Raises:
        BundleError: where it wrote none. What it names is in the folder that the quickstart leaves.
    """

    def command(python: str, bundle: str, series: str, out: str) -> list[str]:
        options = {
            "config_file": f"{bundle}/configs/inference.json",
            "bundle_root": bundle,
            "datalist": repr([series]),  # MONAI takes it for a literal of Python
            "output_dir": out,
        }
        said = [word for name, value in options.items() for word in (f"--{name}", value)]
        return [python, "-W", "ignore", "-m", "monai.bundle", "run", *said]

    asked = command(sys.executable, str(bundle.resolve()), str(series.resolve()), str(out.resolve()))
    ran = subprocess.run(asked, capture_output=True, text=True, check=False)
    masks = sorted(out.rglob("*_seg.nii.gz"))
    if ran.returncode or not masks:
        shutil.rmtree(out, ignore_errors=True)
        by_hand = shlex.join(command("python", bundle.name, "SERIES", out.name))
        raise BundleError(
            "a mask from 'python -m monai.bundle run'",
            found=f"exit code {ran.returncode}: {_last(ran.stderr)}",
            cure=f"Run it by hand where the report is: {by_hand}",
        )
    return masks[0]


def _last(stderr: str) -> str:
    """How a program says that it failed: our refusals whole, of other errors the kind; they quote paths."""
    line = (stderr.strip().splitlines() or [""])[-1]
    kind = line.partition(":")[0]
    if not re.fullmatch(r"[A-Za-z_][\w.]*", kind):
        return "no error named"
    return line if kind.startswith("medmeta.") else kind
