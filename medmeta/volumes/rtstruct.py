"""RTSTRUCT: closed planar contours drawn on an image's slices."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from medmeta.volumes.errors import VolumeError
from medmeta.volumes.quiet import quiet
from medmeta.volumes.scan import LPS_TO_RAS
from medmeta.volumes.tags import first, items, numbers, text, whole

_LOG = logging.getLogger("medmeta.volumes")

# a contour may lie off its slice by this part of the slice's step: planning systems round to 0.1 mm
OFF_PLANE = 0.1
# coordinates are written to 0.01 mm or finer
_SAME = 0.01
CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")


@dataclass(frozen=True)
class Region:
    """One region of interest.

    Args:
        number: ROINumber.
        name: ROIName.
        kinds: ContourGeometricType of each contour.
        contours: ``(n, 3)`` mm, RAS.
    """

    number: int
    name: str
    kinds: tuple[str, ...]
    contours: tuple[NDArray[np.float64], ...]

    @property
    def closed(self) -> bool:
        """Whether it is something to fill: isocentres, marks and regions never drawn are listed beside."""
        return bool(self.kinds) and all(kind in CLOSED for kind in self.kinds)


def read_contours(path: Path) -> tuple[Region, ...]:
    """Read all regions of a file.

    Raises:
        VolumeError: where it cannot be parsed or a contour's data are no points.
    """
    try:
        with quiet():
            ds = pydicom.dcmread(path, force=True)
            names = {whole(item, 0x30060022, -1): text(item, 0x30060026) for item in items(ds, 0x30060020)}
            return tuple(_region(item, names, path) for item in items(ds, 0x30060039))
    except (VolumeError, MemoryError):
        raise
    except FileNotFoundError:
        raise VolumeError("not-found", found="a file that has gone", where=path) from None
    except Exception as error:  # noqa: BLE001 - a damaged file can raise anything in the parser
        raise VolumeError("bad-header", found=f"{type(error).__name__} on parsing", where=path) from None


def _region(item: Dataset, names: dict[int, str], path: Path) -> Region:
    number = whole(item, 0x30060084, -1)
    if number not in names:
        raise VolumeError("bad-header", found="contours of a region that is not listed", where=path)
    kinds: list[str] = []
    contours: list[NDArray[np.float64]] = []
    for contour in items(item, 0x30060040):
        values = numbers(contour, 0x30060050)
        if len(values) % 3 or not values or not np.isfinite(values).all():
            raise VolumeError("bad-contour", found="data that are no points", where=path)
        if first(contour, 0x30060045) is not None:
            raise VolumeError("bad-contour", found="a contour with an offset vector", where=path)
        points = np.array(values, np.float64).reshape(-1, 3) * np.diag(LPS_TO_RAS)[:3]
        kinds.append(text(contour, 0x30060042).upper())
        contours.append(points)
    return Region(number, names[number], tuple(kinds), tuple(contours))


def draw(
    regions: Sequence[Region], like: NDArray[np.float64], shape: tuple[int, int, int], path: Path
) -> NDArray[np.int32]:
    """Fill the contours on an image's grid: a voxel belongs to a region where its centre lies inside.

    Contours of one region on one slice are combined by the even-odd rule, so that an inner one is a hole;
    planning systems write holes so, whatever the kind. A closed contour that is there twice is a copy: only
    kind ``CLOSEDPLANAR_XOR`` says that the second takes away what the first gave (PS3.3, C.8.8.6.3).

    Args:
        regions: what to draw.
        like: affine of the image, RAS mm.
        shape: ``(x, y, z)`` of the image.
        path: the contours' file, for the refusal.

    Returns:
        ``(x, y, z)`` region numbers.

    Raises:
        VolumeError: ``bad-contour`` (open, of points, of fewer than three points, off the slices, outside the
            image), ``overlapping-segments``.
    """
    out = np.zeros(shape, dtype=np.int32)
    back: NDArray[np.float64] = np.linalg.inv(like).astype(np.float64)
    for region in regions:
        if not region.contours:
            continue
        voxels = [_voxels(kind, points, back, path) for kind, points in _once(region)]
        axis = _slice_axis(voxels)
        filled = np.zeros(shape, dtype=bool)
        drawn = {_fill(points, axis, filled, path) for points in voxels}
        _say_gaps(drawn, path)
        if (filled & (out > 0)).any():
            raise VolumeError("overlapping-segments", found="voxels of two regions", where=path)
        out[filled] = region.number
    return out


def _once(region: Region) -> Iterator[tuple[str, NDArray[np.float64]]]:
    """Kind and points of each contour, copies left out, from wherever and whichever way round they run."""
    seen: set[bytes] = set()
    for kind, points in zip(region.kinds, region.contours, strict=True):
        corners = np.unique(np.rint(points / _SAME) + 0.0, axis=0).tobytes()
        if kind == "CLOSED_PLANAR" and corners in seen:
            continue
        seen.add(corners)
        yield kind, points


def _voxels(
    kind: str, points: NDArray[np.float64], back: NDArray[np.float64], path: Path
) -> NDArray[np.float64]:
    if kind not in CLOSED:
        raise VolumeError("bad-contour", found=f"a contour of kind {kind[:20] or 'unknown'!r}", where=path)
    if len(points) < 3:
        raise VolumeError("bad-contour", found=f"a contour of {len(points)} point(s)", where=path)
    return points @ back[:3, :3].T + back[:3, 3]


def _slice_axis(voxels: Sequence[NDArray[np.float64]]) -> int:
    """The axis of the image along which no contour extends."""
    spread = np.array([np.ptp(points, axis=0) for points in voxels]).max(axis=0)
    # a tiny contour may be flat in two axes; the later axis is the slices' in all that we load from DICOM
    return int(2 - np.argmin(spread[::-1] - 1e-6 * np.array([2, 1, 0])))


def _say_gaps(drawn: set[int], path: Path) -> None:
    """Log where a region is drawn on every second slice or fewer: what lies between is not filled."""
    steps = np.diff(sorted(drawn))
    if len(steps) > 1 and np.median(steps) > 1:
        _LOG.warning(
            "%s: contours on one slice in %d: those between stay empty; interpolate the contours where they"
            " were drawn",
            path.name,
            int(np.median(steps)),
        )


def _fill(points: NDArray[np.float64], axis: int, filled: NDArray[np.bool_], path: Path) -> int:
    """Fill one contour; gives the slice it lies on."""
    place = float(np.median(points[:, axis]))
    index = round(place)
    off = float(np.abs(points[:, axis] - index).max())
    if off > OFF_PLANE:
        found = f"a contour {off:.2f} of a slice's step off its slice"
        raise VolumeError("bad-contour", found=found, where=path)
    if not 0 <= index < filled.shape[axis]:
        raise VolumeError("bad-contour", found="a contour outside the image", where=path)
    plane = np.moveaxis(filled, axis, 0)[index]
    flat = np.delete(points, axis, axis=1)
    if flat.min() < -1 or (flat.max(axis=0) > np.array(plane.shape)).any():
        raise VolumeError("bad-contour", found="a contour outside the image", where=path)
    plane ^= inside(flat, plane.shape)
    return index


def inside(polygon: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Which voxel centres lie in a polygon, by the even-odd rule.

    Each edge flips all voxels beyond its crossing with their line; a running parity then fills.

    Args:
        polygon: ``(n, 2)`` in voxels, closed from the last point to the first.
        shape: of the plane.

    Example:
        >>> square = np.array([[0.5, 0.5], [2.5, 0.5], [2.5, 2.5], [0.5, 2.5]])
        >>> inside(square, (4, 4)).astype(int).tolist()
        [[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
    """
    flips = np.zeros((shape[0] + 1, shape[1]), dtype=np.int64)
    ends = np.roll(polygon, -1, axis=0)
    low, high = np.minimum(polygon[:, 1], ends[:, 1]), np.maximum(polygon[:, 1], ends[:, 1])
    start = np.clip(np.ceil(low).astype(int), 0, shape[1])
    counts = np.maximum(np.clip(np.ceil(high).astype(int), 0, shape[1]) - start, 0)
    edge = np.repeat(np.arange(len(polygon)), counts)
    line = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts) + start[edge]
    rise = ends[edge, 1] - polygon[edge, 1]
    part = (line - polygon[edge, 1]) / rise
    cross = polygon[edge, 0] + part * (ends[edge, 0] - polygon[edge, 0])
    np.add.at(flips, (np.clip(np.ceil(cross).astype(int), 0, shape[0]), line), 1)
    return np.cumsum(flips[:-1], axis=0) % 2 == 1
