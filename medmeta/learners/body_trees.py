"""Trees that know what a voxel looks like and where in the body it lies; they go on learning on the scan."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.ensemble import ExtraTreesClassifier
from torch import Tensor, nn

from medmeta.episodes.examples import Examples
from medmeta.learners.batch import check_support, own_copy
from medmeta.learners.body import smooth
from medmeta.learners.growing import Copying, Growing, Points, Seeing
from medmeta.learners.one_organ import guided, surest
from medmeta.learners.predictor import LinearPredictor
from medmeta.learners.protocol import LearnerError
from medmeta.learners.ridge import RidgeLearner
from medmeta.learners.safeguard import in_order
from medmeta.shape import Image, Logits

WIDTH = 1.5
"""Voxels over which what trees say is smoothed (standard deviation)."""
BETWEEN = 0.7
"""Slices over which it is smoothed where the batch is one scan."""
SURE = 0.7
"""Probability from which a voxel of the scan is taken as labelled."""
OWN = 6000
"""Most voxels of the scan that are taken so."""


@dataclass(frozen=True)
class Asking:
    """How a scan is predicted.

    Args:
        own: times that trees are grown again with the sure voxels of the batch itself.
        edges: whether edges of the answer move to those of the image.
        stacked: whether a batch is the slices of one scan in their order.
        stride: voxels a side of a point at which trees are asked.
    """

    own: int
    edges: bool
    stacked: bool
    stride: int


class BodyTreesPredictor(nn.Module):
    """Trees, and the support that they are grown on again together with a scan; it needs medmeta to run.

    Args:
        seeing: what they see.
        growing: how they are grown.
        points, label: voxels of the support.
        way: number of classes.
        asking: how a scan is predicted.
    """

    def __init__(
        self,
        seeing: Seeing,
        growing: Growing,
        points: Points,
        label: NDArray[np.int64],
        way: int,
        asking: Asking,
    ) -> None:
        super().__init__()
        self.network = seeing.network
        self.seeing, self.growing, self.points, self.label, self.way = seeing, growing, points, label, way
        self.asking = asking
        self.trees = growing(points, label)
        self.requires_grad_(False)
        self.eval()

    def forward(self, image: Image) -> Logits:
        """Images ``(n, channel, *voxel)`` to logits ``(n, way, *space)``; they depend on the whole batch.

        With ``own`` rounds the batch's sure voxels are learnt from, and where it is one scan its slices are
        smoothed together and of every class but the first only the surest piece is kept: give a
        whole scan at once.
        """
        maps, mask = self.seeing(image)
        pool = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[image.ndim - 3]
        sides = [min(self.asking.stride, s) for s in image.shape[2:]]
        maps = pool(maps, sides, ceil_mode=True)
        inside = pool(torch.from_numpy(mask)[:, None].float(), sides, ceil_mode=True)[:, 0] >= 0.5
        points = maps.movedim(1, -1)[inside].numpy()
        said = self._smooth(self._say(self.trees, points, inside))
        for _ in range(self.asking.own):
            trees = self._again(points, said.movedim(1, -1)[inside].numpy())
            if trees is None:
                break
            said = self._smooth(self._say(trees, points, inside))
        mode = ("linear", "bilinear", "trilinear")[image.ndim - 3]
        said = F.interpolate(said, image.shape[2:], mode=mode, align_corners=False)
        said = guided(said, image) if self.asking.edges else said
        return (surest(said) if self.asking.stacked else said).clamp(min=1e-4).log()

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
        between = BETWEEN if self.asking.stacked else 0.0
        return torch.stack([smooth(c, WIDTH / self.asking.stride, between) for c in said.unbind(1)], 1)


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
            darker, each by its own, as scanners and coils differ; 0 for none, and with no shift no copies.
        shift: spread by which places of the copies are moved, in sides of the body, each by its own, as
            organs of two patients lie differently and are of different size; 0 for none.
        own: times that the trees are grown again with the sure voxels of the batch to predict.
        edges: whether edges of the answer move to those of the image (He et al. 2010).
        stacked: whether a batch to predict is the slices of one scan in their order.
        stride: voxels a side of a point at which a scan is predicted.
        seed: of the trees.
    """

    linear_head = False

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
        shift: float = 0.03,
        own: int = 0,
        edges: bool = True,
        stacked: bool = False,
        stride: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__(name, network, penalty=penalty, scale=scale)
        if (
            min(trees, leaf, stride) < 1
            or min(own, gain, shift) < 0
            or places not in ("body", "image", "none")
        ):
            raise LearnerError(
                "1 or more trees, leaf and stride >= 1, own, gain and shift >= 0, places body, image or none",
                found=f"trees={trees}, leaf={leaf}, stride={stride}, own={own}, gain={gain}, shift={shift}, "
                f"places={places}",
                cure="Change that option.",
            )
        more = {"deep": deep, "places": places, "trees": trees, "leaf": leaf, "gain": gain, "shift": shift}
        self.asking = Asking(own, edges, stacked, stride)
        self.options = {**self.options, **more, "seed": seed, **asdict(self.asking)}
        self.deep, self.places = deep, places
        self.copying, self.growing = Copying(gain, shift, seed), Growing(trees, leaf, seed)

    def adapt(self, support: Examples) -> LinearPredictor | BodyTreesPredictor:  # type: ignore[override]
        """Grow trees on the support; the learner stays bitwise the same."""
        check_support(support)
        if not support.has_extent:
            return super().adapt(support)
        support = in_order(support)
        seeing = Seeing(own_copy(self.network) if self.deep else None, self.places)
        maps, mask = seeing(support.image)
        inside = torch.from_numpy(mask) | (support.label > 0).cpu()
        channels, axes = support.image.shape[1], support.image.ndim - 2
        placed = {"body": axes + 1, "image": axes, "none": 0}[self.places]
        points, copies = self.copying(maps.movedim(1, -1)[inside].numpy(), channels, placed)
        return BodyTreesPredictor(
            seeing,
            self.growing,
            points,
            np.tile(support.label.cpu()[inside].numpy(), copies),
            len(support.classes),
            self.asking,
        )


__all__ = ["BodyTreesLearner", "BodyTreesPredictor"]
