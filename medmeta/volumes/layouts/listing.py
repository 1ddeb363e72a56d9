"""What a layout finds in a folder, and the refusals that all layouts share."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medmeta.errors import MedmetaError
from medmeta.volumes.record import Volume

SUFFIXES = (
    ".nii.gz",
    ".nii",
    ".nrrd",
    ".nhdr",
    ".mha",
    ".mhd",
    ".png",
    ".jpg",
    ".jpeg",
    ".npz",
    ".dcm",
    ".zip",
)
FREE = frozenset({"none", "normal", "healthy", "control", "notumor", "notumour", "no_tumor", "no_tumour"})


class CohortError(MedmetaError):
    """A folder that cannot be read as a cohort."""


@dataclass
class Listing:
    """What was found, while a layout is being read.

    Problems count cases and rows and never name a file, for a file's name may be a patient's.
    """

    volumes: list[Volume] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def stem(path: Path) -> str:
    """File name without its suffix, both parts of ``.nii.gz``.

    Example:
        >>> stem(Path("imagesTr/liver_7.nii.gz"))
        'liver_7'
    """
    low = path.name.lower()
    for suffix in SUFFIXES:
        if low.endswith(suffix):
            return path.name[: -len(suffix)]
    return path.name


def image_files(folder: Path) -> Iterator[Path]:
    """The image files of a folder by name, hidden ones left out."""
    if folder.is_dir():
        for path in sorted(folder.iterdir()):
            if path.is_file() and not path.name.startswith(".") and path.name.lower().endswith(SUFFIXES):
                yield path


def free_or(name: str | None) -> str | None:
    """The tumour type, or None for the words that say there is no tumour.

    Example:
        >>> free_or("Glioma"), free_or("no_tumor"), free_or("")
        ('Glioma', None, None)
    """
    name = (name or "").strip()
    return None if not name or name.lower() in FREE else name


def there(path: Path) -> bool:
    """Whether a file or folder exists; False, too, for what cannot be a path."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def read_text(file: Path) -> str:
    """Text in UTF-8, UTF-16 with its mark, or else Latin-1 as old spreadsheets write it."""
    raw = file.read_bytes()
    coding = "utf-16" if raw[:2] in {b"\xff\xfe", b"\xfe\xff"} else "utf-8-sig"
    try:
        return raw.decode(coding)
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def section(about: dict[str, Any], name: str) -> list[Any]:
    """A list of a JSON object, empty where it is absent.

    Raises:
        CohortError: where it is anything but a list.
    """
    found = about.get(name)
    if not (found is None or isinstance(found, list)):
        raise CohortError(f"a list under {name!r}", found=type(found).__name__, cure="Repair the file.")
    return found or []


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        CohortError: where it is not one.
    """
    try:
        about = json.loads(read_text(file))
    except (ValueError, RecursionError) as error:
        raise CohortError(f"{file.name} as JSON", found="a syntax error", cure="Repair the file.") from error
    if not isinstance(about, dict):
        raise CohortError(f"an object in {file.name}", found=type(about).__name__, cure="Repair the file.")
    return about
