"""From the plan's grid back to the scan's own grid."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from medmeta.volumes.layouts import CohortError
from medmeta.volumes.quiet import quiet


def restore(array: Tensor, affine: Tensor, like: Any, *, mode: str = "bilinear") -> Any:
    """Resample logits, probabilities or labels from the plan's grid to the grid of a native image.

    Args:
        array: ``(channel, *voxel)`` on the plan's grid; two voxel axes in 2D.
        affine: ``(4, 4)`` voxel to RAS mm of that grid (``Prepared.affine``).
        like: native image ``(channel, x, y, z)`` with an affine (what ``load`` gives).
        mode: ``"bilinear"`` for logits and probabilities, ``"nearest"`` for labels.

    Returns:
        MetaTensor ``(channel, x, y, z)`` on the grid of ``like``; what lies outside the plan's grid takes
        the nearest value inside.

    Raises:
        CohortError: where the number of axes or the affine does not fit.

    Example:
        >>> from monai.data import MetaTensor
        >>> like = MetaTensor(torch.zeros(1, 4, 4, 4), affine=torch.diag(torch.tensor([-1.0, 1.0, 1.0, 1.0])))
        >>> plan = torch.eye(4, dtype=torch.float64); plan[0, 3] = -3
        >>> labels = torch.arange(4.0).reshape(1, 4, 1, 1).expand(1, 4, 4, 4)
        >>> restore(labels, plan, like, mode="nearest")[0, :, 0, 0].tolist()
        [3.0, 2.0, 1.0, 0.0]
    """
    from monai.data import MetaTensor
    from monai.transforms import SpatialResample

    if array.ndim == 3:
        array = array.unsqueeze(_flat_axis(like.shape[1:], affine, like) + 1)
    if array.ndim != 4 or tuple(affine.shape) != (4, 4):
        raise CohortError(
            "an array (channel, *voxel) with its (4, 4) affine",
            found=f"{tuple(array.shape)} and {tuple(affine.shape)}",
            cure="Give Prepared.affine beside an array on its grid.",
        )
    resample = SpatialResample(mode=mode, padding_mode="border", align_corners=True, dtype=torch.float64)
    with (
        quiet()
    ):  # of a single slice torch says, at every call, that it treats its one voxel otherwise since 1.3
        moved = resample(
            MetaTensor(array.float(), affine=affine.double()),
            dst_affine=torch.as_tensor(like.affine).double(),
            spatial_size=tuple(like.shape[1:]),
        )
    return MetaTensor(moved.as_tensor().float(), affine=torch.as_tensor(like.affine).double())


def _flat_axis(shape: Any, affine: Tensor, like: Any) -> int:
    """The RAS axis along which a native image of one slice has its one voxel."""
    native = torch.as_tensor(like.affine).double()[:3, :3]
    flat = [axis for axis, size in enumerate(shape) if size == 1]
    if not flat:
        raise CohortError(
            "a native image of one slice for a 2D result",
            found=f"{tuple(shape)} voxels",
            cure="Restore slice by slice.",
        )
    return int(native[:, flat[-1]].abs().argmax())
