"""One image on the plan's grid: where files end and tensors begin."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Prepared:
    """A volume after the plan's preprocessing, as plain tensors.

    Args:
        image: ``(channel, *voxel)`` float32, normalised. Memory-mapped where a store folder is used.
        mask: ``(*voxel)`` uint8, 1 on the target; all zero where the patient is free of it; None where the
            volume has a class but no mask.
        affine: ``(4, 4)`` float64, voxel to RAS millimetres, of this grid.
        patient: hashed key of the patient.
        tumour: the tumour type, or None.
        target: ``(m, axes)`` int32, voxels of the mask to centre crops on; a sample of at most a few
            thousand of them where the target is large; None means "look in the mask".
    """

    image: Tensor
    mask: Tensor | None
    affine: Tensor
    patient: str
    tumour: str | None
    target: Tensor | None = None
