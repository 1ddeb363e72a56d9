"""The head, feature to logits: pointwise linear, ``nn.Linear`` to classify, a 1x1 convolution to segment."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medmeta.shape import Feature, Logits


class Head(NamedTuple):
    """Weight ``(way, feature)`` and bias ``(way)`` of a pointwise linear map."""

    weight: Tensor
    bias: Tensor


def logits(feature: Feature, head: Head) -> Logits:
    """Apply a head at every point of space.

    Example:
        >>> logits(torch.ones(1, 3, 4, 4), Head(torch.ones(2, 3), torch.zeros(2))).shape
        torch.Size([1, 2, 4, 4])
    """
    if feature.ndim == 2:
        return F.linear(feature, head.weight, head.bias)
    point = head.weight.reshape(*head.weight.shape, *[1] * (feature.ndim - 2))
    convolve = (F.conv1d, F.conv2d, F.conv3d)[feature.ndim - 3]
    return convolve(feature, point, head.bias)


def class_sums(feature: Feature, target: Tensor) -> tuple[Tensor, Tensor]:
    """Sum the features of each class, ``(way, feature)``, and count them, ``(way, 1)``; pieces of a set
    add up.

    Args:
        feature: ``(n, feature, *space)``.
        target: ``(n, way, *space)`` one-hot labels.
    """
    flat, hot = feature.reshape(*feature.shape[:2], -1), target.reshape(*target.shape[:2], -1)
    return torch.einsum("nfs,nws->wf", flat, hot), hot.sum([0, 2]).unsqueeze(1)


def class_means(parts: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """The mean feature of each class, ``(way, feature)``, over a set in pieces.

    Args:
        parts: features ``(n, feature, *space)`` and one-hot labels ``(n, way, *space)`` of each piece.

    Example:
        >>> one, two = torch.tensor([[1.0], [5.0]]), torch.tensor([[3.0]])
        >>> class_means([(one, torch.eye(2)), (two, torch.tensor([[1.0, 0.0]]))])
        tensor([[2.],
                [5.]])
    """
    sums, counts = zip(*(class_sums(feature, target) for feature, target in parts), strict=True)
    return torch.stack(sums).sum(0) / torch.stack(counts).sum(0)


def prototype_head(prototypes: Tensor, scale: Tensor | float = 1.0) -> Head:
    """Write nearest-prototype classification as a linear head.

    ``-|f - c|^2 = 2 c.f - |c|^2 - |f|^2`` and the last term is the same for every class (Snell et al. 2017,
    section 2.4; Triantafillou et al. 2020, section 3, start the inner loop there).

    Args:
        prototypes: ``(way, feature)`` mean features.
        scale: how much a squared distance counts.

    Example:
        >>> prototype_head(torch.tensor([[1.0, 2.0]])).bias
        tensor([-5.])
    """
    return Head(2 * scale * prototypes, -scale * prototypes.square().sum(1))


def head_module(head: Head, spatial_dims: int) -> nn.Module:
    """Make the layer that applies a head: ``nn.Linear``, or a convolution of one voxel.

    Args:
        head: its weight and bias.
        spatial_dims: 0 to classify, else the number of voxel axes to segment.

    Example:
        >>> head_module(Head(torch.ones(2, 3), torch.zeros(2)), 3)
        Conv3d(3, 2, kernel_size=(1, 1, 1), stride=(1, 1, 1))
    """
    way, feature = head.weight.shape
    layer: nn.Module
    if spatial_dims:
        layer = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[spatial_dims - 1](feature, way, 1)
    else:
        layer = nn.Linear(feature, way)
    state = {"weight": head.weight.reshape(*head.weight.shape, *[1] * spatial_dims), "bias": head.bias}
    layer.to(head.weight).load_state_dict(state)
    return layer
