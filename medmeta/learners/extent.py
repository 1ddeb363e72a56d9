"""The part of an example that is scan: what lies beyond a scan smaller than the patch is left out."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from medmeta.episodes.examples import Examples


def extent(image: Tensor) -> tuple[slice, ...]:
    """Find where the scan is: outer planes that are 0 in every voxel were put around it.

    Crops and windows of a scan smaller than the patch have it in their middle and 0 around it. A plane of a
    scan is not exactly 0 throughout once intensities are standardised; an image of zeros is left whole.

    Args:
        image: ``(channel, *voxel)``.

    Example:
        >>> image = torch.zeros(1, 8, 8)
        >>> image[:, 2:7, 1:4] = torch.rand(5, 3) + 1
        >>> extent(image)
        (slice(2, 7, None), slice(1, 4, None))
    """
    there = (image != 0).any(0)
    found = []
    for axis in range(there.ndim):
        lines = torch.where(there.movedim(axis, 0).flatten(1).any(1))[0]
        found.append(slice(int(lines[0]), int(lines[-1]) + 1) if len(lines) else slice(None))
    return tuple(found)


def scans(examples: Examples) -> Iterator[tuple[Tensor, Tensor]]:
    """Give each example's scan ``(channel, *voxel)`` and label ``(*voxel)``, sizes as they are, each once.

    Where the patch holds whole scans, all crops of a patient are the same; a copy says nothing new.
    """
    seen: set[bytes] = set()
    for image, label in zip(examples.image.detach().cpu().float(), examples.label.cpu(), strict=True):
        where = extent(image)
        own, said = image[(slice(None), *where)], label[where]
        key = own.numpy().tobytes() + said.numpy().tobytes()
        if key not in seen:
            seen.add(key)
            yield own, said


__all__ = ["extent", "scans"]
