"""Pictures and plain arrays for cohorts in two dimensions: PNG, JPEG, npz; no place in the patient."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medmeta.volumes.errors import VolumeError
from medmeta.volumes.quiet import quiet
from medmeta.volumes.scan import MAX_VOXELS, Scan, check_finite


def read_picture(path: Path, *, max_voxels: int = MAX_VOXELS) -> Scan:
    """Read a grey PNG or JPEG.

    The pixel size is taken from a PNG's own ``pHYs`` chunk only where it is below 5 mm and above 1 µm; most
    programs write the screen's there, so it is not used: spacing is 1 and unknown.

    Returns:
        ``(1, x, y, 1)``: column, row.

    Raises:
        VolumeError: ``colour`` where the three channels differ, ``truncated-file``, ``damaged-file``.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with quiet(), Image.open(path) as picture:
            if picture.width * picture.height > max_voxels:
                found = f"{picture.width} x {picture.height} pixels"
                raise VolumeError("too-large", found=found, where=path)
            if getattr(picture, "n_frames", 1) > 1:
                raise VolumeError("several-times-file", found="several frames", where=path)
            mode = picture.mode
            array = np.asarray(picture.convert("RGBA") if mode in ("P", "PA") else picture)
    except (VolumeError, MemoryError):
        raise
    except FileNotFoundError:
        raise VolumeError("not-found", found="nothing", where=path) from None
    except UnidentifiedImageError:
        raise VolumeError("damaged-file", found="no picture", where=path) from None
    except Exception as error:  # noqa: BLE001 - damaged pictures raise anything
        code = "truncated-file" if "truncated" in str(error).lower() else "damaged-file"
        raise VolumeError(code, found=type(error).__name__, where=path) from None
    return Scan(_grey(array, path).T[None, :, :, None], np.diag([-1.0, -1, 1, 1]), spaced=False)


def _grey(array: NDArray, path: Path) -> NDArray:
    if array.dtype == bool:
        return array.astype(np.uint8)
    if array.ndim == 3:
        colours = array[..., : 3 if array.shape[-1] >= 3 else 1]
        if (colours != colours[..., :1]).any():
            raise VolumeError("colour", found="a picture in colour", where=path, cure="Convert it to grey.")
        array = colours[..., 0]
    if array.ndim != 2 or array.dtype.kind not in "iuf":
        raise VolumeError("not-scalar", found=f"an array of {array.dtype} {array.shape}", where=path)
    return array


def read_npz(path: Path, *, max_voxels: int = MAX_VOXELS) -> Scan:
    """Read the one array of a ``.npz``, or the one called ``image``, ``mask`` or ``array``.

    Its ``spacing`` (mm) or ``affine`` (RAS mm) is used where there is one.

    Returns:
        ``(1, x, y, z)``; an array of two axes is ``(x, y)``.

    Raises:
        VolumeError: where there is no such array, or it holds anything but finite numbers.
    """
    try:
        with np.load(path, allow_pickle=False) as held:
            name = _named(list(held.files), path)
            _small(path, name, max_voxels)
            array = held[name]
            about = {
                key: np.asarray(held[key], np.float64) for key in ("spacing", "affine") if key in held.files
            }
    except (VolumeError, MemoryError):
        raise
    except FileNotFoundError:
        raise VolumeError("not-found", found="nothing", where=path) from None
    except Exception as error:  # noqa: BLE001 - damaged archives raise anything
        raise VolumeError("damaged-file", found=type(error).__name__, where=path) from None
    if not 2 <= array.ndim <= 3 or array.dtype.kind not in "biuf" or 0 in array.shape:
        raise VolumeError("not-scalar", found=f"an array of {array.dtype} {array.shape}", where=path)
    array = array.astype(np.uint8) if array.dtype == bool else array
    array = array.reshape(*array.shape, *[1] * (3 - array.ndim))
    check_finite(array, path)
    affine, spaced = _place(about, path)
    return Scan(array[None], affine, spaced=spaced)


def _named(names: list[str], path: Path) -> str:
    arrays = [name for name in names if name not in ("spacing", "affine")]
    for name in ("image", "mask", "array"):
        if name in arrays:
            return name
    if len(arrays) != 1:
        raise VolumeError(
            "several-volumes", found=f"{len(arrays)} arrays", where=path, cure="Keep one a file."
        )
    return arrays[0]


def _small(path: Path, name: str, max_voxels: int) -> None:
    """The size an array claims, before it is unpacked."""
    with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as file:
        version = np.lib.format.read_magic(file)
        read = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )
        shape, _, dtype = read(file)
        claimed = archive.getinfo(f"{name}.npy").file_size
    if math.prod(shape) > max_voxels or math.prod(shape) * dtype.itemsize > claimed:
        raise VolumeError("too-large", found=f"an array that claims {shape}", where=path)


def _place(about: dict[str, NDArray[np.float64]], path: Path) -> tuple[NDArray[np.float64], bool]:
    from medmeta.volumes.nifti import check_affine

    affine = np.diag([-1.0, -1.0, 1.0, 1.0])
    if "affine" in about:
        affine = about["affine"]
    elif "spacing" in about:
        size = about["spacing"].ravel()
        if len(size) not in (2, 3):
            raise VolumeError("bad-affine", found=f"a spacing of {len(size)} numbers", where=path)
        affine = affine @ np.diag([*size, *[1.0] * (4 - len(size))])
    if affine.shape != (4, 4):
        raise VolumeError("bad-affine", found=f"an affine of {affine.shape}", where=path)
    check_affine(affine, path)
    return affine, bool(about)
