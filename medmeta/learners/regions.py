"""Regions that could be the tumour: pieces of evidence above a level, and what can be said of each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medmeta.learners.body import Maps, Mask

LEVELS = (-0.3, 0.0, 0.25, 0.5, 0.75, 1.0, 1.3, 1.7)
"""Halved log-odds at which evidence is cut: from 35 to 97 in a hundred."""
PIECES = 4
"""Most pieces of a cut that are looked at, those for which most speaks."""
FEWEST, LARGEST = 3, 0.5
"""Voxels of the smallest region, and share of the image of the largest."""
AROUND = 3
"""Voxels that the surroundings of a region reach."""


@dataclass(frozen=True)
class Region:
    """A piece of evidence above a level, its holes filled.

    Args:
        mask: ``(*voxel)``.
        source: which map it was cut from.
        level: at which it was cut.
        rank: 0 for the piece of that cut for which most speaks.
        part: of what speaks for all pieces of that cut.
    """

    mask: Mask
    source: int
    level: float
    rank: int
    part: float


def sources(odds: Maps) -> Maps:
    """Smoothed maps that regions are cut from: two means, one wider, and each speaker's.

    Args:
        odds: ``(speakers, *voxel)``, of which the first two are trees'.

    Returns:
        ``(3 + speakers, *voxel)``.
    """

    def smooth(one: Maps, width: float) -> Maps:
        return np.asarray(ndimage.gaussian_filter(one, width), np.float32)

    trees = odds[:2].mean(0)
    return np.stack(
        [smooth(trees, 1.0), smooth(odds.mean(0), 1.0), smooth(trees, 2.5), *(smooth(o, 1.0) for o in odds)]
    )


def regions(maps: Maps) -> list[Region]:
    """Cut every map at every level and keep each region once.

    Args:
        maps: ``(maps, *voxel)`` of :func:`sources`.

    Example:
        >>> blob = np.full((1, 16, 16), -1.0, np.float32)
        >>> blob[0, 4:8, 4:8] = 2
        >>> [(r.level, int(r.mask.sum())) for r in regions(blob)]
        [(-0.3, 16)]
    """
    made: dict[bytes, Region] = {}
    for source, own in enumerate(maps):
        for level in LEVELS:
            for region in _cut(own, source, level):
                made.setdefault(np.packbits(region.mask).tobytes(), region)
    return list(made.values())


def _cut(own: Maps, source: int, level: float) -> Iterator[Region]:
    pieces, count = ndimage.label(own > level)
    if not count:
        return
    speaks = ndimage.sum(own - level + 0.05, pieces, np.arange(1, count + 1))
    total = float(speaks.sum())
    boxes = ndimage.find_objects(pieces)
    for rank, piece in enumerate(np.argsort(-speaks, kind="stable")[:PIECES]):
        box = boxes[piece]
        filled = ndimage.binary_fill_holes(pieces[box] == piece + 1)  # a hole never reaches the box's sides
        if FEWEST <= filled.sum() <= LARGEST * own.size:
            mask = np.zeros(own.shape, bool)
            mask[box] = filled
            yield Region(mask, source, level, rank, float(speaks[piece]) / total)


@dataclass(frozen=True)
class Shape:
    """What a region is like, whatever it was cut from.

    Args:
        size: logarithm of its share of the image.
        round: 1 for a square or cube, less for a ragged or long region.
        filled: share of its bounding box.
        long: logarithm of the longest side over the shortest.
        mean, spread, middle, around: intensity inside (mean, deviation, median), and mean about it.
        contrast: mean inside beyond that about it, and the same in units of spreads.
        edge, inner: slope of the intensity on its border and inside, over that of the image.
        border: share of the image's sides that it touches.
        place: its middle, 0 to 1 along each axis.
    """

    size: float
    round: float
    filled: float
    long: float
    mean: float
    spread: float
    contrast: float
    contrast_in_spreads: float
    edge: float
    border: float
    middle: float
    around: float
    inner: float
    place: tuple[float, ...]

    def values(self) -> NDArray[np.float64]:
        """All but the place, in the order of :data:`KINDS`."""
        return np.array([getattr(self, kind) for kind in KINDS])


KINDS = tuple(f.name for f in fields(Shape) if f.name != "place")
"""What of a shape is one number."""


@dataclass(frozen=True)
class Picture:
    """What shapes are measured on: one channel and its slope, ``(*voxel)`` each."""

    image: Maps
    slope: Maps
    spread: float
    mean_slope: float

    @staticmethod
    def of(image: Maps) -> Picture:
        slope = ndimage.gaussian_gradient_magnitude(image, 1)
        return Picture(image, slope, float(image.std()), float(slope.mean()) + 1e-6)


@dataclass(frozen=True)
class Site:
    """A region and what is about it, cut out of the image.

    Args:
        shape: of the whole image.
        box: the region's bounding box.
        where: the part of the image that is cut out.
        inside: the region, there.
        about: its surroundings, there.
    """

    shape: tuple[int, ...]
    box: tuple[slice, ...]
    where: tuple[slice, ...]
    inside: Mask
    about: Mask

    @staticmethod
    def of(mask: Mask) -> Site:
        """Find a region that is not empty."""
        box = ndimage.find_objects(mask.astype(np.int8))[0]
        where = tuple(slice(max(0, s.start - AROUND - 2), s.stop + AROUND + 2) for s in box)
        inside = mask[where]
        about = _grown(inside, AROUND) & ~_grown(inside, 1)
        if not about.any():
            about = ~inside if not inside.all() else inside
        return Site(mask.shape, box, where, inside, about)


def _grown(mask: Mask, by: int) -> Mask:
    """Dilated by a block of ``2 * by + 1`` voxels; the highest value, axis by axis, is quicker."""
    return ndimage.maximum_filter(mask.view(np.uint8), 2 * by + 1, mode="constant").view(bool)


def shape_of(site: Site, picture: Picture) -> Shape:
    """Measure a region."""
    where, inside, about = site.where, site.inside, site.about
    size, axes = int(inside.sum()), inside.ndim
    faces = sum(int(np.diff(inside, axis=a).sum()) for a in range(axes))
    sides = [s.stop - s.start for s in site.box]
    rim = inside & _grown(~inside, 1)
    values, beside = picture.image[where][inside], picture.image[where][about]
    slope = picture.slope[where]
    apart = float(values.mean() - beside.mean())
    unit = float(picture.spread * 0.3 + beside.std() + values.std()) + 1e-6
    touched = sum((s.start == 0) + (s.stop == n) for s, n in zip(site.box, site.shape, strict=True))
    return Shape(
        size=float(np.log(size / np.prod(site.shape))),
        round=2 * axes * size ** ((axes - 1) / axes) / max(1, faces),
        filled=size / float(np.prod(sides)),
        long=float(np.log(max(sides) / min(sides))),
        mean=float(values.mean()),
        spread=float(values.std()),
        contrast=apart,
        contrast_in_spreads=apart / unit,
        edge=float(slope[rim].mean()) / picture.mean_slope if rim.any() else 0.0,
        border=touched / (2 * axes),
        middle=float(np.median(values)),
        around=float(beside.mean()),
        inner=float(slope[inside].mean()) / picture.mean_slope,
        place=tuple(
            (float(c.mean()) + w.start) / n
            for c, w, n in zip(np.nonzero(inside), where, site.shape, strict=True)
        ),
    )


__all__ = ["KINDS", "Picture", "Region", "Shape", "Site", "regions", "shape_of", "sources"]
