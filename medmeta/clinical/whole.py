"""One whole scan through a bundle's network: labels or probabilities on the scan's own grid.

What is held at once is the scan, the scan on the plan's grid, the labels, and a few planes of logits: those
of all classes at native resolution are never there together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medmeta.clinical.bundle import BundleError
from medmeta.clinical.confidence import Moments, texture, through
from medmeta.clinical.loading import BundlePredictor
from medmeta.clinical.windows import body, planes
from medmeta.volumes import CohortError, Plan, prepare
from medmeta.volumes.component import component
from medmeta.volumes.prepared import check_unit, cut_lesion, prepare_image
from medmeta.volumes.resample import axes_along, boxes, positions, sample

SLAB = 4
"""Native slices whose probabilities are held at once."""


def classify(predictor: BundlePredictor, image: Any, mask: Any = None) -> tuple[list[float], dict[str, Any]]:
    """Probabilities of the classes of a scan, or of a lesion outlined in it, and how sure they are.

    Args:
        predictor: of a bundle that classifies.
        image: native MetaTensor ``(channel, x, y, z)``, as :func:`medmeta.volumes.load` gives it.
        mask: MetaTensor ``(1, x, y, z)`` on the same grid, where lesions are classified.

    Returns:
        One probability a class; and ``confidence``, ``distance``, ``threshold``, ``abstain``, ``temperature``
        (:meth:`medmeta.clinical.confidence.Confidence.judged`).

    Raises:
        CohortError: where the channels are not as planned or voxels are not finite.
    """
    plan = predictor.plan
    if plan.lesion is not None:
        voxels = cut_lesion(plan, prepare(plan, image, mask=(mask > 0).to(torch.uint8))).image
    else:
        voxels, _ = prepare_image(plan, image)
    with torch.inference_mode():
        logits, described = seen_whole(predictor.network, voxels)
        soft = torch.softmax(finite(logits), 0)
    return soft.tolist(), predictor.confidence.judged(float(soft.max()), described)


def seen_whole(network: torch.nn.Module, image: Tensor) -> tuple[Tensor, Tensor]:
    """Logits ``(way)`` of an image ``(channel, *voxel)`` to classify, and its features' moments."""
    seen = Moments()
    logits = through(network, image[None], seen)[0]
    seen_texture(image.reshape(*image.shape[:2], *image.shape[2:], *[1] * (4 - image.ndim)), seen)
    return logits, seen.described()


def finite(logits: Tensor) -> Tensor:
    """The same logits.

    Raises:
        BundleError: where one is NaN or infinite.
    """
    if not bool(torch.isfinite(logits).all()):
        raise BundleError("finite logits", found="NaN or infinity", cure="Do not use this bundle.")
    return logits


@dataclass(frozen=True)
class Segmented:
    """What was found in one scan.

    Args:
        labels: ``(x, y, z)`` on the scan's own grid.
        affine: of that grid, RAS mm.
        facts: ``voxels`` and ``volume_ml`` of each class but the background; ``withheld_ml`` where so little
            was found that the answer is "no tumour"; ``confidence``, ``distance``, ``threshold``,
            ``abstain``, ``temperature``.
    """

    labels: NDArray[np.uint8]
    affine: NDArray[np.float64]
    facts: dict[str, Any]


def segment(predictor: BundlePredictor, image: Any, *, slab: int = SLAB) -> Segmented:
    """Outline every class in a whole scan.

    Windows go over the plan's grid and leave out the air around the body, where all is background; their
    probabilities are taken to the scan's own grid a few planes at a time, and only where there is anything
    but background near.

    Args:
        predictor: of a bundle that segments.
        image: native MetaTensor ``(channel, x, y, z)``, as :func:`medmeta.volumes.load` gives it.
        slab: native slices at once; the labels do not depend on it.

    Raises:
        CohortError: where the channels are not as planned or voxels are not finite.
        BundleError: where the network gives NaN or infinity.
    """
    plan = predictor.plan
    voxels, affine = on_grid(plan, image)
    inside = body(voxels, plan.spacing)
    native = torch.as_tensor(image.affine).double()
    labels = np.zeros(tuple(image.shape[1:]), dtype=np.uint8)
    back = torch.linalg.solve(affine, native)  # native voxel to the plan's
    sure = _Sureness()
    with torch.inference_mode():
        seen = Moments()
        found = planes(
            plan, lambda x, there: through(predictor.network, x, seen, there), voxels, inside, predictor.way
        )
        soft = ((start, sure.of(_soft(logits, inside, start))) for start, logits in found)
        _restore(labels, soft, back, tuple(voxels.shape[1:]), slab)
        seen_texture(voxels, seen, inside)
    facts = _measured(labels, native, predictor)
    sureness = sure.of_nothing if "withheld_ml" in facts else sure.now
    return Segmented(
        labels, native.numpy(), {**facts, **predictor.confidence.judged(sureness, seen.described())}
    )


class _Sureness:
    """The mean probability of what is outlined; where nothing is, or what was found is withheld as too
    little, how sure "nothing" is of the voxel where something is likeliest."""

    def __init__(self) -> None:
        self._sum, self._count, self._rest = 0.0, 0, 1.0

    def of(self, soft: Tensor) -> Tensor:
        """Look at some planes ``(way, x, y, planes)``, and give them on."""
        most, label = soft.max(0)
        outlined = label > 0
        self._sum += float(most[outlined].double().sum())
        self._count += int(outlined.sum())
        self._rest = min(self._rest, float(soft[0].min()))
        return soft

    @property
    def now(self) -> float:
        """Between 0 and 1."""
        return self._sum / self._count if self._count else self.of_nothing

    @property
    def of_nothing(self) -> float:
        """The least probability of background: how sure the answer "nothing" is."""
        return self._rest


def _measured(labels: NDArray[np.uint8], affine: Tensor, predictor: BundlePredictor) -> dict[str, Any]:
    """Voxels and volumes of the classes; labels of less than the bundle's least volume are taken back."""
    millilitres = abs(float(torch.linalg.det(affine[:3, :3]))) / 1000
    counts = {c: int((labels == n).sum()) for n, c in enumerate(predictor.classes) if n}
    total = sum(counts.values()) * millilitres
    withheld = 0 < total < predictor.confidence.least_ml
    if withheld:
        labels[:] = 0
        counts = dict.fromkeys(counts, 0)
    volumes = {c: round(count * millilitres, 4) for c, count in counts.items()}
    return {"voxels": counts, "volume_ml": volumes, **({"withheld_ml": round(total, 4)} if withheld else {})}


def seen_texture(voxels: Tensor, seen: Moments, inside: NDArray[np.bool_] | None = None) -> None:
    """Take in the image's own values, a few planes at a time."""
    there = torch.ones(voxels.shape[1:], dtype=torch.bool) if inside is None else torch.from_numpy(inside)
    own = Moments()
    for box in boxes(voxels.shape[1:], 2, 1 << 20):
        planes_ = slice(*box[2])
        own.add(texture(voxels[..., planes_], there[..., planes_]))
    seen.join(own)


def _soft(logits: Tensor, inside: NDArray[np.bool_], start: int) -> Tensor:
    """Probabilities of some planes; outside of the body, background for sure."""
    soft = torch.softmax(finite(logits), 0)
    outside = torch.from_numpy(~inside[..., start : start + logits.shape[-1]])
    soft[:, outside] = 0
    soft[0, outside] = 1
    return soft


def _restore(
    labels: NDArray[np.uint8],
    soft: Iterator[tuple[int, Tensor]],
    back: Tensor,
    shape: tuple[int, ...],
    slab: int,
) -> None:
    """Write labels plane by plane, each as soon as the planes of the plan's grid around it are there.

    Args:
        labels: native, written.
        soft: first plane and probabilities ``(way, x, y, planes)`` on the plan's grid, in order.
        back: native voxel to the plan's voxel.
        shape: of the plan's grid.
        slab: native slices at once.
    """
    along = axes_along(back, labels.shape)
    if along is None:  # turned against each other: no native slice lies between two planes
        everything = torch.cat([part for _, part in soft], 3)
        for box in boxes(labels.shape, 2, slab * labels.shape[0] * labels.shape[1]):
            _write(labels, everything, back, box)
        return
    axis = along.index(2)
    depth = positions(back, labels.shape, axis, 2, shape[2]).numpy()
    needs = np.minimum(np.floor(depth).astype(int) + 1, shape[2] - 1)
    kept: Tensor | None = None
    for start, part in soft:
        held = part if kept is None else torch.cat([kept, part], 3)
        first, end = start + part.shape[3] - held.shape[3], start + part.shape[3]
        kept = part[..., -1:]
        ready = np.flatnonzero((needs < end) & (needs >= (start if first < start else 0)))
        for slices in (ready[n : n + slab] for n in range(0, len(ready), slab)):
            shifted = back.clone()
            shifted[2, 3] -= first
            near = _near(held, shifted, labels.shape, along)
            if near is not None:
                near[axis] = (int(slices.min()), int(slices.max()) + 1)
                _write(labels, held, shifted, near)


def _near(
    soft: Tensor, back: Tensor, shape: tuple[int, ...], along: tuple[int, int, int]
) -> list[tuple[int, int]] | None:
    """The native box that may hold anything but background: where it is likeliest at all corners, it is
    likeliest between them."""
    hot = (soft[1:].amax(0) > soft[0]).any(2)  # argmax over the first axis takes ten times as long
    if not bool(hot.any()):
        return None
    box = [(0, n) for n in shape]
    for source in (0, 1):
        lines = torch.where(hot.any(1 - source))[0]
        target = along.index(source)
        where = positions(back, shape, target, source, soft.shape[1 + source])
        near = torch.where((where > int(lines[0]) - 1) & (where < int(lines[-1]) + 1))[0]
        if not len(near):
            return None
        box[target] = (int(near[0]), int(near[-1]) + 1)
    return box


def _write(labels: NDArray[np.uint8], soft: Tensor, back: Tensor, box: list[tuple[int, int]]) -> None:
    made = sample(soft, back, labels.shape, box).argmax(0).to(torch.uint8).numpy()
    labels[tuple(slice(a, b) for a, b in box)] = made


def on_grid(plan: Plan, image: Any) -> tuple[Tensor, Tensor]:
    """A scan on the plan's grid, slices of a plan in 2D too: the plan's transforms, a few planes at a time.

    Args:
        plan: of a bundle that segments.
        image: native MetaTensor ``(channel, x, y, z)``.

    Returns:
        ``(channel, x, y, z)`` float32 and the ``(4, 4)`` affine, voxel to RAS mm.

    Raises:
        CohortError: where the channels or the unit are not as planned, or voxels are not finite.
    """
    if image.shape[0] != plan.channels:
        raise CohortError(
            f"{plan.channels} channel(s), as planned",
            found=f"{image.shape[0]}",
            cure="Give the channels that the bundle was made for.",
        )
    check_unit(plan, image)
    steps = plan.transforms()
    spatial = [s for s in steps if s["_target_"].endswith((".Orientationd", ".Spacingd"))]
    data: dict[str, Any] = {"image": image}
    for step in spatial:
        data = component(step)(data, lazy=True)
    affine = torch.as_tensor(data["image"].peek_pending_affine()).double()
    shape = tuple(int(n) for n in data["image"].peek_pending_shape())
    there = torch.linalg.solve(torch.as_tensor(image.affine).double(), affine)
    made = torch.empty(len(image), *shape)
    source = image.as_tensor()
    for box in boxes(shape, 2):
        part = sample(source, there, shape, box).float()
        if not bool(torch.isfinite(part).all()):
            raise CohortError("finite voxels", found="NaN or infinity", cure="Repair or drop the scan.")
        made[..., box[2][0] : box[2][1]] = part
    for step in (s for s in steps if s not in spatial and not s["_target_"].endswith(".SqueezeDimd")):
        for channel in made:
            rule = _pointwise(step, channel)
            for box in boxes(shape, 2):
                piece = channel[..., box[2][0] : box[2][1]]
                piece.copy_(rule(piece))
    return made, affine


def _pointwise(step: dict[str, Any], channel: Tensor) -> Callable[[Tensor], Tensor]:
    """A transform of intensities as one that needs a voxel alone, with what it asks of all voxels known."""
    from monai.transforms import NormalizeIntensity, ScaleIntensityRange
    from monai.transforms.utils_pytorch_numpy_unification import percentile

    name = step["_target_"].rsplit(".", 1)[1]
    options = {k: v for k, v in step.items() if k not in ("_target_", "keys", "channel_wise")}
    if name == "ScaleIntensityRangePercentilesd":
        low, high = (float(percentile(channel, options.pop(side))) for side in ("lower", "upper"))
        return ScaleIntensityRange(low, high, **options)
    if name == "NormalizeIntensityd":
        mean, deviation = float(channel.mean()), float(channel.std(unbiased=False))
        return NormalizeIntensity(mean, deviation or 1.0, **options)
    return ScaleIntensityRange(**options)
