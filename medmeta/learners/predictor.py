"""What adapting gives: a network in eval mode, and its plain form for a hospital that has only MONAI."""

from __future__ import annotations

from torch import nn

from medmeta.learners.head import Head, head_module
from medmeta.learners.protocol import LearnerError, Predictor
from medmeta.networks import features
from medmeta.shape import Image, Logits


class LinearPredictor(nn.Module):
    """A backbone with a pointwise linear head, adapted to a task.

    Args:
        network: the backbone, with its adapted weights.
        head: weight and bias.
        dense: whether it segments.
        spatial_dims: number of voxel axes of an image.
    """

    def __init__(self, network: nn.Module, head: Head, *, dense: bool, spatial_dims: int) -> None:
        super().__init__()
        self.network, self.dense, self.spatial_dims = network, dense, spatial_dims
        self.head = head_module(head, spatial_dims if dense else 0)
        self.requires_grad_(False)
        self.eval()

    def forward(self, image: Image) -> Logits:
        """Images ``(n, channel, *voxel)`` to logits ``(n, way, *space)``."""
        output = self.network(image)
        return self.head(features(output, tuple(image.shape[2:]), dense=self.dense))


def plain_network(predictor: Predictor) -> nn.Sequential:
    """Give a predictor as a network of torch's and MONAI's own modules, for a bundle that runs on MONAI alone.

    Args:
        predictor: what ``adapt`` gave.

    Returns:
        ``Sequential(backbone, head)`` with the adapted weights; its logits equal the predictor's.

    Raises:
        LearnerError: where predicting needs medmeta (a learner that compares with its support), or a network
            that is neither torch's nor MONAI's.

    Example:
        >>> import torch
        >>> from medmeta.learners import create_learner
        >>> from medmeta.episodes.examples import Examples
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
            cure="It needs medmeta to run; use maml, proto-maml, prototypical, ridge or a fine-tuned network.",
        )
    foreign = sorted(
        {
            f"{type(m).__module__}.{type(m).__qualname__}"
            for m in predictor.network.modules()
            if not type(m).__module__.startswith(("torch.", "monai."))
        }
    )
    if foreign:
        raise LearnerError(
            "a backbone made of torch's and MONAI's modules",
            found=", ".join(foreign[:3]),
            cure="Ship that class beside the bundle, or meta-train a network of MONAI.",
        )
    layers: list[nn.Module] = [predictor.network]
    if not predictor.dense and predictor.spatial_dims:
        pool = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)[predictor.spatial_dims - 1]
        if getattr(predictor, "pooled", False):
            layers += [pool(1), nn.Flatten()]
    return nn.Sequential(*layers, predictor.head).eval()
