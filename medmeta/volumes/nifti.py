"""NIfTI-1 and -2, checked for what common readers let through."""

from __future__ import annotations

import gzip
import math
import os
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import nibabel
import numpy as np
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from medmeta.volumes.errors import VolumeError
from medmeta.volumes.quiet import quiet
from medmeta.volumes.scan import MAX_VOXELS, Scan, check_finite, shear, spacing

# sform and qform further apart than this are worth a warning (mm)
_FORMS_APART = 1e-3
_MICRON, _METRE = 3, 1
# deflate cannot pack tighter than about 1032 to 1
_MOST_PACKED = 1100


class Parsed(NamedTuple):
    """A NIfTI header that makes sense.

    Args:
        header: nibabel's.
        shape: ``(x, y, z)``.
        dtype: as stored.
        slope, inter: of the rescaling.
        affine: RAS mm.
        warnings: what was accepted.
        volumes: held one after another.
    """

    header: Any
    shape: tuple[int, int, int]
    dtype: np.dtype
    slope: float
    inter: float
    affine: NDArray[np.float64]
    warnings: tuple[str, ...]
    volumes: int = 1


def read_nifti(path: Path, *, max_voxels: int = MAX_VOXELS, channels: int = 1) -> Scan:
    """Read a ``.nii`` or ``.nii.gz``.

    Args:
        path: the file.
        max_voxels: refuse more than these, all channels counted.
        channels: volumes that a file of four axes must hold.

    Returns:
        ``(channel, x, y, z)`` with the affine as the file tells it: sform before qform.

    Raises:
        VolumeError: ``truncated-file``, ``damaged-file`` (gzip checksum), ``too-large``, ``bad-affine``,
            ``flipped-forms``, ``sheared``, ``several-times-file``, ``not-scalar``, ``bad-slope``,
            ``not-finite``.
    """
    with _opened(path) as file:
        parsed = _parse(_bytes(file, 544, path), path)
        if parsed.volumes != channels:
            code = "several-times-file" if channels == 1 else "other-channels"
            raise VolumeError(code, found=f"{parsed.volumes} volume{'s' * (parsed.volumes != 1)}", where=path)
        shape = (*parsed.shape, channels)
        voxels = math.prod(shape)
        size = voxels * parsed.dtype.itemsize
        _bounded(path, shape, size, max_voxels)
        start = int(parsed.header["vox_offset"])
        file.seek(max(start, 0))
        data = _bytes(file, size, path)
        if len(data) < size:
            raise VolumeError("truncated-file", found=f"{len(data)} of {size} bytes of voxels", where=path)
        _to_the_end(file, path)
    array = np.frombuffer(data, parsed.dtype).reshape(shape, order="F")
    array = _scaled(array, parsed.slope, parsed.inter)
    check_finite(array, path)
    return Scan(np.moveaxis(array, -1, 0), parsed.affine, warnings=parsed.warnings)


def _opened(path: Path) -> Any:
    try:
        with open(path, "rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        return gzip.open(path, "rb") if packed else open(path, "rb")
    except FileNotFoundError:
        raise VolumeError("not-found", found="nothing", where=path) from None
    except OSError as error:
        raise VolumeError("unreadable", found=type(error).__name__, where=path) from None


def _bytes(file: Any, count: int, path: Path) -> bytes:
    """At most ``count`` bytes; a damaged stream is said to be one."""
    try:
        return file.read(count)
    except EOFError:
        raise VolumeError("truncated-file", found="an end before the end of the stream", where=path) from None
    except (zlib.error, gzip.BadGzipFile):
        raise VolumeError("damaged-file", found="a broken gzip stream", where=path) from None
    except OSError as error:
        raise VolumeError("unreadable", found=type(error).__name__, where=path) from None


def _to_the_end(file: Any, path: Path) -> None:
    """Read on, so that the checksum at the end of the gzip stream is compared."""
    left = 1 << 26
    while left > 0 and (rest := _bytes(file, 1 << 20, path)):
        left -= len(rest)
    if left <= 0:
        raise VolumeError("damaged-file", found="over 64 MB after the voxels", where=path)


def _bounded(path: Path, shape: tuple[int, ...], size: int, max_voxels: int) -> None:
    """No header makes us read more than there can be."""
    if math.prod(shape) > max_voxels:
        raise VolumeError("too-large", found=f"a header that claims {shape} voxels", where=path)
    held = os.path.getsize(path)
    if size > held * _MOST_PACKED:
        found = f"a header that claims {size} bytes in a file of {held}"
        raise VolumeError("truncated-file", found=found, where=path)


def _parse(data: bytes, path: Path) -> Parsed:
    header = _header(data, path)
    dim = [int(n) for n in header["dim"]]
    count = dim[0]
    if not 1 <= count <= 7 or min(dim[1 : count + 1]) < 1:
        raise VolumeError("damaged-file", found=f"the dimensions {dim}", where=path)
    x, y, z = [*dim[1 : min(count, 3) + 1], 1, 1][:3]
    try:
        dtype = header.get_data_dtype()
    except (HeaderDataError, KeyError):
        dtype = np.dtype("V1")
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise VolumeError("not-scalar", found=f"voxels of type {dtype}", where=path)
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    if math.isinf(slope) or (slope and not math.isnan(slope) and not math.isfinite(inter)):
        raise VolumeError("bad-slope", found=f"{slope} and {inter}", where=path)
    if not slope or math.isnan(slope):
        slope, inter = 1.0, 0.0
    warnings: list[str] = []
    affine = _affine(header, path, warnings)
    return Parsed(
        header, (x, y, z), dtype, slope, inter, affine, tuple(warnings), math.prod(dim[4 : count + 1])
    )


def _header(data: bytes, path: Path) -> Any:
    lengths = {int.from_bytes(data[:4], order) for order in ("little", "big")}
    kind = nibabel.Nifti1Header if 348 in lengths else nibabel.Nifti2Header if 540 in lengths else None
    if kind is None:
        found = "another kind of file" if len(data) >= 348 else f"{len(data)} bytes"
        code = "not-a-volume" if len(data) >= 348 else "truncated-file"
        raise VolumeError(code, found=found, where=path)
    if len(data) < kind.sizeof_hdr:
        raise VolumeError("truncated-file", found=f"{len(data)} bytes", where=path)
    header = kind(data[: kind.sizeof_hdr], check=False)
    if bytes(header["magic"])[:3] not in (b"n+1", b"n+2"):
        found = "a header without its voxels (.hdr/.img pairs are not read)"
        raise VolumeError("not-a-volume", found=found, where=path)
    if not header.sizeof_hdr <= float(header["vox_offset"]) < 1 << 40:
        raise VolumeError("damaged-file", found=f"voxels at byte {float(header['vox_offset']):g}", where=path)
    return header


def _affine(header: Any, path: Path, warnings: list[str]) -> NDArray[np.float64]:
    # as the NIfTI library has it: 0, which old writers leave there, is the right hand
    header["pixdim"][0] = -1 if header["pixdim"][0] < 0 else 1
    sform = header.get_sform() if int(header["sform_code"]) > 0 else None
    with quiet():
        try:
            qform = header.get_qform() if int(header["qform_code"]) > 0 else None
        except (ValueError, HeaderDataError):
            if sform is None:
                raise VolumeError("bad-affine", found="a qform that is no rotation", where=path) from None
            qform = None
    chosen = sform if sform is not None else qform
    if chosen is None:
        warnings.append("orientation unknown: neither sform nor qform is set")
        chosen = header.get_base_affine()
    factor = _millimetres(header, warnings)
    chosen = np.array(chosen, dtype=np.float64) * factor
    chosen[3] = 0, 0, 0, 1
    check_affine(chosen, path)
    if sform is not None and qform is not None:
        _compare(sform * factor, qform * factor, header, path, warnings)
    return chosen


def _compare(sform: NDArray, qform: NDArray, header: Any, path: Path, warnings: list[str]) -> None:
    """Both forms say where a voxel is: they should agree."""
    if not np.isfinite(qform).all() or not np.linalg.det(qform[:3, :3]):
        warnings.append("the qform is not valid: the sform is used")
        return
    if np.linalg.det(sform[:3, :3]) * np.linalg.det(qform[:3, :3]) < 0:
        raise VolumeError("flipped-forms", found="a left- and a right-handed one", where=path)
    corners = np.array(np.meshgrid(*[(0, max(int(n) - 1, 0)) for n in header["dim"][1:4]])).reshape(3, -1)
    apart = np.abs((sform - qform)[:3, :3] @ corners + (sform - qform)[:3, 3:]).max()
    if apart > _FORMS_APART:
        warnings.append(f"sform and qform are up to {apart:.3g} mm apart: the sform is used")


def _millimetres(header: Any, warnings: list[str]) -> NDArray[np.float64]:
    unit = int(header["xyzt_units"]) & 7
    factor = {_MICRON: 1e-3, _METRE: 1e3}.get(unit, 1.0)
    if factor != 1.0:
        warnings.append("the affine was in microns" if unit == _MICRON else "the affine was in metres")
    return np.array([[factor], [factor], [factor], [1.0]])


def check_affine(affine: NDArray[np.float64], path: Path) -> None:
    """Refuse an affine that places voxels nowhere, or on axes that are not at right angles.

    Raises:
        VolumeError: ``bad-affine`` or ``sheared``.
    """
    if not np.isfinite(affine).all():
        raise VolumeError("bad-affine", found="NaN or infinity", where=path)
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    if sizes.min() < 1e-6 or sizes.max() > 1e6 or np.abs(affine[:3, 3]).max() > 1e7:
        found = f"voxels of {spacing(affine)} mm"
        raise VolumeError("bad-affine", found=found, where=path)
    unit = affine[:3, :3] / sizes
    if abs(np.linalg.det(unit)) < 0.1:
        raise VolumeError("bad-affine", found="axes that fall together", where=path)
    if shear(affine) > 0.01:
        angle = math.degrees(math.asin(min(1.0, shear(affine))))
        raise VolumeError("sheared", found=f"axes {angle:.1f} degrees off", where=path)


def _scaled(array: NDArray, slope: float, inter: float) -> NDArray:
    if slope == 1.0 and inter == 0.0:
        return array
    return array.astype(np.float64) * slope + inter
