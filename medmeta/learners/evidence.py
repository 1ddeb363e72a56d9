"""How much each voxel of an image speaks for a tumour, by plain classifiers that saw the support alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import Tensor, nn

from medmeta.learners.body import Maps, Mask
from medmeta.learners.forest import Forest
from medmeta.learners.growing import Growing, Points, sampled
from medmeta.learners.seen import seen

VOXELS = 4000
"""Voxels of each support example that are learnt from, half of them of the tumour where it has so many."""
NEAR = 6
"""Half of the voxels that are no tumour lie within so many steps of it: there an outline is decided."""
TREES, LEAF, COARSE = 30, 8, 40
"""Trees of a forest, and fewest voxels of their leaves; coarser ones are better with one labelled patient."""
SHRINKAGE = 0.5
"""Of the covariance of the discriminant towards a multiple of the identity (Ledoit and Wolf 2004)."""
LEAST = 0.01
"""Probabilities are kept this far from 0 and 1: forests of thirty trees know no more."""
SPEAKERS = 4
"""Trees that know the place, trees that do not, both with coarser leaves as one, and the discriminant."""


class Evidence(nn.Module):
    """Classifiers fitted to voxels of a support, tumour against all else.

    Trees (Geurts et al. 2006) on looks and places and trees on looks alone, with fine and with coarse
    leaves, and a linear discriminant (Fisher 1936) on looks in units of their spread.

    Args:
        looks: how many a voxel has.
        nodes: most of a tree, of each of the four forests.
    """

    mean: Tensor
    spread: Tensor

    def __init__(self, looks: int, nodes: Sequence[int]) -> None:
        super().__init__()
        self.forests = nn.ModuleList(Forest(TREES, n) for n in nodes)
        self.linear = nn.Linear(looks, 1)
        self.register_buffer("mean", torch.zeros(looks))
        self.register_buffer("spread", torch.ones(looks))

    def forward(self, image: Tensor) -> Maps:
        """Images ``(n, channel, *voxel)`` to halved log-odds ``(n, 4, *voxel)`` of the tumour."""
        return np.stack([self._one(one) for one in image])

    def _one(self, image: Tensor) -> Maps:
        look, place = seen(image)
        both = np.concatenate([look, place], 1)
        trees = [grown(both if i % 2 == 0 else look) for i, grown in enumerate(self.forests)]
        with torch.no_grad():
            linear = self.linear((torch.from_numpy(look) - self.mean) / self.spread)[:, 0].sigmoid().numpy()
        said = np.stack([trees[0], trees[1], (trees[2] + trees[3]) / 2, linear]).clip(LEAST, 1 - LEAST)
        return (np.log(said / (1 - said)) / 2).reshape(SPEAKERS, *image.shape[1:])

    def sizes(self) -> dict[str, object]:
        """Arguments that make one these weights fit."""
        nodes = [int(f.get_buffer("feature").shape[1]) for f in self.forests]
        return {"looks": self.linear.in_features, "nodes": nodes}


def learn(images: Sequence[Tensor], targets: Sequence[Mask], seed: int) -> Evidence | None:
    """Fit the classifiers.

    Args:
        images: ``(channel, *voxel)`` of each support image; they may differ in size.
        targets: ``(*voxel)`` of each, where the tumour is.
        seed: of the voxels drawn and the trees.

    Returns:
        None where there is no tumour, or nothing else, to learn from.
    """
    if not any(t.any() for t in targets) or all(t.all() for t in targets):
        return None
    generator = np.random.default_rng(seed)
    look, place, label = [], [], []
    for one, own in zip(images, targets, strict=True):
        flat = own.reshape(-1).astype(np.int64)
        near = ndimage.binary_dilation(own, iterations=NEAR).reshape(-1)
        chosen = sampled(flat, VOXELS, generator, near)
        looks, places = seen(one)
        look.append(looks[chosen])
        place.append(places[chosen])
        label.append(flat[chosen])
    return _fit(np.concatenate(look), np.concatenate(place), np.concatenate(label), seed)


def _fit(look: Points, place: Points, label: NDArray[np.int64], seed: int) -> Evidence:
    both = np.concatenate([look, place], 1)
    grow = (Growing(TREES, LEAF, seed), Growing(TREES, COARSE, seed))
    forests = [Forest.of(g(points, label)) for g in grow for points in (both, look)]
    mean, spread = look.mean(0), look.std(0) + 1e-6
    linear = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=SHRINKAGE, priors=[0.5, 0.5])
    linear.fit((look - mean) / spread, label)
    made = Evidence(look.shape[1], [int(f.feature.shape[1]) for f in forests])
    made.forests = nn.ModuleList(forests)
    with torch.no_grad():
        made.linear.weight.copy_(torch.from_numpy(linear.coef_))
        made.linear.bias.copy_(torch.from_numpy(linear.intercept_))
        made.mean.copy_(torch.from_numpy(mean))
        made.spread.copy_(torch.from_numpy(spread))
    return made


__all__ = ["SPEAKERS", "Evidence", "learn"]
