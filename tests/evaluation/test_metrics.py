"""Metrics against references written by others, and every undefined case."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.metrics import compute_hausdorff_distance, compute_surface_dice
from scipy.ndimage import binary_erosion, distance_transform_edt
from sklearn.calibration import calibration_curve
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    brier_score_loss,
    f1_score,
    roc_auc_score,
    roc_curve,
)

from medmeta.evaluation import metrics


def two_masks(seed: int, shape: tuple[int, ...] = (9, 10, 8)) -> tuple[torch.Tensor, torch.Tensor]:
    """Two overlapping blobs."""
    generator = np.random.default_rng(seed)
    masks = []
    for _ in range(2):
        centre = generator.uniform(3, 6, len(shape))
        grid = np.meshgrid(*[np.arange(s) for s in shape], indexing="ij")
        distance = sum((g - c) ** 2 for g, c in zip(grid, centre, strict=True))
        masks.append(torch.from_numpy(distance < generator.uniform(2, 3.2) ** 2))
    return masks[0], masks[1]


@pytest.mark.parametrize("seed", range(4))
def test_dice_is_the_f1_score_of_scikit_learn(seed: int) -> None:
    found, truth = two_masks(seed)
    assert metrics.dice(found, truth) == pytest.approx(f1_score(truth.ravel(), found.ravel()))


@pytest.mark.parametrize("seed", range(4))
def test_hd95_is_the_percentile_of_surface_distances(seed: int) -> None:
    found, truth = two_masks(seed)
    spacing = (1.5, 1.0, 2.5)
    edges = [m.numpy() & ~binary_erosion(m.numpy()) for m in (found, truth)]
    to = [distance_transform_edt(~e, sampling=spacing) for e in edges]
    expected = max(np.percentile(to[1][edges[0]], 95), np.percentile(to[0][edges[1]], 95))
    assert metrics.hd95(found, truth, spacing) == pytest.approx(expected, rel=1e-5)


def test_what_is_undefined_is_decided() -> None:
    nothing = torch.zeros(4, 4, 4, dtype=torch.bool)
    something = nothing.clone()
    something[1:3, 1:3, 1:3] = True
    assert metrics.dice(nothing, nothing) is None
    assert metrics.dice(nothing, something) == 0
    assert metrics.hd95(something, nothing, (1, 1, 1)) is None
    assert metrics.hd95(nothing, something, (1, 1, 2)) == pytest.approx(math.sqrt(16 + 16 + 64))
    assert metrics.surface_dice(nothing, nothing, (1, 1, 1), 1.0) is None
    assert metrics.surface_dice(nothing, something, (1, 1, 1), 1.0) == 0
    assert metrics.auroc(np.array([0.2, 0.3]), np.array([True, True])) is None
    assert metrics.auprc(np.array([0.2, 0.3]), np.array([True, True])) is None
    assert metrics.sensitivity_at(np.array([0.2, 0.3]), np.array([True, True])) is None
    assert metrics.surface(nothing, something, (1, 1, 1), 1.0) == (pytest.approx(math.sqrt(48)), 0.0)
    assert metrics.surface(something, nothing, (1, 1, 1), 1.0) == (None, 0.0)
    assert metrics.accuracy(np.array([0.2, 0.3]), np.array([False, False])) is None


@given(st.integers(0, 10**6), st.integers(4, 40))
@settings(max_examples=40, deadline=None)
def test_areas_and_accuracies_are_those_of_scikit_learn(seed: int, n: int) -> None:
    generator = np.random.default_rng(seed)
    truth = generator.random(n) < 0.5
    truth[:2] = True, False
    score = np.round(generator.random(n), 1)  # with ties
    assert metrics.auroc(score, truth) == pytest.approx(roc_auc_score(truth, score))
    assert metrics.accuracy(score, truth) == pytest.approx(balanced_accuracy_score(truth, score > 0.5))
    assert metrics.auprc(score, truth) == pytest.approx(average_precision_score(truth, score))
    assert metrics.brier(score, truth) == pytest.approx(brier_score_loss(truth, score))
    wrong, right, _ = roc_curve(truth, score, drop_intermediate=False)
    for specificity in (0.5, 0.9, 1.0):
        expected = right[1 - wrong >= specificity - 1e-12].max()
        assert metrics.sensitivity_at(score, truth, specificity) == pytest.approx(expected)


def test_calibration_is_that_of_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    score = generator.random(500) * 0.98 + 0.005
    truth = generator.random(500) < score**2  # overconfident
    rows = metrics.reliability(score, truth, 10)
    share, mean = calibration_curve(truth, score, n_bins=10)
    assert [r[0] for r in rows] == pytest.approx(mean)
    assert [r[1] for r in rows] == pytest.approx(share)
    counts = np.histogram(score, 10, (0, 1))[0]
    assert [r[2] for r in rows] == counts.tolist()
    assert metrics.calibration_error(score, truth) == pytest.approx((abs(share - mean) * counts).sum() / 500)


@pytest.mark.parametrize("seed", range(4))
def test_both_surface_figures_are_those_of_monai(seed: int) -> None:
    found, truth = two_masks(seed)
    spacing = (1.5, 1.0, 2.5)
    pair = {"include_background": True, "spacing": list(spacing)}
    distance, near = metrics.surface(found, truth, spacing, 2.0)
    ours, theirs = found[None, None], truth[None, None]
    assert distance == pytest.approx(float(compute_hausdorff_distance(ours, theirs, percentile=95, **pair)))
    assert near == pytest.approx(float(compute_surface_dice(ours, theirs, [2.0], **pair)))
    assert metrics.surface_dice(found, truth, spacing, 2.0) == pytest.approx(near)


@pytest.mark.parametrize("flat", [0, 1, 2])
def test_a_single_slice_has_an_outline_not_a_surface_on_all_of_it(flat: int) -> None:
    found, truth = two_masks(3, (20, 18))
    flatly = [mask.unsqueeze(flat) for mask in (found, truth)]
    spacing = [1.5, 0.8]
    thick = spacing.copy()
    thick.insert(flat, 5.0)
    assert metrics.surface(*flatly, thick, 2.0) == metrics.surface(found, truth, spacing, 2.0)
    assert metrics.hd95(*flatly, thick) == metrics.hd95(found, truth, spacing)
    assert metrics.surface_dice(*flatly, thick, 2.0) == metrics.surface_dice(found, truth, spacing, 2.0)
    square = torch.zeros(64, 64, 1, dtype=torch.bool)
    square[10:30, 10:30] = True
    distance, near = metrics.surface(square.roll(3, 0), square, (1.0, 1.0, 5.0), 2.0)
    assert distance == 3.0
    assert near is not None
    assert near < 0.6


def test_on_slices_with_the_target_false_ones_elsewhere_do_not_count() -> None:
    truth = torch.zeros(6, 6, 5, dtype=torch.bool)
    truth[1:4, 1:4, 2:4] = True
    found = truth.clone()
    found[:, :, 0] = True
    assert metrics.target_slices_dice(found, truth, 2) == 1.0
    assert metrics.dice(found, truth) == pytest.approx(36 / (18 + 54))
    assert metrics.target_slices_dice(found, torch.zeros_like(truth), 2) is None


def test_a_lesion_counts_once_and_a_false_one_too() -> None:
    truth = torch.zeros(12, 12, dtype=torch.bool)
    truth[1:3, 1:3] = truth[8:10, 8:10] = True
    found = torch.zeros_like(truth)
    found[1, 1] = found[2, 2] = True  # two pieces, joined over the corner, in one lesion
    found[5, 10] = True
    assert metrics.lesions(found, truth) == (1, 2, 1)
