"""What the answer for a scan with one organ of a kind is like: edges where the image has them, one piece."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from medmeta.shape import Image

WINDOW = 9
"""Voxels a side of the windows in which an answer is a straight line of the intensity."""
FLAT = 0.003
"""Variance of the intensity (squared shares of its 99th percentile) below which a window counts as flat."""


def guided(said: Tensor, image: Image) -> Tensor:
    """Move the edges of an answer to those of the image (guided filter, He et al. 2010, equations 5 to 8).

    Args:
        said: probabilities ``(n, way, *voxel)``; their sum over the classes stays 1.
        image: ``(n, channel, *voxel)``; the first channel guides.

    Returns:
        ``(n, way, *voxel)``; a little below 0 or above 1 in places.

    Example:
        >>> image = torch.zeros(1, 1, 16, 16)
        >>> image[..., 8:] = 1
        >>> said = torch.stack([torch.linspace(1, 0, 16), torch.linspace(0, 1, 16)])
        >>> sharp = guided(said[None, :, None].expand(1, 2, 16, 16), image)
        >>> bool(sharp[0, 1, 8, 8] - sharp[0, 1, 8, 7] > 4 / 15)
        True
    """
    guide = image[:, 0].detach().cpu().float().numpy()
    low = float(guide.min())
    guide = (guide - low) / max(float(np.percentile(guide, 99)) - low, 1e-6)
    made = [
        np.stack([_guided(one, own) for one in classes])
        for classes, own in zip(said.detach().cpu().numpy(), guide, strict=True)
    ]
    return torch.from_numpy(np.stack(made)).to(said)


def _guided(answer: NDArray[np.float32], guide: NDArray[np.float32]) -> NDArray[np.float32]:
    def mean(values: NDArray[np.float32]) -> NDArray[np.float32]:
        return ndimage.uniform_filter(values, WINDOW, mode="nearest")

    middle, level = mean(guide), mean(answer)
    slope = (mean(guide * answer) - middle * level) / (mean(guide * guide) - middle**2 + FLAT)
    return mean(slope) * guide + mean(level - slope * middle)


def _lead(said: NDArray[np.float32], c: int) -> NDArray[np.float32]:
    """How far class ``c`` is ahead of the next best, ``(n, *voxel)``."""
    others = np.delete(said, c, axis=1).max(1)
    return said[:, c] - others


def surest(said: Tensor) -> Tensor:
    """Of every class but the first keep the connected piece for which most speaks, across the whole batch.

    What speaks for a piece is the sum over its voxels of how far the class is ahead, not their
    number: a smaller piece that is sure outweighs a larger one that is not.

    Args:
        said: probabilities ``(n, way, *voxel)``, the batch being the slices of one scan in their order.

    Returns:
        The same with the class at 0 in its other pieces.

    Example:
        >>> one = torch.tensor([0.9, 0.9, 0.0, 0.6, 0.6, 0.6])
        >>> surest(torch.stack([1 - one, one])[None])[0, 1].tolist() == [*one[:3].tolist(), 0, 0, 0]
        True
    """
    said, plain = said.clone(), said.detach().cpu().numpy()
    best = plain.argmax(1)
    for c in range(1, plain.shape[1]):
        pieces, count = ndimage.label(best == c)
        if count > 1:
            speaks = ndimage.sum(_lead(plain, c), pieces, np.arange(1, count + 1))
            dropped = torch.from_numpy((pieces > 0) & (pieces != 1 + int(np.argmax(speaks))))
            said[:, c] = said[:, c].masked_fill(dropped.to(said.device), 0)
    return said


def within(said: Tensor, slices: int) -> Tensor:
    """Of every class but the first keep the run of so many slices for which most speaks.

    An organ of one patient extends along the scan about as far as that of another: who labelled the
    support knows from where to where it goes.

    Args:
        said: probabilities ``(n, way, *voxel)``, the batch being the slices of one scan in their order.
        slices: length of the run.

    Returns:
        The same with the class at 0 in all other slices.

    Example:
        >>> one = torch.tensor([0.6, 0.9, 0.8, 0.6])[:, None]
        >>> within(torch.stack([1 - one, one], 1), 2)[:, 1, 0]
        tensor([0.0000, 0.9000, 0.8000, 0.0000])
    """
    if slices >= len(said):
        return said
    said, plain = said.clone(), said.detach().cpu().numpy()
    for c in range(1, plain.shape[1]):
        lead = np.clip(_lead(plain, c), 0, None).reshape(len(plain), -1).sum(1)
        runs = np.convolve(lead, np.ones(slices), "valid")
        first = int(np.argmax(runs))
        said[:first, c] = 0
        said[first + slices :, c] = 0
    return said


__all__ = ["guided", "surest", "within"]
