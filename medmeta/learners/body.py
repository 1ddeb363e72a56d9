"""Where a voxel lies in the body, and what it looks like: what a few labelled slices can tell apart."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from medmeta.shape import Image

Mask = NDArray[np.bool_]
Maps = NDArray[np.float32]

AIR = 0.13
"""Share of the way from the darkest to the brightest (99th percentile) below which a voxel is air."""
WIDTHS = (1.0, 2.5)
AROUND = 16.0
"""Voxels that a voxel's surroundings reach (standard deviation)."""
CLOSED = 4
"""Voxels by which the bright piece is grown and shrunk again."""
DARK = 0.05
"""Share of the brightest that is added to surroundings, and least share of them that is body."""


def body_mask(image: Image) -> Mask:
    """Tell the body from the air around it: the largest bright piece of each image, its holes filled.

    Args:
        image: ``(n, channel, *voxel)``; the first channel counts, one threshold for all images.

    Returns:
        ``(n, *voxel)``.

    Example:
        >>> image = torch.zeros(1, 1, 16, 16)
        >>> image[..., 2:14, 4:12] = 1
        >>> bool(body_mask(image)[0, 8, 8]), bool(body_mask(image)[0, 0, 0])
        (True, False)
    """
    first = image[:, 0].detach().cpu().float().numpy()
    low, high = float(first.min()), float(np.percentile(first, 99))
    made = np.zeros(first.shape, bool)
    for own, one in zip(made, first, strict=True):
        bright = ndimage.gaussian_filter(one, 1.5) > low + AIR * (high - low)
        pieces, count = ndimage.label(bright)
        if count:
            largest = pieces == 1 + int(np.argmax(np.bincount(pieces.ravel())[1:]))
            own[:] = ndimage.binary_fill_holes(_closed(largest))
    return made


def _closed(mask: Mask) -> Mask:
    """Close gaps as if there were air around the image: at its border, scipy takes a rim of the body away."""
    closed = ndimage.binary_closing(np.pad(mask, CLOSED), iterations=CLOSED)
    return np.asarray(closed[(slice(CLOSED, -CLOSED),) * mask.ndim], bool)


def body_places(mask: Mask) -> Maps:
    """Where each voxel lies in its body: share of the bounding box along each axis, depth under the surface.

    Args:
        mask: ``(n, *voxel)`` of :func:`body_mask`.

    Returns:
        ``(n, axes + 1, *voxel)``: 0 to 1 along each axis inside the body, depth in mean sides of the box.

    Example:
        >>> mask = np.zeros((1, 8, 8), bool)
        >>> mask[:, 2:6, 0:8] = True
        >>> body_places(mask)[0, :2, 2, 0].tolist()
        [0.125, 0.0625]
    """
    axes = mask.ndim - 1
    made = np.zeros((len(mask), axes + 1, *mask.shape[1:]), np.float32)
    grid = np.meshgrid(*[np.arange(s) + 0.5 for s in mask.shape[1:]], indexing="ij")
    for own, one in zip(made, mask, strict=True):
        if not one.any():
            continue
        shown = [np.flatnonzero(one.any(tuple(a for a in range(axes) if a != axis))) for axis in range(axes)]
        sides = [s[-1] + 1 - s[0] for s in shown]
        for axis in range(axes):
            own[axis] = (grid[axis] - shown[axis][0]) / sides[axis]
        own[axes] = ndimage.distance_transform_edt(one) / np.mean(sides)
    return made


def looks(image: Image) -> Maps:
    """Each channel, two smoothings of it, its slope and its spread.

    Args:
        image: ``(n, channel, *voxel)``.

    Returns:
        ``(n, 5 * channel, *voxel)``.

    Example:
        >>> looks(torch.rand(1, 2, 16, 16)).shape
        (1, 10, 16, 16)
    """
    values = image.detach().cpu().float().numpy()
    made = [np.stack([m for channel in one for m in _looks(channel)]) for one in values]
    return np.stack(made).astype(np.float32)


def _looks(channel: Maps) -> list[Maps]:
    spread = ndimage.uniform_filter(channel**2, 7) - ndimage.uniform_filter(channel, 7) ** 2
    return [
        channel,
        *(ndimage.gaussian_filter(channel, width) for width in WIDTHS),
        ndimage.gaussian_gradient_magnitude(channel, 1),
        np.sqrt(np.clip(spread, 0, None)),
    ]


def contrast(image: Image, mask: Mask) -> Maps:
    """How bright a voxel is beside the body around it, which a gain or a coil's shading leaves as it is.

    Args:
        image: ``(n, channel, *voxel)``, air at 0.
        mask: ``(n, *voxel)`` of :func:`body_mask`.

    Returns:
        ``(n, channel, *voxel)``: 1 where all around is as bright.

    Example:
        >>> image = torch.full((1, 1, 16, 16), 3.0)
        >>> round(float(contrast(image, body_mask(image) | True).mean()), 2)
        0.95
    """
    values = image.detach().cpu().float().numpy()
    floor = DARK * float(np.percentile(values, 99)) + 1e-6
    made = np.empty_like(values)
    for own, one, inside in zip(made, values, mask, strict=True):
        share = ndimage.gaussian_filter(inside.astype(np.float32), AROUND)
        for channel, out in zip(one, own, strict=True):
            around = ndimage.gaussian_filter(channel * inside, AROUND) / np.maximum(share, DARK)
            out[:] = ndimage.gaussian_filter(channel / (around + floor), 1)
    return made


def smooth(probability: Tensor, width: float, between: float) -> Tensor:
    """Smooth ``(n, *voxel)`` in space, and between neighbours of the batch where ``between`` is not 0."""
    widths = (between, *[width] * (probability.ndim - 1))
    return torch.from_numpy(ndimage.gaussian_filter(probability.numpy(), widths, mode="nearest"))


__all__ = ["body_mask", "body_places", "contrast", "looks", "smooth"]
