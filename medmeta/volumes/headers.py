"""Headers of many files, in several processes where there are many."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from medmeta.volumes.dicom_header import Header, read_header
from medmeta.volumes.errors import VolumeError
from medmeta.volumes.progress import Track


def read_headers(
    files: Sequence[Path], *, workers: int, track: Track
) -> Iterator[Header | VolumeError | None]:
    """The header of each file in order, or why it could not be read."""
    if files:
        yield from track(map(_header, files), description="reading headers", total=len(files))


def _header(file: Path) -> Header | VolumeError | None:
    try:
        return read_header(file)
    except VolumeError as error:
        return error
