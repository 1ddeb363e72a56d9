"""A learner that remembers: a recurrent controller with an external memory (Santoro et al. 2016)."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medmeta.episodes.examples import Episode, Examples
from medmeta.learners.batch import check_support, parameter_like, pieces, still, whole
from medmeta.learners.episodic import CLASSIFY, EpisodicLearner
from medmeta.learners.loss import example_loss
from medmeta.learners.protocol import LearnerError
from medmeta.networks import feature_size, features
from medmeta.shape import Feature, Image, Logits


class State(NamedTuple):
    """What is carried from one example to the next, for ``b`` sequences at once.

    Args:
        memory: ``(b, slot, width)``.
        read: ``(b, slot)`` the last read weights.
        usage: ``(b, slot)`` how much each slot was lately used.
        hidden: ``(b, width)`` of the controller.
        cell: ``(b, width)`` of the controller.
    """

    memory: Tensor
    read: Tensor
    usage: Tensor
    hidden: Tensor
    cell: Tensor


def address(key: Tensor, memory: Tensor) -> Tensor:
    """Give read weights by content (equations 2 and 3): softmax of the cosine of key and slots.

    Args:
        key: ``(b, width)``.
        memory: ``(b, slot, width)``.
    """
    return torch.softmax(F.cosine_similarity(key.unsqueeze(1), memory, dim=2, eps=1e-8), 1)


def least_used(usage: Tensor) -> Tensor:
    """Mark the least used slot of each sequence with one (equation 6, for one read a step)."""
    return F.one_hot(usage.argmin(1), usage.shape[1]).to(usage.dtype)


def write(memory: Tensor, key: Tensor, read: Tensor, usage: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
    """Write a key to where was last read and to the slot least used, which is wiped first (equations 7
    and 8).

    Args:
        memory: ``(b, slot, width)``.
        key: ``(b, width)``.
        read: ``(b, slot)`` the last step's read weights.
        usage: ``(b, slot)`` the last step's usage.
        gate: scalar; its sigmoid is the share that goes to where was last read.

    Returns:
        The memory, and the write weights ``(b, slot)``.
    """
    free = least_used(usage)
    weight = gate.sigmoid() * read + (1 - gate.sigmoid()) * free
    return memory * (1 - free).unsqueeze(2) + weight.unsqueeze(2) * key.unsqueeze(1), weight


class Memory(nn.Module):
    """Controller and memory: takes a feature and the label of the example before, gives logits.

    Args:
        feature: length of a feature vector.
        way: number of classes.
        slots: rows of the memory.
        width: length of a row, and of the controller's state.
        decay: of the usage, each step.
    """

    def __init__(self, feature: int, way: int, *, slots: int, width: int, decay: float) -> None:
        super().__init__()
        self.way, self.slots, self.width, self.decay = way, slots, width, decay
        self.controller = nn.LSTMCell(feature + way, width)
        self.key = nn.Linear(width, width)
        self.gate = nn.Parameter(torch.zeros(()))
        self.out = nn.Linear(2 * width, way)

    def begin(self, like: Tensor) -> State:
        """Give the state before the first example: an empty memory."""
        zero = like.new_zeros
        memory = zero(1, self.slots, self.width) + 1e-6
        read = F.one_hot(torch.zeros(1, dtype=torch.int64, device=like.device), self.slots).to(like)
        return State(memory, read, zero(1, self.slots), zero(1, self.width), zero(1, self.width))

    def forward(self, feature: Feature, before: Tensor, state: State) -> tuple[Logits, State]:
        """Take one example of each sequence: read, then write.

        Args:
            feature: ``(b, feature)``.
            before: ``(b, way)`` one-hot label of the example before; zeros at the first.
            state: the state, of ``b`` sequences.
        """
        hidden, cell = self.controller(torch.cat([feature, before], 1), (state.hidden, state.cell))
        key = self.key(hidden).tanh()
        read = address(key, state.memory)
        found = torch.einsum("bs,bsw->bw", read, state.memory)
        memory, written = write(state.memory, key, state.read, state.usage, self.gate)
        usage = self.decay * state.usage + read + written  # equation 5
        return self.out(torch.cat([hidden, found], 1)), State(memory, read, usage, hidden, cell)

    def remember(self, feature: Feature, target: Tensor) -> tuple[State, Tensor]:
        """Present a support set, one example after the other, each with the label of the one before.

        Returns:
            The state after the last, and the last's label, still to be told.
        """
        state, before = self.begin(feature), target.new_zeros(1, self.way)
        for one, label in zip(feature, target, strict=True):
            _, state = self(one.unsqueeze(0), before, state)
            before = F.pad(label, (0, self.way - len(label))).unsqueeze(0)
        return state, before

    def recall(self, feature: Feature, before: Tensor, state: State, way: int) -> Logits:
        """Ask about queries, each as the next example after the support, none seeing another."""
        many = State(*[part.expand(len(feature), *part.shape[1:]) for part in state])
        logits: Tensor = self(feature, before.expand(len(feature), -1), many)[0]
        return logits[:, :way]


class MemoryPredictor(nn.Module):
    """A backbone and a memory that has seen the support; it needs medmeta to run.

    Args:
        network: the backbone; it belongs to the predictor from here on.
        memory: the controller; likewise.
        support: features ``(n, feature)`` of the support.
        target: ``(n, way)`` its one-hot labels.
    """

    def __init__(self, network: nn.Module, memory: Memory, support: Feature, target: Tensor) -> None:
        super().__init__()
        self.controller: Memory
        self.network, self.controller, self.way = network, memory, target.shape[1]
        self.requires_grad_(False)
        self.eval()
        with torch.no_grad():
            state, before = memory.remember(support, target)
        for part, value in {**state._asdict(), "before": before}.items():
            self.register_buffer(part, value)

    def forward(self, image: Image) -> Logits:
        """Images ``(n, channel, *voxel)`` to logits ``(n, way)``."""
        feature = features(self.network(image), tuple(map(int, image.shape[2:])), dense=False)
        carried = dict(self.named_buffers(recurse=False))
        before = carried.pop("before")
        return self.controller.recall(feature, before, State(**carried), self.way)

    def spec(self, network: Mapping[str, Any]) -> dict[str, Any]:
        """How to make a predictor that these weights fit, given the specification of the backbone."""
        own = self.controller
        sizes = {"way": own.way, "slots": own.slots, "width": own.width, "decay": own.decay}
        return {
            "_target_": "medmeta.learners.memory.memory_predictor",
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
    unlike for every other learner. It is shuffled the same way each time, so that classes do not come in
    blocks.

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
        size = feature or feature_size(network)
        options = {"way": way, "slots": slots, "width": width, "decay": decay, "feature": size}
        super().__init__(name, network, options, CLASSIFY)
        self.way = way
        self.memory = Memory(size, way, slots=slots, width=width, decay=decay).to(parameter_like(network))

    def _order(self, n: int) -> Tensor:
        return torch.randperm(n, generator=torch.Generator().manual_seed(n))

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
        order = self._order(len(support.image))
        parts = pieces(support, parameter_like(self.network))
        with torch.no_grad(), still(self.network):
            feature = torch.cat([self.feature(p.image) for p in parts])[order]
        target = torch.cat([p.target for p in parts])[order]
        return MemoryPredictor(copy.deepcopy(self.network), copy.deepcopy(self.memory), feature, target)

    def episode_loss(self, episode: Episode) -> Tensor:
        """Give the loss of the queries after learning from the support, with its graph."""
        self._check(episode.support)
        like, order = parameter_like(self.network), self._order(len(episode.support.image))
        support, query = whole(episode.support, like), whole(episode.query, like)
        state, before = self.memory.remember(self.feature(support.image)[order], support.target[order])
        guess = self.memory.recall(self.feature(query.image), before, state, query.target.shape[1])
        return example_loss(guess, query.target, query.share).mean()
