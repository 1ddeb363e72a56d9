"""Metrics against references written by others, and every undefined case."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import binary_erosion, distance_transform_edt
from sklearn.metrics import balanced_accuracy_score, f1_score, roc_auc_score

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


def test_a_lesion_counts_once_and_a_false_one_too() -> None:
    truth = torch.zeros(12, 12, dtype=torch.bool)
    truth[1:3, 1:3] = truth[8:10, 8:10] = True
    found = torch.zeros_like(truth)
    found[1, 1] = found[2, 2] = True  # two pieces, joined over the corner, in one lesion
    found[5, 10] = True
    assert metrics.lesions(found, truth) == (1, 2, 1)
