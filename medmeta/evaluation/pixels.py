"""The plain way: trees on simple voxel features, fitted to the support alone. No network, no training set."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from sklearn.ensemble import ExtraTreesClassifier
from torch import Tensor, nn

from medmeta.episodes import Examples
from medmeta.learners.growing import Growing, sampled

VOXELS = 4000
"""Voxels of each example that trees are fitted to, half of them of the target where there are so many."""


def voxel_features(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Intensity, two smoothings, gradient, two local deviations and a rank, of every channel.

    Args:
        image: ``(channel, *voxel)``.

    Returns:
        ``(voxels, features)``.

    Example:
        >>> voxel_features(np.random.rand(1, 8, 8, 8).astype("f4")).shape
        (512, 7)
    """
    maps = []
    for channel in image:
        one, two = ndimage.gaussian_filter(channel, 1), ndimage.gaussian_filter(channel, 2.5)
        spread = ndimage.uniform_filter(channel**2, 3) - ndimage.uniform_filter(channel, 3) ** 2
        wide = ndimage.uniform_filter(channel**2, 7) - ndimage.uniform_filter(channel, 7) ** 2
        maps += [
            channel,
            one,
            two,
            ndimage.gaussian_gradient_magnitude(channel, 1),
            np.sqrt(np.clip(spread, 0, None)),
            np.sqrt(np.clip(wide, 0, None)),
            ndimage.median_filter(channel, 3),
        ]
    return np.stack([m.ravel() for m in maps], 1).astype(np.float32)


def image_features(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Percentiles of every voxel feature: one vector an image.

    Example:
        >>> image_features(np.random.rand(1, 8, 8).astype("f4")).shape
        (49,)
    """
    percentiles = np.percentile(voxel_features(image), [1, 10, 25, 50, 75, 90, 99], axis=0)
    return percentiles.ravel().astype(np.float32)


class WholeScan(nn.Module):
    """A predictor that takes a whole scan at once, not window by window."""


class TreePredictor(WholeScan):
    """Extremely randomised trees (Geurts et al. 2006) as a predictor: images to logits."""

    def __init__(self, trees: ExtraTreesClassifier, way: int, *, dense: bool) -> None:
        super().__init__()
        self.trees, self.way, self.dense = trees, way, dense

    def forward(self, image: Tensor) -> Tensor:
        """Log-probabilities ``(n, way, *space)``."""
        made = [self._one(one.numpy()) for one in image.detach().cpu().float()]
        return torch.from_numpy(np.stack(made)).float()

    def _one(self, image: NDArray[np.float32]) -> NDArray[np.float64]:
        features = voxel_features(image) if self.dense else image_features(image)[None]
        probability = np.full((len(features), self.way), 1e-6)
        probability[:, self.trees.classes_] += self.trees.predict_proba(features)
        space = image.shape[1:] if self.dense else ()
        return np.log(probability).T.reshape(self.way, *space)


class Trees:
    """The pixel classifier as a learner: nothing is meta-learnt."""

    name = "pixel-trees"

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def adapt(self, support: Examples) -> TreePredictor:
        """Fit trees to the support."""
        generator = np.random.default_rng(self.seed)
        features, labels = [], []
        for image, label in zip(support.image.numpy(), support.label.numpy(), strict=True):
            if not support.segments:
                features.append(image_features(image)[None])
                labels.append(label[None])
                continue
            flat = label.ravel()
            chosen = sampled(flat, VOXELS, generator)
            features.append(voxel_features(image)[chosen])
            labels.append(flat[chosen])
        leaf = 3 if support.segments else 1  # of images there is one for each label, of voxels thousands
        trees = Growing(50, leaf, self.seed)(np.concatenate(features), np.concatenate(labels))
        return TreePredictor(trees, len(support.classes), dense=support.segments)
