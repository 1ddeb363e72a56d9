"""From a record to voxels: all channels of a volume, and its mask, in patient space."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from medmeta.volumes.dicom_series import files_below, find_series
from medmeta.volumes.layouts import CohortError
from medmeta.volumes.loading import READERS, load, load_mask, suffix
from medmeta.volumes.record import Volume


def read_image(volume: Volume) -> Any:
    """All channels of a volume as one MetaTensor ``(channel, x, y, z)``, float32, RAS affine in mm.

    Raises:
        VolumeError: where a file cannot be read right.
        CohortError: where the channels are not on one grid.
    """
    if len(volume.image) == 1 and len(volume.modality) > 1:  # as the Decathlon keeps MR sequences
        path = volume.image[0]
        return load(path, series=_series(volume, path), channels=len(volume.modality))
    channels = [load(path, series=_series(volume, path)) for path in volume.image]
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


def _series(volume: Volume, path: Path) -> str | None:
    """Which series to take; none of a NIfTI, whose row in a table may well name the one it was made of."""
    if path.is_dir():
        plain = any(suffix(file) in READERS for file in files_below(path))
        return None if plain and not find_series(path) else volume.series
    return None if suffix(path) in READERS else volume.series


def read_mask(volume: Volume, like: Any) -> Any:
    """The target as MetaTensor ``(1, x, y, z)`` float32 of 0 and 1 on the grid of ``like``.

    All zero for a patient free of every target, None where a tumour is named without a mask.

    Raises:
        VolumeError: where the mask cannot be read, does not fit, is empty or lacks the label.
    """
    if volume.tumour is None:
        return _of(like, torch.zeros(like.shape[1:])[None])
    if volume.mask is None:
        return None
    values = load_mask(volume.mask, like=like, label=volume.label)
    return _of(like, values.as_tensor() > 0)


def _of(like: Any, array: torch.Tensor) -> Any:
    from monai.data import MetaTensor

    return MetaTensor(array.float(), affine=like.affine)
