"""DICOM SEG: segments and where their voxels lie."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from medmeta.volumes.dicom_header import Header
from medmeta.volumes.dicom_slices import Slice, frame_slices
from medmeta.volumes.errors import VolumeError
from medmeta.volumes.grid import outside, place
from medmeta.volumes.quiet import quiet
from medmeta.volumes.scan import LPS_TO_RAS
from medmeta.volumes.tags import first, items, text, whole

# codes that do not say which tumour or structure: there the label that the maker gave tells more
_VAGUE = frozenset(
    ("", "neoplasm", "lesion", "mass", "tissue", "nodule", "tumor", "tumour", "organ", "anatomical structure")
)
_RLE = "1.2.840.10008.1.2.5"


@dataclass(frozen=True)
class Segment:
    """One segment as its file describes it.

    Args:
        number: its value in the label map.
        label: SegmentLabel, free text.
        kind: meaning of the code of its type, e.g. ``"Neoplasm"``.
        site: meaning of the code of its anatomic region, or ``""``.
    """

    number: int
    label: str
    kind: str
    site: str

    @property
    def name(self) -> str:
        """Tumour type or structure: the meaning of the type's code, else the label the maker gave."""
        if self.kind.lower() in _VAGUE:
            return self.label or self.kind or f"segment_{self.number}"
        return self.kind


@dataclass(frozen=True)
class Segmentation:
    """A SEG file as read.

    Args:
        header: its header.
        segments: by number.
        planes: for each frame the segment number (0 for a label map) and where it lies.
        frames: ``(n, rows, columns)``; label values, or 0 and 1, or parts of 1 for a fractional one.
        kind: ``"BINARY"``, ``"FRACTIONAL"`` or ``"LABELMAP"``.
    """

    header: Header
    segments: tuple[Segment, ...]
    planes: tuple[tuple[int, Slice], ...]
    frames: NDArray
    kind: str


def read_seg(path: Path, header: Header) -> Segmentation:
    """Read a SEG file whole.

    Raises:
        VolumeError: where it is damaged or has no place in the patient.
    """
    try:
        with quiet():
            ds = pydicom.dcmread(path, force=True)
            kind = text(ds, 0x00620001).upper() or "LABELMAP"
            segments = segments_of(ds)
            slices = frame_slices(ds)
            numbers_of = [
                _segment(frame) or _segment(first(ds, 0x52009229)) for frame in items(ds, 0x52009230)
            ]
            frames = _pixels(ds, header)
            if kind == "LABELMAP":
                frames = _described(frames, segments, whole(ds, 0x00280120, 0), header)
            if kind == "FRACTIONAL":
                frames = frames / max(whole(ds, 0x0062000E, 255), 1)
    except (VolumeError, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001 - a damaged file can raise anything in parser or decoder
        raise VolumeError("damaged-pixels", found=type(error).__name__, where=path) from None
    if not slices or len(slices) != len(frames):
        found = f"{len(frames)} frames and the place of {len(slices)}"
        raise VolumeError("bad-header", found=found, where=path)
    known = {segment.number for segment in segments}
    planes = tuple(zip(numbers_of if kind != "LABELMAP" else [0] * len(slices), slices, strict=True))
    strange = {number for number, _ in planes if kind != "LABELMAP" and number not in known}
    if strange:
        raise VolumeError("bad-header", found="frames of a segment that is not described", where=path)
    return Segmentation(header, segments, planes, frames, kind)


def _described(frames: NDArray, segments: Sequence[Segment], padding: int, header: Header) -> NDArray:
    """The label map with its padding as background; a value that is no segment is not guessed at."""
    known = {segment.number for segment in segments}
    if padding and padding not in known:
        frames = np.where(frames == padding, 0, frames)
    strange = set(np.unique(frames).tolist()) - known - {0}
    if strange:
        found = f"the values {sorted(strange)[:5]}, which are no segments"
        raise VolumeError("bad-header", found=found, where=header.path)
    return frames


def read_segments(path: Path) -> tuple[Segment, ...]:
    """The segments a file describes, read without its pixels.

    Raises:
        VolumeError: where it cannot be parsed.
    """
    try:
        with quiet():
            return segments_of(pydicom.dcmread(path, stop_before_pixels=True, force=True))
    except FileNotFoundError:
        raise VolumeError("not-found", found="a file that has gone", where=path) from None
    except Exception as error:  # noqa: BLE001 - a damaged header can raise anything in the parser
        raise VolumeError("bad-header", found=f"{type(error).__name__} on parsing", where=path) from None


def segments_of(ds: Dataset) -> tuple[Segment, ...]:
    """The segments a SEG describes, background of a label map left out."""
    found = []
    for item in items(ds, 0x00620002):
        number = whole(item, 0x00620004, -1)
        if number > 0:
            region = first(item, 0x00082218)
            kind = first(item, 0x0062000F)
            found.append(
                Segment(
                    number,
                    text(item, 0x00620005),
                    text(kind, 0x00080104) if kind is not None else "",
                    text(region, 0x00080104) if region is not None else "",
                )
            )
    return tuple(found)


def _segment(frame: Dataset | None) -> int:
    group = first(frame, 0x0062000A) if frame is not None else None
    return whole(group, 0x0062000B) if group is not None else 0


def _pixels(ds: Dataset, header: Header) -> NDArray:
    if header.bits_allocated not in (1, 8, 16) or header.rows < 1 or header.columns < 1:
        raise VolumeError("unsupported-pixels", found=f"{header.bits_allocated} bits", where=header.path)
    if "PixelData" not in ds:
        raise VolumeError("missing-pixels", found="no pixel data", where=header.path)
    native = header.pixel_bytes not in (None, -1)
    if native:
        needed = -(-header.rows * header.columns * header.frames * header.bits_allocated // 8)
        if len(ds.PixelData) < needed:
            found = f"{len(ds.PixelData)} of {needed} bytes"
            raise VolumeError("truncated-pixels", found=found, where=header.path)
    if header.syntax == _RLE and header.bits_allocated == 1:
        return _packed_runs(ds, header)
    return np.asarray(ds.pixel_array).reshape(-1, header.rows, header.columns)


def _packed_runs(ds: Dataset, header: Header) -> NDArray:
    """Run-length coded bits, which pydicom does not decode: DICOM PS3.5 annex G, eight pixels a byte."""
    size = header.rows * header.columns
    frames = []
    for data in pydicom.encaps.generate_frames(ds.PixelData, number_of_frames=header.frames):
        if int.from_bytes(data[:4], "little") != 1:
            raise VolumeError("damaged-pixels", found="bits in several segments", where=header.path)
        raw = _unrolled(data[int.from_bytes(data[4:8], "little") :], -(-size // 8))
        if len(raw) * 8 < size:
            found = f"{len(raw)} of {-(-size // 8)} bytes in a frame"
            raise VolumeError("truncated-pixels", found=found, where=header.path)
        bits = np.unpackbits(np.frombuffer(raw, np.uint8), bitorder="little")
        frames.append(bits[:size].reshape(header.rows, header.columns))
    return np.stack(frames)


def _unrolled(data: bytes, wanted: int) -> bytes:
    """PackBits: a count, then bytes as they are or one byte to repeat."""
    out = bytearray()
    place = 0
    while place < len(data) - 1 and len(out) < wanted:
        count = data[place]
        if count < 128:
            out += data[place + 1 : place + count + 2]
            place += count + 2
        else:
            out += data[place + 1 : place + 2] * (257 - count if count > 128 else 0)
            place += 2 if count > 128 else 1
    return bytes(out[:wanted])


def plane_affine(one: Slice, path: Path) -> NDArray[np.float64]:
    """Affine ``(4, 4)`` of one frame ``(x, y, 1)``: RAS mm, thickness 1 where unknown.

    Raises:
        VolumeError: where the frame has no valid place.
    """
    for code, values, count in (
        ("missing-position", one.position, 3),
        ("missing-orientation", one.orientation, 6),
        ("missing-spacing", one.spacing, 2),
    ):
        if len(values) != count or not all(abs(v) < 1e6 for v in values):
            raise VolumeError(code, found="none that is valid", where=path)
    row, column = np.array(one.orientation).reshape(2, 3)
    if (
        abs(np.linalg.norm(row) - 1) > 1e-3
        or abs(np.linalg.norm(column) - 1) > 1e-3
        or abs(row @ column) > 1e-3
    ):
        raise VolumeError("missing-orientation", found="directions not at right angles", where=path)
    if min(one.spacing) <= 0:
        raise VolumeError("missing-spacing", found="none above 0", where=path)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = row * one.spacing[1], column * one.spacing[0]
    affine[:3, 2] = np.cross(row, column)
    affine[:3, 3] = one.position
    return LPS_TO_RAS @ affine


def land(
    seg: Segmentation,
    like: NDArray[np.float64],
    shape: tuple[int, int, int],
    chosen: Sequence[int] | None = None,
    *,
    resample: bool = False,
) -> NDArray[np.int32]:
    """Put the segments on an image's grid, each frame by its own affine.

    Args:
        seg: what was read.
        like: affine of the image, RAS mm.
        shape: ``(x, y, z)`` of the image.
        chosen: segment numbers to take; None for all.
        resample: take the nearest frame and pixel at each voxel where the grids differ.

    Returns:
        ``(x, y, z)`` segment numbers, 0 where there is none.

    Raises:
        VolumeError: ``other-grid`` where a frame does not lie on slices of the image, or voxels lie outside
            of it; ``overlapping-segments`` where one voxel belongs to two.
    """
    out = np.zeros(shape, dtype=np.int32)
    for number, array, affine in pieces(seg, like):
        if number and chosen is not None and number not in chosen:
            continue
        put = place(array, affine, like, shape)
        if put is None and resample:
            put = _nearest(array, affine, like, shape)
        if put is None:
            found = f"a frame of {array.shape[0]} x {array.shape[1]} between the image's voxels"
            raise VolumeError("other-grid", found=found, where=seg.header.path)
        voxels, values = put
        beyond = outside(voxels, shape)
        if beyond:
            raise VolumeError("other-grid", found=f"{beyond} voxels outside the image", where=seg.header.path)
        _add(out, voxels, values if number == 0 else np.full(len(values), number), chosen, seg.header.path)
    return out


def _add(
    out: NDArray[np.int32],
    voxels: NDArray[np.int64],
    values: NDArray,
    chosen: Sequence[int] | None,
    path: Path,
) -> None:
    if chosen is not None:
        keep = np.isin(values, np.array(chosen))
        voxels, values = voxels[keep], values[keep]
    there = tuple(voxels.T)
    if ((out[there] != 0) & (out[there] != values)).any():
        raise VolumeError("overlapping-segments", found="voxels of two segments", where=path)
    out[there] = values


def _nearest(
    array: NDArray, affine: NDArray[np.float64], like: NDArray[np.float64], shape: tuple[int, int, int]
) -> tuple[NDArray[np.int64], NDArray]:
    """Voxels of the image whose centre lies in a pixel of the frame that is not zero."""
    corners = np.argwhere(array)
    low, high = corners.min(axis=0) - 0.5, corners.max(axis=0) + 0.5
    box = np.array([[x, y, z, 1] for x in (low[0], high[0]) for y in (low[1], high[1]) for z in (-0.5, 0.5)])
    there = np.linalg.solve(like, affine @ box.T)[:3]
    first_voxel = np.clip(np.floor(there.min(axis=1)), 0, np.array(shape)).astype(int)
    last_voxel = np.clip(np.ceil(there.max(axis=1)) + 1, 0, np.array(shape)).astype(int)
    spans = [np.arange(a, b) for a, b in zip(first_voxel, last_voxel, strict=True)]
    grid = np.stack(np.meshgrid(*spans, indexing="ij"), axis=-1).reshape(-1, 3)
    back = np.linalg.solve(affine, like)
    source = np.floor(grid @ back[:3, :3].T + back[:3, 3] + 0.5).astype(int)
    fits = ((source >= 0) & (source < np.array(array.shape))).all(axis=1)
    grid, source = grid[fits], source[fits]
    values = array[tuple(source.T)]
    return grid[values != 0].astype(np.int64), values[values != 0]


def pieces(
    seg: Segmentation, like: NDArray[np.float64]
) -> Iterator[tuple[int, NDArray, NDArray[np.float64]]]:
    """Each frame as ``(segment, (x, y, 1), affine)``, its thickness that of the image's step across it."""
    for (number, one), frame in zip(seg.planes, seg.frames, strict=True):
        if not frame.any():
            continue
        affine = plane_affine(one, seg.header.path)
        across = affine[:3, 2]
        steps = np.abs(like[:3, :3].T @ across)
        affine[:3, 2] = across * np.linalg.norm(like[:3, int(steps.argmax())])
        # at least a half of a fractional voxel makes it part of the segment
        array = frame >= 0.5 if seg.kind == "FRACTIONAL" else frame
        yield number, array.T[:, :, None], affine
