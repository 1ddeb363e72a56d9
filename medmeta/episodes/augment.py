"""Augmentation of an episode: what is drawn, and then what is done."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

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
        matrix: ``(axes, axes)`` output direction to input direction, in mm, or None for none.
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


def apply(
    drawn: Drawn, examples: Examples, *, outlined: bool = False, spacing: Sequence[float] | None = None
) -> Examples:
    """Change all examples in the same way; labels move with their voxels (nearest).

    Args:
        drawn: what to do.
        examples: what to do it to.
        outlined: the last channel is an outline and 0 is blank: both stay what they are, only moved.
        spacing: mm along each voxel axis, so that what is turned keeps its form; None takes all as equal.
    """
    image, label = examples.image, examples.label
    if drawn.matrix is not None:
        matrix = _in_shares(drawn.matrix, image.shape[2:], spacing)
        beyond = "zeros" if outlined else "border"  # a target at the edge goes on where its image does
        image = _resample(image, matrix, beyond)
        if examples.segments:
            moved = _resample(label[:, None].to(image.dtype), matrix, beyond, mode="nearest")
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


def _in_shares(matrix: Tensor, shape: Sequence[int], spacing: Sequence[float] | None) -> Tensor:
    """The matrix as grid_sample wants it: between shares of half the image's extent, last axis first."""
    half = torch.tensor(shape, dtype=torch.float64) / 2
    if spacing is not None:
        half = half * torch.tensor([s / spacing[0] for s in spacing], dtype=torch.float64)
    return (matrix * half[None, :] / half[:, None]).flip(0, 1)


def _resample(image: Tensor, shares: Tensor, padding: str, *, mode: str = "bilinear") -> Tensor:
    """Resample about the centre."""
    theta = torch.cat([shares, torch.zeros(len(shares), 1, dtype=torch.float64)], 1).to(image)
    grid = affine_grid(theta.expand(len(image), -1, -1), list(image.shape), align_corners=False)
    return grid_sample(image, grid, mode=mode, padding_mode=padding, align_corners=False)


@dataclass(frozen=True)
class Change:
    """How examples are changed, of one task or each apart.

    Args:
        augment: how far.
        generator: draws how.
        outlined, spacing: of :func:`apply`.
    """

    augment: Augment
    generator: torch.Generator
    outlined: bool
    spacing: Sequence[float] | None

    def draw(self, shown: Examples) -> tuple[Drawn, Examples]:
        """Draw a change and do it; one that turns a class out of the picture turns nothing."""
        drawn = draw(self.augment, shown.image.ndim - 2, self.generator)
        changed = self.apply(drawn, shown)
        if not any(before and not after for before, after in zip(shown.shot, changed.shot, strict=True)):
            return drawn, changed
        drawn = replace(drawn, matrix=None)
        return drawn, self.apply(drawn, shown)

    def apply(self, drawn: Drawn, examples: Examples) -> Examples:
        """Do what was drawn."""
        return apply(drawn, examples, outlined=self.outlined, spacing=self.spacing)

    def each(self, examples: Examples) -> Examples:
        """Change every example in its own way; their order stays."""
        made = []
        for i in range(len(examples.image)):
            one = Examples(examples.image[i : i + 1], examples.label[i : i + 1], examples.classes)
            made.append(self.draw(one)[1])
        image, label = torch.cat([m.image for m in made]), torch.cat([m.label for m in made])
        return Examples(image, label, examples.classes, examples.patients)


def augment_episode(
    episode: Episode,
    augment: Augment,
    generator: torch.Generator,
    *,
    outlined: bool = False,
    spacing: Sequence[float] | None = None,
) -> Episode:
    """Change support and query in the same way, so that an episode stays one task; or each example apart.

    No class that the support shows is turned out of its picture, for nobody could learn it then.

    Args:
        episode: the task.
        augment: how far it may be changed.
        generator: draws how.
        outlined, spacing: of :func:`apply`.
    """
    change = Change(augment, generator, outlined, spacing)
    if augment.apart:
        return Episode(change.each(episode.support), change.each(episode.query))
    drawn, support = change.draw(episode.support)
    return Episode(support, change.apply(drawn, episode.query))
