"""What a cohort's images look like: spacing, shape, intensities."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from medmeta.volumes.layouts import CohortError
from medmeta.volumes.progress import Track, silent
from medmeta.volumes.reading import read_image, read_mask
from medmeta.volumes.record import Volume

_LOG = logging.getLogger(__name__)

# images looked at: the medians of 64 are within a few per cent of the cohort's
_SAMPLE = 64
_VOXELS = 10_000


@dataclass(frozen=True)
class Fingerprint:
    """Spacing (mm) and shape of each image seen along RAS axes, and intensities sampled from them.

    Args:
        spacings: ``(n, 3)`` mm.
        shapes: ``(n, 3)`` voxels.
        channels: images a volume.
        ct: whether every image is in Hounsfield units.
        values: intensities sampled from the targets, or from the body where there is no mask.
        volumes: how many volumes there are in all.
        lesions: ``(m, 3)`` mm, the box around each outlined target.
    """

    spacings: np.ndarray
    shapes: np.ndarray
    channels: int
    ct: bool
    values: np.ndarray
    volumes: int
    lesions: np.ndarray
    mixed: bool = False

    @property
    def slice_axis(self) -> int:
        """The axis along which every image has one voxel, else the last."""
        flat = np.flatnonzero((self.shapes == 1).all(0))
        return int(flat[-1]) if len(flat) else 2

    @property
    def spatial_dims(self) -> int:
        """2 where every image is one slice along the same axis."""
        return 2 if bool((self.shapes == 1).all(0).any()) else 3

    def spacing_quantile(self, axis: int, q: float) -> float:
        """Quantile of the spacing along an axis, mm."""
        return float(np.quantile(self.spacings[:, axis], q))

    def extent(self, spacing: Sequence[float], *, whole: bool) -> list[int]:
        """Voxels along each axis at a spacing: the median, or where ``whole`` what holds 95 % of them."""
        voxels = self.shapes * self.spacings / np.asarray(spacing)
        return [math.ceil(v - 1e-6) for v in np.quantile(voxels, 0.95 if whole else 0.5, axis=0)]

    def lesion_extent(self, spacing: Sequence[float], margin: float) -> list[int]:
        """Voxels along each axis that hold 95 % of the outlined targets and ``margin`` mm around them.

        Raises:
            CohortError: where no target is outlined.
        """
        if not len(self.lesions):
            raise CohortError("an outlined lesion to classify", found="no mask", cure="Classify whole scans.")
        wide = np.quantile(self.lesions, 0.95, axis=0) + 2 * margin
        return [math.ceil(v - 1e-6) for v in wide / np.asarray(spacing)]

    def window(self) -> tuple[float, float, float, float]:
        """Low and high clip bounds, mean and deviation of the sampled intensities.

        The 0.5 and 99.5 percentiles are widened by half their distance to each side, for the type that is
        learnt later may lie beyond those that were seen.
        """
        low, high = np.percentile(self.values, [0.5, 99.5])
        margin = (high - low) / 2
        low, high = low - margin, high + margin
        inside = np.clip(self.values, low, high)
        high = max(high, low + 1.0)
        low, high, mean, std = (round(float(v), 3) for v in (low, high, inside.mean(), inside.std()))
        return low, high, mean, std or 1.0

    def about(self) -> str:
        """One line for people."""
        shape = "×".join(f"{int(s)}" for s in np.median(self.shapes, axis=0))
        spacing = "×".join(f"{s:.3g}" for s in np.median(self.spacings, axis=0))
        low, high = self.spacings.min(), self.spacings.max()
        kind = "CT" if self.ct else "CT and others, each standardised by itself" if self.mixed else "not CT"
        return (
            f"from {len(self.shapes)} of {self.volumes} images ({kind}): median {shape} voxels"
            f" of {spacing} mm, spacing {low:.3g} to {high:.3g} mm"
        )


def fingerprint(volumes: Sequence[Volume], *, track: Track = silent) -> Fingerprint:
    """Look at up to 64 images of a cohort, evenly taken from the list.

    Raises:
        CohortError: where there is none, or they do not have the same number of channels.
    """
    by_image = {(v.image, v.series or ""): v for v in volumes}  # a folder may hold many series
    images = [by_image[k] for k in sorted(by_image)]
    if not images:
        raise CohortError("at least one volume to plan for", found="none", cure="Open a cohort with volumes.")
    counts = sorted({len(v.image) for v in images})
    if len(counts) > 1:
        raise CohortError(
            "the same number of channels in every volume", found=str(counts), cure="Split the cohort."
        )
    step = max(1, math.ceil(len(images) / _SAMPLE))
    chosen = images[::step]
    looks = [_look(v) for v in track(chosen, description="looking at images", total=len(chosen))]
    mixed = len({look[2] for look in looks}) > 1
    if mixed:
        _LOG.warning(
            "CT and other images in one plan: Hounsfield units are not used, each image is standardised by"
            " itself; plan them apart if that is not meant"
        )
    channels = sorted({look[4] for look in looks})
    if len(channels) > 1:
        raise CohortError(
            "the same number of channels in every volume", found=str(channels), cure="Split the cohort."
        )
    return Fingerprint(
        np.array([look[0] for look in looks]),
        np.array([look[1] for look in looks]),
        looks[0][4],
        all(look[2] for look in looks),
        np.concatenate([look[3] for look in looks]),
        len(images),
        np.array([look[5] for look in looks if look[5] is not None]),
        mixed,
    )


def _look(volume: Volume) -> tuple[np.ndarray, np.ndarray, bool, np.ndarray, int, np.ndarray | None]:
    image = read_image(volume)
    affine = np.asarray(image.affine, dtype=float)[:3, :3]
    axes = ras_axes(affine)
    spacing = np.linalg.norm(affine, axis=0)[axes]
    shape = np.array(image.shape[1:])[axes]
    unit, named = image.meta.get("unit", ""), set(volume.modality)
    ct = named <= {"CT"} and (unit == "HU" or (not unit and bool(named)))  # some CTs are in other units
    mask = read_mask(volume, image).as_tensor()[0] > 0 if volume.mask is not None else None
    if mask is not None and not bool(mask.any()):  # of a patient free of targets
        mask = None
    box = None
    if mask is not None:
        voxels = mask.nonzero()
        size = (voxels.max(0).values - voxels.min(0).values + 1).numpy()
        box = size[axes] * spacing
    return spacing, shape, ct, _sample(image.as_tensor(), mask), int(image.shape[0]), box


def ras_axes(affine: np.ndarray) -> list[int]:
    """Which voxel axis runs along right, anterior, superior."""
    from nibabel.orientations import io_orientation

    full = np.eye(4)
    full[:3, :3] = affine
    along = io_orientation(full)[:, 0]
    return [int(np.flatnonzero(along == axis)[0]) for axis in range(3)]


def _sample(voxels: torch.Tensor, mask: torch.Tensor | None) -> np.ndarray:
    """Intensities of the target, or of the body (above -500, so that a CT's air is left out)."""
    inside = voxels[:, mask] if mask is not None else voxels[voxels > -500]
    flat = inside.reshape(-1) if inside.numel() else voxels.reshape(-1)
    step = max(1, flat.numel() // _VOXELS)
    return flat[::step].to(torch.float32).numpy()
