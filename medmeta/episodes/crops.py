"""Crops of one fixed size from prepared volumes: around the target, and anywhere."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from medmeta.episodes.examples import EpisodeError, Examples
from medmeta.shape import Image, Label
from medmeta.volumes import Plan, Prepared


def support_examples(
    prepared: Sequence[Prepared],
    plan: Plan,
    generator: torch.Generator,
    *,
    classes: tuple[str, ...] | None = None,
    crops: int = 2,
) -> Examples:
    """Examples from labelled volumes, as the learner gets them.

    To segment, ``crops`` pieces a volume of ``plan.patch`` voxels: the first half (rounded up) around a
    voxel of the target, up to a quarter of the patch away from it, the others anywhere. To classify
    (``plan.whole``), each volume once as it is.

    Args:
        prepared: volumes on the plan's grid, with a mask to segment.
        plan: their plan.
        generator: draws where to crop.
        classes: class names; None is ``("background", tumour)`` to segment and the sorted tumours (``"none"``
            for the free) to classify.
        crops: pieces a volume.

    Raises:
        EpisodeError: where there is no volume, a mask is missing or several tumours are mixed.

    Example:
        >>> image, mask = torch.rand(1, 20, 9, 20), torch.zeros(20, 9, 20, dtype=torch.uint8)
        >>> mask[10, 4, 10] = 1
        >>> volume = Prepared(image, mask, torch.eye(4), "a1", "glioma")
        >>> plan = Plan(3, (1.0, 1.0, 1.0), (16, 16, 16), 1)
        >>> examples = support_examples([volume], plan, torch.Generator().manual_seed(0))
        >>> tuple(examples.image.shape), examples.classes
        ((2, 1, 16, 16, 16), ('background', 'glioma'))
    """
    if not prepared:
        raise EpisodeError("at least one labelled volume", found="none", cure="Give a support of 1 or more.")
    tumours = sorted({p.tumour or "none" for p in prepared})
    if plan.whole:
        names = classes or tuple(tumours)
        return whole_examples(prepared, [_index(names, p.tumour or "none") for p in prepared], names)
    named = [t for t in tumours if t != "none"]
    if classes is None and len(named) != 1:
        raise EpisodeError(
            "one tumour type to segment",
            found=", ".join(named) or "patients free of any only",
            cure="Adapt to one type at a time.",
        )
    return crop_examples(
        prepared, plan.patch, generator, classes=classes or ("background", named[0]), crops=crops
    )


def _index(classes: Sequence[str], name: str) -> int:
    if name not in classes:
        raise EpisodeError(f"a tumour among {', '.join(classes)}", found=name, cure="Name its class too.")
    return classes.index(name)


def whole_examples(prepared: Sequence[Prepared], labels: Sequence[int], classes: tuple[str, ...]) -> Examples:
    """Whole volumes with one class each; they share one shape."""
    shapes = sorted({tuple(p.image.shape) for p in prepared})
    if len(shapes) > 1:
        raise EpisodeError(
            "volumes of one shape to classify",
            found=f"{len(shapes)} shapes, {shapes[0]} to {shapes[-1]}",
            cure="Make the plan with make_plan(volumes, whole=True).",
        )
    return Examples(
        torch.stack([p.image for p in prepared]),
        torch.tensor(list(labels), dtype=torch.int64),
        classes,
        tuple(p.patient for p in prepared),
    )


def crop_examples(
    prepared: Sequence[Prepared],
    patch: Sequence[int],
    generator: torch.Generator,
    *,
    classes: tuple[str, ...],
    crops: int = 2,
) -> Examples:
    """``crops`` pieces of ``patch`` voxels from each volume with a mask."""
    unmasked = sum(p.mask is None for p in prepared)
    if unmasked:
        raise EpisodeError(
            "a mask for every volume to segment",
            found=f"{unmasked} of {len(prepared)} without one",
            cure="Add the masks, or classify instead.",
        )
    starts = [start for p in prepared for start in _draw_starts(p, patch, crops, generator)]
    owners = [p for p in prepared for _ in range(crops)]
    image, label = cut(owners, starts, patch)
    return Examples(image, label, classes, tuple(p.patient for p in owners))


def _draw_starts(
    prepared: Prepared, patch: Sequence[int], crops: int, generator: torch.Generator
) -> list[tuple[int, ...]]:
    """The first voxel of each crop; where a target larger than a crop fills all, the last is at its rim."""
    starts = [draw_start(prepared, patch, n < (crops + 1) // 2, generator) for n in range(crops)]
    assert prepared.mask is not None
    if starts and all(_filled(prepared.mask, start, patch) for start in starts):
        starts[-1] = _at_rim(prepared.mask, starts[-1], patch)
    return starts


def _filled(mask: Tensor, start: Sequence[int], patch: Sequence[int]) -> bool:
    """Whether a crop shows nothing but target."""
    inside = all(0 <= first <= n - p for first, n, p in zip(start, mask.shape, patch, strict=True))
    return inside and bool(mask[tuple(slice(f, f + p) for f, p in zip(start, patch, strict=True))].all())


def _at_rim(mask: Tensor, start: tuple[int, ...], patch: Sequence[int]) -> tuple[int, ...]:
    """The crop about the voxel of background next to a crop's centre; the same where there is none."""
    centre = torch.tensor([first + (p - 1) / 2 for first, p in zip(start, patch, strict=True)])
    reach = 1
    while reach < 2 * max(mask.shape):  # looked for nearby first, for a scan has many voxels
        low = [max(first - reach, 0) for first in start]
        window = [slice(lo, f + p + reach) for lo, f, p in zip(low, start, patch, strict=True)]
        free = (mask[tuple(window)] == 0).nonzero() + torch.tensor(low)
        if len(free):
            nearest = free[(free - centre).square().sum(1).argmin()].tolist()
            return _inside([v - p / 2 for v, p in zip(nearest, patch, strict=True)], mask.shape, patch)
        reach *= 2
    return start


def draw_start(
    prepared: Prepared, patch: Sequence[int], on_target: bool, generator: torch.Generator
) -> tuple[int, ...]:
    """The first voxel of a crop; negative where the volume is smaller than the patch and is centred in it.

    Args:
        prepared: the volume.
        patch: voxels of the crop.
        on_target: whether to hold a random voxel of the target (where there is one), at most a quarter of
            the patch off the crop's centre unless the volume's border is nearer.
        generator: as many numbers are drawn for any image, so that later draws do not depend on it.
    """
    shape = prepared.image.shape[1:]
    draw = torch.rand(1 + len(patch), generator=generator).tolist()
    target = target_voxels(prepared)
    if on_target and len(target):
        voxel = target[int(draw[0] * len(target))].tolist()
        wanted = [v - p / 2 + (d - 0.5) * p / 2 for v, p, d in zip(voxel, patch, draw[1:], strict=True)]
    else:
        wanted = [d * (s - p + 1) - 0.5 for s, p, d in zip(shape, patch, draw[1:], strict=True)]
    return _inside(wanted, shape, patch)


def _inside(wanted: Sequence[float], shape: Sequence[int], patch: Sequence[int]) -> tuple[int, ...]:
    """The start next to what is wanted whose crop lies in the volume, or has the volume in its middle."""
    return tuple(
        min(max(round(w), 0), s - p) if s >= p else -((p - s) // 2)
        for w, s, p in zip(wanted, shape, patch, strict=True)
    )


def target_voxels(prepared: Prepared) -> Tensor:
    """``(m, axes)`` voxels of the target, from the store where it kept them."""
    if prepared.target is not None:
        return prepared.target
    return torch.zeros(0, 3) if prepared.mask is None else prepared.mask.nonzero()


def cut(
    prepared: Sequence[Prepared], starts: Sequence[tuple[int, ...]], patch: Sequence[int]
) -> tuple[Image, Label]:
    """Copy the crops; outside a volume the image is 0 (its mean) and the label is background."""
    channels = prepared[0].image.shape[0]
    image = torch.zeros(len(prepared), channels, *patch)
    label = torch.zeros(len(prepared), *patch, dtype=torch.int64)
    for i, (volume, start) in enumerate(zip(prepared, starts, strict=True)):
        source: list[slice] = []
        target: list[slice] = []
        for first, size, extent in zip(start, patch, volume.image.shape[1:], strict=True):
            low, high = max(first, 0), min(first + size, extent)
            source.append(slice(low, high))
            target.append(slice(low - first, high - first))
        image[i][(slice(None), *target)] = volume.image[(slice(None), *source)]
        if volume.mask is not None:
            label[i][tuple(target)] = volume.mask[tuple(source)].long()
    return image, label
