"""The folder layouts people already have; each is read to the same list of volumes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from medmeta.volumes.layouts import datalist, decathlon, dicom_tree, folders, table
from medmeta.volumes.layouts.listing import CohortError, Listing
from medmeta.volumes.progress import Track

__all__ = ["LAYOUTS", "CohortError", "Layout", "Listing"]


class Layout(NamedTuple):
    """How a layout is recognised and read."""

    matches: Callable[[Path], bool]
    read: Callable[[Path, Track], Listing]


# in the order they are tried: the most explicit first
LAYOUTS: dict[str, Layout] = {
    "table": Layout(table.matches, table.read),
    "nnunet": Layout(decathlon.matches, decathlon.read),
    "datalist": Layout(datalist.matches, datalist.read),
    "dicom": Layout(dicom_tree.matches, dicom_tree.read),
    "folders": Layout(folders.matches, folders.read),
}
