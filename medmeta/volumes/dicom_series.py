"""Find DICOM files and group them to series."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from medmeta.volumes.dicom_header import Header, is_dicom, read_header
from medmeta.volumes.errors import VolumeError
from medmeta.volumes.keys import series_key

# never DICOM, so not opened to see
_OTHER = (
    *(".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd", ".raw", ".png", ".jpg", ".jpeg", ".npz", ".npy"),
    *(
        ".json",
        ".csv",
        ".tsv",
        ".txt",
        ".md",
        ".py",
        ".html",
        ".xml",
        ".pdf",
        ".zip",
        ".gz",
        ".bval",
        ".bvec",
    ),
    *(".yaml", ".yml", ".pt", ".safetensors", ".log"),
)
_NAMED = (".dcm", ".dicom", ".ima")


@dataclass(frozen=True)
class Series:
    """The files of one SeriesInstanceUID, or one file that could not be read.

    Args:
        uid: SeriesInstanceUID.
        headers: the files, in order of path.
        problem: why a file of it could not be read.
    """

    uid: str
    headers: tuple[Header, ...]
    problem: VolumeError | None = None

    @property
    def key(self) -> str:
        """Its short name."""
        return series_key(self.uid)

    @property
    def is_mask(self) -> bool:
        """Whether it holds segmentations or contours."""
        return bool(self.headers) and all(header.is_mask for header in self.headers)


def files_below(folder: Path) -> Iterator[Path]:
    """All files below a folder, hidden ones left out, in order of name; links to folders are not followed.

    Raises:
        VolumeError: where a folder cannot be listed.
    """

    def fail(error: OSError) -> None:
        raise VolumeError("unreadable", found=type(error).__name__, where=folder) from None

    for place, folders, names in os.walk(folder, onerror=fail):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith("."):
                yield Path(place, name)


def dicom_files(files: Iterable[Path]) -> Iterator[Path]:
    """Those that are called DICOM or begin like it, and are no DICOMDIR.

    A file called ``.dcm`` that does not begin like DICOM is a damaged slice, so it is not passed over.
    """
    for file in files:
        low = file.name.lower()
        if low != "dicomdir" and not low.endswith(_OTHER) and (low.endswith(_NAMED) or is_dicom(file)):
            yield file


def group(headers: Iterable[Header]) -> list[Series]:
    """One series for each SeriesInstanceUID, in order of first appearance."""
    found: dict[str, list[Header]] = {}
    for header in headers:
        found.setdefault(header.series, []).append(header)
    return [Series(uid, tuple(members)) for uid, members in found.items()]


def find_series(folder: Path) -> list[Series]:
    """All series below a folder.

    Raises:
        VolumeError: where a file that begins like DICOM cannot be read: it may be a slice of any series.
    """
    return group(h for h in map(read_header, dicom_files(files_below(folder))) if h is not None)


@dataclass(frozen=True)
class Choice:
    """What an image series must be to be taken; None leaves a question open.

    Args:
        key: SeriesInstanceUID or the short key that ``inspect`` shows.
        modality: ``"CT"``, ``"MR"`` …
        description: a regular expression found in SeriesDescription, small and capital letters alike.

    Raises:
        VolumeError: where the description is no regular expression.
    """

    key: str | None = None
    modality: str | None = None
    description: str | None = None

    def __post_init__(self) -> None:
        try:
            re.compile(self.description or "")
        except re.error:
            found = "a pattern that is no regular expression"
            raise VolumeError("no-such-series", found=found, cure="Correct description=.") from None

    def __bool__(self) -> bool:
        return any(asked is not None for asked in (self.key, self.modality, self.description))

    def fits(self, one: Series) -> bool:
        """Whether a series is one of those asked for."""
        header = one.headers[0]
        if self.key is not None and self.key not in (one.uid, one.key):
            return False
        if self.modality is not None and header.modality != self.modality.upper():
            return False
        pattern = self.description or ""
        return re.search(pattern, header.description, re.IGNORECASE) is not None


_ANY = Choice()


def listed(images: Sequence[Series]) -> str:
    """What there is to choose from, by keys and kinds: descriptions are free text, so not for an error."""
    shown = (f"{one.key} ({one.headers[0].modality} {len(one.headers)} files)" for one in images[:8])
    return ", ".join(shown) + (f" and {len(images) - 8} more" if len(images) > 8 else "")


def choose(series: Sequence[Series], where: Path, choice: Choice = _ANY) -> Series:
    """The one image series that fits.

    Args:
        series: what there is.
        where: where it was found, for the refusal.
        choice: what was asked for.

    Raises:
        VolumeError: where none or several do.
    """
    images = [one for one in series if not one.is_mask]
    fitting = [one for one in images if choice.fits(one)]
    if len(fitting) == 1:
        return fitting[0]
    if len(fitting) > 1:
        found = f"{len(fitting)} series: {listed(fitting)}"
        raise VolumeError("several-volumes", found=found, where=where)
    if images:
        raise VolumeError("no-such-series", found=f"the series {listed(images)}", where=where)
    raise VolumeError("not-a-volume", found="no DICOM image", where=where)
