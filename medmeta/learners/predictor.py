"""What adapting gives: a network in eval mode, and its plain form for a hospital that has only MONAI."""

from __future__ import annotations

import torch
from torch import nn

from medmeta.episodes.examples import Examples
from medmeta.learners.head import Head, head_module
from medmeta.learners.protocol import LearnerError, Predictor
from medmeta.networks import features
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
        feature = features(self.network(image), tuple(image.shape[2:]), dense=self.dense)
        return self.head(self.between(feature))


def unit_length(feature: int, *, dense: bool) -> nn.Module:
    """Make a layer of torch's own that scales every feature vector to length one (for cosine similarity).

    Args:
        feature: length of the vectors.
        dense: whether they lie on a voxel grid, ``(n, feature, *space)``.

    Example:
        >>> unit_length(2, dense=False)(torch.tensor([[3.0, 4.0]])).detach()
        tensor([[0.6000, 0.8000]])
    """
    if dense:  # a window over all channels: x / (k + alpha / size * sum of squares) ^ beta
        size = 2 * feature - 1
        return nn.LocalResponseNorm(size, alpha=float(size), beta=0.5, k=1e-12)
    layer = nn.RMSNorm(feature, eps=1e-12)
    layer.weight.data.fill_(feature**-0.5)
    return layer


def plain_network(predictor: Predictor) -> nn.Sequential:
    """Give a predictor as a network of torch's and MONAI's own modules, for a bundle that needs MONAI alone.

    Args:
        predictor: what ``adapt`` gave.

    Returns:
        ``Sequential(backbone, …, head)`` with the adapted weights; its logits equal the predictor's.

    Raises:
        LearnerError: where predicting needs medmeta (a learner that compares with its support), or a network
            that is neither torch's nor MONAI's, or one that gives several outputs.

    Example:
        >>> from medmeta.learners import create_learner
        >>> support = Examples(torch.randn(4, 6), torch.tensor([0, 0, 1, 1]), ("benign", "malignant"))
        >>> plain_network(create_learner("prototypical", torch.nn.Linear(6, 3)).adapt(support))
        Sequential(
          (0): Linear(in_features=6, out_features=3, bias=True)
          (1): Linear(in_features=3, out_features=2, bias=True)
        )
    """
    if not isinstance(predictor, LinearPredictor):
        raise LearnerError(
            "a predictor that is a network with a linear head",
            found=type(predictor).__name__,
            cure="That one runs with medmeta only; adapt with maml, proto-maml, prototypical or ridge.",
        )
    _refuse_foreign(predictor.network)
    layers: list[nn.Module] = [predictor.network]
    with torch.no_grad():
        weight = next(predictor.head.parameters())
        output = predictor.network(torch.zeros(1, *predictor.example_shape).to(weight))
    if not isinstance(output, torch.Tensor):
        raise LearnerError(
            "a backbone with one output",
            found=f"{type(predictor.network).__name__}, which gives {len(output)}",
            cure="Take one that gives a tensor, e.g. medmeta.networks.encoder or unet.",
        )
    if not predictor.dense and output.ndim > 2:
        pool = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)[output.ndim - 3]
        layers += [pool(1), nn.Flatten()]
    if not isinstance(predictor.between, nn.Identity):
        layers.append(predictor.between)
    return nn.Sequential(*layers, predictor.head).eval()


def _refuse_foreign(network: nn.Module) -> None:
    classes = {f"{type(m).__module__}.{type(m).__qualname__}" for m in network.modules()}
    foreign = sorted(c for c in classes if not c.startswith(("torch.", "monai.")))
    if foreign:
        raise LearnerError(
            "a backbone made of torch's and MONAI's modules",
            found=", ".join(foreign[:3]),
            cure="Ship that class beside the bundle, or meta-train a network of MONAI.",
        )
