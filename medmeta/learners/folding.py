"""The head multiplied into a network's last layer, where that is a convolution: one layer in place of two.

A network that ends in a convolution without activation (UNet, SegResNet, BasicUNet, DynUNet, MedNeXt) gives
the head something linear; head and layer together are that layer with fewer channels. Logits and every
derivative are the same numbers, and the features of the full image, the largest tensor of all, are not made.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from medmeta.learners.head import Head
from medmeta.networks import output_of
from medmeta.shape import Image

LAYERS = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)
"""What a head can be multiplied into."""


@dataclass(frozen=True)
class LastLayer:
    """The convolution whose output is the network's.

    Args:
        weight: name of its weight in the network.
        bias: name of its bias, empty where it has none.
        channels: its output channels, the features.
        axis: the axis of the weight that is the output's.
    """

    weight: str
    bias: str
    channels: int
    axis: int

    @classmethod
    def of(cls, name: str, layer: Any) -> LastLayer:
        """Describe one of :data:`LAYERS`; a network that is nothing but a layer has it under no name."""
        place = f"{name}." if name else ""
        bias = "" if layer.bias is None else f"{place}bias"
        return cls(f"{place}weight", bias, layer.out_channels, axis=int(layer.transposed))

    @property
    def names(self) -> tuple[str, ...]:
        """The weights that it has."""
        return (self.weight, self.bias) if self.bias else (self.weight,)

    def gains(self, head: Head) -> bool:
        """Whether the head fits and gives fewer channels than it takes."""
        return len(head.weight) < self.channels == head.weight.shape[1]

    def fold(self, weights: Mapping[str, Tensor], head: Head) -> dict[str, Tensor]:
        """Give the layer's weights with which the network gives the head's logits, but for a bias it lacks.

        Example:
            >>> layer, head = nn.Conv2d(3, 8, 1), Head(torch.randn(2, 8), torch.randn(2))
            >>> last = LastLayer("weight", "bias", channels=8, axis=0)
            >>> {n: tuple(w.shape) for n, w in last.fold(layer.state_dict(), head).items()}
            {'weight': (2, 3, 1, 1), 'bias': (2,)}
        """
        weight = torch.tensordot(head.weight, weights[self.weight], dims=([1], [self.axis]))
        folded = {self.weight: weight.movedim(0, self.axis)}
        if self.bias:
            folded[self.bias] = head.bias + head.weight @ weights[self.bias]
        return folded


def last_layer(network: nn.Module, image: Image) -> LastLayer | None:
    """Find the layer that a head can be multiplied into; None where there is none.

    The network is run on one image: its output must be the very tensor that a layer gave, untouched since,
    and the layer must have run once, with weights that no other layer shares.

    Args:
        network: the backbone, in eval mode.
        image: ``(n, channel, *voxel)``; the first one is enough.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 8, 1))
        >>> last_layer(network, torch.zeros(1, 1, 8, 8))
        LastLayer(weight='2.weight', bias='2.bias', channels=8, axis=0)
        >>> last_layer(network[:2], torch.zeros(1, 1, 8, 8)) is None
        True
    """
    layers = {name: m for name, m in network.named_modules() if type(m) in LAYERS and m.groups == 1}
    with torch.no_grad(), _listening(layers) as given:
        output = output_of(network, image[:1])
    tied = _tied(network)
    for name, seen in given.items():
        own = {id(weight) for weight in layers[name].parameters(recurse=False)}
        if len(seen) == 1 and seen[0].is_still(output) and not own & tied:
            return LastLayer.of(name, layers[name])
    return None


@dataclass(frozen=True)
class _Given:
    """What a layer gave, and how often that had been written to by then."""

    tensor: Tensor
    version: int

    def is_still(self, output: Tensor) -> bool:
        """Whether a network's output is this very tensor, untouched since."""
        return output is self.tensor and output._version == self.version


@contextmanager
def _listening(layers: Mapping[str, nn.Module]) -> Iterator[dict[str, list[_Given]]]:
    """Keep what each layer gives, by its name; more than one where it runs more than once."""
    given: dict[str, list[_Given]] = {}

    def keep(name: str, _layer: nn.Module, _inputs: object, output: Tensor) -> None:
        given.setdefault(name, []).append(_Given(output, output._version))

    hooks = [layer.register_forward_hook(partial(keep, name)) for name, layer in layers.items()]
    try:
        yield given
    finally:
        for hook in hooks:
            hook.remove()


def _tied(network: nn.Module) -> set[int]:
    """The weights, by ``id``, that a network has in more than one place."""
    uses = Counter(id(weight) for _, weight in network.named_parameters(remove_duplicate=False))
    return {weight for weight, count in uses.items() if count > 1}
