"""What adapting gives: a network in eval mode with a pointwise linear head."""

from __future__ import annotations

from torch import nn

from medmeta.episodes.examples import Examples
from medmeta.learners.head import Head, head_module
from medmeta.networks import encoded
from medmeta.shape import Image, Logits


class LinearPredictor(nn.Module):
    """A backbone with a pointwise linear head, adapted to a task.

    Args:
        network: the backbone, with its adapted weights; it belongs to the predictor from here on.
        head: weight and bias.
        support: what it was adapted to; tells whether it segments, and in how many dimensions.
        between: what happens to the features before the head, e.g. :func:`unit_length`.
    """

    def __init__(
        self, network: nn.Module, head: Head, support: Examples, *, between: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.network, self.dense = network, support.segments
        self.between = nn.Identity() if between is None else between
        self.head = head_module(head, support.image.ndim - 2 if self.dense else 0)
        self.requires_grad_(False)
        self.eval()
        self.example_shape = tuple(support.image.shape[1:])

    def forward(self, image: Image) -> Logits:
        """Images ``(n, channel, *voxel)`` to logits ``(n, way, *space)``."""
        feature = encoded(self.network, image, dense=self.dense)
        return self.head(self.between(feature))


def unit_length(feature: int, *, dense: bool) -> nn.Module:
    """Make a layer of torch's own that scales every feature vector to length one (for cosine similarity).

    Args:
        feature: length of the vectors.
        dense: whether they lie on a voxel grid, ``(n, feature, *space)``.

    Example:
        >>> import torch
        >>> unit_length(2, dense=False)(torch.tensor([[3.0, 4.0]])).detach()
        tensor([[0.6000, 0.8000]])
    """
    if dense:  # a window over all channels: x / (k + alpha / size * sum of squares) ^ beta
        size = 2 * feature - 1
        return nn.LocalResponseNorm(size, alpha=float(size), beta=0.5, k=1e-12)
    layer = nn.RMSNorm(feature, eps=1e-12)
    layer.weight.data.fill_(feature**-0.5)
    return layer
