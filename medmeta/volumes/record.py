"""What is known of one image before a voxel is read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Volume:
    """One patient's image and, where known, one target in it.

    Args:
        patient: key of the patient within the cohort, hashed before it leaves the process.
        image: one path a channel: a NIfTI/NRRD/PNG file, a DICOM file or a DICOM series folder.
        mask: path of the mask (NIfTI, NRRD, DICOM SEG, RTSTRUCT), or None where there is none.
        tumour: the tumour type (or structure), or None for a patient known to be free of every target.
        label: value of ``tumour`` in ``mask``; None means every non-zero voxel.
        series: SeriesInstanceUID to take where ``image`` is a folder of several series; no matter to files
            that are no DICOM.
        modality: one name a channel (``"CT"``, ``"MR"`` …), ``()`` where unknown.
    """

    patient: str
    image: tuple[Path, ...]
    mask: Path | None = None
    tumour: str | None = None
    label: int | None = None
    series: str | None = None
    modality: tuple[str, ...] = ()

    @property
    def place(self) -> tuple[str, tuple[Path, ...], str]:
        """Patient, image and series: an order of volumes that does not hang on how they were listed."""
        return self.patient, self.image, self.series or ""
