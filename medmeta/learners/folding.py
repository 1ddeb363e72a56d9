"""The head multiplied into a network's last layer, where that is a convolution: one layer in place of two.

A network that ends in a convolution without activation (UNet, SegResNet, BasicUNet, DynUNet, MedNeXt) gives
the head something linear; head and layer together are that layer with fewer channels. Logits and every
derivative are the same numbers, and the features of the full image, the largest tensor of all, are not made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from medmeta.learners.head import Head
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
    given: dict[str, list[tuple[Tensor, int]]] = {}
    uses: dict[int, int] = {}
    for _, weight in network.named_parameters(remove_duplicate=False):
        uses[id(weight)] = uses.get(id(weight), 0) + 1
    layers = {n: m for n, m in network.named_modules() if type(m) in LAYERS and m.groups == 1}
    hooks = [
        m.register_forward_hook(
            lambda _m, _i, out, name=n: given.setdefault(name, []).append((out, out._version))
        )
        for n, m in layers.items()
    ]
    try:
        with torch.no_grad():
            output = network(image[:1])
    finally:
        for hook in hooks:
            hook.remove()
    for name, seen in given.items():
        layer = layers[name]
        alone = all(uses[id(p)] == 1 for p in layer.parameters(recurse=False))
        if len(seen) == 1 and seen[0][0] is output and output._version == seen[0][1] and alone:
            place = f"{name}." if name else ""
            return LastLayer(
                f"{place}weight",
                "" if layer.bias is None else f"{place}bias",
                layer.out_channels,
                int(layer.transposed),
            )
    return None
