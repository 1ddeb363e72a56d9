"""Many local prototypes a class instead of one mean: what an organ looks like here, and there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medmeta.episodes.examples import Episode, Examples
from medmeta.learners.batch import check_support, own_copy, parameter_like, still, whole
from medmeta.learners.episodic import BOTH, EpisodicLearner
from medmeta.learners.loss import balance, example_loss
from medmeta.learners.protocol import LearnerError
from medmeta.networks import encoded
from medmeta.shape import Feature, Image, Logits

POOL = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)
GAIN = 20.0
"""What a cosine counts to begin with (Wang et al. 2019, section 3.3)."""


def pooled(values: Tensor, window: int) -> Tensor:
    """Average over windows of at most ``window`` voxels a side, without overlap; ``(n, c, *space)``.

    Example:
        >>> pooled(torch.ones(1, 1, 8, 8), 4).shape
        torch.Size([1, 1, 2, 2])
    """
    sides = [min(window, side) for side in values.shape[2:]]
    return POOL[len(sides) - 1](values, sides, ceil_mode=True)


def places(like: Tensor) -> Tensor:
    """Where each voxel lies, -1 to 1 along each axis (0 on an axis of one voxel): ``(n, axes, *space)``.

    Example:
        >>> places(torch.zeros(1, 3, 2, 1))[0, :, :, 0]
        tensor([[-0.5000,  0.5000],
                [ 0.0000,  0.0000]])
    """
    axes = [(torch.arange(s, dtype=like.dtype, device=like.device) + 0.5) * 2 / s - 1 for s in like.shape[2:]]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    return grid.expand(len(like), *grid.shape)


def local_prototypes(feature: Tensor, target: Tensor, window: int, share: float) -> tuple[Tensor, Tensor]:
    """Average each class's features over the whole support and over every window that shows enough of it.

    Args:
        feature: ``(n, feature, *space)``.
        target: ``(n, way, *space)`` shares of the classes.
        window: voxels a side.
        share: how much of a window a class must fill.

    Returns:
        Prototypes ``(m, feature)`` of length one and their classes one-hot ``(m, way)``.

    Example:
        >>> hot = torch.zeros(1, 2, 8, 8)
        >>> hot[:, 0, :, :4], hot[:, 1, :, 4:] = 1, 1
        >>> local_prototypes(torch.rand(1, 3, 8, 8), hot, 4, 0.9)[1].sum(0)
        tensor([3., 3.])
    """
    made, classes = [], []
    way = target.shape[1]
    for c in range(way):
        mask = target[:, c : c + 1]
        mean = (feature * mask).transpose(0, 1).flatten(1).sum(1) / mask.sum().clamp(min=1e-6)
        filled = pooled(mask, window)
        windows = (pooled(feature * mask, window) / filled.clamp(min=1e-6)).movedim(1, -1)
        own = torch.cat([mean[None], windows[filled[:, 0] > share]])
        made.append(own)
        classes.append(torch.eye(way, dtype=feature.dtype, device=feature.device)[c].expand(len(own), way))
    return F.normalize(torch.cat(made), dim=1, eps=1e-6), torch.cat(classes)


def similarity(feature: Tensor, prototypes: Tensor, classes: Tensor, gain: Tensor) -> Tensor:
    """Logits: for each class, the similarity to its prototypes, the nearest counting most.

    Args:
        feature: ``(n, feature, *space)`` of length one.
        prototypes, classes: of :func:`local_prototypes`.
        gain: what a cosine counts.

    Returns:
        ``(n, way, *space)``: softmax-weighted means of the similarities (Ouyang et al. 2020, equation 3).
    """
    near = gain * torch.einsum("nf...,mf->nm...", feature, prototypes)
    logits = []
    for c in range(classes.shape[1]):
        own = near[:, classes[:, c] > 0]
        logits.append((own * torch.softmax(own, 1)).sum(1))
    return torch.stack(logits, 1)


class Encoding(nn.Module):
    """A backbone's features and the voxel's place, at a coarser grid, of length one.

    Args:
        network: the backbone.
        place: logarithm of what a place counts beside the features, or None to leave it out.
        stride: voxels a side of a grid point.
    """

    def __init__(self, network: nn.Module, place: Tensor | None, stride: int) -> None:
        super().__init__()
        self.network, self.place, self.stride = network, place, stride

    def forward(self, image: Image, *, dense: bool) -> Feature:
        """``(n, feature, *coarse)``; one point an image where not dense."""
        feature = encoded(self.network, image, dense=dense)
        feature = feature if dense else feature[..., None]
        feature = F.normalize(pooled(feature, self.stride), dim=1, eps=1e-6)
        if self.place is not None and dense:
            feature = F.normalize(torch.cat([feature, self.place.exp() * places(feature)], 1), dim=1)
        return feature


class LocalPrototypePredictor(nn.Module):
    """A backbone and the prototypes of a support; it needs medmeta to run."""

    prototypes: Tensor
    classes: Tensor
    gain: Tensor

    def __init__(self, encoding: Encoding, prototypes: Tensor, classes: Tensor, gain: Tensor, dense: bool):
        super().__init__()
        self.encoding, self.dense = encoding, dense
        self.register_buffer("prototypes", prototypes)
        self.register_buffer("classes", classes)
        self.register_buffer("gain", gain)
        self.requires_grad_(False)
        self.eval()

    def forward(self, image: Image) -> Logits:
        """Images ``(n, channel, *voxel)`` to logits ``(n, way, *space)``."""
        feature = self.encoding(image, dense=self.dense)
        return onto(similarity(feature, self.prototypes, self.classes, self.gain), image, self.dense)

    def spec(self, network: Mapping[str, Any]) -> dict[str, Any]:
        """How to make a predictor that these weights fit, given the specification of the backbone."""
        return {
            "_target_": "medmeta.learners.local_prototype.local_prototype_predictor",
            "network": dict(network),
            "prototypes": list(self.prototypes.shape),
            "way": self.classes.shape[1],
            "place": self.encoding.place is not None,
            "stride": self.encoding.stride,
            "dense": self.dense,
        }


def local_prototype_predictor(
    network: nn.Module, *, prototypes: Sequence[int], way: int, place: bool, stride: int, dense: bool
) -> LocalPrototypePredictor:
    """Make a predictor that knows nothing yet, for its weights to be loaded.

    Args:
        network: the backbone.
        prototypes: shape of the prototypes, ``(m, feature)``.
        way: number of classes.
        place, stride: of the :class:`Encoding`.
        dense: whether it segments.
    """
    encoding = Encoding(network, nn.Parameter(torch.zeros(())) if place else None, stride)
    classes = torch.zeros(prototypes[0], way)
    return LocalPrototypePredictor(encoding, torch.zeros(*prototypes), classes, torch.ones(()), dense)


def onto(logits: Tensor, image: Image, dense: bool) -> Tensor:
    """Coarse logits on the image's grid."""
    if not dense:
        return logits[..., 0]
    if logits.shape[2:] == image.shape[2:]:
        return logits
    mode = ("linear", "bilinear", "trilinear")[image.ndim - 3]
    return F.interpolate(logits, image.shape[2:], mode=mode, align_corners=False)


class LocalPrototypeLearner(EpisodicLearner):
    """Local prototypes with alignment (Ouyang et al. 2020, sections 3.3 and 3.4; Wang et al. 2019).

    A class is its mean feature and the means of the windows it fills. A voxel is compared with all of them by
    cosine. Trained with a second loss that asks the other way round: prototypes of the predicted query must
    segment the support.

    Args:
        name: the name it goes by.
        network: the backbone.
        window: voxels of the image a side of a window.
        share: how much of a window a class must fill.
        stride: voxels a side of a point at which features are compared.
        gain: what a cosine counts, learnt from here on.
        place: what a voxel's place counts beside its feature, learnt from here on; 0 for nothing.
        alignment: weight of the loss that asks the other way round.
    """

    def __init__(
        self,
        name: str,
        network: nn.Module,
        *,
        window: int = 16,
        share: float = 0.5,
        stride: int = 2,
        gain: float = GAIN,
        place: float = 0.3,
        alignment: float = 0.5,
    ) -> None:
        _check(window, share, stride, alignment)
        options = {
            "window": window,
            "share": share,
            "stride": stride,
            "gain": gain,
            "place": place,
            "alignment": alignment,
        }
        super().__init__(name, network, options, BOTH)
        self.window, self.share, self.stride, self.alignment = window // stride, share, stride, alignment
        self.log_gain = self.positive(gain)
        self.log_place = self.positive(place) if place else None

    def _encoding(self) -> Encoding:
        return Encoding(self.network, self.log_place, self.stride)

    def _coarse(self, target: Tensor) -> Tensor:
        return pooled(target if target.ndim > 2 else target[..., None], self.stride if target.ndim > 2 else 1)

    def adapt(self, support: Examples) -> LocalPrototypePredictor:
        """Average the support's features, window by window; the learner stays bitwise the same."""
        check_support(support)
        with torch.no_grad(), still(self.network):
            all_of_it = whole(support, parameter_like(self.network))
            feature = torch.cat(
                [self._encoding()(one[None], dense=support.segments) for one in all_of_it.image]
            )
            made = local_prototypes(feature, self._coarse(all_of_it.target), self.window, self.share)
            place = None if self.log_place is None else nn.Parameter(self.log_place.detach().clone())
            encoding = Encoding(own_copy(self.network), place, self.stride)
            return LocalPrototypePredictor(encoding, *made, self.log_gain.exp(), support.segments)

    def episode_loss(self, episode: Episode) -> Tensor:
        """Give the loss of the queries after learning from the support, and the other way round."""
        like = parameter_like(self.network)
        support, query = whole(episode.support, like), whole(episode.query, like)
        encoding, gain = self._encoding(), self.log_gain.exp()
        ours, theirs = (encoding(side.image, dense=side.dense) for side in (support, query))
        target = self._coarse(support.target)
        made = local_prototypes(ours, target, self.window, self.share)
        guess = similarity(theirs, *made, gain)
        fine = onto(guess, query.image, query.dense)
        loss = example_loss(fine, query.target, query.share).mean()
        if self.alignment:
            believed = torch.nn.functional.one_hot(guess.argmax(1), guess.shape[1]).movedim(-1, 1).to(guess)
            if bool((believed.flatten(2).sum([0, 2]) > 0).all()):
                back = similarity(ours, *local_prototypes(theirs, believed, self.window, self.share), gain)
                fine = onto(back, support.image, support.dense)
                loss = (
                    loss + self.alignment * example_loss(fine, support.target, balance(support.target)).mean()
                )
        return loss


def _check(window: int, share: float, stride: int, alignment: float) -> None:
    if not (stride >= 1 and window >= stride and 0 <= share < 1 and alignment >= 0):
        raise LearnerError(
            "stride >= 1, a window of at least a stride, a share from 0 to below 1, alignment >= 0",
            found=f"stride={stride}, window={window}, share={share}, alignment={alignment}",
            cure="Change that option.",
        )
