"""Learners whose adapting is itself one differentiable function: the outer loop is ordinary autograd."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from medmeta.episodes.examples import Episode
from medmeta.learners.batch import check_episode, check_network, of_size, parameter_like
from medmeta.learners.protocol import LearnerError
from medmeta.networks import encoded
from medmeta.shape import Feature, Image

BOTH = frozenset({"classification", "segmentation"})
CLASSIFY = frozenset({"classification"})


class EpisodicLearner(nn.Module, ABC):
    """What prototypes, matching, relation, Siamese, ridge and memory learners share.

    Args:
        name: the name it goes by.
        network: the backbone.
        options: what it was created with.
        tasks: what it can do.

    Attributes:
        whole_scans: whether, to segment, it looks at scans as a whole and not at crops of them.
        recurring: number of training episodes that come again and again; None for always fresh ones.
        size: number of features that what comes after the network is for; None where any number will do.
        linear_head: whether, to segment, it gives a network with a linear head: fine-tuning can go on there.
    """

    linear_head: bool = False
    size: int | None = None
    whole_scans: bool = False
    recurring: int | None = None

    def __init__(
        self, name: str, network: nn.Module, options: Mapping[str, Any], tasks: frozenset[str]
    ) -> None:
        super().__init__()
        check_network(network)
        self.name, self.network, self.tasks = name, network, tasks
        self.options: Mapping[str, Any] = dict(options)

    def feature(self, image: Image, *, dense: bool = False) -> Feature:
        """Features of images, in the network's current mode."""
        feature = encoded(self.network, image, dense=dense)
        return feature if self.size is None else of_size(feature, self.size)

    def positive(self, value: float) -> nn.Parameter:
        """Make a learned positive number, kept as its logarithm."""
        if not 0 < value < math.inf:
            raise LearnerError("a positive number", found=f"{value}", cure="Change that option.")
        like = parameter_like(self.network)
        return nn.Parameter(torch.full((), value).to(like).log())

    @abstractmethod
    def episode_loss(self, episode: Episode) -> Tensor:
        """Give the loss of the queries after learning from the support, with its graph."""

    def backward(self, episodes: Sequence[Episode], *, scale: float) -> Tensor:
        """Add ``scale`` x the summed gradient of the query losses to ``.grad``; give the ``(t,)`` losses."""
        losses = []
        for episode in episodes:
            check_episode(episode)
            self.refuse_space(episode.support.segments)
            with torch.enable_grad():
                loss = self.episode_loss(episode)
                (scale * loss).backward()
            losses.append(loss.detach())
        return torch.stack(losses)

    def refuse_space(self, dense: bool) -> None:
        """Refuse to segment where the learner can only classify.

        Raises:
            LearnerError: naming the learners that can.
        """
        if dense and "segmentation" not in self.tasks:
            from medmeta.learners.registry import learner_names  # the registry knows all learners

            raise LearnerError(
                "a learner that can segment",
                found=f"{self.name}, which classifies",
                cure=f"Take one of {', '.join(learner_names('segmentation'))}.",
            )
