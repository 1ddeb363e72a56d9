"""What trees with body coordinates promise beyond the laws of every learner."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from medmeta.episodes.examples import Examples
from medmeta.learners import LearnerError, create_learner, plain_network
from medmeta.learners.body import body_mask, body_places, looks
from medmeta.learners.body_trees import BodyTreesPredictor
from medmeta.learners.growing import Copying
from medmeta.networks import build, unet

CLASSES = ("background", "organ")


def body(side: int, box: tuple[int, int, int, int], seed: int, *, bright: float = 1.0) -> tuple[Any, Any]:
    """A body in ``box`` (top, bottom, left, right) with two like bright organs; the left one is labelled."""
    g = torch.Generator().manual_seed(seed)
    image, label = torch.zeros(side, side), torch.zeros(side, side, dtype=torch.int64)
    top, bottom, left, right = box
    image[top:bottom, left:right] = 1
    high, wide = bottom - top, right - left
    rows = slice(top + high // 2, top + 3 * high // 4)
    for start in (wide // 8, wide - wide // 8 - wide // 4):
        image[rows, left + start : left + start + wide // 4] = 1 + bright
    label[rows, left + wide // 8 : left + wide // 8 + wide // 4] = 1
    return image[None, None] + 0.05 * torch.rand(1, 1, side, side, generator=g), label[None]


def dice(logits: torch.Tensor, label: torch.Tensor) -> float:
    guess = logits.argmax(1)
    return 2 * float((guess * label).sum()) / float(guess.sum() + label.sum())


def learner(**options: Any) -> Any:
    torch.manual_seed(0)
    return create_learner(
        "body-trees", build(unet(2, 1, base=4)), **{"trees": 20, "gain": 0.0, "shift": 0.0, **options}
    )


def test_places_of_two_bodies_are_comparable() -> None:
    """A query body of another size and place: only its own coordinates tell its left from its right."""
    image, label = body(64, (8, 40, 2, 34), 0)
    query, truth = body(64, (16, 64, 16, 64), 1)
    found = {
        places: dice(learner(places=places, own=0).adapt(Examples(image, label, CLASSES))(query), truth)
        for places in ("body", "image", "none")
    }
    assert found["body"] > 0.85
    assert found["body"] > found["image"] + 0.1
    assert found["body"] > found["none"] + 0.1


def test_the_scan_itself_is_learnt_from() -> None:
    """With own rounds the trees are others, and the organ is still found."""
    image, label = body(64, (8, 56, 8, 56), 0)
    query, truth = body(64, (8, 56, 10, 54), 1)
    alone, own = (learner(own=n).adapt(Examples(image, label, CLASSES))(query) for n in (0, 1))
    assert not torch.equal(alone, own)
    assert dice(own, truth) > 0.85


def test_a_scan_of_another_gain_is_known_again() -> None:
    """A scanner that shows everything a third darker: copies of other gains tell the trees that it may."""
    image, label = body(64, (8, 56, 8, 56), 0)
    query, truth = body(64, (8, 56, 8, 56), 1)
    support = Examples(image, label, CLASSES)
    blind, told = (dice(learner(gain=gain, own=0).adapt(support)(0.7 * query), truth) for gain in (0.0, 0.3))
    assert told > blind + 0.1


def test_copies_are_of_other_looks_and_places_by_the_spreads_asked_for() -> None:
    """Two channels: ten looks, two contrasts, three of the place, two features of a backbone."""
    points = np.ones((4000, 17), np.float32)
    made, copies = Copying(gain=0.3, shift=0.05, seed=0)(points, 2, 3)
    assert made.shape == (copies * 4000, 17)
    first, copied = made[:4000], made[4000:]
    np.testing.assert_array_equal(first, points)
    np.testing.assert_array_equal(copied[:, 10:12], 1)  # contrast knows no gain
    np.testing.assert_array_equal(copied[:, 15:], 1)
    np.testing.assert_allclose(np.log(copied[:, :10]).std(0), 0.3, rtol=0.05)
    np.testing.assert_array_equal(copied[:, 0], copied[:, 9])  # one gain for all looks of a voxel
    np.testing.assert_allclose(copied[:, 12:15].std(0), 0.05, rtol=0.05)
    assert abs(np.corrcoef(copied[:, 12:15].T)[0, 1]) < 0.1


def test_no_spread_no_copies() -> None:
    points = np.ones((5, 9), np.float32)
    made, copies = Copying(gain=0.0, shift=0.0, seed=0)(points, 1, 3)
    assert (copies, made is points) == (1, True)


def test_edges_of_the_answer_are_those_of_the_image() -> None:
    image, label = body(64, (8, 56, 8, 56), 0)
    query, truth = body(64, (8, 56, 8, 56), 1)
    support = Examples(image, label, CLASSES)
    said, moved = (
        dice(learner(edges=edges, stride=4).adapt(support)(query), truth) for edges in (False, True)
    )
    assert moved > said + 0.02


def test_slices_of_one_scan_keep_one_piece() -> None:
    image, label = body(64, (8, 56, 8, 56), 0)
    support = Examples(image, label, CLASSES)
    scan = image.repeat(8, 1, 1, 1)
    scan[4:] = image[:, :, :, :].mean()  # the organ ends, and a far slice shows something like it again
    scan[7] = image[0]
    apart, joined = (
        learner(own=0, stacked=stacked).adapt(support)(scan).argmax(1).flatten(1).any(1)
        for stacked in (False, True)
    )
    assert bool(apart[7])
    assert not bool(joined[7])
    assert bool(joined[1])


def test_a_batch_without_body_is_background() -> None:
    image, label = body(64, (8, 56, 8, 56), 0)
    predictor = learner().adapt(Examples(image, label, CLASSES))
    assert isinstance(predictor, BodyTreesPredictor)
    with pytest.raises(LearnerError, match="runs with medmeta only"):
        plain_network(predictor)
    assert not bool(predictor(torch.zeros(2, 1, 64, 64)).argmax(1).any())


def test_a_support_whose_order_differs_grows_the_same_trees() -> None:
    made = [body(32, (4, 28, 4, 28), i) for i in range(3)]
    image, label = (torch.cat(parts) for parts in zip(*made, strict=True))
    one = learner(trees=5).adapt(Examples(image, label, CLASSES))(image)
    other = learner(trees=5).adapt(Examples(image.flip(0), label.flip(0), CLASSES))(image)
    assert torch.equal(one, other)


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_a_coarser_grid_gives_logits_on_the_voxels(stride: int) -> None:
    image, label = body(32, (4, 28, 4, 28), 0)
    logits = learner(trees=5, stride=stride, deep=True).adapt(Examples(image, label, CLASSES))(image)
    assert logits.shape == (1, 2, 32, 32)
    assert dice(logits, label) > 0.6


def test_the_body_of_a_volume() -> None:
    image = torch.zeros(1, 1, 16, 16, 16)
    image[..., 3:13, 3:13, 3:13] = 1
    image[..., 7:9, 7:9, 7:9] = 0  # a hole belongs to the body
    mask = body_mask(image)
    assert mask[0, 8, 8, 8]
    assert not mask[0, 0].any()
    places = body_places(mask)
    inside = mask[0]
    assert places.shape == (1, 4, 16, 16, 16)
    assert places[0, :3, inside].min() > 0
    assert places[0, :3, inside].max() < 1
    assert places[0, 3, 8, 8, 8] > places[0, 3, 4, 4, 4]


@pytest.mark.parametrize("slices", [1, 6, 12])
def test_a_body_that_goes_on_beyond_the_scan(slices: int) -> None:
    """A body reaches the first and last slice of its scan, and often the sides of the picture."""
    image = torch.zeros(1, 1, 32, 32, slices)
    image[:, :, 8:, 6:26] = 1 + torch.rand(24, 20, slices) / 10
    mask = body_mask(image)[0]
    shown = np.zeros((32, 32, slices), bool)
    shown[8:, 6:26] = True
    assert mask[shown].all()
    assert not mask[:5].any()
    assert not mask[:, :3].any()
    assert not mask[:, 29:].any()


def test_a_lesion_in_the_first_slice_is_found() -> None:
    def scan(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        image = torch.zeros(1, 1, 24, 24, 6)
        image[:, :, 4:20, 4:20] = (
            1 + torch.rand(16, 16, 6, generator=torch.Generator().manual_seed(seed)) / 10
        )
        label = torch.zeros(1, 24, 24, 6, dtype=torch.int64)
        label[:, 8:16, 8:16, :3] = 1
        return image + label.unsqueeze(1), label

    image, label = scan(1)
    predictor = learner().adapt(Examples(image, label, ("background", "tumour")))
    image, label = scan(2)
    assert dice(predictor(image)[..., :1], label[..., :1]) > 0.8


def test_looks_of_a_flat_image() -> None:
    made = looks(torch.full((1, 1, 12, 12), 3.0))[0]
    np.testing.assert_allclose(made[:3], 3.0, rtol=1e-5)
    np.testing.assert_allclose(made[3:], 0.0, atol=2e-3)


@pytest.mark.parametrize(
    "option", [{"trees": 0}, {"stride": 0}, {"own": -1}, {"gain": -0.1}, {"shift": -0.1}, {"places": "head"}]
)
def test_impossible_options_are_refused(option: dict[str, Any]) -> None:
    with pytest.raises(LearnerError, match=next(iter(option))):
        learner(**option)
