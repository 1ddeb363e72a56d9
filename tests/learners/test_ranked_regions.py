"""What proposing regions and choosing among them promises, beyond the laws of every learner."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from skimage.measure import regionprops
from sklearn.ensemble import ExtraTreesClassifier

from medmeta.episodes.examples import Episode, Examples
from medmeta.learners import LearnerError, create_learner
from medmeta.learners.describing import SIZE, Known, describe
from medmeta.learners.evidence import learn
from medmeta.learners.extent import extent
from medmeta.learners.forest import Forest
from medmeta.learners.ranked_regions import RankedRegionsLearner, ranking_loss, vote
from medmeta.learners.regions import Picture, Site, regions, shape_of, sources
from medmeta.networks import build, unet

CLASSES = ("background", "tumour")


def scenes(n: int, seed: int, *, bright: float, dims: int = 2, absent: bool = False) -> Examples:
    """A compact lesion and a larger, longer structure as bright as it; the lesion alone is labelled."""
    g = torch.Generator().manual_seed(seed)
    side = 32 if dims == 2 else 20
    image = 0.3 * torch.randn(n, 1, *[side] * dims, generator=g)
    label = torch.zeros(n, *[side] * dims, dtype=torch.int64)
    for one, mask in zip(image[:, 0], label, strict=True):
        first = int(torch.randint(1, side // 4, (), generator=g))
        rod = (slice(first, first + 3), slice(1, side - 1), *[slice(3, 6)] * (dims - 2))
        one[rod] += bright
        corner = torch.randint(side // 2 - 1, side - 7, (dims,), generator=g).tolist()
        if not absent:
            box = tuple(slice(c, c + 6) for c in corner)
            one[box] += bright
            mask[box] = 1
    return Examples(image, label, CLASSES)


def dice(guess: torch.Tensor, label: torch.Tensor) -> float:
    return 2 * float((guess * label).sum()) / max(1.0, float(guess.sum() + label.sum()))


def learner(dims: int = 2, **options: Any) -> RankedRegionsLearner:
    torch.manual_seed(0)
    made = create_learner("ranked-regions", build(unet(dims, 1, base=4)), **options)
    assert isinstance(made, RankedRegionsLearner)
    return made


def trained(made: RankedRegionsLearner, episodes: list[Episode], steps: int) -> RankedRegionsLearner:
    adam = torch.optim.Adam(made.ranker.parameters(), lr=5e-3)
    made.train()
    for step in range(steps):
        adam.zero_grad()
        made.backward([episodes[step % len(episodes)]], scale=1.0)
        adam.step()
    return made.eval()


@pytest.mark.parametrize(("leaf", "trees"), [(1, 3), (8, 10)])
def test_trees_as_tensors_say_what_scikit_learn_says(leaf: int, trees: int) -> None:
    generator = np.random.default_rng(0)
    points = generator.normal(size=(400, 6)).astype(np.float32)
    label = (points[:, 0] * points[:, 1] + generator.normal(size=400) > 0.5).astype(int)
    grown = ExtraTreesClassifier(trees, min_samples_leaf=leaf, class_weight="balanced", random_state=0)
    grown.fit(points, label)
    asked = generator.normal(size=(3000, 6)).astype(np.float32)
    written = Forest.of(grown)
    assert np.abs(written(asked) - grown.predict_proba(asked)[:, 1]).max() < 1e-6
    again = Forest(trees, int(written.feature.shape[1]))
    again.load_state_dict(written.state_dict())
    assert np.array_equal(again(asked), written(asked))


def test_a_region_is_measured_as_by_scikit_image() -> None:
    mask = np.zeros((40, 40), bool)
    mask[5:15, 20:26] = mask[12:15, 10:26] = True
    image = np.random.default_rng(0).normal(size=(40, 40)).astype(np.float32)
    own, other = shape_of(Site.of(mask), Picture.of(image)), regionprops(mask.astype(int), image)[0]
    assert own.size == pytest.approx(np.log(other.area / 1600))
    assert own.filled == pytest.approx(other.extent)
    assert own.mean == pytest.approx(other.intensity_mean, abs=1e-5)
    assert own.place == pytest.approx([c / 40 for c in other.centroid])
    assert own.border == 0
    whole = shape_of(Site.of(mask[5:15, 20:26]), Picture.of(image[:10, :6]))
    assert (whole.border, whole.filled) == (1, 1)


@pytest.mark.parametrize("dims", [2, 3])
def test_a_cube_is_the_roundest_of_boxes(dims: int) -> None:
    """Voxels have faces: a cube's share of volume by faces is the largest a box can have, and counts 1."""
    picture = Picture.of(np.zeros((24,) * dims, np.float32))
    mask, plate = np.zeros((24,) * dims, bool), np.zeros((24,) * dims, bool)
    mask[(slice(4, 12),) * dims] = True
    plate[(slice(4, 6), *(slice(4, 20),) * (dims - 1))] = True
    assert shape_of(Site.of(mask), picture).round == pytest.approx(1)
    assert shape_of(Site.of(plate), picture).round < 0.8


def test_what_is_proposed_holds_the_lesion() -> None:
    support, query = scenes(3, 0, bright=3.0), scenes(4, 9, bright=3.0)
    evidence = learn(list(support.image), list(support.label.numpy() > 0), 0)
    assert evidence is not None
    known = Known.of(list(support.image.numpy()[:, 0]), list(support.label.numpy() > 0))
    for image, label in zip(query.image, query.label.numpy() > 0, strict=True):
        maps = sources(evidence(image[None])[0])
        found = regions(maps)
        best = max(2 * (r.mask & label).sum() / (r.mask.sum() + label.sum()) for r in found)
        assert best > 0.85
        told = describe(found, maps, image[0].numpy(), known)
        assert told.shape == (len(found) + 1, SIZE)
        assert np.isfinite(told).all()


@pytest.mark.parametrize("dims", [2, 3])
def test_what_training_taught_carries_over_to_another_brightness(dims: int) -> None:
    """A structure as bright as the lesion and larger: evidence alone takes it, too; a lesion is compact."""
    episodes = [
        Episode(scenes(2, 2 * i, bright=b, dims=dims), scenes(2, 2 * i + 1, bright=b, dims=dims))
        for i, b in enumerate((2.0, 3.0, 4.0) if dims == 2 else (3.0, 4.0))
    ]
    support, query = scenes(2, 50, bright=-3.0, dims=dims), scenes(4, 51, bright=-3.0, dims=dims)
    made = learner(dims)
    before = dice(made.adapt(support)(query.image).argmax(1), query.label)
    after = dice(trained(made, episodes, 150).adapt(support)(query.image).argmax(1), query.label)
    assert after > 0.75
    assert after > before + 0.1


def test_nothing_is_an_answer() -> None:
    """Queries without a tumour in training: an image that shows none is left empty, one that does is not."""
    episodes = []
    for i in range(4):
        support, with_one = scenes(2, 3 * i, bright=3.0), scenes(2, 3 * i + 1, bright=3.0)
        without = scenes(2, 3 * i + 2, bright=3.0, absent=True)
        image = torch.cat([with_one.image, without.image])
        query = Examples(image, torch.cat([with_one.label, without.label]), CLASSES)
        episodes.append(Episode(support, query))
    predictor = trained(learner(), episodes, 300).adapt(scenes(3, 60, bright=3.0))
    shown, absent = scenes(6, 61, bright=3.0), scenes(6, 62, bright=3.0, absent=True)
    found = [(predictor(e.image).argmax(1) > 0).flatten(1).any(1).sum() for e in (shown, absent)]
    assert found[0] == 6
    assert found[1] <= 2


def test_votes_make_the_mask_of_the_highest_expected_dice() -> None:
    """Of two nested regions the surer one, and nothing where nothing is surest or proposed."""
    masks = np.zeros((2, 8, 8), bool)
    masks[0, 2:5, 2:5] = masks[1, 1:6, 1:6] = True
    for sure, wanted in ((2.0, masks[0]), (-2.0, masks[1])):
        assert np.array_equal(vote(torch.tensor([[sure, -sure, -20.0]]), masks) > 0, wanted)
    assert not (vote(torch.tensor([[0.0, 0.0, 9.0]]), masks) > 0).any()
    assert not (vote(torch.zeros(1, 1), masks[:0]) > 0).any()


def test_the_loss_is_least_where_scores_are_dice() -> None:
    dice_of = torch.tensor([0.7, 0.2, 0.05])
    right = dice_of.logit()[None].requires_grad_()
    worse = (dice_of.logit() + torch.tensor([-2.0, 2.0, 0.0]))[None]
    assert ranking_loss(right, dice_of) < ranking_loss(worse, dice_of)
    only_fit = torch.autograd.grad((torch.sigmoid(right) - dice_of).square().sum(), right)[0]
    assert only_fit.abs().max() < 1e-6


def test_an_episode_is_described_once_and_the_weights_do_not_matter() -> None:
    made, other = learner(seed=0), learner(seed=0, width=8)
    episode = Episode(scenes(2, 0, bright=3.0), scenes(1, 1, bright=3.0))
    told = made.describe(episode)
    again = Episode(*(Examples(e.image.clone(), e.label, CLASSES) for e in (episode.support, episode.query)))
    assert made.describe(again) is told
    assert torch.equal(other.describe(episode)[0].told, told[0].told)


def test_images_of_another_size_than_the_supports() -> None:
    predictor = learner().adapt(scenes(2, 0, bright=3.0))
    assert predictor(torch.randn(1, 1, 40, 24)).shape == (1, 2, 40, 24)


def test_half_precision_about_a_predictor_changes_nothing() -> None:
    support = scenes(2, 0, bright=3.0)
    predictor = learner().adapt(support)
    expected = predictor(support.image)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(predictor(support.image), expected)


def test_three_classes_each_against_all_else() -> None:
    support = scenes(3, 0, bright=3.0)
    label = support.label.clone()
    label[(support.image[:, 0] > 1.5) & (label == 0)] = 2
    three = Examples(support.image, label, (*CLASSES, "vessel"))
    logits = learner().adapt(three)(support.image)
    swapped = Examples(support.image, torch.tensor([0, 2, 1])[label], ("background", "vessel", "tumour"))
    assert torch.equal(learner().adapt(swapped)(support.image)[:, [0, 2, 1]], logits)


def test_options_that_cannot_be() -> None:
    with pytest.raises(LearnerError, match=r"a drop from 0 to below 1.*drop=1\.0"):
        learner(drop=1.0)


def padded(examples: Examples, by: int) -> Examples:
    image = torch.nn.functional.pad(examples.image, (by, by + 1) * 2)
    label = torch.nn.functional.pad(examples.label, (by, by + 1) * 2)
    return Examples(image, label, examples.classes, examples.patients)


def test_what_was_put_around_a_scan_says_nothing() -> None:
    """Scans smaller than the patch: the answer is the scan's own, and never a tumour beyond it."""
    support, query = scenes(2, 0, bright=3.0), scenes(2, 1, bright=3.0)
    plain = learner().adapt(support)(query.image)
    around = learner().adapt(padded(support, 4))(padded(query, 4).image)
    assert torch.equal(around[..., 4:-5, 4:-5], plain)
    around[..., 4:-5, 4:-5] = 0
    assert (around[:, 1] <= 0).all()


def test_a_copy_of_a_scan_says_nothing_new() -> None:
    support, query = scenes(2, 0, bright=3.0), scenes(2, 1, bright=3.0)
    twice = Examples(support.image.repeat(2, 1, 1, 1), support.label.repeat(2, 1, 1), CLASSES)
    assert torch.equal(learner().adapt(twice)(query.image), learner().adapt(support)(query.image))
    assert len(learner().describe(Episode(support, twice))) == 2


def test_the_extent_of_a_scan() -> None:
    image = torch.zeros(2, 6, 7, 8)
    image[1, 2, 3, 4] = 5.0
    assert extent(image) == (slice(2, 3), slice(3, 4), slice(4, 5))
    assert extent(torch.zeros(1, 4, 4)) == (slice(None), slice(None))
