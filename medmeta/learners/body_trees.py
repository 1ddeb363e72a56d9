"""Trees that know what a voxel looks like and where in the body it lies; they go on learning on the scan."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.ensemble import ExtraTreesClassifier
from torch import Tensor, nn

from medmeta.episodes.examples import Examples
from medmeta.learners.batch import check_support, parameter_like, still
from medmeta.learners.body import body_mask, body_places, contrast, largest, looks, smooth
from medmeta.learners.predictor import LinearPredictor
from medmeta.learners.protocol import LearnerError
from medmeta.learners.ridge import RidgeLearner
from medmeta.learners.safeguard import in_order
from medmeta.networks import features
from medmeta.shape import Image, Logits

Points = NDArray[np.float32]
WIDTH = 1.5
"""Voxels over which what trees say is smoothed (standard deviation)."""
BETWEEN = 0.7
"""Slices over which it is smoothed where the batch is one scan."""
SURE = 0.7
"""Probability from which a voxel of the scan is taken as labelled."""
OWN = 6000
"""Most voxels of the scan that are taken so."""
COPIES = 2
"""Copies of the support of another brightness that trees are grown on, too."""


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
                deep = [
                    features(self.network(one[None].to(like)), one.shape[1:], dense=True) for one in image
                ]
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


class BodyTreesPredictor(nn.Module):
    """Trees, and the support that they are grown on again together with a scan; it needs medmeta to run.

    Args:
        seeing: what they see.
        growing: how they are grown.
        points, label: voxels of the support.
        way: number of classes.
        own: times that they are grown again with the sure voxels of the batch itself.
        stacked: whether a batch is the slices of one scan in their order.
        stride: voxels a side of a point at which they are asked.
    """

    def __init__(
        self,
        seeing: Seeing,
        growing: Growing,
        points: Points,
        label: NDArray[np.int64],
        way: int,
        *,
        own: int,
        stacked: bool,
        stride: int,
    ) -> None:
        super().__init__()
        self.network = seeing.network
        self.seeing, self.growing, self.points, self.label, self.way = seeing, growing, points, label, way
        self.own, self.stacked, self.stride = own, stacked, stride
        self.trees = growing(points, label)
        self.requires_grad_(False)
        self.eval()

    def forward(self, image: Image) -> Logits:
        """Images ``(n, channel, *voxel)`` to logits ``(n, way, *space)``; they depend on the whole batch.

        With ``own`` rounds the batch's sure voxels are learnt from, and where it is one scan its slices are
        smoothed together and of every class but the first only the largest piece is kept: give a
        whole scan at once.
        """
        maps, mask = self.seeing(image)
        pool = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[image.ndim - 3]
        sides = [min(self.stride, s) for s in image.shape[2:]]
        maps = pool(maps, sides, ceil_mode=True)
        inside = pool(torch.from_numpy(mask)[:, None].float(), sides, ceil_mode=True)[:, 0] >= 0.5
        points = maps.movedim(1, -1)[inside].numpy()
        said = self._smooth(self._say(self.trees, points, inside))
        for _ in range(self.own):
            trees = self._again(points, said.movedim(1, -1)[inside].numpy())
            if trees is None:
                break
            said = self._smooth(self._say(trees, points, inside))
        mode = ("linear", "bilinear", "trilinear")[image.ndim - 3]
        said = F.interpolate(said, image.shape[2:], mode=mode, align_corners=False)
        return (self._one_piece(said) if self.stacked else said).clamp(min=1e-4).log()

    def _say(self, trees: ExtraTreesClassifier, points: Points, inside: Tensor) -> Tensor:
        """Probabilities ``(n, way, *grid)``; outside the body all is class 0."""
        said = torch.zeros(*inside.shape, self.way)
        said[..., 0] = 1
        if len(points):
            made = np.zeros((len(points), self.way), np.float32)
            made[:, trees.classes_] = trees.predict_proba(points)
            said[inside] = torch.from_numpy(made)
        return said.movedim(-1, 1)

    def _again(self, points: Points, said: Points) -> ExtraTreesClassifier | None:
        """Trees of the support and the batch's sure voxels; None where no class but the first is sure."""
        sure = np.flatnonzero(said.max(1) > SURE)
        sure = np.random.default_rng(self.growing.seed).permutation(sure)[:OWN]
        believed = said[sure].argmax(1)
        if not believed.any():
            return None
        return self.growing(np.concatenate([self.points, points[sure]]), np.append(self.label, believed))

    def _smooth(self, said: Tensor) -> Tensor:
        between = BETWEEN if self.stacked else 0.0
        return torch.stack([smooth(c, WIDTH / self.stride, between) for c in said.unbind(1)], 1)

    def _one_piece(self, said: Tensor) -> Tensor:
        first = said.argmax(1).numpy()
        for c in range(1, self.way):
            dropped = torch.from_numpy((first == c) & ~largest(first == c))
            said[:, c] = torch.where(dropped, 0.0, said[:, c])
        return said


class BodyTreesLearner(RidgeLearner):
    """Extremely randomised trees (Geurts et al. 2006) on looks and on places in the body.

    Few labelled slices tell an organ by what it looks like and where in the body it lies; body coordinates
    (shares of the body's bounding box, depth under its surface) make places of two patients comparable. The
    predictor can then learn from the scan itself: voxels that it is sure of are added to the support
    and the trees grown again (self-support, Fan et al. 2022, section 3.2). With ``deep``, trees see the
    features of the backbone, meta-trained as that of ``ridge``; without, nothing but the support is learnt
    from. Where there is no extent (to classify, or one voxel an image) it is ``ridge``.

    Args:
        name: the name it goes by.
        network: the backbone.
        penalty, scale: of ``ridge``.
        deep: whether trees see the backbone's features.
        places: ``body``, ``image`` or ``none``.
        trees: how many.
        leaf: fewest voxels of a leaf.
        gain: spread of the logarithm of a gain by which copies of the support's voxels are brighter or
            darker, each by its own, as scanners and coils differ; 0 for no copies.
        own: times that the trees are grown again with the sure voxels of the batch to predict.
        stacked: whether a batch to predict is the slices of one scan in their order.
        stride: voxels a side of a point at which a scan is predicted.
        seed: of the trees.
    """

    def __init__(
        self,
        name: str,
        network: nn.Module,
        *,
        penalty: float = 0.1,
        scale: float = 10.0,
        deep: bool = False,
        places: str = "body",
        trees: int = 40,
        leaf: int = 8,
        gain: float = 0.3,
        own: int = 0,
        stacked: bool = False,
        stride: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__(name, network, penalty=penalty, scale=scale)
        if min(trees, leaf, stride) < 1 or min(own, gain) < 0 or places not in ("body", "image", "none"):
            raise LearnerError(
                "1 or more trees, leaf and stride >= 1, own and gain >= 0, places body, image or none",
                found=f"trees={trees}, leaf={leaf}, stride={stride}, own={own}, gain={gain}, places={places}",
                cure="Change that option.",
            )
        more = {"deep": deep, "places": places, "trees": trees, "leaf": leaf, "gain": gain, "own": own}
        self.options = {**self.options, **more, "stacked": stacked, "stride": stride, "seed": seed}
        self.deep, self.places, self.own, self.stacked, self.stride = deep, places, own, stacked, stride
        self.gain, self.growing = gain, Growing(trees, leaf, seed)

    def adapt(self, support: Examples) -> LinearPredictor | BodyTreesPredictor:  # type: ignore[override]
        """Grow trees on the support; the learner stays bitwise the same."""
        check_support(support)
        if support.label[0].numel() < 2:
            return super().adapt(support)
        support = in_order(support)
        with still(self.network):
            seeing = Seeing(copy.deepcopy(self.network) if self.deep else None, self.places)
        maps, mask = seeing(support.image)
        inside = torch.from_numpy(mask) | (support.label > 0).cpu()
        points, copies = self._copies(maps.movedim(1, -1)[inside].numpy(), 5 * support.image.shape[1])
        return BodyTreesPredictor(
            seeing,
            self.growing,
            points,
            np.tile(support.label.cpu()[inside].numpy(), copies),
            len(support.classes),
            own=self.own,
            stacked=self.stacked,
            stride=self.stride,
        )

    def _copies(self, points: Points, looking: int) -> tuple[Points, int]:
        """Voxels and copies of them whose first ``looking`` features have a gain; and how many there are."""
        if not self.gain:
            return points, 1
        generator = np.random.default_rng(self.growing.seed)
        made = [points]
        for _ in range(COPIES):
            gain = np.exp(generator.normal(0, self.gain, (len(points), 1)))
            made.append(
                np.concatenate([points[:, :looking] * gain, points[:, looking:]], 1, dtype=np.float32)
            )
        return np.concatenate(made), len(made)


__all__ = ["BodyTreesLearner", "BodyTreesPredictor"]
