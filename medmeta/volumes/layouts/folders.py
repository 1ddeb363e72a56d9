"""A folder a class: ``glioma/…``, ``meningioma/…``, ``none/…``."""

from __future__ import annotations

import re
from collections.abc import Container
from pathlib import Path

from medmeta.volumes.dicom_header import Header, is_dicom, read_header
from medmeta.volumes.errors import VolumeError
from medmeta.volumes.layouts.listing import SUFFIXES, CohortError, Listing, free_or, image_files, stem
from medmeta.volumes.patients import settle
from medmeta.volumes.progress import Track, silent
from medmeta.volumes.record import Volume

# "x_mask" and, where an image has several, "x_mask_1"
_MASK = re.compile(
    r"([_\-. ]?(mask|seg|segmentation|label)s?|[_\-. ](mask|seg|segmentation|label)s?[_\-. ]?\d+)$",
    re.IGNORECASE,
)
# a word of such before what tells of whom or of what it is, "x_mask_rater1": a mask where there is an x
_MASK_OF = re.compile(r"[_\-. ](mask|seg|segmentation|label)s?(?=[_\-. ])", re.IGNORECASE)
_BEGINS = re.compile(r"(mask|seg|segmentation|label)s?(?=[_\-. \d]|$)", re.IGNORECASE)
# folders that people call so hold parts of a set, or images and masks apart: no classes
_PART = re.compile(r"(train|test|val|valid|validation)(ing)?([_\-. ]?(set|data|images?))?$", re.IGNORECASE)
_ROLE = re.compile(
    r"(masks?|labels?|segs?|segmentations?|annotations?|ground[_\- ]?truths?|gts?)$", re.IGNORECASE
)
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
    together one series). A file ``x_mask``, ``x_seg`` or ``x_label`` is the mask of ``x``, and so is
    ``x_mask_rater1`` where there is an ``x``; in a patient's folder with one image, so is any file whose name
    begins or ends with ``mask``, ``seg`` or ``label``. An image with several masks is left out.

    Raises:
        CohortError: where the folders are called ``train`` and ``test``, or ``images`` and ``masks``.
    """
    listing = Listing()
    classes = _classes(path)
    _are_classes(classes)
    for folder in classes:
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


def _are_classes(folders: list[Path]) -> None:
    """Refuse folders whose names say that they are something else: they would be learnt as tumour types."""
    if any(_ROLE.match(folder.name) for folder in folders):
        raise CohortError(
            "a folder a class",
            found="a folder of masks beside one of images",
            cure="Call them imagesTr and labelsTr, or list images and masks in a cohort.csv.",
        )
    if folders and all(_PART.match(folder.name) for folder in folders):
        raise CohortError(
            "a folder a class",
            found="a folder a part of a split",
            cure="Open each part by itself, or all of them through a cohort.csv.",
        )


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


def _image_of(name: str, files: Container[str], *, in_own_folder: bool) -> str | None:
    """What the image is called that a file is the mask of, by their names; None for an image."""
    if _MASK.search(name):
        return _MASK.sub("", name)
    of = [name[: found.start()] for found in _MASK_OF.finditer(name)]
    begins = in_own_folder and _BEGINS.match(name)
    return next((image for image in of if image in files), "" if begins else None)


def _files(listing: Listing, folder: Path, tumour: str | None, patient: str | None) -> None:
    """Add every image of a folder with the mask that belongs to it."""
    found = list(image_files(folder))
    files = {stem(p): p for p in found}
    if len(files) < len(found):
        doubled = len(found) - len(files)
        listing.problems.append(f"class {tumour or 'none'}: {doubled} file(s) of one name in two formats")
    of = {name: _image_of(name, files, in_own_folder=patient is not None) for name in files}
    images = {name: p for name, p in files.items() if of[name] is None}
    owned: dict[str, list[Path]] = {}
    for name, image in of.items():
        if image is not None:
            owned.setdefault(image, []).append(files[name])
    if patient is not None and len(images) == 1 and not set(images) & set(owned):
        owned = {name: [file for own in owned.values() for file in own] for name in images}
    several = 0
    for name, file in images.items():
        own = owned.pop(name, [])
        if tumour and len(own) > 1:
            several += 1
            continue
        listing.volumes.append(Volume(patient or name, (file,), own[0] if tumour and own else None, tumour))
    if several:
        listing.problems.append(
            f"class {tumour or 'none'}: {several} image(s) with several masks left out:"
            " join them, or name one in a cohort.csv"
        )
    if owned:
        alone = sum(map(len, owned.values()))
        listing.problems.append(f"class {tumour or 'none'}: {alone} mask(s) without an image")
