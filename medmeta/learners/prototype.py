"""Metric learners that need no steps: nearest prototype."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from medmeta.episodes.examples import Episode, Examples
from medmeta.learners.gradient import BOTH, PIECE, check_support, pieces, refuse_running_statistics, still
from medmeta.learners.head import Head, class_sums, logits, prototype_head
from medmeta.learners.loss import example_loss
from medmeta.learners.predictor import LinearPredictor
from medmeta.networks import features
from medmeta.shape import Feature, Image


class PrototypeLearner(nn.Module):
    """Nearest prototype by squared Euclidean distance (Snell et al. 2017, algorithm 1).

    A prototype is the mean feature of a class's support; when segmenting, of its voxels.

    Args:
        name: the name it goes by.
        network: the backbone.
        scale: how much a squared distance counts, learnt from here on.
    """

    def __init__(self, name: str, network: nn.Module, *, scale: float = 1.0) -> None:
        super().__init__()
        self.name, self.network, self.tasks = name, network, BOTH
        refuse_running_statistics(network)
        self.options: Mapping[str, Any] = {"scale": scale}
        like = next(network.parameters())
        self.log_scale = nn.Parameter(torch.full((), scale, dtype=like.dtype, device=like.device).log())

    def _feature(self, image: Image, *, dense: bool) -> Feature:
        return features(self.network(image), tuple(image.shape[2:]), dense=dense)

    def _head(self, support: Examples, *, most: float) -> Head:
        check_support(support)
        sums = [
            class_sums(self._feature(part.image, dense=support.segments), part.target)
            for part in pieces(support, self.log_scale, most=most)
        ]
        mean = torch.stack([s for s, _ in sums]).sum(0) / torch.stack([c for _, c in sums]).sum(0)
        return prototype_head(mean, self.log_scale.exp())

    def adapt(self, support: Examples) -> LinearPredictor:
        """Average the support's features; the learner stays bitwise the same."""
        with torch.no_grad(), still(self.network):
            head = self._head(support, most=PIECE)
        return LinearPredictor(
            copy.deepcopy(self.network), head, dense=support.segments, spatial_dims=support.image.ndim - 2
        )

    def backward(self, episodes: Sequence[Episode], *, scale: float) -> Tensor:
        """Add ``scale`` x the summed gradient of the query losses to ``.grad``; give the ``(t,)`` losses."""
        losses = []
        for episode in episodes:
            head = self._head(episode.support, most=float("inf"))
            (query,) = pieces(episode.query, self.log_scale)
            guess = logits(self._feature(query.image, dense=episode.query.segments), head)
            loss = example_loss(guess, query.target, query.share).mean()
            (scale * loss).backward()
            losses.append(loss.detach())
        return torch.stack(losses)
