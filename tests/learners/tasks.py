"""Small tasks and networks that the tests of learners share: phantoms, in double precision."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from medmeta.episodes.examples import Episode, Examples

CLASSES = ("background", "tumour", "cyst", "vessel", "oedema")


def vectors(n: int = 6, way: int = 3, size: int = 5, seed: int = 0) -> Examples:
    """Points in ``size`` dimensions, ``n`` of them in ``way`` clusters."""
    g = torch.Generator().manual_seed(seed)
    label = torch.arange(n) % way
    centre = torch.randn(way, size, generator=g)
    return Examples(centre[label] + torch.randn(n, size, generator=g), label, CLASSES[:way])


def pictures(n: int = 4, way: int = 2, side: int = 16, dims: int = 2, seed: int = 0) -> Examples:
    """Noise, brighter the higher the class."""
    g = torch.Generator().manual_seed(seed)
    label = torch.arange(n) % way
    image = torch.randn(n, 1, *[side] * dims, generator=g) + label.reshape(-1, *[1] * (dims + 1))
    return Examples(image, label, CLASSES[:way])


def lesions(n: int = 2, side: int = 16, dims: int = 2, seed: int = 0) -> Examples:
    """A bright box at a random place in noise."""
    g = torch.Generator().manual_seed(seed)
    label = torch.zeros(n, *[side] * dims, dtype=torch.int64)
    for one in label:
        corner = torch.randint(0, side - 5, (dims,), generator=g).tolist()
        one[tuple(slice(c, c + 5) for c in corner)] = 1
    image = torch.randn(n, 1, *[side] * dims, generator=g) + 1.5 * label.unsqueeze(1)
    return Examples(image, label, CLASSES[:2])


def episode(make: Any, **options: Any) -> Episode:
    """Two sets from one maker."""
    return Episode(make(seed=1, **options), make(seed=2, **options))


def mlp(size: int = 5, feature: int = 4, seed: int = 0) -> nn.Module:
    """A smooth network of vectors, in double precision."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(size, 8), nn.Tanh(), nn.Linear(8, feature)).double()


def conv(dims: int = 2, feature: int = 3, seed: int = 0) -> nn.Module:
    """A network of one voxel at a time, in double precision."""
    torch.manual_seed(seed)
    layer = (nn.Conv2d, nn.Conv3d)[dims - 2]
    return nn.Sequential(layer(1, 4, 1), nn.Tanh(), layer(4, feature, 1)).double()


def close(one: Tensor, other: Tensor, tolerance: float) -> None:
    """Assert that two tensors differ by at most ``tolerance`` of the larger one's length."""
    one, other = one.detach(), other.detach()
    gap = float((one - other).norm())
    size = max(float(one.norm()), float(other.norm()), 1e-12)
    assert gap <= tolerance * size, f"{gap / size:.2e} apart, {tolerance:.0e} allowed"
