"""Augmentation of an episode: what is drawn, and then what is done."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from medmeta.episodes.examples import Episode, Examples


@dataclass(frozen=True)
class Augment:
    """How far an episode may be changed.

    Args:
        flip: whether axes may be flipped.
        gain: the image is multiplied by exp of up to ± this.
        bias: up to ± this is added, in deviations.
        rotate: up to ± this angle, degrees, about each axis.
        scale: sizes change by up to ± this share.
        apart: every example is changed in its own way, not the episode as a whole: right where a class has no
            orientation or size of its own, as a lesion cut out of its scan.
    """

    flip: bool = True
    gain: float = 0.2
    bias: float = 0.2
    rotate: float = 10.0
    scale: float = 0.1
    apart: bool = False


@dataclass(frozen=True)
class Drawn:
    """One augmentation, drawn.

    Args:
        flips: whether each axis is flipped.
        gain, bias: ``image * gain + bias``.
        matrix: ``(axes, axes)`` output direction to input direction, or None for none.
    """

    flips: tuple[bool, ...]
    gain: float
    bias: float
    matrix: Tensor | None


def draw(augment: Augment, axes: int, generator: torch.Generator) -> Drawn:
    """Draw one augmentation for images of ``axes`` voxel axes.

    Example:
        >>> drawn = draw(Augment(rotate=0.0, scale=0.0), 3, torch.Generator().manual_seed(0))
        >>> len(drawn.flips), drawn.matrix is None
        (3, True)
    """
    numbers = (2 * torch.rand(3 * axes + 2, generator=generator, dtype=torch.float64) - 1).tolist()
    flips = tuple(augment.flip and n > 0 for n in numbers[:axes])
    matrix = None
    if augment.rotate or augment.scale:
        scales = torch.tensor([1 + augment.scale * n for n in numbers[axes : 2 * axes]], dtype=torch.float64)
        matrix = _rotation([math.radians(augment.rotate) * n for n in numbers[2 * axes : 3 * axes]], axes) @ (
            torch.diag(scales)
        )
    return Drawn(flips, math.exp(augment.gain * numbers[-2]), augment.bias * numbers[-1], matrix)


def _rotation(angles: list[float], axes: int) -> Tensor:
    """Product of rotations in the coordinate planes (one of them in 2D)."""
    planes = [(0, 1)] if axes == 2 else [(0, 1), (0, 2), (1, 2)]
    whole = torch.eye(axes, dtype=torch.float64)
    for (a, b), angle in zip(planes, angles, strict=False):
        turn = torch.eye(axes, dtype=torch.float64)
        turn[a, a] = turn[b, b] = math.cos(angle)
        turn[a, b], turn[b, a] = -math.sin(angle), math.sin(angle)
        whole = whole @ turn
    return whole


def apply(drawn: Drawn, examples: Examples, *, outlined: bool = False) -> Examples:
    """Change all examples in the same way; labels move with their voxels (nearest).

    Args:
        drawn: what to do.
        examples: what to do it to.
        outlined: the last channel is an outline and 0 is blank: both stay what they are, only moved.
    """
    image, label = examples.image, examples.label
    if drawn.matrix is not None:
        image = _resample(image, drawn.matrix, "zeros" if outlined else "border")
        if examples.segments:
            moved = _resample(label[:, None].to(image.dtype), drawn.matrix, "zeros", mode="nearest")
            label = moved[:, 0].long()
    axes = [axis for axis, flip in enumerate(drawn.flips) if flip]
    if axes:
        image = image.flip([a + 2 for a in axes])
        label = label.flip([a + 1 for a in axes]) if examples.segments else label
    if outlined:
        values, outline = image[:, :-1], image[:, -1:]
        image = torch.cat([values * drawn.gain + drawn.bias * (values != 0), outline], 1)
    else:
        image = image * drawn.gain + drawn.bias
    return Examples(image, label, examples.classes, examples.patients)


def _resample(image: Tensor, matrix: Tensor, padding: str, *, mode: str = "bilinear") -> Tensor:
    """Resample about the centre; ``matrix`` acts on voxels, grid_sample wants shares, last axis first."""
    half = torch.tensor(image.shape[2:], dtype=torch.float64) / 2
    shares = (matrix * half[None, :] / half[:, None]).flip(0, 1)
    theta = torch.cat([shares, torch.zeros(len(half), 1, dtype=torch.float64)], 1).to(image.dtype)
    grid = affine_grid(theta.expand(len(image), -1, -1), list(image.shape), align_corners=False)
    return grid_sample(image, grid, mode=mode, padding_mode=padding, align_corners=False)


def augment_episode(
    episode: Episode, augment: Augment, generator: torch.Generator, *, outlined: bool = False
) -> Episode:
    """Change support and query in the same way, so that an episode stays one task; or each example apart."""
    axes = episode.support.image.ndim - 2
    if augment.apart:
        sides = [_each(side, augment, generator, outlined) for side in (episode.support, episode.query)]
        return Episode(sides[0], sides[1])
    drawn = draw(augment, axes, generator)
    return Episode(
        apply(drawn, episode.support, outlined=outlined), apply(drawn, episode.query, outlined=outlined)
    )


def _each(examples: Examples, augment: Augment, generator: torch.Generator, outlined: bool) -> Examples:
    """Every example in its own way; their order stays."""
    axes = examples.image.ndim - 2
    made = []
    for i in range(len(examples.image)):
        one = Examples(examples.image[i : i + 1], examples.label[i : i + 1], examples.classes)
        made.append(apply(draw(augment, axes, generator), one, outlined=outlined))
    image, label = torch.cat([m.image for m in made]), torch.cat([m.label for m in made])
    return Examples(image, label, examples.classes, examples.patients)
