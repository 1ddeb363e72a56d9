"""What trees see of voxels, how a support is copied for them, and how they are grown."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.ensemble import ExtraTreesClassifier
from torch import Tensor, nn

from medmeta.learners.batch import parameter_like
from medmeta.learners.body import body_mask, body_places, contrast, looks
from medmeta.networks import encoded
from medmeta.shape import Image

Points = NDArray[np.float32]
COPIES = 2
"""Copies of the support, of another brightness and moved a little, that trees are grown on, too."""


@dataclass(frozen=True)
class Seeing:
    """What trees see of a voxel.

    Args:
        network: the backbone whose features they see beside the looks, or None.
        places: ``body`` (places in the body), ``image`` (in the image) or ``none``.
    """

    network: nn.Module | None
    places: str

    def __call__(self, image: Image) -> tuple[Tensor, NDArray[np.bool_]]:
        """Images ``(n, channel, *voxel)`` to maps ``(n, features, *voxel)`` and the body ``(n, *voxel)``."""
        mask = body_mask(image)
        image_from_air = image - image.amin()  # so that a gain leaves the air as it is
        maps = [torch.from_numpy(looks(image_from_air)), torch.from_numpy(contrast(image_from_air, mask))]
        if self.places == "body":
            maps.append(torch.from_numpy(body_places(mask)))
        elif self.places == "image":
            maps.append(torch.from_numpy(body_places(np.ones_like(mask)))[:, :-1])
        if self.network is not None:
            with torch.no_grad():
                like = parameter_like(self.network)
                deep = [encoded(self.network, one[None].to(like), dense=True) for one in image]
            maps.append(torch.cat(deep).float().cpu())
        return torch.cat(maps, 1), mask


@dataclass(frozen=True)
class Growing:
    """How trees are grown: ``trees`` of them, leaves of at least ``leaf`` voxels, by ``seed``."""

    trees: int
    leaf: int
    seed: int

    def __call__(self, points: Points, label: NDArray[np.int64]) -> ExtraTreesClassifier:
        """Fit trees to ``(voxels, features)`` and labels ``(voxels)``."""
        trees = ExtraTreesClassifier(
            self.trees,
            min_samples_leaf=self.leaf,
            class_weight="balanced",
            random_state=self.seed,
            n_jobs=1,
        )
        return trees.fit(points, label)


def sampled(
    label: NDArray[np.int64],
    most: int,
    generator: np.random.Generator,
    near: NDArray[np.bool_] | None = None,
) -> NDArray[np.int64]:
    """Draw voxels of one example for trees, half of them of the target where there are so many.

    Args:
        label: ``(voxels)``; 0 is the background.
        most: how many, at most.
        generator: draws them.
        near: ``(voxels)`` about the target, of which half of the background is drawn.

    Returns:
        Their places in ``label``, those of the target first.

    Example:
        >>> label = np.array([0, 1, 0, 0, 1, 1])
        >>> label[sampled(label, 4, np.random.default_rng(0))].tolist()
        [1, 1, 0, 0]
    """
    target = generator.permutation(np.flatnonzero(label))[: most // 2]
    left = most - len(target)
    beside = np.flatnonzero(near & (label == 0)) if near is not None else np.empty(0, np.int64)
    beside = generator.permutation(beside)[: left // 2]
    rest = generator.permutation(np.flatnonzero(label == 0))[: left - len(beside)]
    return np.concatenate([target, beside, rest])


@dataclass(frozen=True)
class Copying:
    """How a support is copied with other looks and places: ``gain`` and ``shift``, by ``seed``."""

    gain: float
    shift: float
    seed: int

    def __call__(self, points: Points, channels: int, placed: int) -> tuple[Points, int]:
        """Voxels ``(m, features)`` and copies of them, and how many there are.

        Args:
            points: what :class:`Seeing` gives.
            channels: of the image: five looks and one contrast each come first.
            placed: features of the place, which come next.
        """
        if not self.gain and not self.shift:
            return points, 1
        generator = np.random.default_rng(self.seed)
        looking, place = 5 * channels, slice(6 * channels, 6 * channels + placed)
        made = [points]
        for _ in range(COPIES):
            copied = points.copy()
            copied[:, :looking] *= np.exp(generator.normal(0, self.gain, (len(points), 1)))
            copied[:, place] += generator.normal(0, self.shift, (len(points), placed))
            made.append(copied)
        return np.concatenate(made), len(made)


__all__ = ["Copying", "Growing", "Points", "Seeing", "sampled"]
