"""A network as a function of weights that are given to it, by itself and with a head: what steps can move."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from medmeta.learners.batch import of_size
from medmeta.learners.folding import LastLayer, last_layer
from medmeta.learners.head import Head, logits
from medmeta.learners.metagradient import Weights
from medmeta.networks import encoded
from medmeta.shape import Feature, Image, Logits


class Functional:
    """A backbone whose weights come from outside, under the names ``network.…`` that a learner has them by.

    Args:
        network: the backbone; it keeps its own weights.
        half: whether its activations are in bfloat16, by autocast.

    Example:
        >>> run = Functional(nn.Linear(2, 2, bias=False))
        >>> run.feature({"network.weight": 3 * torch.eye(2)}, torch.ones(1, 2), dense=False)
        tensor([[3., 3.]])
    """

    def __init__(self, network: nn.Module, *, half: bool = False) -> None:
        self.network, self.half = network, half
        self.places = places(network)
        self.last: LastLayer | None = None
        self.looked = False

    def look(self, image: Image) -> None:
        """Find, once, the layer that a head can be multiplied into."""
        if not self.looked and not self.half:
            self.last, self.looked = last_layer(self.network, image), True

    def feature(
        self, weights: Weights, image: Image, *, dense: bool, layer: Weights | None = None
    ) -> Feature:
        """Features of images ``(n, channel, *voxel)``; ``layer`` has other weights for some places."""
        body = {place: weights[f"network.{name}"] for place, name in self.places.items()} | (layer or {})

        def run(given: Image) -> Any:
            with torch.autocast(image.device.type, torch.bfloat16) if self.half else nullcontext():
                return functional_call(self.network, body, (given,), tie_weights=False)

        return encoded(run, image, dense=dense).to(image.dtype)

    def logits(self, weights: Weights, head: Head, image: Image, *, dense: bool) -> Logits:
        """Logits ``(n, way, *space)``, by one layer in place of two where the head can be multiplied in."""
        last = self.last
        if last and dense and last.gains(head):
            layer = last.fold({n: weights[f"network.{n}"] for n in last.names}, head)
            guess = self.feature(weights, image, dense=True, layer=layer)
            return guess if last.bias else guess + head.bias.reshape(-1, *[1] * (guess.ndim - 2))
        return fitting(self.feature(weights, image, dense=dense), head)


def fitting(feature: Feature, head: Head) -> Logits:
    """Apply a head to features of the size it is for.

    Raises:
        LearnerError: where they are of another.
    """
    return logits(of_size(feature, head.weight.shape[1]), head)


def places(network: nn.Module) -> dict[str, str]:
    """Name every place that holds a weight, and the weight it holds; tied weights have several places.

    ``functional_call`` left to itself swaps a module that goes by two names (DynUNet's) twice, and leaves the
    borrowed weights in it.

    Example:
        >>> layer = nn.Linear(2, 2, bias=False)
        >>> tied = nn.ModuleDict({"a": layer, "b": nn.Linear(2, 2, bias=False), "c": layer})
        >>> tied["b"].weight = layer.weight
        >>> places(tied)
        {'a.weight': 'a.weight', 'b.weight': 'a.weight'}
    """
    names = {id(weight): name for name, weight in network.named_parameters()}
    return {
        f"{path}.{name}" if path else name: names[id(weight)]
        for path, module in network.named_modules()
        for name, weight in module.named_parameters(recurse=False, remove_duplicate=False)
    }
