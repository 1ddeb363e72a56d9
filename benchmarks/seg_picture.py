"""A DICOM Segmentation as a viewer shows it: read back by highdicom, drawn over the series it belongs to.

    python benchmarks/seg_picture.py --run RUN --out seg.png

A run of ``workflows/tumor_segmentation`` is adapted to a type that it never saw, on five NIfTI patients of
``sample_data/``, and outlines it in the DICOM series of another; the result is neither read nor drawn by
medmeta. The reference is the SEG that comes with the series.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
from matplotlib.figure import Figure
from numpy.typing import NDArray

from medmeta import open_cohort
from medmeta.clinical import adapt, predict
from medmeta.volumes.quiet import quiet

HERE = Path(__file__).resolve().parents[1]
FOUND, REFERENCE, SLICES = "#35d0ba", "#ffd23f", 4


def results(run: Path, tumour: str, work: Path) -> tuple[Path, Path]:
    """The first DICOM series of a type, and the SEG that a bundle made of it."""
    cohort = open_cohort(HERE / "sample_data")
    volumes = [v for v in cohort.of(tumour) if v.mask is not None]
    labelled = tuple(v for v in volumes if v.image[0].is_file())[:5]
    series = next(v.image[0] for v in volumes if v.image[0].is_dir())
    bundle = adapt(run, replace(cohort, volumes=labelled), work / "bundle", tumour=tumour)
    (one,) = predict(bundle, [series], work / "out", formats=("seg",))
    if not one["ok"]:
        raise SystemExit(one["message"])
    return series, work / "out" / one["files"][0]


def on_the_scan(file: Path, scan: Any) -> NDArray[np.bool_]:
    """A SEG on the slices of its source, by their places in space."""
    with quiet():
        volume = hd.seg.segread(file).get_volume(combine_segments=True, skip_overlap_checks=True)
        return np.asarray(volume.match_geometry(scan).array) > 0


def draw(image: NDArray[Any], found: NDArray[np.bool_], truth: NDArray[np.bool_], title: str) -> Figure:
    """Slices across the reference, both outlines over them.

    Args:
        image, found, truth: ``(slice, row, column)``.
        title: above.
    """
    there = np.flatnonzero(truth.any((1, 2)))
    chosen = np.linspace(there[0], there[-1], SLICES + 2).round().astype(int)[1:-1]
    figure = Figure(figsize=(9, 2.9), facecolor="#101418", layout="constrained")
    for index, place in zip(chosen, np.ravel(figure.subplots(1, SLICES)), strict=True):
        place.imshow(image[index], cmap="gray", vmin=np.percentile(image, 1), vmax=np.percentile(image, 99.5))
        for mask, colour in ((truth[index], REFERENCE), (found[index], FOUND)):
            if mask.any():
                place.contour(mask, [0.5], colors=colour, linewidths=1.2)
        place.set_title(f"slice {index + 1} of {len(image)}", color="#e8ecef", fontsize=8)
        place.axis("off")
    figure.suptitle(title, color="#e8ecef", fontsize=9)
    return figure


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True, help="a trained run that held the type out")
    parser.add_argument("--type", default="rimose")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args(arguments)
    series, seg = results(given.run, given.type, Path(tempfile.mkdtemp()))
    slices = [pydicom.dcmread(file) for file in sorted(series.iterdir())]
    scan = hd.get_volume_from_series(slices)
    found, truth = on_the_scan(seg, scan), on_the_scan(series.parent / "seg.dcm", scan)
    dice = 2 * (found & truth).sum() / (found.sum() + truth.sum())
    title = f"synthetic patient, {given.type}, 5 labelled patients: DICOM SEG (green), reference (yellow), "
    figure = draw(np.asarray(scan.array), found, truth, f"{title}Dice {dice:.2f}. Research use only.")
    figure.savefig(given.out, dpi=110, facecolor="#101418", metadata={"Software": "medmeta"})
    return 0


if __name__ == "__main__":
    sys.exit(main())
