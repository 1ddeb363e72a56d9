"""What a layout finds in a folder, and the refusals that all layouts share."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
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


def name_patients(listing: Listing, root: Path, *volumes: list[Volume]) -> None:
    """Key each patient that nobody named by the image, in place.

    That is the image's name, and its folder with it where images of other folders have that name: the
    ``imaging.nii.gz`` of 200 folders are not one patient's.
    """
    names = {v.image[0]: stem(v.image[0]) for some in volumes for v in some if not v.patient}
    keys = told_apart(names, root)
    for some in volumes:
        some[:] = [v if v.patient else replace(v, patient=keys[v.image[0]]) for v in some]
    count = sum(keys[image] != name for image, name in names.items())
    if count:
        listing.problems.append(
            f"{count} images without a patient are called as those of other folders are: each is taken for a"
            " patient of its own; name the patients if one has several"
        )


def told_apart(names: Mapping[Path, str], root: Path) -> dict[Path, str]:
    """The names of images, and their folder with them where images of other folders have that name.

    Example:
        >>> told_apart({Path("d/a/scan.nii"): "scan", Path("d/b/scan.nii"): "scan"}, Path("d")).values()
        dict_values(['a/scan', 'b/scan'])
    """
    folders: dict[str, set[Path]] = {}
    for image, name in names.items():
        folders.setdefault(name, set()).add(image.parent)
    return {
        image: name if len(folders[name]) == 1 else f"{_below(image.parent, root).as_posix()}/{name}"
        for image, name in names.items()
    }


def _below(folder: Path, root: Path) -> Path:
    return folder.relative_to(root) if folder.is_relative_to(root) else folder


def read_text(file: Path) -> str:
    """Text in UTF-8, UTF-16 with its mark, or else in western Windows' code page, as spreadsheets have it."""
    raw = file.read_bytes()
    coding = "utf-16" if raw[:2] in {b"\xff\xfe", b"\xfe\xff"} else "utf-8-sig"
    for known in (coding, "cp1252"):
        with contextlib.suppress(UnicodeDecodeError):
            return raw.decode(known)
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
