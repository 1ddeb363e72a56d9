"""A folder a class: ``glioma/…``, ``meningioma/…``, ``none/…``."""

from __future__ import annotations

import re
from pathlib import Path

from medmeta.volumes.dicom_header import Header, is_dicom, read_header
from medmeta.volumes.errors import VolumeError
from medmeta.volumes.layouts.listing import SUFFIXES, Listing, free_or, image_files, stem
from medmeta.volumes.patients import settle
from medmeta.volumes.progress import Track, silent
from medmeta.volumes.record import Volume

_MASK = re.compile(r"[_\-. ]?(mask|seg|segmentation|label)s?$", re.IGNORECASE)
_NEVER = frozenset({"imagestr", "imagests", "labelstr", "labelsts"})


def matches(path: Path) -> bool:
    """Whether the folder holds two or more folders with images in them or one level below.

    Not a folder a patient of DICOM series: their names would be taken for classes.
    """
    classes = _classes(path)
    return len(classes) >= 2 and not all(_is_one_patient(folder) for folder in classes[:10])


def read(path: Path, track: Track = silent) -> Listing:
    """Read one class a folder; a folder called ``none``, ``normal``, ``healthy`` … is free of any tumour.

    Below a class lies a file a patient, or a folder a patient: with image files (each a volume, or DICOM:
    together one series). A file ``x_mask``, ``x_seg`` or ``x_label`` is the mask of ``x``; in a patient's
    folder with one image, so is any file called ``mask``, ``seg`` or ``label``.
    """
    listing = Listing()
    for folder in _classes(path):
        tumour = free_or(folder.name)
        _files(listing, folder, tumour, patient=None)
        for number, below in enumerate(sorted(p for p in folder.iterdir() if p.is_dir()), start=1):
            files = list(image_files(below))
            if _is_series(below, files):
                listing.volumes.append(Volume(below.name, (below,), tumour=tumour))
            elif files:
                _files(listing, below, tumour, patient=below.name)
            else:
                listing.problems.append(f"class {folder.name}, folder {number}: no image")
    return listing


def _classes(path: Path) -> list[Path]:
    if not path.is_dir():
        return []
    folders = [p for p in sorted(path.iterdir()) if p.is_dir() and not p.name.startswith(".")]
    return [p for p in folders if p.name.lower() not in _NEVER and _has_images(p)]


def _has_images(folder: Path) -> bool:
    return any(image_files(folder)) or any(
        _is_series(p, files := list(image_files(p))) or files for p in folder.iterdir() if p.is_dir()
    )


def _is_series(folder: Path, files: list[Path]) -> bool:
    """Whether a folder is one DICOM series: .dcm files, or files without a known suffix that say DICM."""
    if files:
        return all(p.suffix.lower() == ".dcm" for p in files)
    bare = [p for p in sorted(folder.iterdir()) if p.is_file() and not p.name.lower().endswith(SUFFIXES)]
    return bool(bare) and is_dicom(bare[0])


def _is_one_patient(folder: Path) -> bool:
    """Whether the first few DICOM series below are of one PatientID."""
    headers: list[Header | None] = []
    for below in sorted(p for p in folder.iterdir() if p.is_dir())[:5]:
        first = next((p for p in sorted(below.iterdir()) if p.is_file()), None)
        if first is None or not _is_series(below, list(image_files(below))):
            return False
        try:
            header = read_header(first)
        except VolumeError:
            return False
        headers.append(header)
    named = settle(header for header in headers if header is not None)
    nobody = {""} if len(named) < len(headers) else set()
    return len({header.patient for header in named} | nobody) == 1


def _files(listing: Listing, folder: Path, tumour: str | None, patient: str | None) -> None:
    """Add every image of a folder with the mask that belongs to it."""
    found = list(image_files(folder))
    files = {stem(p): p for p in found}
    if len(files) < len(found):
        doubled = len(found) - len(files)
        listing.problems.append(f"class {tumour or 'none'}: {doubled} file(s) of one name in two formats")
    masks = {name: p for name, p in files.items() if _MASK.search(name)}
    images = {name: p for name, p in files.items() if name not in masks}
    owned = {_MASK.sub("", name): p for name, p in masks.items()}
    for name, file in images.items():
        mask = owned.pop(name, None)
        if mask is None and len(images) == 1 and len(masks) == 1 and patient is not None:
            mask = next(iter(masks.values()))
            owned.clear()
        listing.volumes.append(Volume(patient or name, (file,), mask if tumour else None, tumour))
    if owned:
        listing.problems.append(f"class {tumour or 'none'}: {len(owned)} mask(s) without an image")
