"""A head solved in closed form: ridge regression on the support's features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from medmeta.episodes.examples import Episode, Examples
from medmeta.learners.batch import Piece, check_support, own_copy, parameter_like, pieces, still, whole
from medmeta.learners.episodic import BOTH, EpisodicLearner
from medmeta.learners.head import Head, logits
from medmeta.learners.loss import example_loss
from medmeta.learners.predictor import LinearPredictor


def moments(feature: Tensor, target: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sum what ridge regression needs to know of weighted points; the sums of pieces add up.

    Args:
        feature: ``(n, feature, *space)``.
        target: ``(n, way, *space)`` one-hot labels.
        weight: ``(way)`` weight of a point of each class.

    Returns:
        ``(1 + feature, 1 + feature)`` second moments with the constant first, ``(1 + feature, way)`` products
        with the labels, and the total weight.
    """
    exact = torch.promote_types(feature.dtype, torch.float32)  # sums in half precision are no use
    feature, target, weight = (t.to(exact) for t in (feature, target, weight))
    flat = feature.reshape(*feature.shape[:2], -1).transpose(1, 2).flatten(0, 1)
    hot = target.reshape(*target.shape[:2], -1).transpose(1, 2).flatten(0, 1)
    point = (hot * weight).sum(1, keepdim=True)
    design = torch.cat([torch.ones_like(flat[:, :1]), flat], 1)
    with torch.autocast(flat.device.type, enabled=False):
        return design.T @ (point * design), design.T @ (point * hot), point.sum()


def ridge(square: Tensor, product: Tensor, penalty: Tensor | float) -> Head:
    """Solve ridge regression with an unpenalised intercept from its moments.

    Args:
        square: ``(1 + feature, 1 + feature)``.
        product: ``(1 + feature, way)``.
        penalty: what the squared weights count.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [2.0]])
        >>> hot = torch.eye(2)[[0, 0, 1]]
        >>> square, product, _ = moments(x, hot, torch.ones(2))
        >>> ridge(square, product, 0.0).weight[:, 0]
        tensor([-0.5000,  0.5000])
    """
    diagonal = torch.ones_like(square[0])
    diagonal[0] = 0
    solution = torch.linalg.solve(square + penalty * torch.diag(diagonal), product)
    return Head(solution[1:].T, solution[0])


class RidgeLearner(EpisodicLearner):
    """Differentiable ridge-regression head (Bertinetto et al. 2019, R2-D2, equations 6 and 7).

    Regresses one-hot labels on features, with an intercept; the result times a learned scale are the logits.
    Each class (when segmenting, each voxel tempered by its class's rarity) has the weight that the loss
    gives it.

    Args:
        name: the name it goes by.
        network: the backbone.
        penalty: of the squared weights per unit of total weight, learnt from here on.
        scale: of the logits, learnt from here on.
    """

    linear_head = True

    def __init__(self, name: str, network: nn.Module, *, penalty: float = 0.1, scale: float = 10.0) -> None:
        super().__init__(name, network, {"penalty": penalty, "scale": scale}, BOTH)
        self.log_penalty, self.log_scale = self.positive(penalty), self.positive(scale)

    def _head(self, parts: Sequence[Piece]) -> Head:
        sums = [moments(self.feature(p.image, dense=p.dense), p.target, p.share.weight) for p in parts]
        square, product, total = (torch.stack(s).sum(0) for s in zip(*sums, strict=True))
        # the mean of the intercept's target is taken out of every logit alike, which softmax does not see
        head = ridge(square / total, product / total, self.log_penalty.exp())
        scale = self.log_scale.exp()
        return Head((scale * head.weight).to(scale), (scale * head.bias).to(scale))

    def adapt(self, support: Examples) -> LinearPredictor:
        """Solve for the head; the learner stays bitwise the same."""
        check_support(support)
        with torch.no_grad(), still(self.network):
            head = self._head(pieces(support, parameter_like(self.network)))
        return LinearPredictor(own_copy(self.network), head, support)

    def episode_loss(self, episode: Episode) -> Tensor:
        """Give the loss of the queries after learning from the support, with its graph."""
        like = parameter_like(self.network)
        head = self._head([whole(episode.support, like)])
        query = whole(episode.query, like)
        guess = logits(self.feature(query.image, dense=query.dense), head)
        return example_loss(guess, query.target, query.share).mean()
