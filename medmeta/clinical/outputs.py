"""What is written of one case: NIfTI, DICOM SEG and SR, JSON, and pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medmeta.clinical.bundle import BundleError
from medmeta.clinical.choose import Chosen, no_dicom
from medmeta.clinical.dicom_objects import Maker, write_report, write_seg
from medmeta.clinical.measure import Measured, measure
from medmeta.clinical.preview import write_page, write_preview
from medmeta.clinical.whole import Segmented
from medmeta.volumes.preflight import Stack

FORMATS = ("nifti", "seg", "sr", "json", "png", "html")
"""What a segmentation can be written as."""

SUFFIXES = {
    "nifti": "_seg.nii.gz",
    "seg": "_seg.dcm",
    "sr": "_sr.dcm",
    "json": ".json",
    "png": "_preview.png",
    "html": "_preview.html",
}


def refuse_formats(formats: Sequence[str]) -> None:
    """Refuse none, or one that is not among :data:`FORMATS`.

    Raises:
        BundleError: naming them all.
    """
    if not formats or not set(formats) <= set(FORMATS):
        raise BundleError(
            f"formats among {', '.join(FORMATS)}",
            found=", ".join(formats) or "none",
            cure="Name one or more of them.",
        )


@dataclass(frozen=True)
class Scanned:
    """A scan that was read.

    Args:
        image: MetaTensor ``(channel, x, y, z)``.
        stack: its DICOM series, None where it is no DICOM; its files are there while results are written.
        chosen: how the series was chosen from its study.
        warnings: what was accepted in its files, and is still worth knowing.
    """

    image: Any
    stack: Stack | None = None
    chosen: Chosen | None = None
    warnings: tuple[str, ...] = ()

    def facts(self) -> dict[str, Any]:
        """For the result of a case: which series was taken and what is worth knowing of it."""
        chosen = {"series": self.chosen.json()} if self.chosen else {}
        return {**chosen, "warnings": list(self.warnings)}


def measurements(found: Segmented, classes: Sequence[str]) -> dict[str, Measured]:
    """What was measured of each class but the background."""
    return {c: measure(found.labels == n, found.affine) for n, c in enumerate(classes) if n}


def summary(measured: Mapping[str, Measured]) -> dict[str, dict[str, float]]:
    """Each measurement by class, for the line of a case."""
    names = ("lesion_count", "longest_diameter_mm", "longest_diameter_3d_mm")
    return {name: {c: getattr(m, name) for c, m in measured.items()} for name in names}


def write_segmentation(
    found: Segmented,
    scanned: Scanned,
    classes: Sequence[str],
    stem: Path,
    formats: Sequence[str],
    maker: Maker,
) -> dict[str, Any]:
    """Write ``<stem>_seg.nii.gz``, ``_seg.dcm``, ``_sr.dcm``, ``.json``, ``_preview.png`` and ``.html``.

    Args:
        found: labels on the scan's own grid.
        scanned: the scan.
        classes: names by label, the background first.
        stem: path of the files without what tells them apart.
        formats: those asked for.
        maker: the bundle.

    Returns:
        The facts of the case: ``voxels``, ``volume_ml``, ``lesion_count``, ``longest_diameter_mm``,
        ``longest_diameter_3d_mm`` of every class but the background, and of the scan.

    Raises:
        BundleError: where a DICOM result is asked for and the scan is no DICOM.
    """
    files = {name: stem.with_name(stem.name + SUFFIXES[name]) for name in FORMATS}
    measured = measurements(found, classes)
    facts = {**found.facts, **summary(measured), **scanned.facts()}
    if {"seg", "sr"} & set(formats):
        if scanned.stack is None:
            raise no_dicom()
        made, images = write_seg(found.labels, scanned.stack, classes, files["seg"], maker=maker)
        if "sr" in formats:
            write_report(made, images, measured, files["sr"], maker=maker)
    if "nifti" in formats:
        write_nifti(found.labels, found.affine, files["nifti"])
    if "json" in formats:
        lesions = {c: m.json() for c, m in measured.items()}
        made_by = {"name": maker.title, "manifest_sha256": maker.manifest}
        write_json({"case": stem.name, **facts, "measurements": lesions, "bundle": made_by}, files["json"])
    drawn = (scanned.image[0].numpy(), found.labels, found.affine, measured)
    if "png" in formats:
        write_preview(*drawn, files["png"])
    if "html" in formats:
        said = [*([str(scanned.chosen)] if scanned.chosen else []), *facts["warnings"]]
        write_page(*drawn, said, files["html"])
    return facts


def write_json(content: Mapping[str, Any], file: Path) -> None:
    """Write one JSON object; never NaN."""
    file.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def write_nifti(labels: NDArray[Any], affine: NDArray[np.float64], file: Path) -> None:
    """Write labels ``(x, y, z)`` with their RAS affine in mm."""
    import nibabel

    image = nibabel.Nifti1Image(labels, affine)
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, file)
