"""MetaImage (``.mha``, ``.mhd``): a text header and raw or zlib-packed voxels, read by ourselves."""

from __future__ import annotations

import math
import os
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medmeta.volumes.errors import VolumeError
from medmeta.volumes.nifti import check_affine
from medmeta.volumes.scan import LPS_TO_RAS, MAX_VOXELS, Scan, check_finite

_TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG": "i4",
    "MET_ULONG": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
_HEADER = 1 << 16


def read_metaimage(path: Path, *, max_voxels: int = MAX_VOXELS) -> Scan:
    """Read a MetaImage of two or three axes, one value a voxel.

    Returns:
        ``(1, x, y, z)``.

    Raises:
        VolumeError: where it is damaged, truncated, of several values a voxel or without a valid place.
    """
    try:
        fields, data = _fields(path)
        shape, dtype = _voxels(fields, path)
        if math.prod(shape) > max_voxels:
            raise VolumeError("too-large", found=f"a header that claims {shape} voxels", where=path)
        raw = _unpacked(fields, data, math.prod(shape) * dtype.itemsize, path)
        affine = _affine(fields, len(shape), path)
    except (KeyError, ValueError, OverflowError) as error:
        raise VolumeError("damaged-file", found=f"{type(error).__name__} in its header", where=path) from None
    except FileNotFoundError:
        raise VolumeError("not-found", found="nothing, or not its data file", where=path) from None
    except OSError as error:
        raise VolumeError("unreadable", found=type(error).__name__, where=path) from None
    array = np.frombuffer(raw, dtype, math.prod(shape)).reshape(shape, order="F")
    array = array.reshape(*array.shape, *[1] * (3 - array.ndim))
    check_finite(array, path)
    return Scan(array[None], affine)


def _fields(path: Path) -> tuple[dict[str, str], tuple[Path, int]]:
    """The header's fields, and in which file from which byte on the voxels lie."""
    with open(path, "rb") as file:
        start = file.read(_HEADER)
    fields: dict[str, str] = {}
    place = 0
    while place < len(start):
        end = start.find(b"\n", place)
        if end < 0:
            break
        key, sign, value = start[place:end].decode("latin-1").partition("=")
        if not sign:
            break
        fields[key.strip()] = value.strip()
        place = end + 1
        if key.strip() == "ElementDataFile":
            return fields, _data(fields, path, place)
    if "ObjectType" not in fields and "NDims" not in fields:
        raise VolumeError("not-a-volume", found="another kind of file", where=path)
    raise VolumeError("truncated-file", found="a header without ElementDataFile", where=path)


def _data(fields: dict[str, str], path: Path, place: int) -> tuple[Path, int]:
    named = fields["ElementDataFile"].removeprefix("./")
    if named == "LOCAL":
        return path, place
    if Path(named).name != named or named.startswith("LIST") or "%" in named:
        found = "voxels in several files or another folder"
        raise VolumeError("unreadable", found=found, where=path, cure="Put the voxels in one file beside it.")
    skip = int(fields.get("HeaderSize", "0"))
    if skip < -1:
        raise VolumeError("damaged-file", found="a HeaderSize below -1", where=path)
    return path.parent / named, skip


def _voxels(fields: dict[str, str], path: Path) -> tuple[tuple[int, ...], np.dtype]:
    shape = tuple(int(n) for n in fields["DimSize"].split())
    if len(shape) != int(fields.get("NDims", len(shape))) or min(shape) < 1:
        raise VolumeError("damaged-file", found=f"the size {shape}", where=path)
    if len(shape) == 4 and shape[3] == 1:
        shape = shape[:3]
    if not 2 <= len(shape) <= 3:
        raise VolumeError("several-times-file", found=f"{len(shape)} axes", where=path)
    values, kind = int(fields.get("ElementNumberOfChannels", "1")), fields["ElementType"]
    if values != 1 or kind not in _TYPES:
        raise VolumeError("not-scalar", found=f"{values} value(s) of type {kind[:40]}", where=path)
    big = "true" in (fields.get("BinaryDataByteOrderMSB", fields.get("ElementByteOrderMSB", "")).lower(),)
    if fields.get("BinaryData", "True").lower() != "true":
        raise VolumeError("unreadable", found="voxels as text", where=path)
    return shape, np.dtype(f"{'>' if big else '<'}{_TYPES[kind]}")


def _unpacked(fields: dict[str, str], data: tuple[Path, int], size: int, path: Path) -> bytes:
    file_path, start = data
    packed = fields.get("CompressedData", "False").lower() == "true"
    if start == -1:  # the voxels are the end of the file (MetaIO), whatever stands before
        start = 0 if packed else max(0, os.path.getsize(file_path) - size)
    if size > (os.path.getsize(file_path) - start) * (1100 if packed else 1):
        raise VolumeError("truncated-file", found=f"a header that claims {size} bytes", where=path)
    with open(file_path, "rb") as file:
        file.seek(start)
        raw = file.read()
    if not packed:
        return raw
    unpack = zlib.decompressobj()
    try:
        raw = unpack.decompress(raw, size + 1)
        unpack.decompress(unpack.unconsumed_tail, 16)  # the checksum lies at the end
    except zlib.error:
        raise VolumeError("damaged-file", found="a broken zlib stream", where=path) from None
    if len(raw) != size or not unpack.eof:
        raise VolumeError("truncated-file", found=f"{len(raw)} of {size} bytes of voxels", where=path)
    return raw


def _affine(fields: dict[str, str], axes: int, path: Path) -> NDArray[np.float64]:
    """LPS by definition; a file without its matrix lies along the patient's axes."""

    def several(names: tuple[str, ...], count: int, otherwise: list[float]) -> NDArray[np.float64]:
        for name in names:
            if name in fields:
                found = [float(part) for part in fields[name].split()]
                if len(found) < count:
                    raise VolumeError("bad-affine", found=f"{len(found)} numbers in {name}", where=path)
                return np.array(found[:count])
        return np.array(otherwise)

    used = min(axes, 3)
    size = several(("ElementSpacing", "ElementSize"), used, [1.0] * used)
    origin = several(("Offset", "Position", "Origin"), used, [0.0] * used)
    count = int(fields.get("NDims", axes))
    matrix = several(("TransformMatrix", "Rotation", "Orientation"), count**2, list(np.eye(count).ravel()))
    affine = np.eye(4)
    # the matrix is written axis by axis
    affine[:used, :used] = matrix.reshape(count, count)[:used, :used].T * size
    affine[:used, 3] = origin
    affine = LPS_TO_RAS @ affine
    check_affine(affine, path)
    return affine
