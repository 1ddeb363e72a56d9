"""One loss for both tasks: balanced cross-entropy over ``(n, way, *space)``, and Dice where there is space.

Every function gives one loss an example, so that a support set too large for memory can be walked through in
pieces: what depends on the whole set (how rare a class is) is counted beforehand, in :class:`Balance`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from medmeta.shape import Label, Logits

RARITY = 0.5
"""Power of a class's rarity in its voxels' weight: 0 counts voxels, 1 counts classes. A tumour of 1 % of the
voxels weighs ten times a background voxel at 0.5, a hundred times at 1; the latter floods the background."""
SMOOTH = 1.0
"""Voxels added to both sides of the Dice quotient, so that a lesion of a few voxels has a gradient."""


class Balance(NamedTuple):
    """What a whole set says about its classes; computed once, used for each piece of it.

    Args:
        weight: ``(way)`` weight of each class, one on average over the set.
        lesion: scalar, examples over examples that show any class but the first.
    """

    weight: Tensor
    lesion: Tensor


def one_hot(label: Label, way: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Labels ``(n, *space)`` as ``(n, way, *space)`` of zeros and ones.

    Example:
        >>> one_hot(torch.tensor([1, 0]), 2)
        tensor([[0., 1.],
                [1., 0.]])
    """
    values = torch.arange(way, device=label.device).reshape(way, *[1] * (label.ndim - 1))
    return (label.unsqueeze(1) == values).to(dtype)


def has_extent(values: Tensor) -> bool:
    """Whether ``(n, way, *space)`` has more than one point of space: Dice says nothing of a single voxel.

    Example:
        >>> has_extent(torch.zeros(5, 2, 1, 1)), has_extent(torch.zeros(5, 2, 4, 4))
        (False, True)
    """
    return values.shape[2:].numel() > 1


def balance(target: Tensor) -> Balance:
    """Count how rare each class is.

    Args:
        target: ``(n, way, *space)`` one-hot labels of the whole set.

    Example:
        >>> balance(one_hot(torch.tensor([0, 0, 0, 1]), 2)).weight
        tensor([0.6667, 2.0000])
    """
    dense = has_extent(target)
    voxels = target.sum([0, *range(2, target.ndim)])
    rare = voxels.clamp(min=1.0) ** -(RARITY if dense else 1.0)
    weight = rare * voxels.sum() / (rare * voxels).sum().clamp(min=1e-12)
    shown = target.reshape(*target.shape[:2], -1)[:, 1:].sum([1, 2]) > 0
    return Balance(weight, len(target) / shown.sum().clamp(min=1))


def example_loss(logits: Logits, target: Tensor, share: Balance) -> Tensor:
    """Give the loss of each example, ``(n)``; their mean over the whole set is the loss of the set.

    To classify: cross-entropy, every class counting the same however many examples it has. To segment:
    the same over voxels, tempered by :data:`RARITY`, plus soft Dice of the classes that an example shows,
    background left out (Milletari et al. 2016). An example that shows no lesion is judged by
    cross-entropy alone: Dice says nothing of it.

    Args:
        logits: ``(n, way, *space)``.
        target: the same shape, one-hot.
        share: :func:`balance` of the set that these examples are (a part of).

    Example:
        >>> target = one_hot(torch.tensor([0, 1]), 2)
        >>> example_loss(torch.zeros(2, 2), target, balance(target))
        tensor([0.6931, 0.6931])
    """
    weight = share.weight.reshape(1, -1, *[1] * (logits.ndim - 2))
    logs = torch.log_softmax(logits, 1)
    entropy = -(target * weight * logs).sum(1)
    if not has_extent(logits):
        return entropy.reshape(len(entropy))
    space = list(range(2, logits.ndim))
    foreground = logs[:, 1:].exp()  # of the logarithms: one backward pass for both terms
    truth = target[:, 1:]
    voxels = truth.sum(space)
    overlap = 2 * (foreground * truth).sum(space) + SMOOTH
    dice = 1 - overlap / (foreground.sum(space) + voxels + SMOOTH)
    shown = (voxels > 0).to(dice.dtype)
    lesion = (dice * shown).sum(1) / shown.sum(1).clamp(min=1)
    return entropy.flatten(1).mean(1) + share.lesion * lesion


def set_loss(logits: Logits, label: Label) -> Tensor:
    """Give the loss of a whole set, a scalar.

    Example:
        >>> set_loss(torch.zeros(4, 2), torch.tensor([0, 0, 0, 1]))
        tensor(0.6931)
    """
    target = one_hot(label, logits.shape[1], logits.dtype)
    return example_loss(logits, target, balance(target)).mean()
