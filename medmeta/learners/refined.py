"""A ridge head to begin with, then safeguarded fine-tuning on augmented views, and trees on what both saw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
import torch
from sklearn.ensemble import ExtraTreesClassifier
from torch import Tensor, nn

from medmeta.episodes.examples import Examples
from medmeta.learners.batch import check_support, fixed_weights, own_copy, parameter_like, pieces, still
from medmeta.learners.growing import Growing, sampled
from medmeta.learners.head import Head
from medmeta.learners.local_prototype import POOL, places
from medmeta.learners.predictor import LinearPredictor
from medmeta.learners.protocol import LearnerError
from medmeta.learners.ridge import RidgeLearner
from medmeta.learners.safeguard import FineTuning, enough, in_order, taken
from medmeta.networks import encoded
from medmeta.shape import Image, Logits

SCALES = (3, 7, 15)
VOXELS = 2000
"""Voxels of each example that trees are fitted to, half of them of the target where there are so many."""


def pixel_features(image: Image) -> Tensor:
    """Each channel, its means and deviations over windows of three sizes, and the voxel's place.

    Args:
        image: ``(n, channel, *voxel)``.

    Returns:
        ``(n, 7 * channel + axes, *voxel)``.

    Example:
        >>> pixel_features(torch.rand(1, 1, 16, 16)).shape
        torch.Size([1, 9, 16, 16])
    """
    maps = [image]
    for side in SCALES:
        mean, square = _windowed(image, side), _windowed(image.square(), side)
        maps += [mean, (square - mean.square()).clamp(min=0).sqrt()]
    return torch.cat([*maps, places(image)], 1)


def _windowed(image: Image, side: int) -> Tensor:
    """Means over windows of an odd ``side``, at most the image, axis by axis: a tenth of the cost in 3D."""
    axes = image.ndim - 2
    pool = POOL[axes - 1]
    for axis in range(axes):
        size = image.shape[2 + axis]
        window = [1] * axes
        window[axis] = min(side, size - 1 + size % 2)
        image = pool(image, window, 1, [w // 2 for w in window], count_include_pad=False)
    return image


class RefinedPredictor(nn.Module):
    """An adapted network, averaged over mirrored views, and trees; it needs medmeta to run.

    Args:
        plain: the adapted network with its head.
        mirrors: whether each voxel axis is mirrored in turn, too.
        trees: fitted to the support's voxels, or None.
        part: of the trees in the mean of the logarithms of probabilities.
    """

    def __init__(
        self, plain: LinearPredictor, mirrors: bool, trees: ExtraTreesClassifier | None, part: float
    ) -> None:
        super().__init__()
        self.plain, self.trees, self.part = plain, trees, part
        self.mirrors = mirrors and plain.dense
        self.eval()

    def forward(self, image: Image) -> Logits:
        """Images ``(n, channel, *voxel)`` to logits ``(n, way, *space)``."""
        axes = range(2, image.ndim) if self.mirrors else ()
        views = [self.plain(image), *(self.plain(image.flip(a)).flip(a) for a in axes)]
        found = torch.stack([torch.softmax(v, 1) for v in views]).mean(0).clamp(min=1e-6).log()
        if self.trees is None:
            return found
        grown = torch.stack([self._grown(one[None], found.shape[1]) for one in image])
        return (1 - self.part) * found + self.part * grown.to(found)

    def _grown(self, image: Image, way: int) -> Tensor:
        seen = tree_features(self.plain.network, image)
        probability = np.full((seen.shape[0], way), 1e-3)
        assert self.trees is not None
        probability[:, self.trees.classes_] += self.trees.predict_proba(seen.numpy())
        return torch.from_numpy(np.log(probability).T.reshape(way, *image.shape[2:]))


def tree_features(network: nn.Module, image: Image) -> Tensor:
    """What trees see of one image ``(1, channel, *voxel)``: ``(voxels, features)``, float32 on the CPU."""
    deep = encoded(network, image, dense=True)
    both = torch.cat([pixel_features(image), deep], 1)
    return both[0].flatten(1).T.float().cpu()


class RefinedRidgeLearner(RidgeLearner):
    """Ridge head (Bertinetto et al. 2019), then a few safeguarded steps on augmented views of the support.

    Meta-training is that of ``ridge``: backbone features on which a closed-form head already segments.
    Adapting starts from that head and moves all weights by Adam on randomly moved views of the support. How
    many steps, if any, is chosen by leaving out support examples in turn: what does not help the ones left
    out is not done. With trees, extremely randomised trees (Geurts et al. 2006) on the adapted features,
    intensities and places have a part in the answer.

    Args:
        name: the name it goes by.
        network: the backbone.
        penalty, scale: of ``ridge``.
        steps: most fine-tuning steps.
        rate: of Adam.
        views: views of the support a step.
        folds: parts of the support that are left out in turn; 0 always takes all steps.
        mirrors: whether predictions are averaged over mirrored views.
        trees: number of trees, 0 for none. With neither mirrors nor trees a predictor leaves home as a plain
            network.
        part: of the trees in the answer.
        seed: of the views.
        outlined: whether images are lesions cut out of their scans, the outline their last channel.
        spacing: mm along each voxel axis, for the views; None takes all as equal.
    """

    def __init__(
        self,
        name: str,
        network: nn.Module,
        *,
        penalty: float = 0.1,
        scale: float = 10.0,
        steps: int = 30,
        rate: float = 2e-3,
        views: int = 4,
        folds: int = 2,
        mirrors: bool = False,
        trees: int = 0,
        part: float = 0.5,
        seed: int = 0,
        outlined: bool = False,
        spacing: Sequence[float] | None = None,
    ) -> None:
        super().__init__(name, network, penalty=penalty, scale=scale)
        if trees < 0 or not 0 <= part <= 1:
            raise LearnerError(
                "0 or more trees and a part from 0 to 1",
                found=f"trees={trees}, part={part}",
                cure="Change that option.",
            )
        self.tuning = FineTuning(steps, rate, views, folds, seed, outlined, spacing)
        self.fixed = fixed_weights(network)
        more = {"mirrors": mirrors, "trees": trees, "part": part}
        self.options = {**self.options, **asdict(self.tuning), **more}
        self.mirrors, self.trees, self.part, self.seed = mirrors, trees, part, seed

    @torch.inference_mode(False)
    def adapt(self, support: Examples) -> LinearPredictor | RefinedPredictor:  # type: ignore[override]
        """Learn from the support; the learner stays bitwise the same."""
        check_support(support)
        support = in_order(support)
        count = enough(self._start, support, self.tuning, self.fixed)
        steps = self.tuning.steps if count is None else count
        network, head = taken(self._start, support, steps, self.tuning, self.fixed)
        plain = LinearPredictor(network, head, support)
        trees = self._grow(network, support) if self.trees and support.segments else None
        if trees is None and not (self.mirrors and support.segments):
            return plain
        return RefinedPredictor(plain, self.mirrors, trees, self.part)

    def _start(self, support: Examples) -> tuple[nn.Module, Head]:
        with torch.no_grad(), still(self.network):
            return own_copy(self.network), self._head(pieces(support, parameter_like(self.network)))

    def _grow(self, network: nn.Module, support: Examples) -> ExtraTreesClassifier:
        """Fit trees to voxels of the support."""
        generator = np.random.default_rng(self.seed)
        seen, labels = [], []
        like = parameter_like(network)
        for image, label in zip(support.image, support.label, strict=True):
            flat = label.flatten().cpu().numpy()
            chosen = sampled(flat, VOXELS, generator)
            with torch.no_grad():
                seen.append(tree_features(network, image[None].to(like)).numpy()[chosen])
            labels.append(flat[chosen])
        return Growing(self.trees, 2, self.seed)(np.concatenate(seen), np.concatenate(labels))


__all__ = ["RefinedPredictor", "RefinedRidgeLearner", "pixel_features"]
