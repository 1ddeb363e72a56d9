"""Linear resampling of a box at a time: what is held at once is the box, not a grid of coordinates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

Box: TypeAlias = Sequence[tuple[int, int]]
"""First voxel and end along the three axes."""

_STRAIGHT = 0.01  # voxels that grids may turn against each other, corner to corner, and count as parallel


def axes_along(matrix: Tensor, shape: Sequence[int]) -> tuple[int, int, int] | None:
    """Which axis of the source runs along each axis of the target, where their axes are parallel.

    Args:
        matrix: ``(4, 4)`` float64, target voxel to source voxel.
        shape: of the target, ``(x, y, z)``.

    Returns:
        Source axes in the order of the target's; None where one grid is turned or sheared against the other
        by more than a hundredth of a voxel.

    Example:
        >>> turned = torch.tensor([[0, -2.0, 0, 9], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]).double()
        >>> axes_along(turned, (5, 5, 5))
        (1, 0, 2)
    """
    moved = matrix[:3, :3].abs() * torch.tensor([max(n - 1, 1) for n in shape], dtype=torch.float64)
    along = matrix[:3, :3].abs().argmax(0).tolist()
    if sorted(along) != [0, 1, 2]:
        return None
    for target, source in enumerate(along):
        moved[source, target] = 0
    return (along[0], along[1], along[2]) if float(moved.sum(1).max()) < _STRAIGHT else None


def positions(matrix: Tensor, shape: Sequence[int], target: int, source: int, size: int) -> Tensor:
    """Where the voxels along a target's axis lie along the source's axis, held within its ``size`` voxels.

    Args:
        matrix: target voxel to source voxel, of parallel axes.
        shape: of the target; its middle speaks for the axes that hardly count.
        target, source: the two axes.
        size: of the source along its axis.
    """
    middle = [(n - 1) / 2 for n in shape]
    others = sum(float(matrix[source, t]) * middle[t] for t in range(3) if t != target)
    index = torch.arange(shape[target], dtype=torch.float64)
    return (matrix[source, target] * index + matrix[source, 3] + others).clamp(0, size - 1)


def sample(array: Tensor, matrix: Tensor, shape: Sequence[int], box: Box) -> Tensor:
    """Linear samples of an array at a box of another grid's voxels; outside, its nearest voxel counts.

    A voxel's value does not depend on the box that it is asked for in. Computed in float64, as MONAI's
    ``Spacing`` and ``SpatialResample`` do.

    Args:
        array: source ``(channel, x, y, z)``; a view of any strides.
        matrix: ``(4, 4)`` float64, target voxel to source voxel.
        shape: of the whole target, ``(x, y, z)``.
        box: of the target.

    Returns:
        ``(channel, *box)`` float64.

    Example:
        >>> ramp = torch.arange(4.0).reshape(1, 4, 1, 1)
        >>> halves = torch.diag(torch.tensor([0.5, 1, 1, 1])).double()
        >>> sample(ramp, halves, (8, 1, 1), [(2, 8), (0, 1), (0, 1)]).flatten().tolist()
        [1.0, 1.5, 2.0, 2.5, 3.0, 3.0]
    """
    along = axes_along(matrix, shape)
    if along is None:
        return _turned(array, matrix, box)
    made = array.permute(0, *(1 + s for s in along))
    where = [
        positions(matrix, shape, t, s, array.shape[1 + s])[box[t][0] : box[t][1]] for t, s in enumerate(along)
    ]
    shrink = [len(where[t]) / made.shape[1 + t] for t in range(3)]
    for axis in sorted(range(3), key=lambda t: shrink[t]):  # the axis that leaves least comes first
        made = _lines(made, where[axis], axis + 1)
    return made.double()


def _lines(array: Tensor, where: Tensor, axis: int) -> Tensor:
    """Linear interpolation along one axis."""
    first = where.floor().long()
    weight = where - first
    made = array.index_select(axis, first)
    if not bool(weight.any()):
        return made
    second = array.index_select(axis, (first + 1).clamp(max=array.shape[axis] - 1))
    solid = [1] * array.ndim
    solid[axis] = -1
    return made.double().lerp_(second.double(), weight.reshape(solid))


def _turned(array: Tensor, matrix: Tensor, box: Box) -> Tensor:
    """The same for axes that are not parallel, from the part of the source that the box needs."""
    index = torch.meshgrid(*(torch.arange(a, b, dtype=torch.float64) for a, b in box), indexing="ij")
    there = torch.stack(index, -1) @ matrix[:3, :3].T + matrix[:3, 3]
    size = torch.tensor(array.shape[1:], dtype=torch.float64)
    there = torch.minimum(there.clamp(min=0), size - 1)
    low = there.reshape(-1, 3).amin(0).floor().long()
    high = torch.minimum(there.reshape(-1, 3).amax(0).floor().long() + 2, size.long())
    part = array[(slice(None), *(slice(int(a), int(b)) for a, b in zip(low, high, strict=True)))].double()
    span = (high - low - 1).clamp(min=1).double()
    unit = 2 * (there - low) / span - 1
    grid = torch.where(high - low > 1, unit, torch.zeros(())).flip(-1)[None]
    made = torch.nn.functional.grid_sample(part[None], grid, padding_mode="border", align_corners=True)
    return made[0]


def boxes(shape: Sequence[int], axis: int, voxels: int = 1 << 22) -> list[list[tuple[int, int]]]:
    """Cut a grid along one axis into boxes of at most about so many voxels.

    Example:
        >>> boxes((4, 5, 6), 2, 40)[-1]
        [(0, 4), (0, 5), (4, 6)]
    """
    plane = math.prod(shape) // max(shape[axis], 1)
    step = max(1, voxels // max(plane, 1))
    cut = []
    for start in range(0, shape[axis], step):
        box = [(0, n) for n in shape]
        box[axis] = (start, min(start + step, shape[axis]))
        cut.append(box)
    return cut
