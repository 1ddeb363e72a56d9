"""Whole judged scans, small enough to stand in the page: every slice, truth and predictions."""

from __future__ import annotations

import base64
import io
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from medmeta.volumes import Volume
from medmeta.volumes.reading import read_image

SIDE, SLICES = 176, 40
"""Pixels of the longer side and slices of a film at most: about 0.3 MB a scan in the page."""
TRUTH_BIT, FOUND_BIT = 1, 2


@dataclass(frozen=True)
class Reel:
    """Truth and prediction of a judged scan on its own grid, packed; a few kB, so that all can be kept.

    Args:
        volume: the scan; its file is read again where a film is made. Never written anywhere.
        shape: ``(x, y, z)``.
        spacing: mm of a voxel along each axis.
        truth, found: bits, deflated.
    """

    volume: Volume
    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    truth: bytes
    found: bytes

    def masks(self) -> tuple[Tensor, Tensor]:
        """Truth and prediction, boolean ``(x, y, z)``."""
        made = []
        for bits in (self.truth, self.found):
            flat = np.unpackbits(np.frombuffer(zlib.decompress(bits), np.uint8), count=math.prod(self.shape))
            made.append(torch.from_numpy(flat.reshape(self.shape)) > 0)
        return made[0], made[1]


def reel(volume: Volume, truth: Tensor, found: Tensor, spacing: Sequence[float]) -> Reel:
    """Pack truth and prediction, boolean ``(x, y, z)``, of a judged scan.

    Example:
        >>> truth = torch.rand(5, 6, 7) > 0.5
        >>> kept = reel(Volume("someone", ()), truth, ~truth, (1.0, 1.0, 2.0))
        >>> torch.equal(kept.masks()[0], truth), torch.equal(kept.masks()[1], ~truth)
        (True, True)
    """
    bits = [zlib.compress(np.packbits(m.numpy()).tobytes(), 1) for m in (truth, found)]
    return Reel(volume, tuple(truth.shape), tuple(spacing), bits[0], bits[1])


@dataclass(frozen=True)
class Film:
    """The slices of a scan below each other, compressed.

    Args:
        image: JPEG, ``rows × count`` high and ``columns`` wide, windowed to the 1st and 99.5th percentile.
        masks: by method, a PNG of the same size: bit 1 where the truth is, bit 2 where the prediction is.
        rows, columns, count: of a slice, and the number of slices.
        aspect: height of a pixel over its width, in mm.
        start: the slice that shows most of the truth; of the first prediction where there is no truth.
        step: native slices from one slice of the film to the next.
    """

    image: bytes
    masks: Mapping[str, bytes]
    rows: int
    columns: int
    count: int
    aspect: float
    start: int
    step: int

    def to_json(self) -> dict[str, Any]:
        """What the page's script reads."""
        about = {name: getattr(self, name) for name in ("rows", "columns", "count", "start", "step")}
        return about | {
            "aspect": round(self.aspect, 4),
            "image": "data:image/jpeg;base64," + base64.b64encode(self.image).decode(),
            "masks": {
                name: "data:image/png;base64," + base64.b64encode(png).decode()
                for name, png in self.masks.items()
            },
        }


def film_of(reels: Mapping[str, Reel]) -> Film:
    """The film of one scan with what several methods found in it."""
    first = next(iter(reels.values()))
    image = read_image(first.volume).as_tensor()[0]
    found = {name: one.masks()[1] for name, one in reels.items()}
    return film(image, first.masks()[0], found, first.spacing)


def slice_axis(shape: Sequence[int], spacing: Sequence[float]) -> int:
    """The axis across the slices: the one of a single voxel, else the one with the thickest voxels."""
    return list(shape).index(1) if 1 in shape else max(range(3), key=lambda a: spacing[a])


def film(image: Tensor, truth: Tensor, found: Mapping[str, Tensor], spacing: Sequence[float]) -> Film:
    """Make a film of a scan, in at most :data:`SLICES` slices of at most :data:`SIDE` pixels a side.

    Args:
        image: ``(x, y, z)``, any unit.
        truth: boolean, the same shape; a pixel of the film is in where any voxel that it covers is.
        found: what each method found, likewise.
        spacing: mm of a voxel along each axis.

    Example:
        >>> ball = torch.zeros(20, 30, 100, dtype=torch.bool); ball[5:9, 5:9, 50:60] = True
        >>> made = film(torch.rand(20, 30, 100), ball, {"a": ball}, (1.0, 1.0, 3.0))
        >>> made.columns, made.rows, made.count, made.step, made.start
        (20, 30, 34, 3, 16)
    """
    axis = slice_axis(image.shape, spacing)
    planes = torch.as_tensor(image).float().movedim(axis, 0)
    step = math.ceil(len(planes) / SLICES)
    count = math.ceil(len(planes) / step)
    shrink = max(1.0, max(planes.shape[1:]) / SIDE)
    size = [max(1, round(n / shrink)) for n in planes.shape[1:]]
    chosen = planes[(torch.arange(count) * step + step // 2).clamp(max=len(planes) - 1)]
    grey = F.interpolate(chosen[:, None], size=size, mode="area")[:, 0]
    low, high = np.percentile(grey.numpy(), [1, 99.5])
    pixels = ((grey - low) / max(high - low, 1e-6)).clamp(0, 1).mul(255).round().byte()
    true = _shrunk(truth.movedim(axis, 0), step, size)
    guesses = {name: _shrunk(mask.movedim(axis, 0), step, size) for name, mask in found.items()}
    shown = next((m for m in (true, *guesses.values()) if bool(m.any())), None)
    rest = [s for a, s in enumerate(spacing) if a != axis]
    return Film(
        _encoded(_strip(pixels), "JPEG", quality=80),
        {
            name: _encoded(_strip(TRUTH_BIT * true.byte() + FOUND_BIT * mask.byte()), "PNG", optimize=True)
            for name, mask in guesses.items()
        },
        rows=size[1],
        columns=size[0],
        count=count,
        aspect=rest[1] / rest[0],
        start=int(shown.sum((1, 2)).argmax()) if shown is not None else count // 2,
        step=step,
    )


def _shrunk(mask: Tensor, step: int, size: list[int]) -> Tensor:
    """A mask where a small target does not vanish: any voxel counts, also of the slices passed over."""
    slices = math.ceil(len(mask) / step)
    padded = F.pad(mask.float(), (0, 0, 0, 0, 0, slices * step - len(mask)))
    thick = padded.reshape(slices, step, *mask.shape[1:]).amax(1)
    return F.adaptive_max_pool2d(thick[:, None], size)[:, 0] > 0


def _strip(slices: Tensor) -> NDArray[np.uint8]:
    """Slices ``(n, x, y)`` below each other, as they are looked at: x to the right, y upwards."""
    upright = slices.transpose(1, 2).flip(1)
    return upright.reshape(-1, slices.shape[1]).numpy()


def _encoded(pixels: NDArray[np.uint8], kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()
