"""A learner that remembers: its support goes into an external memory (Santoro et al. 2016)."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from medmeta.episodes.examples import Episode, Examples
from medmeta.learners.batch import (
    check_episode,
    check_support,
    own_copy,
    parameter_like,
    pieces,
    still,
    whole,
)
from medmeta.learners.episodic import CLASSIFY, EpisodicLearner
from medmeta.learners.loss import example_loss
from medmeta.learners.memory import Memory, State
from medmeta.learners.protocol import LearnerError
from medmeta.networks import encoded, feature_size
from medmeta.shape import Feature, Image, Logits


class MemoryPredictor(nn.Module):
    """A backbone and a memory that has seen the support; it needs medmeta to run.

    Args:
        network: the backbone; it belongs to the predictor from here on.
        memory: the controller; likewise.
        support: features ``(n, feature)`` of the support, in the order of presentation.
        target: ``(n, way)`` its one-hot labels.
    """

    def __init__(self, network: nn.Module, memory: Memory, support: Feature, target: Tensor) -> None:
        super().__init__()
        self.controller: Memory
        self.network, self.controller, self.way = network, memory, target.shape[1]
        self.requires_grad_(False)
        self.eval()
        with torch.no_grad():
            state, before = memory.remember(support[None], target[None])
        for part, value in {**state._asdict(), "before": before}.items():
            self.register_buffer(part, value)

    def forward(self, image: Image) -> Logits:
        """Images ``(n, channel, *voxel)`` to logits ``(n, way)``."""
        feature = encoded(self.network, image, dense=False)
        carried = dict(self.named_buffers(recurse=False))
        before = carried.pop("before")
        logits: Tensor = self.controller.recall(feature[None], before, State(**carried), self.way)[0]
        return logits

    def spec(self, network: Mapping[str, Any]) -> dict[str, Any]:
        """How to make a predictor that these weights fit, given the specification of the backbone."""
        own = self.controller
        sizes = {"way": own.way, "slots": own.slots, "width": own.width, "decay": own.decay}
        return {
            "_target_": "medmeta.learners.remembering.memory_predictor",
            "network": dict(network),
            "classes": self.way,
            "feature": own.controller.input_size - own.way,
            **sizes,
        }


def memory_predictor(
    network: nn.Module, *, classes: int, feature: int, way: int, slots: int, width: int, decay: float
) -> MemoryPredictor:
    """Make a predictor that remembers nothing yet, for its weights to be loaded; sizes as of :class:`Memory`.

    Example:
        >>> memory_predictor(
        ...     nn.Linear(3, 4), classes=2, feature=4, way=5, slots=8, width=8, decay=0.9
        ... )(torch.zeros(1, 3)).shape
        torch.Size([1, 2])
    """
    memory = Memory(feature, way, slots=slots, width=width, decay=decay)
    return MemoryPredictor(network, memory, torch.zeros(1, feature), torch.zeros(1, classes))


class MemoryLearner(EpisodicLearner):
    """Memory-augmented network with content addressing and least-recently-used writes (Santoro et al. 2016).

    The support is presented one example after the other, the label one step late; **its order matters**,
    unlike for every other learner. It is shuffled, so that classes do not come in blocks, the same way each
    time that the same images come. Training episodes of one shape go through the memory side by side.

    Args:
        name: the name it goes by.
        network: the backbone.
        way: the most classes a task may have.
        slots: rows of the memory.
        width: length of a row, and of the controller's state.
        decay: of a slot's usage, each example.
        feature: number of the network's features; found out by default.
    """

    def __init__(
        self,
        name: str,
        network: nn.Module,
        *,
        way: int = 5,
        slots: int = 64,
        width: int = 64,
        decay: float = 0.95,
        feature: int | None = None,
    ) -> None:
        if min(way, slots, width) < 1 or not 0 <= decay <= 1:
            raise LearnerError(
                "1 or more of way, slots and width, a decay from 0 to 1",
                found=f"way={way}, slots={slots}, width={width}, decay={decay}",
                cure="Change that option.",
            )
        size = feature or feature_size(network)
        options = {"way": way, "slots": slots, "width": width, "decay": decay, "feature": size}
        super().__init__(name, network, options, CLASSIFY)
        self.way, self.size = way, size
        self.memory = Memory(size, way, slots=slots, width=width, decay=decay).to(parameter_like(network))

    def _check(self, support: Examples) -> None:
        check_support(support)
        self.refuse_space(support.segments)
        if len(support.classes) > self.way:
            raise LearnerError(
                f"at most {self.way} classes, which this memory has names for",
                found=f"{len(support.classes)}",
                cure=f"Create it with way={len(support.classes)}.",
            )

    def adapt(self, support: Examples) -> MemoryPredictor:
        """Remember the support; the learner stays bitwise the same."""
        self._check(support)
        order = shuffled(support)
        parts = pieces(support, parameter_like(self.network))
        with torch.no_grad(), still(self.network):
            feature = torch.cat([self.feature(p.image) for p in parts])[order]
        target = torch.cat([p.target for p in parts])[order]
        return MemoryPredictor(own_copy(self.network), copy.deepcopy(self.memory), feature, target)

    def backward(self, episodes: Sequence[Episode], *, scale: float) -> Tensor:
        """Add ``scale`` x the summed gradient of the query losses to ``.grad``; give the ``(t,)`` losses."""
        losses: dict[int, Tensor] = {}
        for alike in same_shapes(episodes):
            with torch.enable_grad():
                found = self.episode_losses([episodes[i] for i in alike])
                (scale * found.sum()).backward()
            losses.update(zip(alike, found.detach(), strict=True))
        return torch.stack([losses[i] for i in range(len(episodes))])

    def episode_loss(self, episode: Episode) -> Tensor:
        """Give the loss of the queries after learning from the support, with its graph."""
        return self.episode_losses([episode])[0]

    def episode_losses(self, episodes: Sequence[Episode]) -> Tensor:
        """Give the ``(t,)`` losses of episodes of one shape, with their graph."""
        for episode in episodes:
            check_episode(episode)
            self._check(episode.support)
        like = parameter_like(self.network)
        asked = [whole(e.query, like) for e in episodes]
        told = [whole(e.support, like) for e in episodes]
        many, n = len(episodes), len(told[0].image)
        feature = self.feature(torch.cat([p.image for p in (*told, *asked)]))
        support, query = (
            f.unflatten(0, (many, -1)) for f in feature.split([many * n, len(feature) - many * n])
        )
        orders = [shuffled(e.support) for e in episodes]
        support = torch.stack([f[o] for f, o in zip(support, orders, strict=True)])
        target = torch.stack([p.target[o] for p, o in zip(told, orders, strict=True)])
        state, before = self.memory.remember(support, target)
        guess = self.memory.recall(query, before, state, target.shape[2])
        losses = [example_loss(g, p.target, p.share).mean() for g, p in zip(guess, asked, strict=True)]
        return torch.stack(losses)


def shuffled(support: Examples) -> Tensor:
    """Draw an order ``(n)`` by the images themselves: the same images, the same order, in any process."""
    seed = int(support.image.double().sum().view(torch.int64))
    return torch.randperm(len(support.image), generator=torch.Generator().manual_seed(seed))


def same_shapes(episodes: Sequence[Episode]) -> list[list[int]]:
    """Group the numbers of episodes that have the same number of examples, size and classes."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for index, episode in enumerate(episodes):
        shape = (episode.support.image.shape, episode.query.image.shape, len(episode.support.classes))
        groups.setdefault(shape, []).append(index)
    return list(groups.values())
