"""What local prototypes and refined ridge promise beyond the laws of every learner."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from scipy.ndimage import uniform_filter

from medmeta.episodes.examples import Examples
from medmeta.learners import (
    SAFEGUARD,
    FineTuning,
    LearnerError,
    Safeguarded,
    create_learner,
    learner_names,
    plain_network,
    safeguard,
)
from medmeta.learners.head import Head
from medmeta.learners.in_context import WINDOWS, surroundings
from medmeta.learners.local_prototype import local_prototypes
from medmeta.learners.loss import set_loss
from medmeta.learners.predictor import LinearPredictor
from medmeta.learners.refined import RefinedPredictor, RefinedRidgeLearner, pixel_features
from medmeta.learners.safeguard import can_go_on, left_out, walk
from medmeta.networks import build, unet
from tests.learners.tasks import CLASSES, close, episode, lesions


def two_looks(dims: int = 2) -> Examples:
    """A target of two looks on a background of a third between them: one mean cannot tell it."""
    label = torch.zeros(1, *[16] * dims, dtype=torch.int64)
    image = torch.zeros(1, 2, *[16] * dims)
    image[:, 0] = 1
    label[:, :4], label[:, 12:] = 1, 1
    image[:, 0, :4], image[:, 1, :4] = 1, 1
    image[:, 0, 12:], image[:, 1, 12:] = 1, -1
    return Examples(image, label, CLASSES[:2])


@pytest.mark.parametrize("sides", [(7,), (16, 5), (6, 1, 12)])
def test_surroundings_are_means_of_windows_that_end_at_the_border(sides: Sequence[int]) -> None:
    """Against scipy: what a window sums over zeros beyond the border, by how much of it lies within."""
    values = torch.randn(2, 3, *sides, dtype=torch.float64)
    found = surroundings(values)
    assert torch.equal(found[:, :3], values)
    for number, window in enumerate(WINDOWS, 1):
        size = (1, 1, *(min(window, s - 1 + s % 2) for s in sides))
        total, share = (
            uniform_filter(v, size, mode="constant") for v in (values.numpy(), np.ones(values.shape))
        )
        np.testing.assert_allclose(found[:, 3 * number : 3 * number + 3], total / share, atol=1e-12)


@pytest.mark.parametrize("dims", [2, 3])
def test_local_prototypes_tell_what_one_mean_cannot(dims: int) -> None:
    support = two_looks(dims)
    learner = create_learner("local-prototype", plain(dims), window=4, stride=1, place=0.0)
    guess = learner.adapt(support)(support.image).argmax(1)
    assert torch.equal(guess, support.label)
    wide = create_learner("local-prototype", plain(dims), window=16, stride=1, place=0.0)
    assert not torch.equal(wide.adapt(support)(support.image).argmax(1), support.label)


def plain(dims: int) -> torch.nn.Module:
    """A network that gives the image back."""
    layer = (torch.nn.Conv2d, torch.nn.Conv3d)[dims - 2](2, 2, 1, bias=False)
    layer.weight.data = torch.eye(2).reshape(2, 2, *[1] * dims)
    return layer


def test_place_tells_twins_apart() -> None:
    """Two like structures, one of them the target: only where they lie tells."""
    support = two_looks()
    image, label = support.image.clone(), support.label.clone()
    image[:, 1, 12:] = 1
    label[:, 12:] = 0
    twins = Examples(image, label, support.classes)
    dice = {}
    for place in (0.0, 2.0):
        learner = create_learner("local-prototype", plain(2), window=4, stride=1, place=place)
        guess = learner.adapt(twins)(image).argmax(1)
        dice[place] = 2 * float((guess * label).sum()) / float(guess.sum() + label.sum())
    assert dice[2.0] > 0.9 > dice[0.0]


def test_prototypes_are_of_length_one_and_every_class_has_one() -> None:
    hot = torch.nn.functional.one_hot(lesions(3).label, 2).movedim(-1, 1).float()
    made, classes = local_prototypes(torch.randn(3, 5, 16, 16), hot, 8, 0.99)
    close(made.norm(dim=1), torch.ones(len(made)), 1e-5)
    assert bool((classes.sum(0) >= 1).all())


def test_more_steps_fit_the_support_better() -> None:
    task = episode(lesions, n=3, side=16)
    scores = []
    for steps in (0, 25):
        torch.manual_seed(0)
        learner = create_learner("refined-ridge", build(unet(2, 1, base=4)), steps=steps, folds=0)
        guess = torch.softmax(learner.adapt(task.support)(task.support.image), 1)[:, 1]
        truth = task.support.label.float()
        scores.append(float(2 * (guess * truth).sum() / (guess.sum() + truth.sum())))
    assert scores[1] > scores[0]


def test_steps_that_harm_those_left_out_are_not_done() -> None:
    """At a rate that wrecks the network, the safeguard stays at the closed-form head."""
    support = lesions(4)
    for folds, kept in ((2, True), (0, False)):
        torch.manual_seed(0)
        network = build(unet(2, 1, base=4))
        learner = create_learner("refined-ridge", network, steps=6, rate=3.0, folds=folds)
        adapted = learner.adapt(support).state_dict()
        same = all(torch.equal(w, adapted[f"network.{n}"]) for n, w in network.state_dict().items())
        assert same is kept


def safeguarded(support: Examples, **tuning: float) -> tuple[torch.Tensor, torch.Tensor]:
    """What an untrained MAML says of the support, and what it says after safeguarded fine-tuning."""
    torch.manual_seed(0)
    learner = create_learner("maml", build(unet(2, 1, base=4)), steps=1, rate=0.01)
    before = {n: w.clone() for n, w in learner.state_dict().items()}
    predictor = Safeguarded(learner, FineTuning(**tuning)).adapt(support)  # type: ignore[arg-type]
    assert all(torch.equal(w, before[n]) for n, w in learner.state_dict().items())
    plain_network(predictor)
    with torch.no_grad():
        return learner.adapt(support)(support.image), predictor(support.image)


def test_fine_tuning_goes_on_where_it_helps_those_left_out() -> None:
    support = lesions(4, side=16)
    own, tuned = safeguarded(support, steps=40, rate=1e-2)
    losses = [float(set_loss(guess, support.label)) for guess in (own, tuned)]
    assert losses[1] < 0.8 * losses[0]


def test_fine_tuning_that_harms_or_cannot_be_checked_is_not_done() -> None:
    wrecked = safeguarded(lesions(4, side=16), steps=6, rate=3.0)
    assert torch.equal(*wrecked)
    alone = safeguarded(lesions(1, side=16), steps=40, rate=1e-2)
    assert torch.equal(*alone)


def test_support_is_left_out_by_patient() -> None:
    support = lesions(4)
    named = Examples(support.image, support.label, support.classes, ("a", "a", "b", "c"))
    for rest, out in left_out(named, 2):
        assert len(rest.image) + len(out.image) == 4
    sizes = sorted(len(out.image) for _, out in left_out(named, 2))
    assert sizes == [1, 3]
    assert left_out(lesions(1), 2) == []


@pytest.mark.parametrize("dims", [2, 3])
def test_trees_and_mirrors_have_their_part(dims: int) -> None:
    support = lesions(2, dims=dims)
    torch.manual_seed(0)
    network = build(unet(dims, 1, base=4))
    learner = create_learner("refined-ridge", network, steps=2, trees=5, mirrors=True)
    assert isinstance(learner, RefinedRidgeLearner)
    predictor = learner.adapt(support)
    assert isinstance(predictor, RefinedPredictor)
    shuffled = Examples(support.image.flip(0), support.label.flip(0), support.classes)
    logits = predictor(support.image)
    assert logits.shape == (2, 2, *[16] * dims)
    assert torch.equal(logits, learner.adapt(shuffled)(support.image))


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_pixel_features_of_a_flat_image(dims: int) -> None:
    made = pixel_features(torch.full((1, 2, *[8] * dims), 3.0))
    assert made.shape == (1, 14 + dims, *[8] * dims)
    means = made[:, [0, 1, 2, 3, 6, 7, 10, 11]]
    close(means, torch.full_like(means, 3.0), 1e-6)


@pytest.mark.parametrize(
    ("name", "option"),
    [("refined-ridge", {"rate": 0.0}), ("refined-ridge", {"part": 2.0}), ("local-prototype", {"window": 0})],
)
def test_impossible_options_are_refused(name: str, option: dict[str, float]) -> None:
    with pytest.raises(LearnerError, match=next(iter(option))):
        create_learner(name, plain(2), **option)


@pytest.mark.parametrize("name", learner_names("segmentation"))
def test_who_says_that_fine_tuning_can_go_on_has_a_linear_head(name: str) -> None:
    learner = create_learner(name, build(unet(2, 1, base=4)))
    predictor = learner.adapt(lesions(2, side=16))
    linear = isinstance(predictor, LinearPredictor) and isinstance(predictor.between, torch.nn.Identity)
    assert can_go_on(learner) == linear


def test_steps_are_taken_at_the_rates_they_were_judged_at() -> None:
    """Ten of thirty steps end where thirty steps are after ten."""
    support, tuning = lesions(2), FineTuning(steps=30)

    def start(_: Examples) -> tuple[torch.nn.Module, Head]:
        torch.manual_seed(0)
        return build(unet(2, 1, base=4)), Head(torch.randn(2, 8), torch.zeros(2))

    ends = []
    for counts in ([10], [10, 11]):
        _, network, head = next(iter(walk(start, support, counts, tuning)))
        ends.append(torch.cat([*(w.detach().flatten() for w in network.parameters()), head.weight.flatten()]))
    assert torch.equal(*ends)


def outlined_lesions(n: int = 4) -> Examples:
    """Cut-out lesions: noise where they are and nothing around, the outline in the last channel."""
    g = torch.Generator().manual_seed(0)
    image = torch.zeros(n, 2, 16, 16)
    image[:, 0, 4:12, 4:12] = torch.randn(n, 8, 8, generator=g) + 3
    image[:, 1, 5:11, 5:11] = 1
    return Examples(image, torch.arange(n) % 2, ("a", "b"))


def test_views_of_outlined_lesions_keep_outline_and_blank() -> None:
    support = outlined_lesions()
    views = safeguard._views(support, FineTuning(outlined=True), torch.Generator().manual_seed(0))
    assert all(float(one.max()) == 1 and float(one.min()) == 0 for one in views.image[:, 1])
    assert bool((views.image[:, 0, 0, 0] == 0).all())
    changed = safeguard._views(support, FineTuning(), torch.Generator().manual_seed(0))
    assert not bool((changed.image[:, 0, 0, 0] == 0).any())


def test_views_keep_the_form_of_what_they_turn_in_mm() -> None:
    """A ball in voxels of 1 x 4 mm stays one: turned in voxels it was a slanted ellipse."""
    sides = torch.tensor([1.0, 4.0])
    x, y = torch.meshgrid(torch.arange(64.0) - 31.5, torch.arange(16.0) - 7.5, indexing="ij")
    label = ((x * sides[0]).square() + (y * sides[1]).square() < 20**2).long()[None]
    ball = Examples(label[:, None].float(), label, ("background", "tumour"))

    def slant(tuning: FineTuning) -> float:
        """How far the axes of the shapes in mm are from those of the voxels, as a share of their size."""
        views = safeguard._views(ball, tuning, torch.Generator().manual_seed(1))
        places = [one.nonzero() * sides for one in views.label]
        spreads = [torch.cov(place.T) for place in places]
        return max(float(s[0, 1].abs() / s.diagonal().mean()) for s in spreads)

    assert slant(FineTuning(views=16, spacing=(1.0, 4.0))) < 0.1  # sizes change by up to 20 %
    assert slant(FineTuning(views=16)) > 0.5
    with pytest.raises(LearnerError, match=r"mm along each of 2 voxel axes, found spacing=\(1.0,\)"):
        slant(FineTuning(spacing=(1.0,)))
    with pytest.raises(LearnerError, match="mm above 0 along each voxel axis"):
        FineTuning(spacing=(1.0, 0.0))


def test_no_class_is_turned_out_of_its_view() -> None:
    """A lesion in a corner left 6 of 10 views: what is left calls the whole body background."""
    label = torch.zeros(1, 32, 32, dtype=torch.int64)
    label[:, :2, :2] = 1
    corner = Examples(label[:, None].float(), label, ("background", "tumour"))
    views = safeguard._views(corner, FineTuning(views=64), torch.Generator().manual_seed(0))
    assert views.shot == (64, 64)


def test_learners_that_fine_tune_can_be_told_of_outlines() -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(2, 4, 3, stride=2), torch.nn.Tanh())
    found = []
    for outlined in (True, False):
        learner = create_learner("refined-ridge", network, steps=3, folds=0, outlined=outlined)
        assert learner.options["outlined"] is outlined
        assert learner.options["spacing"] is None
        found.append(learner.adapt(outlined_lesions())(outlined_lesions().image))
    assert not torch.equal(*found)
    assert not SAFEGUARD.outlined
