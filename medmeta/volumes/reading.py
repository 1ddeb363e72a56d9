"""From a record to voxels: all channels of a volume, and its mask, in patient space."""

from __future__ import annotations

from typing import Any

import torch

from medmeta.volumes.layouts import CohortError
from medmeta.volumes.record import Volume


def read_image(volume: Volume) -> Any:
    """All channels of a volume as one MetaTensor ``(channel, x, y, z)``, float32, RAS affine in mm.

    Raises:
        VolumeError: where a file cannot be read right.
        CohortError: where the channels are not on one grid.
    """
    from medmeta.volumes import load

    channels = [load(path, series=volume.series) for path in volume.image]
    first = channels[0]
    for number, other in enumerate(channels[1:], start=2):
        same = other.shape[1:] == first.shape[1:] and torch.allclose(other.affine, first.affine, atol=1e-3)
        if not same:
            raise CohortError(
                "all channels of an image on one grid",
                found=f"channel {number} of {tuple(other.shape[1:])} voxels beside {tuple(first.shape[1:])}"
                ", or another affine",
                cure="Resample the channels to the first one.",
            )
    if len(channels) == 1:
        return first
    joined = first.clone()
    joined.set_array(torch.cat([c.as_tensor() for c in channels]))
    return joined


def read_mask(volume: Volume, like: Any) -> Any:
    """The target as MetaTensor ``(1, x, y, z)`` float32 of 0 and 1 on the grid of ``like``.

    All zero for a patient free of every target, None where a tumour is named without a mask.

    Raises:
        VolumeError: where the mask cannot be read or does not fit.
        CohortError: where the mask does not hold the label asked for.
    """
    if volume.mask is None:
        return None if volume.tumour else _of(like, torch.zeros(like.shape[1:])[None])
    from medmeta.volumes import load_mask

    values = load_mask(volume.mask, like=like)
    mask = values.as_tensor().long()
    target = mask > 0 if volume.label is None else mask == volume.label
    if volume.tumour and not bool(target.any()):
        held = sorted(set(mask.unique().tolist()) - {0})
        wanted = "a label" if volume.label is None else f"label {volume.label}"
        raise CohortError(
            f"{wanted} for {volume.tumour!r} in the mask",
            found=f"the values {held}" if held else "an empty mask",
            cure="Correct the mask or the label, or leave the tumour empty for a patient without one.",
        )
    return _of(like, target.float())


def _of(like: Any, array: torch.Tensor) -> Any:
    from monai.data import MetaTensor

    return MetaTensor(array.float(), affine=like.affine)
