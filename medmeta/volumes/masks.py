"""A mask is whole numbers on its image's grid, or it is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medmeta.volumes.errors import VolumeError
from medmeta.volumes.grid import matching, outside, place
from medmeta.volumes.scan import Scan, spacing

_GREY = 255
# a mask of regions: most voxels equal their neighbour, and there are not too many values
_FEW, _MANY, _ALIKE = 16, 400, 0.7
# whole numbers that a writer scaled to its type's range come back this close to what they were: a label of
# 1 beside 4 in 8 bits is 64 steps of 4/255
_SCALED = 0.01


def different(array: NDArray) -> NDArray:
    """The different values of an array, sorted; counted where they are whole and close, which is faster.

    Example:
        >>> different(np.array([[3, 0], [3, 7]])).tolist()
        [0, 3, 7]
    """
    # a slab at a time: the whole mask of a hospital's CT would take gigabytes as 64-bit numbers
    slabs = np.array_split(array.ravel(order="K"), max(1, array.size // 2**22))
    return np.unique(np.concatenate([_of_slab(slab) for slab in slabs]))


def _of_slab(slab: NDArray) -> NDArray:
    if not slab.size or (slab.dtype.kind == "f" and (slab != np.rint(slab)).any()):
        return np.unique(slab)
    low, high = slab.min(), slab.max()
    if slab.dtype.kind not in "iuf" or float(high) - float(low) > 2**16 or abs(float(low)) > 2**40:
        return np.unique(slab)
    return np.flatnonzero(np.bincount(slab.astype(np.int64) - int(low))) + int(low)


def whole_numbers(array: NDArray, path: Path, *, picture: bool = False) -> NDArray[np.int32]:
    """The label values of an array, checked.

    Args:
        array: ``(x, y, z)``.
        path: its file, for the refusal.
        picture: whether 255 alone means 1, as in masks kept as pictures.

    Raises:
        VolumeError: ``not-finite``, ``not-whole``, ``image-as-mask``, ``grey-mask``.
    """
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise VolumeError("not-finite", found="NaN or infinity in a mask", where=path)
    array = _unscaled(array)
    values = different(array)
    if array.dtype.kind == "f" and (values != np.rint(values)).any():
        part = float(values[values != np.rint(values)][0])
        raise VolumeError("not-whole", found=f"the value {part:g}", where=path)
    if len(values) and values[0] < 0:
        raise VolumeError("not-whole", found=f"the value {values[0]:g}", where=path)
    if len(values) and values[-1] > np.iinfo(np.int32).max:
        raise VolumeError("not-whole", found=f"the value {values[-1]:g}", where=path)
    _regions(array, values, path)
    found = array.astype(np.int32)
    if picture and set(values.tolist()) <= {0, _GREY}:
        return np.minimum(found, 1)
    return found


def _unscaled(array: NDArray) -> NDArray:
    """The whole numbers where all are next to one; the array itself where one is not."""
    if array.dtype.kind != "f":
        return array
    nearest = np.rint(array)
    return nearest if array.size and np.abs(array - nearest).max() <= _SCALED else array


def _regions(array: NDArray, values: NDArray, path: Path) -> None:
    if len(values) <= _FEW:
        return
    longest = int(np.argmax(array.shape))
    alike = float(np.mean(np.diff(array, axis=longest) == 0)) if array.shape[longest] > 1 else 0.0
    if len(values) > _MANY or alike < _ALIKE:
        found = f"{len(values)} different values, {100 * alike:.0f} % equal to their neighbour"
        raise VolumeError("image-as-mask", found=found, where=path)


def choose_label(mask: NDArray[np.int32], label: int | None, path: Path) -> NDArray[np.int32]:
    """The mask, or 1 where it has the value asked for.

    Raises:
        VolumeError: ``empty-mask``, ``missing-label``, ``grey-mask`` (255 and nobody asked for it).
    """
    held = [value for value in different(mask).tolist() if value > 0]
    if label is None:
        if not held:
            raise VolumeError("empty-mask", found="zeros only", where=path)
        if held == [_GREY]:
            raise VolumeError("grey-mask", found="the value 255 alone", where=path)
        return mask
    if label not in held:
        raise VolumeError("missing-label", found=f"{held or 'zeros only'}, not {label}", where=path)
    return (mask == label).astype(np.int32)


def on_grid(
    mask: NDArray[np.int32],
    scan: Scan,
    like: NDArray[np.float64],
    shape: tuple[int, int, int],
    path: Path,
    *,
    resample: bool = False,
) -> NDArray[np.int32]:
    """The mask on the image's grid: axes turned or flipped where only they differ, never shifted.

    Args:
        mask: ``(x, y, z)`` on the scan's grid.
        scan: where it comes from.
        like: affine of the image, RAS mm.
        shape: ``(x, y, z)`` of the image.
        path: the mask's file, for the refusal.
        resample: take the nearest label of any grid.

    Raises:
        VolumeError: ``other-grid``, with both grids.
    """
    if not scan.spaced:
        if mask.shape == shape:
            return mask
    elif _same_extent(mask, scan.affine, like, shape):
        put = place(mask, scan.affine, like, shape)
        if put is not None and not outside(put[0], shape):
            out = np.zeros(shape, dtype=np.int32)
            out[tuple(put[0].T)] = put[1]
            return out
    if resample and scan.spaced:
        return _nearest(mask, scan.affine, like, shape)
    raise VolumeError("other-grid", found=_both(mask, scan.affine, like, shape), where=path)


def _same_extent(
    mask: NDArray, affine: NDArray[np.float64], like: NDArray[np.float64], shape: tuple[int, int, int]
) -> bool:
    """Whether the first and last voxels of both grids are the same places."""
    turn = matching(affine, like)
    if turn is None or tuple(np.abs(turn) @ np.array(mask.shape)) != shape:
        return False
    ends = np.array([[0, 0, 0], np.array(mask.shape) - 1]).T
    there = np.linalg.solve(like, affine @ np.vstack([ends, [1, 1]]))[:3]
    return bool(np.abs(there.min(axis=1)).max() < 0.1 and np.abs(there.max(axis=1) - shape + 1).max() < 0.1)


def _both(
    mask: NDArray, affine: NDArray[np.float64], like: NDArray[np.float64], shape: tuple[int, int, int]
) -> str:
    def told(affine: NDArray[np.float64], shape: tuple[int, ...]) -> str:
        size = " x ".join(f"{s:.4g}" for s in spacing(affine))
        corner = ", ".join(f"{c:.4g}" for c in affine[:3, 3])
        return f"{' x '.join(map(str, shape))} voxels of {size} mm from ({corner})"

    return f"a mask of {told(affine, mask.shape)} for an image of {told(like, shape)}"


def _nearest(
    mask: NDArray[np.int32],
    affine: NDArray[np.float64],
    like: NDArray[np.float64],
    shape: tuple[int, int, int],
) -> NDArray[np.int32]:
    from scipy.ndimage import affine_transform

    back = np.linalg.solve(affine, like)
    return affine_transform(mask, back[:3, :3], back[:3, 3], shape, order=0, mode="constant", cval=0)
