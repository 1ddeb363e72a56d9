"""One volume as it lies in its files: voxels, affine, unit, and what is worth a warning."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medmeta.volumes.errors import VolumeError

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
# a grid counts as the same where no corner lies further off than this part of a voxel
SAME_GRID = 0.02
# largest volume read unless more is asked for: 4 GB of float32
MAX_VOXELS = 1 << 30


@dataclass(frozen=True)
class Scan:
    """A volume in its stored orientation.

    Args:
        array: ``(channel, x, y, z)``.
        affine: ``(4, 4)`` float64, voxel index to RAS millimetres.
        unit: ``"HU"``, ``"SUV"``, ``"BQML"``, ``"stored"`` (scanner units) or ``""`` where unknown.
        modality: ``"CT"``, ``"MR"``, ``"PT"`` … or ``""``.
        frame: key of the frame of reference, ``""`` where unknown.
        series: key of the series, ``""`` where there is none.
        warnings: what was accepted and is still worth knowing.
        spaced: whether the voxel size is known (a PNG's is not).
    """

    array: NDArray[Any]
    affine: NDArray[np.float64]
    unit: str = ""
    modality: str = ""
    frame: str = ""
    series: str = ""
    warnings: tuple[str, ...] = ()
    spaced: bool = True


def check_finite(array: NDArray[Any], path: Path) -> None:
    """Refuse voxels that are no finite numbers, also once they are float32, as all images are given.

    Raises:
        VolumeError: ``not-finite``.
    """
    most = float(np.finfo(np.float32).max)
    if array.dtype.kind != "f" or not array.size or (-most <= array.min() and array.max() <= most):
        return
    bad = array.size - int(np.count_nonzero(np.abs(array) <= most))  # a NaN is below nothing
    raise VolumeError("not-finite", found=f"{bad} voxel(s) of NaN, infinity or beyond 32 bits", where=path)


def spacing(affine: NDArray[np.float64]) -> tuple[float, float, float]:
    """Voxel size along the three axes (mm).

    Example:
        >>> spacing(np.diag([-2.0, 1.0, 5.0, 1.0]))
        (2.0, 1.0, 5.0)
    """
    x, y, z = (round(float(size), 6) for size in np.linalg.norm(affine[:3, :3], axis=0))
    return x, y, z


def shear(affine: NDArray[np.float64]) -> float:
    """Largest cosine between two axes; 0 where all are at right angles.

    Example:
        >>> shear(np.diag([2.0, 1.0, 5.0, 1.0]))
        0.0
    """
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return float(np.abs(axes.T @ axes - np.eye(3)).max())
