"""NRRD (``.nrrd``, ``.nhdr``) through pynrrd, its header checked first."""

from __future__ import annotations

import math
from pathlib import Path

import nrrd
import numpy as np
from numpy.typing import NDArray

from medmeta.volumes.errors import VolumeError
from medmeta.volumes.nifti import check_affine
from medmeta.volumes.quiet import quiet
from medmeta.volumes.scan import LPS_TO_RAS, MAX_VOXELS, Scan, check_finite

# sign of the first two axes of a space, to RAS
_SPACES = {
    "right-anterior-superior": (1.0, 1.0),
    "ras": (1.0, 1.0),
    "left-posterior-superior": (-1.0, -1.0),
    "lps": (-1.0, -1.0),
    "left-anterior-superior": (-1.0, 1.0),
    "las": (-1.0, 1.0),
}


def read_nrrd(path: Path, *, max_voxels: int = MAX_VOXELS) -> Scan:
    """Read a NRRD of two or three space axes.

    Returns:
        ``(1, x, y, z)``.

    Raises:
        VolumeError: where it is damaged, has no place in the patient or more than one value a voxel.
    """
    try:
        with quiet():
            header = nrrd.read_header(str(path))
            sizes = [int(n) for n in header["sizes"]]
            if min(sizes) < 1 or math.prod(sizes) > max_voxels:
                raise VolumeError("too-large", found=f"a header that claims {sizes} voxels", where=path)
            _data_file(header, path)
            array, header = nrrd.read(str(path))
    except (VolumeError, MemoryError):
        raise
    except FileNotFoundError:
        raise VolumeError("not-found", found="nothing, or not its data file", where=path) from None
    except Exception as error:  # noqa: BLE001 - a damaged header can raise anything in the parser
        raise VolumeError("damaged-file", found=type(error).__name__, where=path) from None
    array, affine, warnings, spaced = _placed(array, header, path)
    if array.dtype.kind not in "iuf":
        raise VolumeError("not-scalar", found=f"values of type {array.dtype}", where=path)
    check_finite(array, path)
    return Scan(array[None], affine, warnings=warnings, spaced=spaced)


def _data_file(header: dict, path: Path) -> None:
    """A detached header names its data; it may not name a file elsewhere."""
    named = header.get("data file") or header.get("datafile")
    if named is not None and (not isinstance(named, str) or Path(named).name != named):
        found = "data in several files or another folder"
        raise VolumeError("unreadable", found=found, where=path, cure="Put the data in one file beside it.")


def _placed(
    array: NDArray, header: dict, path: Path
) -> tuple[NDArray, NDArray[np.float64], tuple[str, ...], bool]:
    directions = header.get("space directions")
    if directions is None:
        return _unplaced(array, header, path)
    vectors = np.array(
        [[math.nan] * 3 if row is None else row for row in directions], dtype=np.float64
    )  # a value axis has no direction
    spatial = np.atleast_1d(np.isfinite(vectors).all(axis=1))
    others = [n for n, is_space in zip(array.shape, spatial, strict=True) if not is_space]
    if math.prod(others) != 1:
        raise VolumeError("not-scalar", found=f"{math.prod(others)} values a voxel", where=path)
    array = array.reshape([n for n, is_space in zip(array.shape, spatial, strict=True) if is_space])
    vectors = vectors[spatial]
    if array.ndim == 2 and vectors.shape == (2, 2):  # a plane by itself has pixels of a size, and no place
        return _unplaced(array, {"spacings": np.linalg.norm(vectors, axis=1)}, path)
    if array.ndim != 3 or vectors.shape != (3, 3):
        raise VolumeError("several-times-file", found=f"{array.ndim} axes in space", where=path)
    affine = np.eye(4)
    affine[:3, :3] = vectors.T
    origin = header.get("space origin")
    affine[:3, 3] = 0.0 if origin is None else origin
    space = str(header.get("space", "")).lower()
    if space not in _SPACES:
        found = f"the space {space!r}" if space else "no space"
        raise VolumeError("bad-affine", found=found, where=path, cure="Write it in LPS or RAS.")
    affine = np.diag([*_SPACES[space], 1.0, 1.0]) @ affine
    check_affine(affine, path)
    warnings = () if origin is not None else ("no space origin: 0 is assumed",)
    return array, affine, warnings, True


def _unplaced(
    array: NDArray, header: dict, path: Path
) -> tuple[NDArray, NDArray[np.float64], tuple[str, ...], bool]:
    """Without directions: spacings at most, and nothing of the orientation."""
    if not 2 <= array.ndim <= 3:
        raise VolumeError("several-times-file", found=f"{array.ndim} axes", where=path)
    array = array.reshape(*array.shape, *[1] * (3 - array.ndim))
    sizes = np.array(header.get("spacings", [math.nan] * array.ndim), dtype=np.float64)
    spaced = bool(len(sizes) >= 2 and np.isfinite(sizes).all() and (sizes > 0).all())
    sizes = np.concatenate([sizes, [1.0]])[:3] if spaced else np.ones(3)
    return (
        array,
        LPS_TO_RAS @ np.diag([*sizes, 1.0]),
        ("orientation unknown: no place in space",),
        spaced,
    )
