"""One grid against another: is it the same, and where do the voxels of one lie in the other?"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from medmeta.volumes.scan import SAME_GRID


def corners_apart(first: NDArray[np.float64], second: NDArray[np.float64], shape: tuple[int, ...]) -> float:
    """Largest distance of a corner between two affines of one shape, in voxels of the first.

    Example:
        >>> corners_apart(np.eye(4), np.diag([1.0, 1.0, 2.0, 1.0]), (1, 1, 3))
        2.0
    """
    corners = np.array(list(itertools.product(*[(0, n - 1) for n in shape]))).T
    corners = np.vstack([corners, np.ones(corners.shape[1])])
    there = np.linalg.inv(first) @ second @ corners
    return float(np.abs(there[:3] - corners[:3]).max())


def matching(source: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.int64] | None:
    """The whole-number map ``(3, 3)`` of axes from one grid to another, None where there is none.

    Each axis of the source runs along one axis of the target, forwards or backwards, by the same step.
    """
    turn = np.linalg.solve(target[:3, :3], source[:3, :3])
    whole = np.rint(turn)
    # a part of a voxel over a length of 50 voxels; the ends are checked by the caller
    if np.abs(turn - whole).max() > SAME_GRID or np.abs(np.linalg.det(whole)) != 1:
        return None
    return whole.astype(np.int64)


def place(
    array: NDArray, affine: NDArray[np.float64], like: NDArray[np.float64], shape: tuple[int, int, int]
) -> tuple[NDArray[np.int64], NDArray] | None:
    """Where the voxels that are not zero lie on another grid.

    Args:
        array: ``(x, y, z)``.
        affine: of the array.
        like: of the other grid.
        shape: of the other grid.

    Returns:
        Indices ``(n, 3)`` on the other grid, some maybe outside of it, and the values ``(n,)``; None where
        the voxels of the two grids do not coincide.
    """
    turn = matching(affine, like)
    if turn is None:
        return None
    exact = np.linalg.solve(like, affine)
    ends = np.array(list(itertools.product(*[(0, n - 1) for n in array.shape]))).T
    offset = np.rint(exact[:3, 3])
    drift = exact[:3, :3] @ ends + exact[:3, 3:] - (turn @ ends + offset[:, None])
    # positions in headers are rounded; half a voxel off would be another voxel
    if np.abs(drift).max() > 0.1:
        return None
    voxels = np.argwhere(array)
    values = array[tuple(voxels.T)]
    return voxels @ turn.T + offset.astype(np.int64), values


def outside(voxels: NDArray[np.int64], shape: tuple[int, int, int]) -> int:
    """How many indices lie outside of a grid."""
    return int(((voxels < 0) | (voxels >= np.array(shape))).any(axis=1).sum())
