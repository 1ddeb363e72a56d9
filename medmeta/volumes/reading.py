"""From a record to voxels: all channels of a volume, and its mask, in patient space."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from medmeta.volumes.errors import own_name
from medmeta.volumes.layouts import CohortError
from medmeta.volumes.loading import WithoutSeriesError, read, tensor
from medmeta.volumes.mask_loading import load_mask
from medmeta.volumes.record import Volume
from medmeta.volumes.scan import Scan

_LOG = logging.getLogger("medmeta.volumes")


def read_image(volume: Volume) -> Any:
    """All channels of a volume as one MetaTensor ``(channel, x, y, z)``, float32, RAS affine in mm.

    Raises:
        VolumeError: where a file cannot be read right.
        CohortError: where the channels are not on one grid.
    """
    several = len(volume.image) == 1 and len(volume.modality) > 1  # as the Decathlon keeps MR sequences
    scans = []
    for path in volume.image:
        scans.append(_read(path, volume.series, len(volume.modality) if several else 1))
        for warning in scans[-1].warnings:
            _LOG.warning("%s: %s", own_name(path) or "a series", warning)
    return joined(scans)


def joined(scans: Sequence[Scan]) -> Any:
    """Scans of one channel each, or a single one of several, as one MetaTensor ``(channel, x, y, z)``.

    Raises:
        CohortError: where they are not on one grid.
    """
    first, *others = map(tensor, scans)
    for number, other in enumerate(others, start=2):
        same = other.shape[1:] == first.shape[1:] and torch.allclose(other.affine, first.affine, atol=1e-3)
        if not same:
            raise CohortError(
                "all channels of an image on one grid",
                found=f"channel {number} of {tuple(other.shape[1:])} voxels beside {tuple(first.shape[1:])}"
                ", or another affine",
                cure="Resample the channels to the first one.",
            )
    if not others:
        return first
    first.set_array(torch.cat([first.as_tensor(), *(other.as_tensor() for other in others)]))
    return first


def _read(path: Path, series: str | None, channels: int) -> Scan:
    """A channel; a NIfTI, in a folder or zip too, knows no series, and its row in a table may well name the
    one that it was made of."""
    try:
        return read(path, series=series, channels=channels)
    except WithoutSeriesError:
        return read(path, channels=channels)


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
