"""What a radiologist asks of an outline: how many lesions, how large, how long."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medmeta.volumes.scan import spacing as voxel_size

DIAMETER = "longest in one slice, edge to edge (RECIST 1.1); slices across the axis of widest spacing"
"""By which definition ``longest_diameter_mm`` is measured; ``longest_diameter_3d_mm`` is Feret's in space."""

LISTED = 20
"""Lesions that are listed one by one, the largest; all are counted and searched for the longest."""

# spacings that differ by less are alike: the slices are then those nearest to axial
_ALIKE = 0.01


@dataclass(frozen=True)
class Lesion:
    """One connected part of an outline (voxels that touch at a face, edge or corner).

    Args:
        volume_ml: its voxels.
        longest_diameter_mm: the longest line across one slice of it, by :data:`DIAMETER`.
        longest_diameter_3d_mm: the longest line in space.
        slice: index of the slice of the longest diameter, along :func:`slice_axis`.
    """

    volume_ml: float
    longest_diameter_mm: float
    longest_diameter_3d_mm: float
    slice: int


@dataclass(frozen=True)
class Measured:
    """All lesions of one class.

    Args:
        volume_ml, lesion_count: of all.
        longest_diameter_mm, longest_diameter_3d_mm: of the longest, 0 where there is none.
        lesions: the largest, at most :data:`LISTED`.
    """

    volume_ml: float
    lesion_count: int
    longest_diameter_mm: float
    longest_diameter_3d_mm: float
    lesions: tuple[Lesion, ...]

    def json(self) -> dict[str, Any]:
        """For the JSON of a case."""
        return {**asdict(self), "lesions": [asdict(lesion) for lesion in self.lesions], "diameter": DIAMETER}


def measure(mask: NDArray[np.bool_], affine: NDArray[np.float64]) -> Measured:
    """Count and measure the lesions in a mask.

    A line across a lesion ends in the middle of an outer voxel face, half a voxel beyond the outermost
    centres, so that a row of 10 voxels of 1 mm is 10 mm long. The longest diameter is that of RECIST 1.1
    (Eisenhauer et al. 2009, doi:10.1016/j.ejca.2008.10.026), in the plane of acquisition.

    Args:
        mask: ``(x, y, z)``.
        affine: voxel index to RAS mm, axes at right angles.

    Example:
        >>> mask = np.zeros((20, 20, 20), bool)
        >>> mask[2:12, 5:6, 3:5] = True
        >>> found = measure(mask, np.diag([1.0, 1.0, 3.0, 1.0]))
        >>> found.volume_ml, found.lesion_count, round(found.longest_diameter_mm, 2)
        (0.06, 1, 10.0)
    """
    from scipy import ndimage

    size = voxel_size(affine)
    if not mask.any():
        return Measured(0.0, 0, 0.0, 0.0, ())
    inside, start = _box(mask)
    mask = mask[inside]
    millilitres = abs(float(np.linalg.det(affine[:3, :3]))) / 1000
    marked, count = ndimage.label(mask, structure=np.ones((3, 3, 3), bool))
    boxes = ndimage.find_objects(marked)
    voxels = np.bincount(marked.ravel(), minlength=count + 1)[1:]
    across = slice_axis(affine)
    listed: list[Lesion] = []
    flat = space = 0.0
    for number in np.argsort(-voxels, kind="stable"):
        box = boxes[number]
        diagonal = float(np.linalg.norm([(s.stop - s.start) * v for s, v in zip(box, size, strict=True)]))
        if len(listed) == LISTED and diagonal <= min(flat, space):
            continue  # no line in its box is longer than what was found
        found = _lesion(
            marked[box] == number + 1, size, across, box[across].start + start[across], millilitres
        )
        flat, space = max(flat, found.longest_diameter_mm), max(space, found.longest_diameter_3d_mm)
        if len(listed) < LISTED:
            listed.append(found)
    total = round(int(voxels.sum()) * millilitres, 4)
    return Measured(total, count, flat, space, tuple(listed))


def _box(mask: NDArray[np.bool_]) -> tuple[tuple[slice, ...], list[int]]:
    """The box around all lesions, one at least, and where it starts: it is smaller than the scan."""
    sides = []
    for axis in range(3):
        there = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        sides.append(slice(int(there[0]), int(there[-1]) + 1))
    return tuple(sides), [side.start for side in sides]


def _lesion(
    mask: NDArray[np.bool_], size: Sequence[float], across: int, first: int, millilitres: float
) -> Lesion:
    slices = np.moveaxis(mask, across, 0)
    inplane = [s for axis, s in enumerate(size) if axis != across]
    lengths = [_longest_part(one, inplane) for one in slices]
    best = int(np.argmax(lengths))
    return Lesion(
        round(int(mask.sum()) * millilitres, 4),
        round(lengths[best], 2),
        round(feret(mask, size), 2),
        first + best,
    )


def _longest_part(mask: NDArray[np.bool_], size: Sequence[float]) -> float:
    """The longest of a slice's parts: RECIST measures no gap between two."""
    from scipy import ndimage

    marked, count = ndimage.label(mask, structure=np.ones((3, 3), bool))
    return max((feret(marked == n, size) for n in range(1, count + 1)), default=0.0)


def feret(mask: NDArray[np.bool_], size: Sequence[float]) -> float:
    """The longest line between two points of a mask's edge (Feret's diameter), mm.

    Args:
        mask: in 2D or 3D, with one voxel or more.
        size: of a voxel along each axis, mm.

    Example:
        >>> feret(np.ones((3, 1), bool), (2.0, 1.0))
        6.0
    """
    from scipy import ndimage
    from scipy.spatial import ConvexHull
    from scipy.spatial.distance import pdist

    inner = ndimage.binary_erosion(mask)  # voxels with a neighbour at every face are no part of the hull
    centres = np.argwhere(mask & ~inner).astype(np.float64)
    steps = np.concatenate([np.eye(mask.ndim), -np.eye(mask.ndim)]) / 2
    faces = np.unique((centres[:, None] + steps).reshape(-1, mask.ndim), axis=0)
    points = faces * np.asarray(size)
    corners = points[ConvexHull(points).vertices]
    return float(pdist(corners).max())


def slice_axis(affine: NDArray[np.float64]) -> int:
    """The voxel axis across the slices: of widest spacing; where alike, the one nearest to head-foot.

    Example:
        >>> slice_axis(np.diag([1.0, 4.0, 1.0, 1.0])), slice_axis(np.eye(4))
        (1, 2)
    """
    size = np.linalg.norm(affine[:3, :3], axis=0)
    widest = [axis for axis in range(3) if size[axis] >= size.max() * (1 - _ALIKE)]
    return max(widest, key=lambda axis: abs(affine[2, axis]) / size[axis])
