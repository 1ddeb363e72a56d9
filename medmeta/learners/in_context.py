"""Learning by looking: a network that reads the labelled support beside the query, and nothing is fitted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medmeta.episodes.examples import Episode, Examples
from medmeta.learners.batch import Piece, check_support, copied, of_size, parameter_like, seeded, still, whole
from medmeta.learners.episodic import BOTH, EpisodicLearner
from medmeta.learners.local_prototype import onto, places, pooled
from medmeta.learners.loss import example_loss
from medmeta.learners.protocol import LearnerError
from medmeta.networks import encoded, feature_size
from medmeta.shape import Image, Logits

WINDOWS = (3, 9)
"""Grid points a side of the surroundings that a point knows of, in every block."""


def surroundings(values: Tensor) -> Tensor:
    """Each point beside the averages about it, in windows of two sizes that end at the border.

    Args:
        values: ``(n, c, *space)``; any number of axes.

    Returns:
        ``(n, 3 * c, *space)``.

    Example:
        >>> surroundings(torch.ones(1, 2, 8, 8)).shape
        torch.Size([1, 6, 8, 8])
    """
    return torch.cat([values, *(_averaged(values, window) for window in WINDOWS)], 1)


def _averaged(values: Tensor, window: int) -> Tensor:
    """Means of a window about each point, one axis after the other: volumes at once take ten times it.

    A window has an odd number of points, no more than the axis has.
    """
    last = values.movedim(1, -1)  # as Points leave them: so every axis is a product without a copy
    for axis, side in enumerate(last.shape[1:-1], 1):
        about = torch.arange(side, device=values.device)
        near = (about - about[:, None]).abs() <= min(window, side - 1 + side % 2) // 2
        mean = F.normalize(near.to(values.dtype), p=1, dim=1)
        last = (mean @ last.reshape(last.shape[:axis].numel(), side, -1)).reshape(last.shape)
    return last.movedim(-1, 1)


class Points(nn.Module):
    """A linear layer at every point of ``(n, c, *space)``: one layer for vectors, pictures and volumes."""

    def __init__(self, size: int, out: int) -> None:
        super().__init__()
        self.layer = nn.Linear(size, out)

    def forward(self, values: Tensor) -> Tensor:
        """``(n, size, *space)`` to ``(n, out, *space)``."""
        return self.layer(values.movedim(1, -1)).movedim(-1, 1)

    def of_pairs(self, one: Tensor, others: Tensor) -> Tensor:
        """The same of the channels of ``one``, a single example, before those of each of the others."""
        ours, theirs = self.layer.weight.split([one.shape[1], others.shape[1]], 1)
        first = F.linear(one.movedim(1, -1), ours, self.layer.bias)  # once, not for every pair
        return (first + F.linear(others.movedim(1, -1), theirs)).movedim(-1, 1)


class CrossBlock(nn.Module):
    """Query and support look at each other, point by point (Butoi et al. 2023, equations 4 to 6).

    Every support example is laid on the query; what comes of a pair updates that example, and the mean over
    the pairs updates the query, so that the order of the support says nothing. Surroundings come from
    averages, not from convolutions, for one block to serve any number of axes.

    Args:
        width: channels.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.pair = Points(6 * width, width)
        self.to_query, self.to_support = Points(width, width), Points(width, width)

    def forward(self, query: Tensor, support: Tensor) -> tuple[Tensor, Tensor]:
        """Update a query ``(1, width, *space)`` and its support ``(m, width, *space)``."""
        both = F.gelu(self.pair.of_pairs(surroundings(query), surroundings(support)))
        return query + self.to_query(both.mean(0, keepdim=True)), support + self.to_support(both)


class Reading(nn.Module):
    """The whole network: backbone, cross blocks, and a score for each class.

    Args:
        network: the backbone.
        feature: features a point that it gives.
        width: channels of the cross blocks.
        blocks: how many.
        stride: voxels a side of a point.
    """

    def __init__(self, network: nn.Module, feature: int, width: int, blocks: int, stride: int) -> None:
        super().__init__()
        like = parameter_like(network)
        self.network, self.stride = network, stride
        self.into = Points(feature, width).to(like)
        self.mask = nn.Parameter(like.detach().new_ones(width) / 2)
        self.place = nn.Parameter(torch.randn(3, width).to(like) / 4)
        self.blocks = nn.ModuleList(CrossBlock(width) for _ in range(blocks)).to(like)
        self.score = Points(width, 1).to(like)

    def encode(self, image: Image, *, dense: bool) -> Tensor:
        """Images to ``(n, width, *grid)``; one point an image where not dense."""
        feature = encoded(self.network, image, dense=dense)
        feature = of_size(feature, self.into.layer.in_features)
        grid = pooled(feature, self.stride) if dense else feature[..., None]
        made = self.into(F.normalize(grid, dim=1, eps=1e-6) * grid.shape[1] ** 0.5)
        if not dense:
            return made
        where = places(made)
        return made + torch.einsum("na...,aw->nw...", where, self.place[: where.shape[1]])

    def forward(self, query: Tensor, support: Tensor, target: Tensor) -> Logits:
        """Read encoded queries by an encoded support.

        Args:
            query: ``(n, width, *grid)``.
            support: ``(m, width, *grid)``.
            target: ``(m, way, *grid)`` shares of the classes.

        Returns:
            ``(n, way, *grid)``: every class is asked for by itself, so relabelling permutes the logits.
        """
        mark = self.mask.reshape(1, -1, *[1] * (support.ndim - 2))
        shown = [support + mark * (2 * target[:, c : c + 1] - 1) for c in range(target.shape[1])]
        return torch.cat([torch.cat([self._read(one[None], s) for s in shown], 1) for one in query])

    def _read(self, query: Tensor, support: Tensor) -> Tensor:
        for block in self.blocks:
            query, support = block(query, support)
        return self.score(query)


class InContextPredictor(nn.Module):
    """The network and the encoded support that it reads; it needs medmeta to run."""

    support: Tensor
    target: Tensor

    def __init__(self, reading: Reading, support: Tensor, target: Tensor, *, dense: bool) -> None:
        super().__init__()
        self.reading, self.dense = reading, dense
        self.register_buffer("support", support)
        self.register_buffer("target", target)
        self.requires_grad_(False)
        self.eval()

    def forward(self, image: Image) -> Logits:
        """Images ``(n, channel, *voxel)``, of the support's size, to logits ``(n, way, *space)``.

        Raises:
            LearnerError: where images are of another size than the support's, which is laid on them.
        """
        query = self.reading.encode(image, dense=self.dense)
        if query.shape[2:] != self.support.shape[2:]:
            raise LearnerError(
                f"images of the support's grid, {tuple(self.support.shape[2:])} points",
                found=f"{tuple(query.shape[2:])}",
                cure="Cut or resample them to the size of the support images.",
            )
        return onto(self.reading(query, self.support, self.target), image, self.dense)

    def spec(self, network: Mapping[str, Any]) -> dict[str, Any]:
        """How to make a predictor that these weights fit, given the specification of the backbone."""
        into = self.reading.into.layer
        return {
            "_target_": "medmeta.learners.in_context.in_context_predictor",
            "network": dict(network),
            "feature": into.in_features,
            "width": into.out_features,
            "blocks": len(self.reading.blocks),
            "stride": self.reading.stride,
            "support": list(self.support.shape),
            "way": self.target.shape[1],
            "dense": self.dense,
        }


def in_context_predictor(
    network: nn.Module,
    *,
    feature: int,
    width: int,
    blocks: int,
    stride: int,
    support: Sequence[int],
    way: int,
    dense: bool,
) -> InContextPredictor:
    """Make a predictor that has read nothing yet, for its weights to be loaded.

    Args:
        network, feature, width, blocks, stride: of the :class:`Reading`.
        support: shape of the encoded support, ``(m, width, *grid)``.
        way: number of classes.
        dense: whether it segments.
    """
    reading = Reading(network, feature, width, blocks, stride)
    target = torch.zeros(support[0], way, *support[2:])
    return InContextPredictor(reading, torch.zeros(*support), target, dense=dense)


class InContextLearner(EpisodicLearner):
    """A network that is shown the labelled support beside the query (UniverSeg, Butoi et al. 2023).

    Adapting only encodes the support: all that is learnt is learnt in training, on many tasks. Support and
    query must be of one size and about one position, as slices of one protocol are.

    Args:
        name: the name it goes by.
        network: the backbone.
        width: channels of the cross blocks.
        blocks: how many cross blocks.
        stride: voxels a side of a point at which query and support are compared.
        feature: features a point that the backbone gives; by default its last layer tells.
        seed: of the first weights of the blocks.
    """

    def __init__(
        self,
        name: str,
        network: nn.Module,
        *,
        width: int = 32,
        blocks: int = 3,
        stride: int = 2,
        feature: int | None = None,
        seed: int = 0,
    ) -> None:
        if min(width, blocks, stride) < 1:
            raise LearnerError(
                "a width, blocks and a stride of 1 or more",
                found=f"width={width}, blocks={blocks}, stride={stride}",
                cure="Change that option.",
            )
        options = {"width": width, "blocks": blocks, "stride": stride, "feature": feature, "seed": seed}
        super().__init__(name, network, options, BOTH)
        with seeded(seed):
            self.reading = Reading(network, feature or feature_size(network), width, blocks, stride)

    def _coarse(self, piece: Piece) -> Tensor:
        return pooled(piece.target, self.reading.stride) if piece.dense else piece.target[..., None]

    def adapt(self, support: Examples) -> InContextPredictor:
        """Encode the support; the learner stays bitwise the same."""
        check_support(support)
        with torch.no_grad(), still(self.network):
            piece = whole(support, parameter_like(self.network))
            encoded = torch.cat([self.reading.encode(one[None], dense=piece.dense) for one in piece.image])
            return InContextPredictor(copied(self.reading), encoded, self._coarse(piece), dense=piece.dense)

    def episode_loss(self, episode: Episode) -> Tensor:
        """Give the loss of the queries after reading the support, with its graph."""
        like = parameter_like(self.network)
        support, query = whole(episode.support, like), whole(episode.query, like)
        ours, theirs = (self.reading.encode(side.image, dense=side.dense) for side in (support, query))
        guess = self.reading(theirs, ours, self._coarse(support))
        return example_loss(onto(guess, query.image, query.dense), query.target, query.share).mean()
