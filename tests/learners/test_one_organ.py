"""One organ of a kind in a scan: the piece and slices for which most speaks, edges of the image."""

from __future__ import annotations

import pytest
import torch

from medmeta.learners.one_organ import guided, surest, within


def two(one: torch.Tensor) -> torch.Tensor:
    return torch.stack([1 - one, one], 1)


def test_a_small_sure_piece_outweighs_a_large_unsure_one() -> None:
    one = torch.zeros(6, 16, 16)
    one[0:2, 2:6, 2:6] = 0.95  # 32 voxels, 0.9 ahead each
    one[3:6, 8:14, 8:12] = 0.6  # 72 voxels, 0.2 ahead each
    kept = surest(two(one))[:, 1]
    assert torch.equal(kept > 0, one == 0.95)


def test_a_piece_goes_on_through_slices() -> None:
    one = torch.zeros(4, 8, 8)
    one[0, 2:4, 2:4] = one[1, 2:4, 2:4] = one[2, 2:4, 2:4] = 0.8
    one[0, 6:8, 6:8] = 0.99  # alone in its slice, and surer a voxel, but less in all
    kept = surest(two(one))[:, 1]
    assert torch.equal(kept > 0, one == 0.8)


def test_every_class_keeps_a_piece_of_its_own() -> None:
    said = torch.full((2, 3, 8, 8), 0.1)
    said[:, 0] = 0.5
    said[:, 1, :3, :3] = 0.9
    said[:, 2, 5:, 5:] = 0.9
    said[0, 1, 7, 0] = 0.9
    made = surest(said)
    assert made[0, 1, 7, 0] == 0
    assert torch.equal(made[:, 2], said[:, 2])
    assert torch.equal(made[:, 1, :3, :3], said[:, 1, :3, :3])


@pytest.mark.parametrize("slices", [1, 3, 7, 9])
def test_what_is_within_has_so_many_slices_at_most(slices: int) -> None:
    one = 0.5 + 0.5 * torch.rand(7, 4, 4, generator=torch.Generator().manual_seed(0))
    shown = within(two(one), slices)[:, 1].flatten(1).any(1).nonzero()[:, 0]
    assert len(shown) == min(slices, 7)
    assert shown[-1] - shown[0] == len(shown) - 1


def test_what_is_unsure_does_not_draw_the_slices() -> None:
    one = torch.full((8, 4, 4), 0.45)  # below a half everywhere: says nothing
    one[5:7] = 0.7
    assert within(two(one), 2)[:, 1].flatten(1).any(1).tolist() == [False] * 5 + [True] * 2 + [False]


def test_answers_are_left_as_they_were() -> None:
    said = two(torch.rand(5, 8, 8, generator=torch.Generator().manual_seed(1)))
    before = said.clone()
    surest(said), within(said, 2)
    assert torch.equal(said, before)


def test_edges_move_to_those_of_the_image() -> None:
    """An answer whose edge is off by two voxels, blurred: the guided one is nearer to the truth."""
    g = torch.Generator().manual_seed(0)
    truth = torch.zeros(1, 32, 32)
    truth[:, 8:24, 8:24] = 1
    image = (1 + truth)[:, None] * 3 + 0.05 * torch.rand(1, 1, 32, 32, generator=g)
    off = torch.nn.functional.avg_pool2d(truth.roll((2, 2), (1, 2)), 5, 1, 2)

    def dice(one: torch.Tensor) -> float:
        return 2 * float(((one > 0.5) & (truth > 0)).sum()) / float((one > 0.5).sum() + truth.sum())

    made = guided(two(off), image)
    assert dice(made[:, 1]) > dice(off) + 0.05
    torch.testing.assert_close(made.sum(1), torch.ones(1, 32, 32), atol=1e-4, rtol=0)


def test_a_flat_image_only_smooths() -> None:
    said = two(torch.rand(1, 12, 12, generator=torch.Generator().manual_seed(2)))
    made = guided(said, torch.zeros(1, 1, 12, 12))
    assert made.var() < said.var() / 4


@pytest.mark.parametrize("space", [(20,), (12, 12), (10, 10, 10)])
def test_any_number_of_axes(space: tuple[int, ...]) -> None:
    g = torch.Generator().manual_seed(3)
    said = two(torch.rand(3, *space, generator=g))
    assert guided(said, torch.rand(3, 2, *space, generator=g)).shape == said.shape
    assert surest(said).shape == within(said, 2).shape == said.shape
