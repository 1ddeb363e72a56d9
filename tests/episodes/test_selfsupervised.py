"""Superpixel tasks: seeded, honest about what they cannot do, and the same in 2D and 3D."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from medmeta.episodes import EpisodeError
from medmeta.episodes.selfsupervised import SuperpixelSource, superpixels


def quarters(dims: int = 2, side: int = 32) -> Tensor:
    """Four regions of a grey value each, with a little noise."""
    g = torch.Generator().manual_seed(0)
    image = 0.01 * torch.randn(1, *[side] * dims, generator=g) + 1
    image[:, : side // 2] += 2
    image[:, :, : side // 2] += 1
    return image


def test_superpixels_keep_to_the_edges() -> None:
    pieces = superpixels(quarters(), size=60)
    quarter = 2 * (torch.arange(32) // 16)[:, None] + (torch.arange(32) // 16)[None]
    pure = [torch.bincount(quarter[pieces == p]).max() / (pieces == p).sum() for p in pieces.unique()]
    assert min(pure) > 0.7
    assert len(pieces.unique()) >= 4


@pytest.mark.parametrize("dims", [2, 3])
def test_supervoxels_in_any_number_of_axes(dims: int) -> None:
    pieces = superpixels(quarters(dims, 16), method="slic", size=200 if dims == 3 else 60)
    assert pieces.shape == (16,) * dims
    assert len(pieces.unique()) > 1


def test_same_number_same_episode_whatever_was_asked_before() -> None:
    images = [quarters(), quarters().flip(1), torch.rand(1, 32, 32)]
    one, other = SuperpixelSource(images, size=60), SuperpixelSource(images, size=60)
    for number in (5, 1, 3):
        one[number]
    for a, b in ((one[7].support, other[7].support), (one[7].query, other[7].query)):
        assert torch.equal(a.image, b.image)
        assert torch.equal(a.label, b.label)
    assert not torch.equal(one[7].query.image, one[8].query.image)
    assert not torch.equal(one[7].query.image, SuperpixelSource(images, seed=1, size=60)[7].query.image)


@pytest.mark.parametrize("dims", [2, 3])
def test_both_views_show_one_region(dims: int) -> None:
    source = SuperpixelSource([quarters(dims, 16)], method="slic", size=60 if dims == 2 else 400)
    for number in range(8):
        episode = source[number]
        for side in (episode.support, episode.query):
            assert side.shot[1] == 1
            inside = side.image[:, 0][side.label == 1]
            assert float(inside.std()) < float(side.image.std())


def test_air_round_the_body_is_no_target() -> None:
    image = torch.zeros(1, 32, 32)
    image[:, 8:24, 8:24] = 1
    targets = SuperpixelSource([image], size=40, share=(0.01, 0.9)).targets(0)
    assert targets
    assert all(float(image[0][target].mean()) >= 0.5 for target in targets)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(EpisodeError, match=r"one image or more.*none"):
        SuperpixelSource([])
    with pytest.raises(EpisodeError, match=r"2D images for felzenszwalb.*slic"):
        superpixels(quarters(3, 8))
    with pytest.raises(EpisodeError, match="slic"):
        superpixels(quarters(), method="slick")
    with pytest.raises(EpisodeError, match=r"none in 1 image.*Change size or share"):
        SuperpixelSource([quarters()], size=60, share=(0.9, 1.0))[0]
