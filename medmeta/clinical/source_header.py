"""The header of a source series as its results can take it over: many a header is not quite DICOM."""

from __future__ import annotations

import datetime
import re
from typing import Any

from medmeta.clinical.uids import derived

# type 2 in the modules that a result takes over (PS3.3 C.7.1.1, C.7.2.1): there, and empty where not known
_EMPTY = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "AccessionNumber",
    "ReferringPhysicianName",
)
_SEXES = ("M", "F", "O")
_TIME = re.compile(r"([01]\d|2[0-3])([0-5]\d(([0-5]\d|60)(\.\d{1,6})?)?)?")  # PS3.5 6.2: 60 is a leap
_MOMENT = re.compile(r"\d{4}(\d\d){0,5}(\.\d{1,6})?([+-]\d{4})?")  # PS3.5 6.2, DT


def mend(image: Any) -> None:
    """Make a header one that can be written again, in place; the file that it was read from stays as it is.

    Text is read by the source's own character set and will be written as Unicode (ISO_IR 192), in which
    names of classes can be written, too. What is no date, time or sex is blanked, an absent attribute that
    must be there is there and empty, and what cannot be read at all is left out. A series without a frame of
    reference gets one of its own, the same each time: it says that the slices lie in one space, as their
    positions do, and nothing of any other series.

    Args:
        image: pydicom's data set of one file, without pixels.
    """
    _restate(image)
    image.SpecificCharacterSet = "ISO_IR 192"
    for name in _EMPTY:
        if name not in image:
            setattr(image, name, "")
    sex = str(image.PatientSex or "").strip().upper()
    image.PatientSex = sex if sex in _SEXES else ""
    if "NumberOfFrames" not in image and "SliceThickness" not in image:
        image.SliceThickness = None
    if not image.get("FrameOfReferenceUID"):
        series = (str(image.get(name, "")) for name in ("StudyInstanceUID", "SeriesInstanceUID"))
        image.FrameOfReferenceUID = derived("frame of reference", *series)


def _restate(dataset: Any) -> None:
    """Read every element now, while the character set is the source's, and blank what is not what it says."""
    for tag in list(dataset.keys()):
        try:
            element = dataset[tag]
            if element.keyword == "SpecificCharacterSet":
                continue  # needed until the others are read
            if element.VR == "SQ":
                for item in element.value:
                    _restate(item)
            elif not element.is_empty:
                _blank(element)
        except Exception:  # noqa: BLE001 - a damaged element raises anything; without it the rest is right
            del dataset[tag]
    if dataset.get("SpecificCharacterSet") is not None:
        del dataset.SpecificCharacterSet


def _blank(element: Any) -> None:
    values = [element.value] if element.VM == 1 else list(element.value)
    if element.VR == "PN":  # a name remembers the bytes that it was read from
        element.value = [str(v) for v in values] if element.VM > 1 else str(element.value)
    elif element.VR in ("DA", "TM", "DT") and not all(_is_moment(str(v), element.VR) for v in values):
        element.value = ""


def _is_moment(text: str, kind: str) -> bool:
    """Whether a text is a date, time or both as PS3.5 6.2 has them."""
    if kind == "TM":
        return _TIME.fullmatch(text) is not None
    if kind == "DT":
        return _MOMENT.fullmatch(text) is not None
    try:
        return len(text) == 8 and bool(datetime.datetime.strptime(text, "%Y%m%d"))
    except ValueError:
        return False
