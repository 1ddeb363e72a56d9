"""A tree of DICOM series with SEG or RTSTRUCT objects beside them, as archives export it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medmeta.volumes.layouts.listing import Listing, free_or
from medmeta.volumes.progress import Track, silent
from medmeta.volumes.record import Volume

_MASKS = frozenset({"SEG", "RTSTRUCT"})
_NOT_IMAGES = frozenset({"SR", "KO", "PR", "REG", "DOC", "RTPLAN", "RTDOSE", "FID", "SEG", "RTSTRUCT", "OT"})
_TAGS = [
    "Modality",
    "SeriesInstanceUID",
    "StudyInstanceUID",
    "PatientID",
    "IssuerOfPatientID",
    "ReferencedSeriesSequence",
    "SegmentSequence",
    "ReferencedFrameOfReferenceSequence",
    "StructureSetROISequence",
]


@dataclass(frozen=True)
class _Header:
    path: Path
    tags: Any

    def text(self, name: str) -> str:
        return str(self.tags.get(name, "") or "")


def matches(path: Path) -> bool:
    """Whether the tree holds a SEG or RTSTRUCT; looks at a few files of each folder, where one would be."""
    return path.is_dir() and any(
        (header := _read(file)) is not None and header.text("Modality") in _MASKS for file in _telling(path)
    )


def read(path: Path, track: Track = silent) -> Listing:
    """Read all headers; one volume for each segment (or ROI) and the series it refers to.

    The tumour type is the segment's property type in words, else its label; an ROI's name. The patient is
    PatientID with its issuer. A series no mask refers to is left out, for nobody said what is in it.
    """
    files = [file for folder, _, names in os.walk(path) for file in (Path(folder) / n for n in sorted(names))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # values of odd form in fields that are not used here
        with ThreadPoolExecutor(8) as pool:
            tracked = track(pool.map(_read, files), description="reading headers", total=len(files))
            headers = [h for h in tracked if h is not None]
        series: dict[str, list[_Header]] = {}
        for header in headers:
            if header.text("Modality") not in _NOT_IMAGES:
                series.setdefault(header.text("SeriesInstanceUID"), []).append(header)
        listing = Listing()
        used: set[str] = set()
        masks = [h for h in headers if h.text("Modality") in _MASKS]
        for number, mask in enumerate(sorted(masks, key=lambda h: h.path), start=1):
            used.update(_add(listing, mask, series, number))
    if len(series) > len(used):
        listing.problems.append(f"{len(series) - len(used)} series without a SEG or RTSTRUCT left out")
    return listing


def _telling(path: Path) -> Iterator[Path]:
    """First, last, smallest and largest file of each folder: a mask among slices is one of them."""
    for folder, _, names in os.walk(path):
        files = [Path(folder) / n for n in sorted(names) if not n.startswith(".")]
        if files:
            sized = sorted(files, key=lambda f: f.stat().st_size)
            yield from dict.fromkeys((files[0], files[-1], sized[0], sized[-1]))


def _read(file: Path) -> _Header | None:
    """The header of a DICOM file, None for any other."""
    import pydicom

    try:
        with open(file, "rb") as raw:
            if raw.read(132)[128:] != b"DICM":
                return None
        return _Header(file, pydicom.dcmread(file, stop_before_pixels=True, specific_tags=_TAGS))
    except Exception:  # noqa: BLE001 - what cannot be read as DICOM is not a part of this layout
        return None


def _add(listing: Listing, mask: _Header, series: dict[str, list[_Header]], number: int) -> set[str]:
    """Add the targets of one SEG or RTSTRUCT; give the series they lie in."""
    wanted = _referenced(mask)
    found = sorted(wanted & set(series))
    if len(found) != 1:
        listing.problems.append(
            f"mask object {number}: refers to {len(found)} series that are here, not to one"
        )
        return set()
    slices = series[found[0]]
    patient = "|".join(filter(None, (slices[0].text("PatientID"), slices[0].text("IssuerOfPatientID"))))
    if not patient:
        patient = slices[0].text("StudyInstanceUID")
        listing.problems.append(f"mask object {number}: no PatientID, the study is taken as the patient")
    folder = Path(os.path.commonpath([str(s.path.parent) for s in slices]))
    targets = _targets(mask)
    if not targets:
        listing.problems.append(f"mask object {number}: no segment")
    for label, name in targets:
        listing.volumes.append(
            Volume(
                patient, (folder,), mask.path, free_or(name), label, found[0], (slices[0].text("Modality"),)
            )
        )
    return set(found)


def _referenced(mask: _Header) -> set[str]:
    """UIDs of the series a SEG or RTSTRUCT refers to."""
    uids = {str(s.get("SeriesInstanceUID", "")) for s in mask.tags.get("ReferencedSeriesSequence", [])}
    for frame in mask.tags.get("ReferencedFrameOfReferenceSequence", []):
        for study in frame.get("RTReferencedStudySequence", []):
            uids |= {str(s.get("SeriesInstanceUID", "")) for s in study.get("RTReferencedSeriesSequence", [])}
    return uids


def _targets(mask: _Header) -> list[tuple[int, str]]:
    """(number, name) of each segment or ROI."""
    if mask.text("Modality") == "RTSTRUCT":
        rois = mask.tags.get("StructureSetROISequence", [])
        return [(int(r.ROINumber), str(r.get("ROIName") or f"roi_{r.ROINumber}")) for r in rois]
    return [(int(s.SegmentNumber), _named(s)) for s in mask.tags.get("SegmentSequence", [])]


def _named(segment: Any) -> str:
    """A tumour's own code says its type; where the code says no more than "neoplasm" the label does."""
    label = str(segment.get("SegmentLabel") or f"segment_{segment.SegmentNumber}")
    codes = segment.get("SegmentedPropertyTypeCodeSequence") or []
    meaning = str(codes[0].get("CodeMeaning", "")) if len(codes) else ""
    vague = {"", "neoplasm", "lesion", "mass", "tissue", "nodule", "tumor", "tumour", "organ"}
    return label if meaning.lower() in vague else meaning
