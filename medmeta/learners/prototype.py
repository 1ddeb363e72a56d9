"""Nearest prototype, to classify and to segment."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medmeta.episodes.examples import Episode, Examples
from medmeta.errors import nearest
from medmeta.learners.batch import Piece, check_support, own_copy, parameter_like, pieces, still, whole
from medmeta.learners.episodic import BOTH, EpisodicLearner
from medmeta.learners.head import Head, class_means, logits, prototype_head
from medmeta.learners.loss import example_loss
from medmeta.learners.predictor import LinearPredictor, unit_length
from medmeta.learners.protocol import LearnerError
from medmeta.shape import Feature, Image

DISTANCES = ("euclidean", "cosine")


class PrototypeLearner(EpisodicLearner):
    """Nearest prototype (Snell et al. 2017, algorithm 1; with cosine similarity, Gidaris & Komodakis 2018).

    A prototype is the mean feature of a class's support; when segmenting, of its voxels (masked average,
    Wang et al. 2019, equation 1).

    Args:
        name: the name it goes by.
        network: the backbone.
        distance: ``euclidean`` (squared) or ``cosine``.
        scale: how much a distance counts, learnt from here on: what squared distances over the root of the
            number of features are multiplied by, 1 by default, or what cosines are, 10 by default.
    """

    linear_head = True

    def __init__(
        self,
        name: str,
        network: nn.Module,
        *,
        distance: str = "euclidean",
        scale: float | None = None,
    ) -> None:
        if distance not in DISTANCES:
            raise LearnerError("a known distance", found=repr(distance), cure=nearest(distance, DISTANCES))
        super().__init__(name, network, {"distance": distance, "scale": scale}, BOTH)
        self.cosine = distance == "cosine"
        self.log_scale = self.positive((10.0 if self.cosine else 1.0) if scale is None else scale)

    def _place(self, image: Image, *, dense: bool) -> Feature:
        feature = self.feature(image, dense=dense)
        return F.normalize(feature, dim=1, eps=1e-6) if self.cosine else feature

    def _head(self, parts: Sequence[Piece]) -> Head:
        mean = class_means((self._place(p.image, dense=p.dense), p.target) for p in parts)
        if self.cosine:
            weight = self.log_scale.exp() * F.normalize(mean, dim=1, eps=1e-6)
            return Head(weight, torch.zeros_like(weight[:, 0]))
        return prototype_head(mean, self.log_scale.exp() / mean.shape[1] ** 0.5)

    def adapt(self, support: Examples) -> LinearPredictor:
        """Average the support's features; the learner stays bitwise the same."""
        check_support(support)
        with torch.no_grad(), still(self.network):
            head = self._head(pieces(support, parameter_like(self.network)))
        between = unit_length(head.weight.shape[1], dense=support.segments) if self.cosine else None
        return LinearPredictor(own_copy(self.network), head, support, between=between)

    def episode_loss(self, episode: Episode) -> Tensor:
        """Give the loss of the queries after learning from the support, with its graph."""
        like = parameter_like(self.network)
        head = self._head([whole(episode.support, like)])
        query = whole(episode.query, like)
        guess = logits(self._place(query.image, dense=query.dense), head)
        return example_loss(guess, query.target, query.share).mean()
