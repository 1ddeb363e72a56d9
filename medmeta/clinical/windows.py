"""A network over a scan on the plan's grid: windows inside the body, finished plane by plane."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from medmeta.clinical.config import OVERLAP
from medmeta.volumes import Plan
from medmeta.volumes.resample import boxes

REACH = 10.0
"""Millimetres around the body that count as body: nothing at the skin is cut."""
AIR = 0.1
"""Part of the range of intensities that counts as air."""

BATCH = 4
"""Windows that the network gets together, as in an exported bundle."""
THIN = 4
"""Planes that are given on at once."""

Window: TypeAlias = tuple[slice, ...]
Forward: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""Images ``(n, channel, *voxel)`` and where in each is body, to logits ``(n, way, *voxel)``."""


def body(image: Tensor, spacing: Sequence[float]) -> NDArray[np.bool_]:
    """Tell the body from the air around it; in doubt all is body.

    What is brighter than air in any channel, everything between two such voxels along an axis (lungs, bowel,
    bone), and 10 mm around. Where less than half of the sides of the scan are air, as in a cut-out organ,
    darkness says nothing and all of it is body.

    Args:
        image: ``(channel, x, y, z)`` on the plan's grid, clipped as the plan says.
        spacing: mm along x, y, z.

    Returns:
        ``(x, y, z)``, True inside.

    Example:
        >>> image = torch.zeros(1, 60, 60, 4)
        >>> image[:, 20:40, 20:40] = 1
        >>> image[:, 25:35, 25:35] = 0  # a hole
        >>> inside = body(image, (2.0, 2.0, 2.0))
        >>> int(inside[:, 30, 0].sum()), bool(body(image[:, 20:40, 20:40], (2.0, 2.0, 2.0)).all())
        (30, True)
    """
    seen = np.zeros(image.shape[1:], dtype=bool)
    for channel in image:
        low, high = float(channel.min()), float(channel.max())
        if high > low:
            seen |= (channel > low + AIR * (high - low)).numpy()
    sides = [seen[[0, -1]], seen[:, [0, -1]]]
    if np.concatenate([s.ravel() for s in sides]).mean() > 0.5 or not seen.any():
        return np.ones_like(seen)
    filled = np.zeros_like(seen)
    for axis in range(3):
        for slab in _slabs(seen.shape, axis):
            filled[slab] |= _between(seen[slab], axis)
    for axis, step in enumerate(spacing):
        for slab in _slabs(seen.shape, axis):
            filled[slab] = _around(filled[slab], axis, int(np.ceil(REACH / step)))
    return filled


def _slabs(shape: tuple[int, ...], axis: int) -> list[tuple[slice, ...]]:
    """Parts of a grid that hold whole lines along an axis: what is copied at once stays small."""
    across = 0 if axis == 2 else 2
    return [tuple(slice(*ends) for ends in box) for box in boxes(shape, across)]


def _between(seen: NDArray[np.bool_], axis: int) -> NDArray[np.bool_]:
    """What is True, or has True on both sides along an axis."""
    back = np.flip(np.maximum.accumulate(np.flip(seen, axis), axis), axis)
    return np.maximum.accumulate(seen, axis) & back


def _around(filled: NDArray[np.bool_], axis: int, reach: int) -> NDArray[np.bool_]:
    """What is True, or has True within some voxels along an axis."""
    from scipy.ndimage import maximum_filter1d

    return maximum_filter1d(filled.view(np.uint8), 2 * reach + 1, axis, mode="constant").view(bool)


def windows(shape: Sequence[int], roi: Sequence[int]) -> list[Window]:
    """The windows that MONAI's sliding-window inferer would take, lowest along the last axis first."""
    from monai.data.utils import dense_patch_slices

    step = [r if r == n else max(1, int(r * (1 - OVERLAP))) for r, n in zip(roi, shape, strict=True)]
    return sorted(dense_patch_slices(shape, roi, step), key=lambda w: [s.start for s in reversed(w)])


def solid_patch(plan: Plan) -> list[int]:
    """A window of three axes, of one slice where the plan is in 2D."""
    roi = list(plan.patch)
    if plan.spatial_dims == 2:
        roi.insert(plan.slice_axis, 1)
    return roi


def planes(
    plan: Plan, forward: Forward, image: Tensor, inside: NDArray[np.bool_], way: int
) -> Iterator[tuple[int, Tensor]]:
    """Logits of the planes of a scan, as soon as no later window can change them.

    The weights and places of windows are those of MONAI's SlidingWindowInferer (SliceInferer in 2D), so the
    logits are the same wherever ``inside`` says so; windows without any body are passed over.

    Args:
        plan: says the patch.
        forward: the network.
        image: ``(channel, x, y, z)``.
        inside: ``(x, y, z)``, the body.
        way: classes.

    Yields:
        First plane along z, and logits ``(way, x, y, planes)``; 0 where no window came.
    """
    from monai.data.utils import compute_importance_map

    roi, shape = solid_patch(plan), tuple(image.shape[1:])
    lack = [max(r - n, 0) for r, n in zip(roi, shape, strict=True)]
    margin = [(n // 2, n - n // 2) for n in lack]
    if any(lack):
        image = functional.pad(image, [m for pair in reversed(margin) for m in pair])
        inside = np.pad(inside, margin)
    crop = tuple(slice(m[0], m[0] + n) for m, n in zip(margin[:2], shape[:2], strict=True))
    weight = compute_importance_map(tuple(roi), mode="gaussian").to(image.dtype)
    total = torch.zeros(way + 1, *image.shape[1:3], roi[2])  # of weighted logits, and of weights
    places = windows(image.shape[1:], roi)
    tops = sorted({w[2].start for w in places})
    for top, following in zip(tops, [*tops[1:], tops[-1] + roi[2]], strict=True):
        layer = [w for w in places if w[2].start == top and inside[w].any()]
        for some in (layer[n : n + BATCH] for n in range(0, len(layer), BATCH)):
            pieces = torch.stack([image[(slice(None), *w)] for w in some])
            there = torch.stack([torch.from_numpy(inside[w]) for w in some])
            logits = _logits(plan, forward, pieces, there)
            for window, one in zip(some, logits, strict=True):
                here = total[(slice(None), *window[:2])]
                here[:-1] += one * weight
                here[-1] += weight
        done = following - top
        start = top - margin[2][0]
        first, end = max(start, 0), min(start + done, shape[2])
        for one in range(first, end, THIN):
            ready = total[(slice(None), *crop, slice(one - start, min(one + THIN, end) - start))]
            yield one, ready[:-1] / ready[-1].clamp(1e-9)
        _pass_on(total, done)


def _pass_on(total: Tensor, done: int) -> None:
    """Move sums on by planes that are done, in place."""
    for sums in total:
        sums[..., : sums.shape[-1] - done] = sums[..., done:].clone()
        sums[..., sums.shape[-1] - done :] = 0


def _logits(plan: Plan, forward: Forward, pieces: Tensor, there: Tensor) -> Tensor:
    """``(n, way, *window)`` of ``(n, channel, *window)``."""
    if plan.spatial_dims == 3:
        return forward(pieces, there)
    axis = plan.slice_axis + 2
    return forward(pieces.squeeze(axis), there.squeeze(axis - 1)).unsqueeze(axis)
