"""What was outlined, drawn over the scan: a PNG, and a page to scroll through that works offline."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medmeta.clinical.measure import Measured, slice_axis

COLOURS = ("#35d0ba", "#ffd23f", "#ff7f5c", "#9d8cff", "#7ccf4f", "#ff8fc7")
SIDE, SLICES = 320, 80
"""Pixels of the longer side and slices of the page at most: about 2 MB."""
_ACROSS = 6
_AXES = ("sagittal", "coronal", "axial")
# left and right edge, lower and upper edge of each view, as radiologists look at them
_EDGES = (("A", "P", "I", "S"), ("R", "L", "I", "S"), ("R", "L", "P", "A"))


def write_preview(
    image: NDArray[np.float32],
    labels: NDArray[np.uint8],
    affine: NDArray[np.float64],
    measured: Mapping[str, Measured],
    file: Path,
) -> None:
    """Draw three views through the largest lesion and slices across all, as PNG; nothing of the patient.

    Args:
        image: ``(x, y, z)`` in any unit.
        labels: the same shape, classes in the order of ``measured`` from 1 up.
        affine: voxel index to RAS mm.
        measured: by class, for the words below.
        file: to write.
    """
    from matplotlib.figure import Figure

    turned, marked, size = _upright(image, labels, affine)
    low, high = _window(turned)
    centre = _centre(marked)
    figure = Figure(figsize=(11, 7.2), facecolor="#101418", layout="constrained")
    parts: Any = figure.subfigures(2, 1, height_ratios=[1.5, 1])
    upper, lower = parts
    for axis, place in zip((2, 1, 0), upper.subplots(1, 3), strict=True):
        _view(place, turned, marked, size, axis, centre[axis], (low, high))
        place.set_title(f"{_AXES[axis]}, slice {centre[axis] + 1}", color="#e8ecef", fontsize=10)
        _edges(place, _EDGES[axis])
    across = _across(affine)
    for index, place in zip(_spread(marked, across), np.ravel(lower.subplots(1, _ACROSS)), strict=True):
        _view(place, turned, marked, size, across, index, (low, high))
        place.set_title(f"{index + 1}", color="#e8ecef", fontsize=8)
    figure.suptitle("\n".join(sentences(measured)), color="#e8ecef", fontsize=11)
    for part in parts:
        part.set_facecolor("#101418")
    figure.savefig(file, format="png", dpi=90, facecolor="#101418", metadata={"Software": "medmeta"})


def sentences(measured: Mapping[str, Measured]) -> list[str]:
    """What was measured, a line a class, in words.

    Example:
        >>> sentences({"glioma": Measured(1.234, 2, 15.0, 18.25, ())})
        ['glioma: 1.23 mL, 2 lesions, longest diameter 15.0 mm (18.2 mm in space). Research use only.']
    """
    said = []
    for name, found in measured.items():
        lesions = f"{found.lesion_count} lesion{'' if found.lesion_count == 1 else 's'}"
        long = f"longest diameter {found.longest_diameter_mm:.1f} mm ({found.longest_diameter_3d_mm:.1f} mm"
        text = (
            f"{found.volume_ml:.3g} mL, {lesions}, {long} in space)" if found.lesion_count else "none found"
        )
        said.append(f"{name}: {text}. Research use only.")
    return said


def _upright(
    image: NDArray[np.float32], labels: NDArray[np.uint8], affine: NDArray[np.float64]
) -> tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.float64]]:
    """Both along the nearest of right, anterior, superior (views, no copies), and the voxels' size."""
    from nibabel.orientations import apply_orientation, io_orientation

    along = io_orientation(affine)
    size = np.empty(3)
    for axis, (target, _) in enumerate(along):
        size[int(target)] = np.linalg.norm(affine[:3, axis])
    return apply_orientation(image, along), apply_orientation(labels, along), size


def _across(affine: NDArray[np.float64]) -> int:
    """The axis across the slices after turning."""
    from nibabel.orientations import io_orientation

    return int(io_orientation(affine)[slice_axis(affine), 0])


def _window(image: NDArray[np.float32]) -> tuple[float, float]:
    step = max(1, round((image.size / 1e6) ** (1 / 3)))
    low, high = np.percentile(image[::step, ::step, ::step], [1, 99.5])
    return float(low), float(max(high, low + 1e-6))


def _centre(marked: NDArray[np.uint8]) -> list[int]:
    """The voxel through which the views go: where most of the outline lies along each axis."""
    sums = [np.count_nonzero(marked, axis=tuple(a for a in range(3) if a != axis)) for axis in range(3)]
    return [int(s.argmax()) if s.any() else len(s) // 2 for s in sums]


def _spread(marked: NDArray[np.uint8], axis: int) -> list[int]:
    """Slices evenly across what is outlined, across the scan where nothing is."""
    there = np.flatnonzero(np.count_nonzero(marked, axis=tuple(a for a in range(3) if a != axis)))
    first, last = (int(there[0]), int(there[-1])) if len(there) else (0, marked.shape[axis] - 1)
    return [round(v) for v in np.linspace(first, last, _ACROSS)]


def plane(volume: NDArray[Any], axis: int, index: int) -> NDArray[Any]:
    """A slice ``(row, column)`` of a volume along right, anterior, superior, as radiologists look at it.

    The patient's right is on the left in axial and coronal views, anterior is on the left in sagittal ones.
    """
    flat = np.take(volume, index, axis).T  # (vertical, horizontal)
    return flat[::-1, ::-1]


def _view(
    place: Any,
    image: NDArray[np.float32],
    marked: NDArray[np.uint8],
    size: NDArray[np.float64],
    axis: int,
    index: int,
    window: tuple[float, float],
) -> None:
    across, up = (size[a] for a in range(3) if a != axis)
    grey = plane(image, axis, index)
    extent = (0, grey.shape[1] * across, 0, grey.shape[0] * up)
    place.imshow(grey, cmap="gray", vmin=window[0], vmax=window[1], extent=extent, interpolation="nearest")
    outlined = plane(marked, axis, index)
    wide = np.pad(outlined, 1)  # so that what touches the border is closed
    xs = (np.arange(wide.shape[1]) - 0.5) * across
    ys = (np.arange(wide.shape[0])[::-1] - 0.5) * up
    for label in np.unique(outlined[outlined > 0]):
        colour = COLOURS[(int(label) - 1) % len(COLOURS)]
        place.contour(xs, ys, wide == label, levels=[0.5], colors=[colour], linewidths=1.2)
    place.set_xlim(extent[:2])
    place.set_ylim(extent[2:])
    place.set_axis_off()


def _edges(place: Any, edges: Sequence[str]) -> None:
    spots = ((0.02, 0.5, "left"), (0.98, 0.5, "right"), (0.5, 0.03, "center"), (0.5, 0.97, "center"))
    for letter, (x, y, side) in zip(edges, spots, strict=True):
        place.text(x, y, letter, color="#ffd23f", ha=side, va="center", fontsize=9, transform=place.transAxes)


def write_page(
    image: NDArray[np.float32],
    labels: NDArray[np.uint8],
    affine: NDArray[np.float64],
    measured: Mapping[str, Measured],
    said: Sequence[str],
    file: Path,
) -> None:
    """Write a page with every slice, the outline switched on and off; one file, no network, no patient.

    Args:
        image, labels, affine, measured: as :func:`write_preview` takes them.
        said: further lines, plain text.
        file: to write.
    """
    from jinja2 import Environment

    turned, marked, size = _upright(image, labels, affine)
    axis = _across(affine)
    step = math.ceil(turned.shape[axis] / SLICES)
    shown = list(range(0, turned.shape[axis], step))
    low, high = _window(turned)
    greys, lines = [], []
    for index in shown:
        grey = (np.clip((plane(turned, axis, index) - low) / (high - low), 0, 1) * 255).astype(np.uint8)
        thick = np.take(marked, range(index, min(index + step, marked.shape[axis])), axis).max(axis)
        greys.append(_sized(grey, size, axis, "L"))
        lines.append(_outline(_sized(plane(thick[None], 0, 0), size, axis, "L", nearest=True)))
    counts = [int(np.count_nonzero(line[..., 3])) for line in lines]
    film = {
        "width": greys[0].shape[1],
        "height": greys[0].shape[0],
        "count": len(shown),
        "step": step,
        "start": int(np.argmax(counts)) if any(counts) else len(shown) // 2,
        "grey": _data(np.concatenate(greys), "JPEG", quality=85),
        "lines": _data(np.concatenate(lines), "PNG", optimize=True),
    }
    template = resources.files("medmeta.clinical").joinpath("templates/preview.html.j2").read_text("utf-8")
    names = [(name, COLOURS[n % len(COLOURS)]) for n, name in enumerate(measured)]
    page = Environment(autoescape=True).from_string(template)
    words = {"lines": [*sentences(measured), *said], "edges": _EDGES[axis], "view": _AXES[axis]}
    file.write_text(page.render(film=film, names=names, **words), encoding="utf-8")


def _sized(
    flat: NDArray[np.uint8], size: NDArray[np.float64], axis: int, mode: str, *, nearest: bool = False
) -> NDArray[np.uint8]:
    """A slice with square pixels, at most :data:`SIDE` a side."""
    from PIL import Image

    across, up = (size[a] for a in range(3) if a != axis)
    width, height = flat.shape[1] * across, flat.shape[0] * up
    scale = SIDE / max(width, height)
    shape = (max(1, round(width * scale)), max(1, round(height * scale)))
    how = Image.Resampling.NEAREST if nearest else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(np.ascontiguousarray(flat), mode).resize(shape, how))


def _outline(labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The border of every class, inside it, as RGBA."""
    from matplotlib.colors import to_rgb
    from scipy.ndimage import binary_erosion

    drawn = np.zeros((*labels.shape, 4), np.uint8)
    for label in np.unique(labels[labels > 0]):
        mask = labels == label
        border = mask & ~binary_erosion(mask)
        colour = to_rgb(COLOURS[(int(label) - 1) % len(COLOURS)])
        drawn[border] = (*(round(255 * c) for c in colour), 255)
    return drawn


def _data(pixels: NDArray[np.uint8], kind: str, **options: Any) -> str:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"
