"""MONAI and Auto3DSeg datalists: JSON with ``{"image": …, "label": …}`` under ``training``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medmeta.volumes.layouts.decathlon import modalities
from medmeta.volumes.layouts.labels import counted_names, label_names, per_label
from medmeta.volumes.layouts.listing import (
    Listing,
    free_or,
    name_patients,
    read_json,
    section,
    stem,
    there,
)
from medmeta.volumes.progress import Track, silent
from medmeta.volumes.record import Volume

_SECTIONS = ("training", "validation")


def find(path: Path) -> Path | None:
    """The path itself where it is a JSON file, or the only one with a training list in a folder."""
    if path.is_file():
        return path if path.suffix.lower() == ".json" else None
    lists = [p for p in sorted(path.glob("*.json")) if b'"training"' in p.read_bytes()[: 2**20]]
    return lists[0] if len(lists) == 1 else None


def matches(path: Path) -> bool:
    """Whether the path is a datalist or a folder with one."""
    return find(path) is not None


def read(path: Path, track: Track = silent) -> Listing:
    """Read the sections ``training`` and ``validation``; paths are relative to the JSON file.

    ``label`` is the path of a mask (to segment) or a class, by its name or as a number that ``labels``
    names (to classify). ``image`` may be a list, one file a channel. ``patient`` or ``subject_id`` keys
    the patient, else the image's name, with its folder where images of other folders have that name.
    """
    file = find(path)
    listing = Listing()
    about = read_json(file) if file else {}
    root = file.parent if file else path
    names, classes = label_names(about), label_names(about, background=True)
    cases: list[Volume] = []
    number = 0
    for name in _SECTIONS:
        for entry in section(about, name):
            number += 1
            _add(listing, cases, entry, root, number, classes, modalities(about))
    name_patients(listing, root, listing.volumes, cases)
    per_label(listing, cases, names or counted_names(cases), what="masked entry", track=track)
    return listing


def _add(
    listing: Listing,
    cases: list[Volume],
    entry: Any,
    root: Path,
    number: int,
    classes: dict[int, str],
    modality: tuple[str, ...],
) -> None:
    """Add one entry: to ``cases`` where it has a mask, to the listing where it has a class."""
    if not isinstance(entry, dict) or not entry.get("image"):
        listing.problems.append(f"entry {number}: no image")
        return
    files = entry["image"] if isinstance(entry["image"], list) else [entry["image"]]
    image = tuple(root / str(f) for f in files)
    if not all(there(p) for p in image):
        listing.problems.append(f"entry {number}: the image does not exist")
        return
    patient = str(entry.get("patient") or entry.get("subject_id") or "")
    label = _class_or_path(entry.get("label"), classes)
    if label is None:
        listing.problems.append(f"entry {number}: neither a mask nor a class")
    elif isinstance(label, int):
        tumour = free_or(classes.get(label, f"class_{label}"))
        listing.volumes.append(Volume(patient, image, tumour=tumour, modality=modality))
    elif _is_file(root, label):
        cases.append(Volume(patient, image, root / label, modality=modality))
    elif stem(Path(str(label))) != Path(str(label)).name:
        listing.problems.append(f"entry {number}: the mask does not exist")
    else:
        listing.volumes.append(Volume(patient, image, tumour=free_or(str(label)), modality=modality))


def _class_or_path(label: Any, classes: dict[int, str]) -> int | str | None:
    """A class as a number where it is one, written as ``1``, ``1.0`` or ``"1"``; None for what is neither."""
    if isinstance(label, float) and label.is_integer():
        return int(label)
    if isinstance(label, str) and label.isdecimal() and int(label) in classes:
        return int(label)
    return label if isinstance(label, int | str) and not isinstance(label, bool) else None


def _is_file(root: Path, label: object) -> bool:
    return isinstance(label, str) and bool(label) and there(root / label) and (root / label).is_file()
