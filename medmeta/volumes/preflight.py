"""Whether the files of one series are one volume, decided from their headers before a pixel is decoded.

Every refusal here is a fact that common readers pass over in silence: they sort by instance number, take
the first two positions for all, and stack what they get.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medmeta.volumes.decoders import missing_decoder
from medmeta.volumes.dicom_header import Header
from medmeta.volumes.dicom_slices import Slice
from medmeta.volumes.errors import VolumeError
from medmeta.volumes.patients import settle
from medmeta.volumes.scan import LPS_TO_RAS

# slices may lie off their even place by this part of their spacing (rounded header values do)
JITTER = 0.01
# cosines in headers are rounded to about six digits
_COSINE = 1e-3
# nothing of a patient lies a kilometre away (mm)
_FAR = 1e6
_COLOUR = ("RGB", "PALETTE", "YBR", "ARGB", "CMYK", "HSV")


class Plane(NamedTuple):
    """A slice with the file it lies in."""

    header: Header
    slice: Slice


@dataclass(frozen=True)
class Stack:
    """A series that passed.

    Args:
        planes: in the order of the third axis.
        shape: ``(x, y, z)``: columns, rows, slices.
        affine: ``(4, 4)`` voxel index to RAS mm.
        warnings: what was accepted and is worth knowing.
    """

    planes: tuple[Plane, ...]
    shape: tuple[int, int, int]
    affine: NDArray[np.float64]
    warnings: tuple[str, ...]

    @property
    def header(self) -> Header:
        """A header that speaks for all."""
        return self.planes[0].header


def preflight(headers: Sequence[Header]) -> Stack:
    """Check one series and put its slices in order along their normal.

    Raises:
        VolumeError: with the first reason found not to read it.
    """
    warnings: list[str] = []
    headers = _once(headers, warnings)
    for header in headers:
        _file(header)
    planes = [Plane(header, slice) for header in headers for slice in header.slices]
    _kinds(headers)
    _geometry_is_there(planes)
    axes = _orientation(planes)
    _same(planes, "PixelSpacing", lambda p: tuple(round(v, 4) for v in p.slice.spacing), "mixed-series")
    _one_of(planes)
    planes, positions = _along_normal(planes, axes)
    step = _stacked(planes, positions, axes, warnings)
    affine = np.eye(4)
    rows, columns = planes[0].slice.spacing[:2]
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = axes[0] * columns, axes[1] * rows, step
    affine[:3, 3] = positions[0]
    first = planes[0].header
    for header in headers:
        warnings += [w for w in (*header.warnings, header.unit.warning) if w]
    unique = tuple(dict.fromkeys(warnings))
    return Stack(tuple(planes), (first.columns, first.rows, len(planes)), LPS_TO_RAS @ affine, unique)


# -- one file ------------------------------------------------------------------------------------------


def _once(headers: Sequence[Header], warnings: list[str]) -> list[Header]:
    """Each instance once; the same SOPInstanceUID twice is a copy."""
    kept: dict[str, Header] = {}
    for number, header in enumerate(headers):
        other = kept.setdefault(header.sop_instance or str(number), header)
        if other is not header and _content(other) != _content(header):
            raise VolumeError(
                "doubled-slice", found="two different files of one SOPInstanceUID", where=header.path
            )
    dropped = len(headers) - len(kept)
    if dropped:
        warnings.append(f"{dropped} file(s) there twice: one of each is used")
    return list(kept.values())


def _content(header: Header) -> tuple:
    return (header.slices, header.rows, header.columns, header.pixel_bytes, header.syntax)


def _file(header: Header) -> None:
    """What can be wrong with one file alone."""
    where = header.path
    if header.is_mask:
        raise VolumeError("not-an-image", found="a segmentation", where=where, cure="Use load_mask for it.")
    if any(kind in header.photometric for kind in _COLOUR) or header.samples != 1:
        raise VolumeError("colour", found=header.photometric or f"{header.samples} samples", where=where)
    if "MOSAIC" in header.image_type or "VFRAME" in header.image_type:
        raise VolumeError("mosaic", found="a mosaic of slices in one image", where=where)
    if not header.slices:
        raise VolumeError("bad-header", found="no frames", where=where)
    if header.frames != len(header.slices):
        found = f"{header.frames} frames and the place of {len(header.slices)}"
        code = "bad-header" if header.multiframe else "missing-position"
        raise VolumeError(code, found=found, where=where)
    if header.transformed:
        raise VolumeError("unsupported-pixels", found="a modality look-up table", where=where)
    _pixels(header)


def _pixels(header: Header) -> None:
    where = header.path
    if header.rows < 1 or header.columns < 1:
        raise VolumeError("bad-header", found=f"{header.rows} x {header.columns} voxels", where=where)
    if header.pixel_bytes is None:
        raise VolumeError("missing-pixels", found="no pixel data", where=where)
    stored, allocated = header.bits_stored, header.bits_allocated
    if allocated not in (8, 16, 32) or not 1 <= stored <= allocated or header.high_bit != stored - 1:
        found = f"{stored} bits stored of {allocated}, high bit {header.high_bit}"
        raise VolumeError("unsupported-pixels", found=found, where=where)
    package = missing_decoder(header.syntax)
    if package:
        raise VolumeError("missing-decoder", found=f"transfer syntax {header.syntax}", cure=package)
    if header.bytes_left is None:
        return
    needed = header.rows * header.columns * header.frames * allocated // 8
    if header.pixel_bytes == -1 or header.syntax not in NATIVE:
        if header.bytes_left < 16:
            raise VolumeError("truncated-pixels", found="no compressed data", where=where)
    elif min(header.pixel_bytes, header.bytes_left) < needed:
        found = f"{min(header.pixel_bytes, header.bytes_left)} of {needed} bytes"
        raise VolumeError("truncated-pixels", found=found, where=where)


NATIVE = frozenset(
    {"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"}
)


# -- all files ------------------------------------------------------------------------------------------


def _same(planes: Sequence[Plane], what: str, of: Callable[[Plane], Any], code: str) -> None:
    """All planes have one value."""
    counts = Counter(of(plane) for plane in planes)
    if len(counts) > 1:
        raise VolumeError(code, found=f"{len(counts)} kinds of {what}", where=planes[0].header.path.parent)


def _kinds(headers: Sequence[Header]) -> None:
    planes = [Plane(header, header.slices[0]) for header in settle(headers)]
    kinds: list[tuple[str, Callable[[Plane], Any]]] = [
        ("patient", lambda p: p.header.patient),
        ("SOP class", lambda p: p.header.sop_class),
        ("modality", lambda p: p.header.modality),
        ("frame of reference", lambda p: p.header.frame_of_reference),
        ("matrix", lambda p: (p.header.rows, p.header.columns)),
        ("photometric interpretation", lambda p: p.header.photometric),
        ("unit", lambda p: (p.header.unit.name, round(math.log(abs(p.header.unit.factor) or 1.0), 4))),
    ]
    for what, of in kinds:
        _same(planes, what, of, "mixed-series")


def _geometry_is_there(planes: Sequence[Plane]) -> None:
    for header, slice in planes:
        if len(slice.position) != 3 or not all(abs(v) < _FAR for v in slice.position):
            raise VolumeError("missing-position", found="none that is valid", where=header.path)
        if len(slice.orientation) != 6 or not all(abs(v) < 2 for v in slice.orientation):
            raise VolumeError("missing-orientation", found="none that is valid", where=header.path)
        size = slice.spacing
        if len(size) != 2 or not all(1e-6 < v < _FAR for v in size):
            raise VolumeError("missing-spacing", found="none that is valid", where=header.path)
        if not (abs(slice.slope) < 1e30 and abs(slice.intercept) < 1e30) or slice.slope == 0:
            raise VolumeError("bad-rescale", found=f"{slice.slope} and {slice.intercept}", where=header.path)


def _orientation(planes: Sequence[Plane]) -> NDArray[np.float64]:
    """Unit vectors ``(3, 3)``: along a row, along a column, along the normal (LPS)."""
    all_axes = np.array([plane.slice.orientation for plane in planes]).reshape(-1, 2, 3)
    norms = np.linalg.norm(all_axes, axis=2)
    angles = np.abs(np.einsum("nk,nk->n", all_axes[:, 0], all_axes[:, 1]))
    if np.abs(norms - 1).max() > _COSINE or angles.max() > _COSINE:
        found = "directions that are not of length 1 and at right angles"
        raise VolumeError("missing-orientation", found=found, where=planes[0].header.path)
    apart = np.abs(all_axes - all_axes[0]).max()
    if apart > _COSINE:
        kinds = len({tuple(np.round(axes.ravel(), 2)) for axes in all_axes})
        found = f"{max(kinds, 2)} orientations"
        raise VolumeError("localizer", found=found, where=planes[0].header.path.parent)
    row, column = all_axes[0]
    row = row / np.linalg.norm(row)
    column = column - row * (row @ column)
    column = column / np.linalg.norm(column)
    return np.stack([row, column, np.cross(row, column)])


_APART: tuple[tuple[str, str, str], ...] = (
    ("echo", "several-echoes", "echoes"),
    ("direction", "several-directions", "diffusion weightings"),
    ("component", "several-components", "components"),
)


def _one_of(planes: Sequence[Plane]) -> None:
    """One echo, one weighting, one component, one stack."""
    where = planes[0].header.path.parent
    for name, code, what in _APART:
        kinds = {getattr(plane.slice, name) for plane in planes}
        if len(kinds) > 1:
            raise VolumeError(code, found=f"{len(kinds)} {what}", where=where)
    times = {plane.slice.time for plane in planes}
    if len(times) > 1 and len(times) != len(planes):
        # where each slice has one of its own, it is a running number, not a time point
        raise VolumeError("several-times", found=f"{len(times)} time points", where=where)
    if len({plane.slice.stack for plane in planes}) > 1:
        raise VolumeError("mixed-series", found="several stacks of slices", where=where)


# -- slices in their places -----------------------------------------------------------------------------


def _along_normal(
    planes: Sequence[Plane], axes: NDArray[np.float64]
) -> tuple[list[Plane], NDArray[np.float64]]:
    """Planes sorted along the normal, and their positions ``(n, 3)``."""
    positions = np.array([plane.slice.position for plane in planes], dtype=np.float64)
    order = np.argsort(positions @ axes[2], kind="stable")
    return [planes[i] for i in order], positions[order]


def _stacked(
    planes: Sequence[Plane], positions: NDArray[np.float64], axes: NDArray[np.float64], warnings: list[str]
) -> NDArray[np.float64]:
    """The step from slice to slice (mm, LPS).

    Raises:
        VolumeError: where the slices are not evenly stacked along their normal.
    """
    first = planes[0]
    where = first.header.path.parent
    if len(planes) == 1:
        if not first.slice.thickness or not 0 < first.slice.thickness < math.inf:
            warnings.append("one slice of unknown thickness: 1 mm is assumed")
        else:
            warnings.append("one slice only")
        thickness = first.slice.thickness or 1.0
        return axes[2] * (thickness if 0 < thickness < math.inf else 1.0)
    heights = positions @ axes[2]
    steps = np.diff(heights)
    typical = float(np.median(steps[steps > 1e-3])) if (steps > 1e-3).any() else 1.0
    _not_doubled(planes, steps, typical)
    count = len(planes) - 1
    even = (heights[-1] - heights[0]) / count
    off = np.abs(heights - heights[0] - even * np.arange(count + 1)).max()
    limit = max(JITTER * even, 1e-3)
    if off > limit:
        _uneven(steps, where)
    _not_sheared(first.header, positions, heights, axes, limit)
    told = first.slice.thickness
    if told and math.isfinite(told) and even > 1.5 * told:
        warnings.append(f"slices {even:.4g} mm apart, by the header {told:.4g} mm thick: gaps between them")
    return axes[2] * even


def _not_doubled(planes: Sequence[Plane], steps: NDArray[np.float64], typical: float) -> None:
    doubled = int((steps <= max(JITTER * typical, 1e-3)).sum())
    if not doubled:
        return
    where = planes[0].header.path.parent
    ends = np.flatnonzero(steps > max(JITTER * typical, 1e-3))
    each = np.diff(np.concatenate([[-1], ends, [len(steps)]]))  # slices in each place
    found = f"{len(planes)} slices in {len(each)} place(s)"
    if each.min() == each.max():  # the whole stack again and again, told apart by a tag or not
        raise VolumeError("several-times", found=found, where=where)
    moments = {(plane.slice.time, plane.slice.moment) for plane in planes}
    if each.min() > 1 and len(moments) > 1:
        raise VolumeError("several-times", found=found, where=where)
    raise VolumeError("doubled-slice", found=found, where=where)


def _uneven(steps: NDArray[np.float64], where: Any) -> None:
    least = float(np.median(steps[steps < 1.5 * steps.min()]))
    times = steps / least
    gaps = int((np.round(times) > 1).sum())
    if gaps and np.abs(times - np.round(times)).max() < 0.1:
        lost = int(np.round(times).sum()) - len(steps)
        found = f"{lost} missing in {gaps} gap(s) of {len(steps) + 1} slices"
        raise VolumeError("missing-slice", found=found, where=where)
    found = f"steps from {steps.min():.4g} to {steps.max():.4g} mm"
    raise VolumeError("uneven-spacing", found=found, where=where)


def _not_sheared(
    header: Header,
    positions: NDArray[np.float64],
    heights: NDArray[np.float64],
    axes: NDArray[np.float64],
    limit: float,
) -> None:
    where = header.path.parent
    flat = (positions - positions[0]) @ axes[:2].T  # in-plane shift of each slice
    if np.abs(flat).max() > limit:
        rise = heights - heights[0]
        slope = (rise @ flat) / (rise @ rise)
        if np.abs(flat - rise[:, None] * slope).max() <= limit:
            angle = math.degrees(math.atan(float(np.linalg.norm(slope))))
            raise VolumeError("tilted-gantry", found=f"slices sheared by {angle:.1f} degrees", where=where)
        found = f"slices up to {np.abs(flat).max():.4g} mm out of the stack"
        raise VolumeError("shifted-slice", found=found, where=where)
    if abs(header.tilt) > 0.5 and header.modality == "CT" and abs(axes[2][2]) > math.cos(math.radians(0.25)):
        found = f"a gantry tilt of {header.tilt:g} degrees that the orientation does not show"
        raise VolumeError("tilted-gantry", found=found, where=where)
