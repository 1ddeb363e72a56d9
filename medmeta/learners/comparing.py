"""Learners that compare a query with the support itself: matching, relation and Siamese networks."""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medmeta.episodes.examples import Episode, Examples
from medmeta.errors import nearest
from medmeta.learners.batch import Piece, check_support, own_copy, parameter_like, pieces, still, whole
from medmeta.learners.episodic import CLASSIFY, EpisodicLearner
from medmeta.learners.loss import example_loss
from medmeta.learners.protocol import LearnerError
from medmeta.networks import encoded, feature_size
from medmeta.shape import Feature, Image, Logits


class ComparingPredictor(nn.Module):
    """A backbone, the support's features and a way to compare.

    Args:
        network: the backbone; it belongs to the predictor from here on.
        compare: (query features, support features, one-hot labels) to logits.
        support: ``(n, feature)``.
        target: ``(n, way)`` one-hot labels.
        example_shape: of one image, ``(channel, *voxel)``.
    """

    support: Tensor
    target: Tensor

    def __init__(
        self,
        network: nn.Module,
        compare: nn.Module,
        support: Feature,
        target: Tensor,
        *,
        example_shape: tuple[int, ...],
    ) -> None:
        super().__init__()
        self.network, self.compare, self.example_shape = network, compare, example_shape
        self.register_buffer("support", support)
        self.register_buffer("target", target)
        self.requires_grad_(False)
        self.eval()

    def forward(self, image: Image) -> Logits:
        """Images ``(n, channel, *voxel)`` to logits ``(n, way)``."""
        feature = encoded(self.network, image, dense=False)
        return self.compare(feature, self.support, self.target)


class Matching(nn.Module):
    """Attention over the support by cosine similarity (Vinyals et al. 2016, equations 1 and 2).

    Args:
        scale: of the similarities, learnt from here on.
    """

    def __init__(self, scale: nn.Parameter) -> None:
        super().__init__()
        self.log_scale = scale

    def forward(self, query: Feature, support: Tensor, target: Tensor) -> Logits:
        """Logarithm of each class's share of the attention."""
        cosine = F.normalize(query, dim=1, eps=1e-6) @ F.normalize(support, dim=1, eps=1e-6).T
        attention = torch.log_softmax(self.log_scale.exp() * cosine, 1)
        outside = (1 - target.T) * torch.finfo(query.dtype).min / 4
        return torch.logsumexp(attention.unsqueeze(1) + outside, 2)

    def loss(self, logits: Logits, target: Tensor, piece: Piece) -> Tensor:
        """Cross-entropy of the attention."""
        return example_loss(logits, target, piece.share).mean()


class Relation(nn.Module):
    """A learned similarity of a query and a class's summed support (Sung et al. 2018, section 3.3).

    Args:
        feature: length of a feature vector.
        hidden: width of the relation module.
    """

    def __init__(self, feature: int, hidden: int) -> None:
        super().__init__()
        self.score = nn.Sequential(nn.Linear(2 * feature, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def forward(self, query: Feature, support: Tensor, target: Tensor) -> Logits:
        """Score of each class; its sigmoid is the paper's relation score.

        The mean, not the sum, of a class's features, so that ragged shots are on one scale.
        """
        means = (target / target.sum(0)).T @ support
        pairs = torch.cat(
            [means.expand(len(query), -1, -1), query.unsqueeze(1).expand(-1, len(means), -1)], dim=2
        )
        return self.score(pairs).squeeze(2)

    def loss(self, logits: Logits, target: Tensor, piece: Piece) -> Tensor:
        """Squared error of the relation scores (equation 2), every class of query counting alike.

        The weight is the query's, by its class: one a column would pay for low scores of a rare class.
        """
        error = (logits.sigmoid() - target).square().sum(1)
        return (error * (target @ piece.share.weight)).mean()


MARGIN = 1.0
"""Of a contrastive loss: it is the unit that distances of features are told in, and any other would do."""


class Siamese(nn.Module):
    """Twin networks: the same or another class? A query's class is that of the most similar support on
    average.

    Args:
        feature: length of a feature vector.
        metric: ``weighted-l1``: a logistic regression on ``|a - b|`` (Koch et al. 2015, section 3.1) or
            ``contrastive``: Euclidean distance, pulled together and pushed apart (Hadsell et al. 2006,
            equation 4).
        margin: distance that ``contrastive`` pushes different classes apart to, a constant as in the paper:
            if it were learnt, a margin and features that shrink together would make the loss zero.
    """

    def __init__(self, feature: int, metric: str, margin: float = MARGIN) -> None:
        super().__init__()
        self.metric = metric
        self.weight = nn.Parameter(torch.full((feature,), -1.0 / feature**0.5))
        # of contrastive pairs the logarithm of the squared margin. Not a buffer: optimisers saved when it was
        # learnt count it among their weights, and go on with it as it is
        constant = metric == "contrastive"
        start = torch.tensor(margin).square().log() if constant else torch.ones(())
        self.bias = nn.Parameter(start, requires_grad=not constant)

    def pair(self, one: Tensor, other: Tensor) -> Tensor:
        """Logit that two are of the same class, for every pair of ``(n, feature)`` and ``(m, feature)``.

        Symmetric: a pair's is the same whichever comes first.
        """
        apart = one.unsqueeze(1) - other.unsqueeze(0)
        if self.metric == "contrastive":
            return self.bias.exp() - apart.square().sum(2)
        return apart.abs() @ self.weight + self.bias

    def forward(self, query: Feature, support: Tensor, target: Tensor) -> Logits:
        """Mean logit of the pairs with each class."""
        return self.pair(query, support) @ (target / target.sum(0))

    def pair_loss(self, pair: Tensor, same: Tensor) -> Tensor:
        """Loss of ``(n, m)`` pairs, same and different ones counting alike.

        Args:
            pair: what :meth:`pair` gave.
            same: one where both are of one class, else zero.
        """
        if self.metric == "contrastive":
            margin = self.bias.exp()
            square = (margin - pair).clamp(min=0)
            gap = (margin.sqrt() - (square + 1e-12).sqrt()).clamp(min=0)
            each = same * square + (1 - same) * gap.square()
        else:
            each = F.binary_cross_entropy_with_logits(pair, same, reduction="none")
        alike = (each * same).sum() / same.sum().clamp(min=1)
        other = (each * (1 - same)).sum() / (1 - same).sum().clamp(min=1)
        return (alike + other) / 2


class ComparingLearner(EpisodicLearner):
    """A backbone and a way to compare features, meta-trained together."""

    compare: Matching | Relation | Siamese

    def adapt(self, support: Examples) -> ComparingPredictor:
        """Remember the support's features; the learner stays bitwise the same."""
        check_support(support)
        self.refuse_space(support.segments)
        with torch.no_grad(), still(self.network):
            parts = pieces(support, parameter_like(self.network))
            feature = torch.cat([self.feature(p.image) for p in parts])
        target = torch.cat([p.target for p in parts])
        return ComparingPredictor(
            own_copy(self.network),
            copy.deepcopy(self.compare),
            feature,
            target,
            example_shape=tuple(support.image.shape[1:]),
        )

    def episode_loss(self, episode: Episode) -> Tensor:
        """Give the loss of the queries after learning from the support, with its graph."""
        like = parameter_like(self.network)
        support, query = whole(episode.support, like), whole(episode.query, like)
        ours, theirs = self.feature(support.image), self.feature(query.image)
        if isinstance(self.compare, Siamese):
            return self.compare.pair_loss(self.compare.pair(theirs, ours), query.target @ support.target.T)
        return self.compare.loss(self.compare(theirs, ours, support.target), query.target, query)


def matching(name: str, network: nn.Module, *, scale: float = 10.0) -> ComparingLearner:
    """Make a matching network, without the full-context embeddings of the paper's section 2.1.2.

    Args:
        name: the name it goes by.
        network: the backbone.
        scale: of the cosine similarities, learnt from here on.
    """
    learner = ComparingLearner(name, network, {"scale": scale}, CLASSIFY)
    learner.compare = Matching(learner.positive(scale))
    return learner


def relation(
    name: str, network: nn.Module, *, hidden: int = 64, feature: int | None = None
) -> ComparingLearner:
    """Make a relation network.

    Args:
        name: the name it goes by.
        network: the backbone.
        hidden: width of the relation module.
        feature: number of the network's features; found out by default.
    """
    if hidden < 1:
        raise LearnerError("1 or more hidden units", found=f"hidden={hidden}", cure="Change that option.")
    size = feature or feature_size(network)
    learner = ComparingLearner(name, network, {"hidden": hidden, "feature": size}, CLASSIFY)
    learner.size = size
    learner.compare = Relation(size, hidden).to(parameter_like(network))
    return learner


METRICS = ("weighted-l1", "contrastive")


def siamese(
    name: str,
    network: nn.Module,
    *,
    metric: str = "weighted-l1",
    feature: int | None = None,
    margin: float = MARGIN,
) -> ComparingLearner:
    """Make a Siamese network.

    Args:
        name: the name it goes by.
        network: the backbone.
        metric: ``weighted-l1`` or ``contrastive``.
        feature: number of the network's features; found out by default.
        margin: distance that ``contrastive`` pushes different classes apart to.
    """
    if metric not in METRICS:
        raise LearnerError("a known metric", found=repr(metric), cure=nearest(metric, METRICS))
    if not 0 < margin < math.inf:
        raise LearnerError("a positive margin", found=f"margin={margin}", cure="Change that option.")
    size = feature or feature_size(network)
    options = {"metric": metric, "feature": size, "margin": margin}
    learner = ComparingLearner(name, network, options, CLASSIFY)
    learner.size = size
    learner.compare = Siamese(size, metric, margin).to(parameter_like(network))
    return learner
