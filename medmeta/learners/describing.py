"""What a ranker is told of each region: how it looks beside the support's own, and who speaks for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import ndimage

from medmeta.learners.body import Maps, Mask
from medmeta.learners.evidence import SPEAKERS
from medmeta.learners.regions import KINDS, Picture, Region, Shape, Site, shape_of

SOURCES = 3 + SPEAKERS
LIKELY = 99.5
"""Percentile of a map that stands for its highest values."""
NARROW = 1 / 32
"""Of the image's mean side: how far masks of the support are smoothed to say where a tumour may lie."""
SIZE = 3 * len(KINDS) + 1 + 4 * SPEAKERS + 5 + SOURCES + 2 + SPEAKERS + 6 + 1
"""Numbers that a region is described by."""


@dataclass(frozen=True)
class Known:
    """The support's tumours as regions.

    Args:
        shapes: ``(m, kinds)``, one for each support image that shows the tumour.
        places: ``(m, axes)``.
        likely: ``(*voxel)`` where masks lie, 1 at most.
        shot: number of support images.
    """

    shapes: NDArray[np.float64]
    places: NDArray[np.float64]
    likely: Maps
    shot: int

    @staticmethod
    def of(images: Sequence[Maps], masks: Sequence[Mask]) -> Known:
        """Measure support images ``(*voxel)``, of any sizes, by their masks, not all empty."""
        shown = [shape_of(Site.of(m), Picture.of(i)) for i, m in zip(images, masks, strict=True) if m.any()]
        size = masks[0].shape
        width = NARROW * float(np.mean(size))
        likely = ndimage.gaussian_filter(
            np.mean([stretched(m.astype(np.float32), size) for m in masks], axis=0), width
        )
        return Known(
            np.stack([s.values() for s in shown]),
            np.array([s.place for s in shown]),
            likely / (likely.max() + 1e-6),
            len(images),
        )


def stretched(share: Maps, size: tuple[int, ...]) -> Maps:
    """A map ``(*voxel)`` at the same relative places of an image of another size.

    Example:
        >>> stretched(np.array([0.0, 1.0], np.float32), (4,)).tolist()
        [0.0, 0.25, 0.75, 1.0]
    """
    if share.shape == size:
        return share
    mode = ("linear", "bilinear", "trilinear")[len(size) - 1]
    whole = torch.from_numpy(share)[None, None]
    return F.interpolate(whole, size, mode=mode, align_corners=False)[0, 0].numpy()


def describe(found: Sequence[Region], maps: Maps, image: Maps, known: Known) -> NDArray[np.float32]:
    """Describe every region of an image, and last the answer that there is none.

    Args:
        found: regions cut from ``maps``.
        maps: ``(3 + speakers, *voxel)`` of :func:`medmeta.learners.regions.sources`.
        image: ``(*voxel)``.
        known: the support's tumours.

    Returns:
        ``(regions + 1, SIZE)``; the numbers of any image size, number of axes and intensity unit alike are
        small: shares, logarithms, spreads.
    """
    scene = _Scene.of(maps, image, known)
    common = scene.common()
    rows = [np.concatenate([scene.told(r), common, [0.0]]) for r in found]
    rows.append(np.concatenate([np.zeros(SIZE - 1 - len(common)), common, [1.0]]))
    return np.stack(rows).astype(np.float32)


@dataclass(frozen=True)
class _Scene:
    """One image to describe regions of, and what is measured on it once."""

    picture: Picture
    maps: Maps
    total: Maps
    known: Known

    @staticmethod
    def of(maps: Maps, image: Maps, known: Known) -> _Scene:
        axes = tuple(range(1, maps.ndim))
        return _Scene(Picture.of(image), maps, np.maximum(maps[3:], 0).sum(axes) + 1, known)

    def told(self, region: Region) -> NDArray[np.float64]:
        """Its shape, that beside the support's, who speaks for it, and where it was cut."""
        site = Site.of(region.mask)
        shape = shape_of(site, self.picture)
        own = self.maps[(slice(None), *site.where)]
        within = own[3:, site.inside].mean(1)
        beside = own[3:, site.about].mean(1)
        share = np.maximum(own[3:, site.inside], 0).sum(1) / self.total
        mean = own[1][site.inside]
        cut = [float(mean.max()), float(np.percentile(mean, 10)), region.level, region.rank, region.part]
        source = np.eye(SOURCES)[region.source]
        likely = self.known.likely[region.mask]
        lies = [float(likely.mean()), float(likely.sum()) / (float(self.known.likely.sum()) + 1e-6)]
        parts = [self._beside(shape), within, beside, within - beside, share, cut, source, lies]
        return np.concatenate(parts)

    def _beside(self, shape: Shape) -> NDArray[np.float64]:
        values, known = shape.values(), self.known
        near = np.abs(known.shapes - values).min(0)
        far = np.linalg.norm(known.places - np.array(shape.place), axis=1).min()
        return np.concatenate([values, values - known.shapes.mean(0), near, [far]])

    def common(self) -> NDArray[np.float64]:
        """What holds of all regions of the image."""
        top = [float(np.percentile(m, LIKELY)) for m in self.maps[3:]]
        by_kind = dict(zip(KINDS, self.known.shapes.T, strict=True))
        size, contrast = by_kind["size"], by_kind["contrast_in_spreads"]
        held = np.log((self.maps[1] > 0).mean() + 1 / self.maps[1].size) - size.mean()
        spread = [float(size.std()), float(by_kind["mean"].std())]
        more = [held, *spread, contrast.mean(), size.mean(), self.known.shot]
        return np.array([*top, *more])


__all__ = ["SIZE", "Known", "describe", "stretched"]
