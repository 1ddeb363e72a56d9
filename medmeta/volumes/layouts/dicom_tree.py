"""A tree of DICOM series with SEG or RTSTRUCT objects beside them, as archives export it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from medmeta.volumes.dicom_header import Header, is_dicom, read_header
from medmeta.volumes.dicom_series import dicom_files, files_below
from medmeta.volumes.errors import VolumeError
from medmeta.volumes.headers import read_headers
from medmeta.volumes.layouts.listing import Listing, free_or
from medmeta.volumes.mask_loading import targets as targets_of
from medmeta.volumes.patients import settle, unclear
from medmeta.volumes.progress import Track, silent
from medmeta.volumes.record import Volume

# objects with pixels that are no image to look for tumours in
_NOT_IMAGES = frozenset({"SR", "KO", "PR", "REG", "DOC", "RTPLAN", "RTDOSE", "FID", "SEG", "RTSTRUCT", "OT"})


def matches(path: Path) -> bool:
    """Whether the tree holds a SEG or RTSTRUCT; looks at a few files of each folder, where one would be."""
    return path.is_dir() and any(_is_mask(file) for file in _telling(path))


def _is_mask(file: Path) -> bool:
    try:
        header = read_header(file) if is_dicom(file) else None
    except VolumeError:
        return False
    return header is not None and header.is_mask


def read(path: Path, track: Track = silent) -> Listing:
    """Read all headers; one volume for each segment (or ROI) and the series it refers to.

    The tumour type is the segment's property type in words, else its label; an ROI's name. The patient is
    PatientID with its issuer; where none is named, the only one that is named for the PatientID elsewhere. A
    series no mask refers to is left out, for nobody said what is in it.
    """
    files = list(dicom_files(files_below(path)))
    found = list(read_headers(files, workers=min(8, os.cpu_count() or 1), track=track))
    headers = settle(header for header in found if isinstance(header, Header))
    doubtful = unclear(headers)
    listing = Listing()
    series: dict[str, list[Header]] = {}
    for header in headers:
        if header.modality not in _NOT_IMAGES and not header.is_mask:
            series.setdefault(header.series, []).append(header)
    used: set[str] = set()
    masks = sorted((header for header in headers if header.is_mask), key=lambda header: header.path)
    once: dict[str, Header] = {}
    for mask in masks:
        once.setdefault(mask.sop_instance or str(mask.path), mask)
    if len(once) < len(masks):
        listing.problems.append(f"{len(masks) - len(once)} mask object(s) there twice: one of each is used")
    for number, mask in enumerate(once.values(), start=1):
        used.update(_add(listing, mask, series, number, doubtful))
    damaged = sum(isinstance(one, VolumeError) for one in found)
    if damaged:
        listing.problems.append(f"{damaged} file(s) that cannot be read: slices or masks may be missing")
    if len(series) > len(used):
        listing.problems.append(f"{len(series) - len(used)} series without a SEG or RTSTRUCT left out")
    return listing


def _telling(path: Path) -> Iterator[Path]:
    """First, last, smallest and largest file of each folder: a mask among slices is one of them."""
    for folder, _, names in os.walk(path):
        files = [Path(folder) / n for n in sorted(names) if not n.startswith(".")]
        if files:
            sized = sorted(files, key=_size)
            yield from dict.fromkeys((files[0], files[-1], sized[0], sized[-1]))


def _size(file: Path) -> int:
    """Bytes of a file, 0 where it has gone or is a link to nothing."""
    try:
        return file.stat().st_size
    except OSError:
        return 0


def _add(
    listing: Listing, mask: Header, series: dict[str, list[Header]], number: int, doubtful: frozenset[str]
) -> set[str]:
    """Add the targets of one SEG or RTSTRUCT; give the series they lie in."""
    found = _referenced(mask, series)
    if len(found) != 1:
        listing.problems.append(
            f"mask object {number}: refers to {len(found)} series that are here, not to one"
        )
        return set()
    *slices, mask = settle((*series[found[0]], mask))  # an image and its mask are of one patient
    patient, problem = _patient(slices, mask, doubtful)
    if problem:
        listing.problems.append(f"mask object {number}: {problem}")
    if patient is None:
        return set()
    folder = Path(os.path.commonpath([str(s.path.parent) for s in slices]))
    try:
        targets, undrawn = targets_of(mask.path)
    except VolumeError as error:
        listing.problems.append(f"mask object {number}: cannot be read ({error.code})")
        return set(found)
    if undrawn:
        listing.problems.append(f"mask object {number}: {undrawn} region(s) without closed contours left out")
    if not targets and not undrawn:
        listing.problems.append(f"mask object {number}: no segment")
    for label, name in sorted(targets.items()):
        tumour, modality = free_or(name or f"roi_{label}"), (slices[0].modality,)
        listing.volumes.append(Volume(patient, (folder,), mask.path, tumour, label, found[0], modality))
    return set(found)


def _patient(slices: Sequence[Header], mask: Header, doubtful: frozenset[str]) -> tuple[str | None, str]:
    """Whose the image and its mask are, None where nobody can tell; and what there is to say of it."""
    patients = {one.patient for one in (*slices, mask)} - {""}
    if len(patients) > 1:
        return None, f"it and its series are of {len(patients)} patients"
    if patients & doubtful:
        return None, "no issuer of a PatientID that several issuers gave: left out, it may be of any of them"
    if not slices[0].patient:
        return slices[0].study, "no PatientID, the study is taken as the patient"
    return slices[0].patient.removesuffix("^"), ""  # of an issuer that is not named


def _referenced(mask: Header, series: dict[str, list[Header]]) -> list[str]:
    """The series a mask names; where it names none, those in its frame of reference."""
    if mask.segmented:
        return sorted(set(mask.segmented) & set(series))
    frame = mask.frame_of_reference
    return [uid for uid, slices in series.items() if frame and slices[0].frame_of_reference == frame]
