"""Values of DICOM elements from their bytes: nothing is validated, converted or warned about on the way."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any

from pydicom.charset import TEXT_VR_DELIMS, decode_bytes
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset

_ESCAPE = b"\x1b"  # changes the character set within a text that is ASCII byte by byte (ISO 2022)


def _item(ds: Dataset, tag: int) -> Any:
    """The element as it was parsed, or None; ten times as fast as asking the data set for it."""
    return ds.items().mapping.get(tag)


def raw(ds: Dataset, tag: int) -> Any:
    """The element's bytes, or its value where pydicom has converted it already; None where absent."""
    item = _item(ds, tag)
    return None if item is None else item.value


def text(ds: Dataset, tag: int) -> str:
    """One line of text in the data set's own character set, without padding; ``""`` where absent.

    Example:
        >>> ds = Dataset(); ds.Modality = "CT"
        >>> text(ds, 0x00080060)
        'CT'
    """
    value = raw(ds, tag)
    if value is None:
        return ""
    if isinstance(value, bytes):
        value = _decoded(ds, value)
    elif not isinstance(value, str) and isinstance(value, Sequence):
        value = "\\".join(str(part) for part in value)
    return str(value).strip(" \0\t\r\n")


def _decoded(ds: Dataset, value: bytes) -> str:
    """By SpecificCharacterSet, in a sequence that of its parent; nearly all text is ASCII and needs none.

    Bytes that are not of their set are taken for Latin-1 as without one: no two names become one that way.
    """
    if value.isascii() and _ESCAPE not in value:
        return value.decode("ascii")
    named = ds.original_character_set or "latin-1"
    try:
        found = decode_bytes(value, [named] if isinstance(named, str) else list(named), TEXT_VR_DELIMS)
    except (LookupError, UnicodeError):  # where someone made pydicom strict
        found = "\ufffd"
    return value.decode("latin-1") if "\ufffd" in found else found


def texts(ds: Dataset, tag: int) -> tuple[str, ...]:
    """All values of a multi-valued text; ``()`` where absent."""
    line = text(ds, tag)
    return tuple(part.strip() for part in line.split("\\")) if line else ()


def numbers(ds: Dataset, tag: int) -> tuple[float, ...]:
    """Decimal strings (DS, IS) or doubles (FD) as floats; what is no number becomes NaN; ``()`` where absent.

    Example:
        >>> ds = Dataset(); ds.PixelSpacing = [0.5, 2]
        >>> numbers(ds, 0x00280030)
        (0.5, 2.0)
    """
    item = _item(ds, tag)
    if item is None or item.value is None:
        return ()
    if isinstance(item, RawDataElement) and isinstance(item.value, bytes) and _binary(item.VR, tag):
        code, size = ("d", 8) if item.VR in (None, "FD", "UN") else ("f", 4)
        count = len(item.value) // size
        order = "<" if item.is_little_endian else ">"
        return struct.unpack(f"{order}{count}{code}", item.value[: count * size])
    return tuple(_number(part) for part in texts(ds, tag))


# doubles that occur in implicit VR files, where the bytes do not say so
_DOUBLES = frozenset({0x00189087, 0x00189089, 0x00189082, 0x00409224, 0x00409225})


def _binary(vr: str | None, tag: int) -> bool:
    return vr in ("FD", "FL") or (vr in (None, "UN") and tag in _DOUBLES)


def _number(part: str) -> float:
    try:
        return float(part) if part.isascii() and "_" not in part else math.nan
    except ValueError:
        return math.nan


def number(ds: Dataset, tag: int) -> float | None:
    """The first number; None where absent."""
    values = numbers(ds, tag)
    return values[0] if values else None


def whole(ds: Dataset, tag: int, default: int = 0) -> int:
    """A whole number (US, UL, IS); ``default`` where absent, -1 where it is no whole number.

    Example:
        >>> ds = Dataset(); ds.Rows = 512
        >>> whole(ds, 0x00280010), whole(ds, 0x00280011)
        (512, 0)
    """
    item = _item(ds, tag)
    if item is None or item.value is None or item.value in (b"", ""):
        return default
    value = item.value
    if isinstance(item, RawDataElement) and _is_binary(item, tag):
        return int.from_bytes(value, "little" if item.is_little_endian else "big")
    if isinstance(value, int):
        return int(value)
    try:
        return int(text(ds, tag).split("\\")[0])
    except ValueError:
        return -1


# whole numbers that are strings: NumberOfFrames, EchoNumbers, TemporalPositionIdentifier, ROINumber …
_STRINGS = frozenset({0x00280008, 0x00180086, 0x00200100, 0x00200012, 0x00200013, 0x30060022, 0x30060084})


def _is_binary(item: RawDataElement, tag: int) -> bool:
    """Whether the bytes are the number itself; implicit files do not say so."""
    if item.VR in ("IS", "DS", "LO") or (item.VR in (None, "UN") and tag in _STRINGS):
        return False
    return isinstance(item.value, bytes) and len(item.value) in (2, 4)


def items(ds: Dataset, tag: int) -> list[Dataset]:
    """The items of a sequence; ``[]`` where absent or no sequence."""
    if _item(ds, tag) is None:
        return []
    value = ds[tag].value
    return [item for item in value if isinstance(item, Dataset)] if isinstance(value, Sequence) else []


def first(ds: Dataset, tag: int) -> Dataset | None:
    """The first item of a sequence, or None."""
    found = items(ds, tag)
    return found[0] if found else None
