"""One image on the plan's grid: where files end and tensors begin."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medmeta.volumes.component import component
from medmeta.volumes.fingerprint import ras_axes
from medmeta.volumes.layouts import CohortError
from medmeta.volumes.plan import Plan
from medmeta.volumes.quiet import quiet

_TARGETS = 4096  # voxels of a target kept to centre crops on


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


def prepare(
    plan: Plan, image: Any, *, mask: Any = None, patient: str = "", tumour: str | None = None
) -> Prepared:
    """Apply the plan's transforms, the very ones a bundle gets, to an image that was read.

    Args:
        plan: the preprocessing.
        image: MetaTensor ``(channel, x, y, z)`` with its RAS affine in mm, as ``load`` gives it.
        mask: MetaTensor ``(1, x, y, z)`` of 0 and 1 on the image's grid, or None. A target that falls between
            the plan's voxels keeps the one voxel that most of it lies nearest to.
        patient: hashed key.
        tumour: the tumour type.

    Raises:
        CohortError: where channels, slices or the unit are not as planned, or voxels are not finite.

    Example:
        >>> from monai.data import MetaTensor
        >>> image = MetaTensor(torch.rand(1, 8, 8, 6), affine=torch.diag(torch.tensor([-1.0, 1.0, 2.0, 1.0])))
        >>> prepare(Plan(3, (1.0, 1.0, 1.0), (8, 8, 8), 1), image).image.shape
        torch.Size([1, 8, 8, 11])
    """
    voxels, affine = prepare_image(plan, image)
    flat, target = (None, None) if mask is None else prepare_mask(plan, mask, affine)
    return Prepared(voxels, flat, affine, patient, tumour, target)


def prepare_image(plan: Plan, image: Any) -> tuple[Tensor, Tensor]:
    """``(channel, *voxel)`` and the ``(4, 4)`` affine of the plan's grid; see :func:`prepare`."""
    if image.shape[0] != plan.channels:
        raise CohortError(
            f"{plan.channels} channel(s), as planned",
            found=f"{image.shape[0]}",
            cure="Make a plan for this cohort, or give the channels the plan was made for.",
        )
    _is_flat(plan, image)
    check_unit(plan, image)
    data, affine = {"image": image}, image.affine
    for step in _steps(plan, "image"):
        with quiet():  # of a single slice torch warns at each call of how it treats one voxel
            data = step(data)
        if data["image"].affine.shape == (4, 4):  # in 2D too, the affine is that of three axes
            affine = data["image"].affine
    voxels = data["image"].as_tensor().float().contiguous()
    if not bool(torch.isfinite(voxels).all()):
        raise CohortError("finite voxels", found="NaN or infinity", cure="Repair or drop the volume.")
    return voxels, torch.as_tensor(affine).double()


def _is_flat(plan: Plan, image: Any) -> None:
    """Refuse an image of several slices, or one that lies another way, for a plan in 2D."""
    if plan.spatial_dims == 3:
        return
    along = ras_axes(np.asarray(image.affine, dtype=float)[:3, :3])[plan.slice_axis]
    if image.shape[1 + along] != 1:
        lies = ("sagittal", "coronal", "axial")[plan.slice_axis]
        raise CohortError(
            f"an image of one {lies} slice, as planned",
            found=f"{tuple(image.shape[1:])} voxels",
            cure="Give single slices, or make a plan for this cohort.",
        )


def check_unit(plan: Plan, image: Any) -> None:
    """Refuse values that are known to be no Hounsfield units where these are clipped and scaled as such."""
    unit = getattr(image, "meta", {}).get("unit", "")
    if plan.intensity == "window" and unit not in ("", "HU"):
        raise CohortError(
            "a CT in HU, as planned",
            found=f"values in {unit!r}",
            cure="Give the original CT, or make a plan for this cohort.",
        )


def prepare_mask(plan: Plan, mask: Any, affine: Tensor) -> tuple[Tensor, Tensor]:
    """``(*voxel)`` uint8 and a sample of the target's voxels ``(m, axes)``; see :func:`prepare`.

    Args:
        plan: the preprocessing.
        mask: MetaTensor ``(1, x, y, z)`` of 0 and 1 on the image's grid.
        affine: of the plan's grid, as :func:`prepare_image` gives it.
    """
    data = {"mask": mask}
    for step in _steps(plan, "mask"):
        with quiet():
            data = step(data)
    flat = data["mask"].as_tensor()[0].to(torch.uint8).contiguous()
    if bool(mask.any()) and not bool(flat.any()):
        flat = _nearest(mask, affine, flat, plan.slice_axis)
    return flat, _sample(flat)


def cut_lesion(plan: Plan, whole: Prepared) -> Prepared:
    """Cut the outlined lesion out of a volume on the plan's grid, as :meth:`Plan.cut` says.

    Args:
        plan: a plan with ``lesion``.
        whole: a volume with its mask.

    Returns:
        ``image`` ``(channel + 1, *patch)``, the outline last; ``mask`` ``(*patch)``; ``affine`` of the cut.

    Raises:
        CohortError: where there is no mask, or nothing in it.
    """
    from monai.data import MetaTensor

    if whole.mask is None or not bool(whole.mask.any()):
        raise CohortError(
            "an outlined lesion to classify",
            found="no mask" if whole.mask is None else "an empty mask",
            cure="Outline the lesion (a segmentation bundle can), or classify whole scans.",
        )
    image, mask = whole.image, whole.mask[None].float()
    if plan.spatial_dims == 2:
        image, mask = image.unsqueeze(plan.slice_axis + 1), mask.unsqueeze(plan.slice_axis + 1)
    data: Any = {
        "image": MetaTensor(image.clone(), affine=whole.affine),
        "mask": MetaTensor(mask, affine=whole.affine),
    }
    for step in _cutters(plan):
        data = step(data)
    affine = torch.as_tensor(data["image"].affine).double()
    made, outline = data["image"].as_tensor().float(), data["mask"].as_tensor()[0].to(torch.uint8)
    if plan.spatial_dims == 2:
        made, outline = made.squeeze(plan.slice_axis + 1), outline.squeeze(plan.slice_axis)
    return Prepared(made.contiguous(), outline.contiguous(), affine, whole.patient, whole.tumour)


@functools.lru_cache(maxsize=4)
def _cutters(plan: Plan) -> list[Callable[..., Any]]:
    return [component(c) for c in plan.cut()]


@functools.lru_cache(maxsize=16)
def _steps(plan: Plan, key: str) -> list[Callable[..., Any]]:
    configs = plan.transforms((), masks=(key,)) if key == "mask" else plan.transforms((key,))
    return [component(c) for c in configs]


def _nearest(mask: Any, affine: Tensor, empty: Tensor, slice_axis: int) -> Tensor:
    """The mask of a target that falls between the plan's voxels: the voxel that most of it lies nearest to.

    Args:
        mask: native mask, MetaTensor ``(1, x, y, z)``.
        affine: ``(4, 4)`` of the plan's grid.
        empty: ``(*voxel)`` all zero, on the plan's grid; stays so where the target lies outside.
        slice_axis: the axis a plan in 2D has dropped.
    """
    voxels = mask.as_tensor()[0].nonzero().double()
    world = torch.cat([voxels, torch.ones(len(voxels), 1, dtype=torch.float64)], 1) @ mask.affine.double().T
    there = (world @ torch.linalg.inv(affine).T)[:, :3].round().long()
    if empty.ndim == 2:
        there = there[:, [axis for axis in range(3) if axis != slice_axis]]
    size = torch.tensor(empty.shape)
    there = there[((there >= 0) & (there < size)).all(1)]
    filled = empty.clone()
    if len(there):
        seen, counts = there.unique(dim=0, return_counts=True)
        filled[tuple(seen[counts.argmax()].tolist())] = 1
    return filled


def _sample(mask: Tensor) -> Tensor:
    voxels = mask.nonzero().to(torch.int32)
    step = -(-len(voxels) // _TARGETS) if len(voxels) > _TARGETS else 1
    return voxels[::step].contiguous()
