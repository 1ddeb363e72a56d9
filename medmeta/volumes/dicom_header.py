"""What a DICOM file says of its slices, read without its pixels."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal

import pydicom
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import UID

from medmeta.volumes.dicom_slices import Slice, classic_slices, frame_slices
from medmeta.volumes.errors import VolumeError
from medmeta.volumes.quiet import quiet
from medmeta.volumes.tags import first, items, number, raw, text, texts, whole
from medmeta.volumes.units import Unit, unit_of

SEG, LABELMAP_SEG = "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7"
DEFLATED = "1.2.840.10008.1.2.1.99"
RTSTRUCT = "1.2.840.10008.5.1.4.1.1.481.3"
MASKS = frozenset({SEG, LABELMAP_SEG, RTSTRUCT})
# of an ultrasound volume, whose axes are those of its probe (PS3.3, C.8.24)
_VOLUME_FRAME = 0x00209312
_PIXELS = (0x7FE00010, 0x7FE00008, 0x7FE00009)


@dataclass(frozen=True)
class Header:
    """One DICOM file.

    Args:
        path: the file.
        pixel_bytes: length of the pixel data as claimed; -1 where encapsulated, None where absent.
        bytes_left: bytes of the file from the pixel data on; None where unknown (deflated).
        slices: its planes.
        unit: what rescaled values mean.
        patient: identifier, ``^`` and its issuer, ``""`` without an identifier; raw, so for memory only.
        issuer: of the identifier, ``""`` where none is named.
        study: StudyInstanceUID; likewise.
        warnings: what a reader of the pixels should know.
    """

    path: Path
    sop_class: str
    sop_instance: str
    series: str
    patient: str
    frame_of_reference: str
    modality: str
    description: str
    syntax: str
    image_type: tuple[str, ...]
    rows: int
    columns: int
    samples: int
    photometric: str
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool
    frames: int
    pixel_bytes: int | None
    bytes_left: int | None
    slices: tuple[Slice, ...]
    unit: Unit
    tilt: float = 0.0
    transformed: bool = False
    multiframe: bool = False
    segmented: tuple[str, ...] = ()
    warnings: tuple[str, ...] = field(default=())
    study: str = ""
    issuer: str = ""

    @property
    def is_mask(self) -> bool:
        """Whether the file is a segmentation or a set of contours."""
        return self.sop_class in MASKS


def is_dicom(path: Path) -> bool:
    """Whether a file begins as DICOM files do, with or without the preamble."""
    try:
        with open(path, "rb") as file:
            start = file.read(140)
    except OSError:
        return False
    if start[128:132] == b"DICM":
        return True
    # without preamble: the first element is of group 0002 or 0008 and its length or VR makes sense
    return start[:2] in (b"\x08\x00", b"\x02\x00") and start[3:4] == b"\0" and start[2:3] in b"\0\1\5\x08\x16"


def read_header(path: Path) -> Header | None:
    """Read one file's header; None where the file is DICOM but no image, segmentation or contour set.

    Raises:
        VolumeError: where the file is gone, is no DICOM or cannot be parsed.
    """
    try:
        with open(path, "rb") as file, quiet():
            ds = pydicom.dcmread(file, stop_before_pixels=True, force=True)
            pixel_bytes, left = _pixels(file, ds)
            return header_of(ds, path, pixel_bytes, left)
    except FileNotFoundError:
        raise VolumeError("not-found", found="nothing", where=path) from None
    except (VolumeError, MemoryError):
        raise
    except (InvalidDicomError, OSError) as error:
        raise VolumeError("unreadable", found=type(error).__name__, where=path) from None
    except Exception as error:  # noqa: BLE001 - a damaged header can raise anything in the parser
        raise VolumeError("bad-header", found=f"{type(error).__name__} on parsing", where=path) from None


def _pixels(file: BinaryIO, ds: Dataset) -> tuple[int | None, int | None]:
    """Claimed and available length of the pixel data behind the place where reading stopped."""
    if _syntax(ds) == DEFLATED:  # the place is one of the inflated stream
        return 0, None
    found = pixel_place(file, ds)
    if found is None:
        return None, 0
    first_byte, length = found
    left = os.fstat(file.fileno()).st_size - first_byte
    return (-1 if length == 0xFFFFFFFF else length), max(0, left)


def pixel_place(file: BinaryIO, ds: Dataset) -> tuple[int, int] | None:
    """First byte of the pixel data and the length they claim, where parsing stopped before them."""
    here = file.tell()
    start = file.read(12)
    little = ds.original_encoding[1] is not False
    order: Literal["little", "big"] = "little" if little else "big"
    group, element = (int.from_bytes(start[i : i + 2], order) for i in (0, 2))
    if (group << 16 | element) not in _PIXELS:
        return None
    if start[4:6].isalpha():
        size, length = 12, int.from_bytes(start[8:12], order)
    else:
        size, length = 8, int.from_bytes(start[4:8], order)
    return here + size, length


def _syntax(ds: Dataset) -> str:
    meta = getattr(ds, "file_meta", None)
    found = text(meta, 0x00020010) if meta is not None else ""
    if found:
        return found
    implicit, little = ds.original_encoding
    if not little:
        return "1.2.840.10008.1.2.2"
    return "1.2.840.10008.1.2" if implicit else "1.2.840.10008.1.2.1"


def header_of(ds: Dataset, path: Path, pixel_bytes: int | None, left: int | None) -> Header | None:
    """The header of a parsed file; see ``read_header``."""
    sop_class = text(ds, 0x00080016) or _promised(ds)
    if sop_class not in MASKS and raw(ds, 0x00280010) is None:
        _not_cut(ds, sop_class, path, pixel_bytes)
        return None
    patient, issuer = text(ds, 0x00100020), text(ds, 0x00100021)
    multiframe = bool(items(ds, 0x52009230)) and sop_class not in MASKS
    return Header(
        path=path,
        sop_class=sop_class,
        sop_instance=text(ds, 0x00080018),
        series=text(ds, 0x0020000E),
        patient=f"{patient}^{issuer}" if patient else "",
        frame_of_reference=text(ds, 0x00200052) or text(ds, _VOLUME_FRAME) or _structure_frame(ds),
        modality=text(ds, 0x00080060).upper(),
        description=text(ds, 0x0008103E),
        syntax=_syntax(ds),
        image_type=tuple(part.upper() for part in texts(ds, 0x00080008)),
        rows=whole(ds, 0x00280010),
        columns=whole(ds, 0x00280011),
        samples=whole(ds, 0x00280002, 1),
        photometric=text(ds, 0x00280004).upper(),
        bits_allocated=whole(ds, 0x00280100),
        bits_stored=whole(ds, 0x00280101),
        high_bit=whole(ds, 0x00280102, whole(ds, 0x00280101) - 1),
        signed=whole(ds, 0x00280103) == 1,
        frames=whole(ds, 0x00280008, 1),
        pixel_bytes=pixel_bytes,
        bytes_left=left,
        slices=frame_slices(ds) if multiframe else classic_slices(ds),
        unit=unit_of(ds, kind=_rescale_type(ds) if multiframe else ""),
        tilt=number(ds, 0x00181120) or 0.0,
        transformed=bool(items(ds, 0x00283000)),
        multiframe=multiframe,
        segmented=_referenced(ds) if sop_class in MASKS else (),
        warnings=_warnings(ds, sop_class),
        study=text(ds, 0x0020000D),
        issuer=issuer if patient else "",
    )


def _promised(ds: Dataset) -> str:
    """The SOP class that the file's own header names."""
    meta = getattr(ds, "file_meta", None)
    return text(meta, 0x00020002) if meta is not None else ""


def _not_cut(ds: Dataset, sop_class: str, path: Path, pixel_bytes: int | None) -> None:
    """A report, plan or presentation state has no rows; an image without them has lost its header.

    So may have an object of a vendor's own class, unless its header is whole: exports are full of such
    (scan protocols, raw data, results of a console) that hold no image.
    """
    name = UID(sop_class).name
    if "Image" in name:
        raise VolumeError("truncated-file", found="an image without its size", where=path)
    unknown = not sop_class or name == sop_class
    if unknown and not (sop_class and text(ds, 0x0020000E) and pixel_bytes is None and _whole(ds)):
        raise VolumeError("bad-header", found="no known kind of DICOM object", where=path)


def _whole(ds: Dataset) -> bool:
    """Whether the last element is as long as it claims: a file that was cut ends within one."""
    last = next(reversed(ds.items().mapping.values()), None)
    # one that was parsed at once is a sequence, which is not without its end
    return not isinstance(last, RawDataElement) or len(last.value or b"") == last.length


def _warnings(ds: Dataset, sop_class: str) -> tuple[str, ...]:
    found = []
    if text(ds, 0x00280301).upper() == "YES":
        found.append("burned-in annotation: names or dates may stand in the pixels")
    if sop_class.startswith("1.2.840.10008.5.1.4.1.1.7") or text(ds, 0x00080064):
        found.append("secondary capture: text may stand in the pixels")
    if text(ds, 0x00080060).upper() in ("US", "IVUS"):
        found.append("ultrasound: names or dates may stand in the pixels")
    if text(ds, _VOLUME_FRAME):
        found.append("ultrasound volume: its axes are those of the probe, not of the patient")
    return tuple(found)


def _structure_frame(ds: Dataset) -> str:
    """The frame of reference of contours, named in a sequence of its own."""
    frame = first(ds, 0x30060010)
    return text(frame, 0x00200052) if frame is not None else ""


def _referenced(ds: Dataset) -> tuple[str, ...]:
    """Series that a segmentation or a contour set was drawn on."""
    found = [text(item, 0x0020000E) for item in items(ds, 0x00081115)]
    for frame in items(ds, 0x30060010):
        for study in items(frame, 0x30060012):
            found += [text(series, 0x0020000E) for series in items(study, 0x30060014)]
    return tuple(dict.fromkeys(uid for uid in found if uid))


def _rescale_type(ds: Dataset) -> str:
    """RescaleType of an enhanced file: of its shared groups, else of its first frame."""
    for groups in (first(ds, 0x52009229), first(ds, 0x52009230)):
        transform = first(groups, 0x00289145) if groups is not None else None
        if transform is not None:
            return text(transform, 0x00281054)
    return ""
