"""Support and query sets, checked once where they are made."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from medmeta.errors import MedmetaError
from medmeta.shape import Image, Label


class EpisodeError(MedmetaError):
    """An episode that cannot be built, or that would not be honest."""


@dataclass(frozen=True)
class Examples:
    """A support or a query set.

    Args:
        image: ``(n, channel, *voxel)`` floating point, finite.
        label: ``(n)`` to classify, ``(n, *voxel)`` to segment; int64 from 0 to ``len(classes) - 1``.
        classes: name of each label value; class 0 is the background when segmenting.
        patients: hashed patient key of each example, ``()`` where examples are nobody's (a test phantom).

    Raises:
        EpisodeError: where shapes, labels or keys do not fit each other.

    Example:
        >>> Examples(torch.zeros(2, 1, 8, 8), torch.tensor([0, 1]), ("benign", "malignant")).shot
        (1, 1)
    """

    image: Image
    label: Label
    classes: tuple[str, ...]
    patients: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        n = self.image.shape[0]
        if self.label.shape[:1] != (n,) or self.label.shape[1:] not in {(), self.image.shape[2:]}:
            raise EpisodeError(
                f"labels of shape ({n},) or ({n}, *voxel) for images {tuple(self.image.shape)}",
                found=f"{tuple(self.label.shape)}",
                cure="Give one class an image to classify, one class a voxel to segment.",
            )
        if self.label.dtype != torch.int64:
            raise EpisodeError("int64 labels", found=str(self.label.dtype), cure="Convert with .long().")
        if n and not 0 <= int(self.label.min()) <= int(self.label.max()) < len(self.classes):
            raise EpisodeError(
                f"labels from 0 to {len(self.classes) - 1} for the classes {', '.join(self.classes)}",
                found=f"{int(self.label.min())} to {int(self.label.max())}",
                cure="Name a class for every label value.",
            )
        if self.patients and len(self.patients) != n:
            raise EpisodeError(
                f"one patient key for each of {n} examples",
                found=str(len(self.patients)),
                cure="Repeat a key.",
            )
        if not bool(torch.isfinite(self.image).all()):
            raise EpisodeError(
                "finite images",
                found="NaN or infinite voxels",
                cure="Repair or drop the volume they came from.",
            )

    @property
    def segments(self) -> bool:
        """Whether the labels are one a voxel."""
        return self.label.ndim > 1

    @property
    def has_extent(self) -> bool:
        """Whether there is more than one voxel to label."""
        return self.label.shape[1:].numel() > 1

    @property
    def shot(self) -> tuple[int, ...]:
        """How many examples show each class."""
        flat = self.label.reshape(len(self.label), -1)
        return tuple(int((flat == c).any(1).sum()) for c in range(len(self.classes)))

    def to(self, device: torch.device | str) -> Examples:
        """The same examples on another device."""
        return Examples(self.image.to(device), self.label.to(device), self.classes, self.patients)


@dataclass(frozen=True)
class Episode:
    """A support set to learn from and a query set to be judged on, of different patients.

    Raises:
        EpisodeError: where both name the same patient, or other classes.
    """

    support: Examples
    query: Examples

    def __post_init__(self) -> None:
        shared = set(self.support.patients) & set(self.query.patients)
        if shared:
            raise EpisodeError(
                "support and query of different patients",
                found=f"{len(shared)} patient(s) on both sides: {', '.join(sorted(shared)[:3])}",
                cure="Split by patient before drawing.",
            )
        if self.support.classes != self.query.classes:
            raise EpisodeError(
                f"the support's classes {self.support.classes} in the query",
                found=str(self.query.classes),
                cure="Draw both from one task.",
            )

    def to(self, device: torch.device | str) -> Episode:
        """The same episode on another device."""
        return Episode(self.support.to(device), self.query.to(device))
