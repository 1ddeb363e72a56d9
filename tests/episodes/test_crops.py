"""Laws of crops and augmentation: the right voxels, the whole episode alike."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from medmeta.episodes import Augment, Episode, EpisodeError, Examples, support_examples
from medmeta.episodes.augment import Drawn, apply, augment_episode, draw
from medmeta.episodes.crops import crop_examples, cut, draw_start
from medmeta.volumes import Plan, Prepared

sizes = st.lists(st.integers(1, 14), min_size=3, max_size=3)


def numbered(shape: list[int], *, target: bool = True, seed: int = 0) -> Prepared:
    """A volume whose voxels are numbered from 1, with a target of a few random voxels."""
    count = int(torch.tensor(shape).prod())
    image = torch.arange(1, count + 1, dtype=torch.float32).reshape(1, *shape)
    mask = torch.zeros(count, dtype=torch.uint8)
    if target:
        mask[torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:3]] = 1
    return Prepared(
        image, mask.reshape(shape), torch.eye(4, dtype=torch.float64), "p", "t" if target else None
    )


@given(sizes, sizes, st.integers(0, 50), st.booleans())
@settings(max_examples=200, deadline=None)
def test_a_crop_holds_the_target_and_lies_inside(
    shape: list[int], patch: list[int], seed: int, target: bool
) -> None:
    volume = numbered(shape, target=target, seed=seed)
    start = draw_start(volume, patch, True, torch.Generator().manual_seed(seed))
    image, label = cut([volume], [start], patch)
    kept = image[0, 0] > 0
    # every voxel of the crop is the volume's voxel at start + offset, or padding outside it
    where = torch.nonzero(kept) + torch.tensor(start)
    assert torch.equal(image[0, 0][kept], volume.image[0][tuple(where.T)])
    assert int(kept.sum()) == int(torch.tensor([min(s, p) for s, p in zip(shape, patch, strict=True)]).prod())
    assert volume.mask is not None
    assert torch.equal(label[0][kept], volume.mask[tuple(where.T)].long())
    assert not label[0][~kept].any()
    if target and min(patch) > 3:
        assert label.any()


@given(sizes, sizes, st.integers(0, 20))
@settings(max_examples=50, deadline=None)
def test_draws_do_not_depend_on_the_volume(shape: list[int], patch: list[int], seed: int) -> None:
    one, two = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed)
    draw_start(numbered(shape), patch, True, one)
    draw_start(numbered([9, 9, 9], target=False), patch, False, two)
    assert torch.equal(one.get_state(), two.get_state())


def test_crops_anywhere_reach_every_voxel() -> None:
    volume = numbered([6, 5, 4], target=False)
    generator = torch.Generator().manual_seed(0)
    starts = [draw_start(volume, (4, 4, 4), False, generator) for _ in range(400)]
    assert set(starts) == {(x, y, 0) for x in range(3) for y in range(2)}


def test_support_of_volumes_with_and_without_mask() -> None:
    plan = Plan(3, (1.0, 1.0, 1.0), (4, 4, 4), 1)
    volumes = [numbered([6, 6, 6]), numbered([3, 3, 3])]
    examples = support_examples(volumes, plan, torch.Generator().manual_seed(0), crops=3)
    assert (examples.classes, len(examples.image)) == (("background", "t"), 6)
    free = numbered([6, 6, 6], target=False)
    assert support_examples([*volumes, free], plan, torch.Generator(), crops=1).shot == (3, 2)
    bare = Prepared(free.image, None, free.affine, "q", "t")
    with pytest.raises(EpisodeError, match="1 of 2 without"):
        support_examples([volumes[0], bare], plan, torch.Generator())
    with pytest.raises(EpisodeError, match="one tumour type"):
        support_examples([free], plan, torch.Generator())
    with pytest.raises(EpisodeError, match="at least one"):
        support_examples([], plan, torch.Generator())


def test_two_dimensions_go_the_same_way() -> None:
    image = torch.rand(2, 10, 12)
    mask = torch.zeros(10, 12, dtype=torch.uint8)
    mask[4, 5] = 1
    volume = Prepared(image, mask, torch.eye(4), "p", "t")
    examples = crop_examples([volume], (6, 6), torch.Generator().manual_seed(0), classes=("background", "t"))
    assert tuple(examples.image.shape) == (2, 2, 6, 6)
    assert examples.label[0].sum() == 1


def test_supports_to_classify_are_whole() -> None:
    plan = Plan(3, (1.0, 1.0, 1.0), (6, 6, 6), 1, whole=True)
    volumes = [numbered([6, 6, 6]), numbered([6, 6, 6], target=False)]
    examples = support_examples(volumes, plan, torch.Generator())
    assert (examples.classes, examples.label.tolist()) == (("none", "t"), [1, 0])
    with pytest.raises(EpisodeError, match="one shape"):
        support_examples([*volumes, numbered([5, 6, 6])], plan, torch.Generator())
    with pytest.raises(EpisodeError, match="a tumour among x"):
        support_examples(volumes, plan, torch.Generator(), classes=("x", "none"))


def examples(seed: int, shape: tuple[int, ...] = (9, 8, 7)) -> Examples:
    image = torch.rand(2, 1, *shape, generator=torch.Generator().manual_seed(seed))
    return Examples(image, (image[:, 0] > 0.5).long(), ("background", "t"), (f"p{seed}", f"q{seed}"))


@pytest.mark.parametrize("shape", [(9, 8, 7), (9, 8)])
def test_labels_move_with_their_voxels(shape: tuple[int, ...]) -> None:
    made = Examples(torch.zeros(1, 1, *shape), torch.zeros(1, *shape, dtype=torch.int64), ("background", "t"))
    inner = (slice(None), *(slice(2, 5) for _ in shape))
    made.label[inner] = 1
    made.image[:, 0] = made.label.float()
    for seed in range(10):
        augment = Augment(gain=0.0, bias=0.0, rotate=20.0, scale=0.2)
        moved = apply(draw(augment, len(shape), torch.Generator().manual_seed(seed)), made)
        # a box resampled linearly and by the nearest voxel agrees but for its rim
        assert ((moved.image[:, 0] > 0.5).long() != moved.label).float().mean() < 0.06
        assert moved.label.any()


def test_an_episode_changes_as_one() -> None:
    episode = Episode(examples(0), examples(1))
    generator = torch.Generator().manual_seed(3)
    changed = augment_episode(episode, Augment(), generator)
    drawn = draw(Augment(), 3, torch.Generator().manual_seed(3))
    assert torch.equal(changed.support.image, apply(drawn, episode.support).image)
    assert torch.equal(changed.query.label, apply(drawn, episode.query).label)
    assert changed.query.patients == episode.query.patients


def test_nothing_to_do_changes_nothing() -> None:
    given_ = examples(0)
    still = apply(Drawn((False,) * 3, 1.0, 0.0, None), given_)
    assert torch.equal(still.image, given_.image)
    turned = apply(Drawn((False,) * 3, 1.0, 0.0, torch.eye(3, dtype=torch.float64)), given_)
    assert torch.allclose(turned.image, given_.image, atol=1e-5)
    assert torch.equal(turned.label, given_.label)


def test_a_flip_is_undone_by_itself() -> None:
    flip = Drawn((True, False, True), 1.0, 0.0, None)
    assert torch.equal(apply(flip, apply(flip, examples(0))).image, examples(0).image)


def test_a_target_at_the_edge_of_its_crop_goes_on_where_its_image_does() -> None:
    label = torch.zeros(1, 16, 16, dtype=torch.int64)
    label[:, 9:] = 1  # up to three edges, as that of a crop about its rim
    made = Examples(label[:, None].float(), label, ("background", "tumour"))
    for seed in range(20):
        turned = apply(draw(Augment(gain=0.0, bias=0.0), 2, torch.Generator().manual_seed(seed)), made)
        assert bool((turned.label[turned.image[:, 0] > 0.9] == 1).all())


def test_a_rotation_turns_voxels_not_shares_of_axes() -> None:
    """A quarter turn of a long box keeps its length in voxels."""
    image = torch.zeros(1, 1, 20, 10)
    image[0, 0, 8:12, 2:8] = 1
    quarter = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
    made = Examples(image, image[:, 0].long(), ("background", "t"))
    turned = apply(Drawn((False, False), 1.0, 0.0, quarter), made)
    assert torch.nonzero(turned.label[0]).amin(0).tolist() == [7, 3]
    assert torch.nonzero(turned.label[0]).amax(0).tolist() == [12, 6]


def ball(shape: tuple[int, ...], spacing: tuple[float, ...], radius: float, off: tuple[float, ...]) -> Tensor:
    """Voxels within ``radius`` mm of a point ``off`` mm from the centre."""
    axes = [(torch.arange(n) - (n - 1) / 2) * s - o for n, s, o in zip(shape, spacing, off, strict=True)]
    grid = torch.meshgrid(*axes, indexing="ij")
    return torch.stack(list(grid)).square().sum(0) <= radius**2


def test_what_is_turned_on_thick_slices_keeps_its_form_in_mm() -> None:
    """A ball stays a ball, where a rotation of voxels would draw it out along the slices."""
    shape, spacing = (48, 48, 16), (1.0, 1.0, 3.0)
    label = ball(shape, spacing, 9.0, (6.0, 0.0, 0.0)).long()[None]
    made = Examples(label[:, None].double(), label, ("background", "t"))
    turn = torch.eye(3, dtype=torch.float64)
    turn[0, 0] = turn[2, 2] = 0.0
    turn[0, 2], turn[2, 0] = -1.0, 1.0  # a quarter turn of x into z
    turned = apply(Drawn((False,) * 3, 1.0, 0.0, turn), made, spacing=spacing)
    wanted = ball(shape, spacing, 9.0, (0.0, 0.0, -6.0)).long()[None]
    dice = 2 * (turned.label * wanted).sum() / (turned.label.sum() + wanted.sum())
    assert dice > 0.93
    assert float(((turned.image[:, 0] > 0.5) != (wanted > 0)).double().mean()) < 0.01


@pytest.mark.parametrize("apart", [False, True])
def test_a_target_in_the_corner_is_not_turned_out_of_its_crop(apart: bool) -> None:
    """As of a lesion at the border of a scan; a support that does not show it cannot be learnt from."""
    label = torch.zeros(2, 16, 16, 16, dtype=torch.int64)
    label[:, :2, :2, :2] = 1
    support = Examples(label[:, None].float(), label, ("background", "t"), ("a", "b"))
    query = Examples(support.image, label, support.classes, ("c", "d"))
    augment = Augment(apart=apart)
    turned = 0
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        changed = augment_episode(Episode(support, query), augment, generator)
        assert changed.support.shot == (2, 2)
        drawn = draw(augment, 3, torch.Generator().manual_seed(seed))
        if not apart and apply(drawn, support).shot == (2, 2):  # then what was drawn is done
            assert torch.equal(changed.support.image, apply(drawn, support).image)
            turned += 1
    assert apart or 0 < turned < 40


@pytest.mark.parametrize("crops", [1, 2])
@pytest.mark.parametrize("shape", [(40, 30, 20), (40, 30)])
def test_a_target_larger_than_its_crops_is_seen_beside_the_background(
    crops: int, shape: tuple[int, ...]
) -> None:
    """As of a liver; a support that shows no background cannot be learnt from."""
    mask = torch.zeros(shape, dtype=torch.uint8)
    mask[tuple(slice(2, n - 2) for n in shape)] = 1
    volume, patch = Prepared(torch.rand(1, *shape), mask, torch.eye(4), "p", "t"), (8,) * len(shape)
    for seed in range(60):
        generator = torch.Generator().manual_seed(seed)
        made = crop_examples([volume], patch, generator, classes=("background", "t"), crops=crops)
        assert min(made.shot) >= 1
    full = Prepared(volume.image, torch.ones_like(mask), volume.affine, "p", "t")
    made = crop_examples([full], patch, torch.Generator(), classes=("background", "t"), crops=crops)
    assert made.shot == (0, crops)  # there is none to be seen
