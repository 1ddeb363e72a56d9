"""From a checked series to voxels."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from medmeta.volumes.dicom_header import DEFLATED, Header, pixel_place
from medmeta.volumes.errors import VolumeError
from medmeta.volumes.keys import process_key
from medmeta.volumes.preflight import NATIVE, Stack
from medmeta.volumes.quiet import quiet
from medmeta.volumes.scan import MAX_VOXELS, Scan

_JPEG_2000 = frozenset(f"1.2.840.10008.1.2.4.{number}" for number in (90, 91, 201, 202, 203))


def read_stack(stack: Stack, *, max_voxels: int = MAX_VOXELS) -> Scan:
    """Decode a series that passed its preflight.

    Returns:
        ``(1, x, y, z)`` float32 in stored orientation, rescaled slice by slice.

    Raises:
        VolumeError: where pixel data cannot be decoded, or files changed meanwhile.
    """
    columns, rows, count = stack.shape
    if columns * rows * count > max_voxels:
        raise VolumeError("too-large", found=f"{columns} x {rows} x {count} voxels", where=stack.header.path)
    out = np.empty((count, rows, columns), dtype=np.float32)
    places: dict[int, list[int]] = {}
    headers: dict[int, Header] = {}
    for z, plane in enumerate(stack.planes):
        places.setdefault(id(plane.header), []).append(z)
        headers[id(plane.header)] = plane.header
    for key, header in headers.items():
        frame = frames_of(header)
        for z in places[key]:
            one = stack.planes[z].slice
            _rescale(frame(one.frame), one.slope, one.intercept, header.unit.factor, out[z])
            if not np.isfinite(out[z]).all():
                raise VolumeError("bad-rescale", found="values beyond float32", where=header.path)
    first = stack.header
    return Scan(
        out.transpose(2, 1, 0)[None],
        stack.affine,
        first.unit.name,
        first.modality,
        process_key(first.frame_of_reference),
        process_key(first.series),
        stack.warnings,
    )


def _rescale(
    stored: NDArray, slope: float, intercept: float, factor: float, out: NDArray[np.float32]
) -> None:
    """Stored values to real ones in ``out``; whole numbers stay exact."""
    scale, shift = slope * factor, intercept * factor
    if scale == 1.0 and shift == round(shift) and stored.dtype.itemsize <= 2 and abs(shift) < 1 << 22:
        np.add(stored, np.float32(shift), out=out, casting="unsafe", dtype=np.float32)
    else:
        out[...] = stored.astype(np.float64) * scale + shift


def frames_of(header: Header) -> Callable[[int], NDArray]:
    """Open a file; the function returned gives the stored values ``(rows, columns)`` of a frame.

    Uncompressed frames are read when they are asked for, so that a large file is never held whole. Bits
    above BitsStored (overlays of old scanners lie there) are cleared, and the sign extended.

    Raises:
        VolumeError: where the file has gone or its pixel data cannot be decoded.
    """
    try:
        with quiet():
            if header.syntax in NATIVE and header.syntax != DEFLATED:
                return _native(header)
            ds = pydicom.dcmread(header.path, force=True)
            _whole(ds, header)
            if header.syntax == DEFLATED:
                pixels = _inflated(ds, header)
            else:
                pixels = ds.pixel_array.reshape(header.frames, header.rows, header.columns)
    except (VolumeError, MemoryError):
        raise
    except FileNotFoundError:
        raise VolumeError("not-found", found="a file that has gone", where=header.path) from None
    except Exception as error:  # noqa: BLE001 - decoders raise what they like
        raise VolumeError("damaged-pixels", found=type(error).__name__, where=header.path) from None
    if pixels.dtype.kind not in "iu":
        raise VolumeError("unsupported-pixels", found=str(pixels.dtype), where=header.path)

    def frame(index: int) -> NDArray:
        return _stored_bits(pixels[index], header)

    return frame


def _native(header: Header) -> Callable[[int], NDArray]:
    """Uncompressed values as they lie in the file, a frame at a time."""
    kind = _kind(header)
    size = header.rows * header.columns * kind.itemsize
    with open(header.path, "rb") as file:
        ds = pydicom.dcmread(file, stop_before_pixels=True, force=True)
        _unchanged(ds, header)
        place = pixel_place(file, ds)
    start, claimed = place or (0, 0)
    if claimed == 0xFFFFFFFF:
        found = "compressed frames in an uncompressed syntax"
        raise VolumeError("damaged-pixels", found=found, where=header.path)
    if claimed < size * header.frames:
        raise VolumeError(
            "truncated-pixels", found=f"{claimed} of {size * header.frames} bytes", where=header.path
        )

    def frame(index: int) -> NDArray:
        try:
            with open(header.path, "rb") as file:
                file.seek(start + index * size)
                raw = file.read(size)
        except FileNotFoundError:
            raise VolumeError("not-found", found="a file that has gone", where=header.path) from None
        except OSError as error:
            raise VolumeError("unreadable", found=type(error).__name__, where=header.path) from None
        if len(raw) < size:
            raise VolumeError("truncated-pixels", found=f"{len(raw)} of {size} bytes", where=header.path)
        return _stored_bits(np.frombuffer(raw, kind).reshape(header.rows, header.columns), header)

    return frame


def _kind(header: Header) -> np.dtype:
    little = header.syntax != "1.2.840.10008.1.2.2"
    return np.dtype(f"{'<' if little else '>'}{'i' if header.signed else 'u'}{header.bits_allocated // 8}")


def _inflated(ds: Dataset, header: Header) -> NDArray:
    """Uncompressed values of a file that was deflated as a whole."""
    kind, count = _kind(header), header.frames * header.rows * header.columns
    if len(ds.PixelData) < count * kind.itemsize:
        found = f"{len(ds.PixelData)} of {count * kind.itemsize} bytes"
        raise VolumeError("truncated-pixels", found=found, where=header.path)
    return np.frombuffer(ds.PixelData, kind, count).reshape(header.frames, header.rows, header.columns)


def _stored_bits(pixels: NDArray, header: Header) -> NDArray:
    spare = pixels.dtype.itemsize * 8 - header.bits_stored
    if spare <= 0:
        return pixels
    if header.signed:
        return np.right_shift(np.left_shift(pixels, spare), spare)
    return np.bitwise_and(pixels, np.array((1 << header.bits_stored) - 1, pixels.dtype))


def _whole(ds: Dataset, header: Header) -> None:
    """The header is the one that was checked, and compressed frames are all there."""
    if "PixelData" not in ds:  # an encapsulated element without its end is not read at all
        raise VolumeError("truncated-pixels", found="no end of the pixel data", where=header.path)
    _unchanged(ds, header)
    if header.syntax in NATIVE:
        return
    frames = list(pydicom.encaps.generate_frames(ds.PixelData, number_of_frames=header.frames))
    if len(frames) != header.frames:
        found = f"{len(frames)} of {header.frames} compressed frames"
        raise VolumeError("truncated-pixels", found=found, where=header.path)
    if header.syntax in _JPEG_2000:
        for one in frames:
            _codestream(one, header)


def _unchanged(ds: Dataset, header: Header) -> None:
    same = (ds.get("Rows"), ds.get("Columns"), str(ds.get("SOPInstanceUID", "")).strip(" \0"))
    if same != (header.rows, header.columns, header.sop_instance):
        raise VolumeError("damaged-file", found="another file than a moment ago", where=header.path)


def _codestream(data: bytes, header: Header) -> None:
    """A JPEG 2000 frame ends with its end marker and has the size the header tells.

    Decoders give pixels for a stream that was cut, without a word.
    """
    if b"\xff\xd9" not in data[-4:]:
        found = "a JPEG 2000 frame without its end"
        raise VolumeError("truncated-pixels", found=found, where=header.path)
    start = data.find(b"\xff\x4f\xff\x51")
    if start < 0:
        raise VolumeError("damaged-pixels", found="no JPEG 2000 stream", where=header.path)
    size = [int.from_bytes(data[start + i : start + i + 4], "big") for i in (8, 12, 16, 20)]
    if (size[0] - size[2], size[1] - size[3]) != (header.columns, header.rows):
        found = "a JPEG 2000 frame of another size than the header's"
        raise VolumeError("damaged-pixels", found=found, where=header.path)
