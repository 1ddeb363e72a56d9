"""What a prediction is worth, by MONAI, scikit-learn and scipy; every undefined case is decided here.

A missing prediction counts 0 in Dice and the scan's own diagonal in distance. Where there is neither a truth
nor a prediction the overlap says nothing: such cases are counted apart, never averaged in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from monai.metrics import compute_hausdorff_distance, compute_surface_dice
from monai.metrics.utils import get_edge_surface_distance
from numpy.typing import NDArray
from scipy import ndimage, stats
from torch import Tensor

BINS = 10
"""Of equal width, in which probabilities are compared with how often they come true."""


def dice(found: Tensor, truth: Tensor) -> float | None:
    """Dice of two boolean volumes; None where both are empty.

    Example:
        >>> import torch
        >>> dice(torch.tensor([True, True, False]), torch.tensor([True, False, False]))
        0.6666666666666666
    """
    total = int(found.sum()) + int(truth.sum())
    return 2 * int((found & truth).sum()) / total if total else None


def hd95(found: Tensor, truth: Tensor, spacing: Sequence[float]) -> float | None:
    """95th percentile of the surface distance in mm, the larger of both directions (MONAI).

    Args:
        found, truth: boolean, two or three voxel axes.
        spacing: mm of a voxel along each axis.

    Returns:
        None where the truth is empty; the scan's diagonal where only the prediction is.

    Example:
        >>> import torch
        >>> truth = torch.zeros(9, 9, dtype=torch.bool); truth[2:5, 2:5] = True
        >>> hd95(truth.roll(2, 0), truth, (1.5, 1.0))
        3.0
    """
    if not bool(truth.any()):
        return None
    found, truth, spacing = without_flat_axes(found, truth, spacing)
    if not bool(found.any()):
        return math.dist([0.0] * truth.ndim, [n * s for n, s in zip(truth.shape, spacing, strict=True)])
    distance = compute_hausdorff_distance(
        found[None, None], truth[None, None], include_background=True, percentile=95, spacing=list(spacing)
    )
    return float(distance)


def surface_dice(found: Tensor, truth: Tensor, spacing: Sequence[float], tolerance: float) -> float | None:
    """Normalised surface Dice at a tolerance in mm (MONAI); None where both are empty.

    Example:
        >>> import torch
        >>> truth = torch.zeros(9, 9, dtype=torch.bool); truth[2:5, 2:5] = True
        >>> surface_dice(truth.roll(1, 0), truth, (1.0, 1.0), tolerance=1.0)
        1.0
    """
    if not bool((found | truth).any()):
        return None
    if not bool(found.any()) or not bool(truth.any()):
        return 0.0
    found, truth, spacing = without_flat_axes(found, truth, spacing)
    value = compute_surface_dice(
        found[None, None], truth[None, None], [tolerance], include_background=True, spacing=list(spacing)
    )
    return float(value)


def without_flat_axes(
    found: Tensor, truth: Tensor, spacing: Sequence[float]
) -> tuple[Tensor, Tensor, tuple[float, ...]]:
    """Drop the axis of a single slice: along it every voxel would be surface, and no outline be one.

    Example:
        >>> import torch
        >>> one = torch.zeros(9, 1, 8, dtype=torch.bool)
        >>> found, truth, spacing = without_flat_axes(one, one, (1.0, 5.0, 2.0))
        >>> tuple(found.shape), spacing
        ((9, 8), (1.0, 2.0))
    """
    kept = [axis for axis, size in enumerate(truth.shape) if size > 1]
    if not 2 <= len(kept) < truth.ndim:  # MONAI finds surfaces in two or three axes
        return found, truth, tuple(spacing)
    shape = [truth.shape[axis] for axis in kept]
    return found.reshape(shape), truth.reshape(shape), tuple(spacing[axis] for axis in kept)


def volume_ml(mask: Tensor, spacing: Sequence[float]) -> float:
    """Volume of a mask in mL.

    Example:
        >>> import torch
        >>> volume_ml(torch.ones(10, 10, 10, dtype=torch.bool), (1.0, 1.0, 2.0))
        2.0
    """
    return int(mask.sum()) * math.prod(spacing) / 1000


def lesions(found: Tensor, truth: Tensor) -> tuple[int, int, int]:
    """Count lesions (connected, diagonals included): hit, in truth, and false ones in the prediction.

    Example:
        >>> import torch
        >>> truth = torch.tensor([1, 1, 0, 0, 1, 0, 0]) > 0
        >>> lesions(torch.tensor([1, 0, 0, 0, 0, 0, 1]) > 0, truth)
        (1, 2, 1)
    """
    joined = np.ones([3] * truth.ndim)
    wanted, number = ndimage.label(truth.numpy(), joined)
    given, guesses = ndimage.label(found.numpy(), joined)
    hit = len(set(np.unique(wanted[found.numpy()]).tolist()) - {0})
    true = len(set(np.unique(given[truth.numpy()]).tolist()) - {0})
    return hit, int(number), int(guesses) - true


def auroc(score: NDArray[np.float64], truth: NDArray[np.bool_]) -> float | None:
    """Area under the ROC curve, ties counting half (Mann-Whitney); None where one class is absent.

    Example:
        >>> auroc(np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True]))
        0.75
    """
    positive, negative = int(truth.sum()), int((~truth).sum())
    if not positive or not negative:
        return None
    ranks = stats.rankdata(score)
    return float((ranks[truth].sum() - positive * (positive + 1) / 2) / (positive * negative))


def accuracy(score: NDArray[np.float64], truth: NDArray[np.bool_]) -> float | None:
    """Share of cases on the right side of 0.5, both classes counting the same; None where one is absent.

    Example:
        >>> accuracy(np.array([0.9, 0.2, 0.6, 0.1]), np.array([True, False, False, False]))
        0.8333333333333333
    """
    if not truth.any() or truth.all():
        return None
    right = (score > 0.5) == truth
    return float((right[truth].mean() + right[~truth].mean()) / 2)


def surface(
    found: Tensor, truth: Tensor, spacing: Sequence[float], tolerance: float
) -> tuple[float | None, float | None]:
    """:func:`hd95` and :func:`surface_dice` together, for the price of one (MONAI's edges and distances).

    Example:
        >>> import torch
        >>> truth = torch.zeros(9, 9, dtype=torch.bool); truth[2:5, 2:5] = True
        >>> surface(truth.roll(2, 0), truth, (1.5, 1.0), tolerance=2.0)
        (3.0, 0.625)
    """
    if not bool(truth.any()) or not bool(found.any()):
        return hd95(found, truth, spacing), surface_dice(found, truth, spacing, tolerance)
    found, truth, spacing = without_flat_axes(found, truth, spacing)
    edges, distances, _ = get_edge_surface_distance(
        found, truth, spacing=tuple(spacing), symmetric=True, use_subvoxels=False
    )
    del edges
    worst = max(float(torch.quantile(d.double(), 0.95)) for d in distances)
    near = sum(int((d <= tolerance).sum()) for d in distances)
    return worst, near / sum(d.numel() for d in distances)


def target_slices_dice(found: Tensor, truth: Tensor, axis: int) -> float | None:
    """Dice over those slices alone that show the target, as the literature's 2D protocols have it.

    Args:
        found, truth: boolean, two or three voxel axes.
        axis: across the slices.

    Returns:
        None where no slice shows it.

    Example:
        >>> import torch
        >>> truth = torch.tensor([[True, False], [False, False]]); found = torch.tensor([[True, False]] * 2)
        >>> target_slices_dice(found, truth, 0), round(dice(found, truth), 3)
        (1.0, 0.667)
    """
    shown = truth.any(dim=tuple(a for a in range(truth.ndim) if a != axis)) if truth.ndim > 1 else truth
    if not bool(shown.any()):
        return None
    return dice(found.movedim(axis, 0)[shown], truth.movedim(axis, 0)[shown])


def auprc(score: NDArray[np.float64], truth: NDArray[np.bool_]) -> float | None:
    """Area under the precision-recall curve as average precision; None where one class is absent.

    Example:
        >>> round(auprc(np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True])), 4)
        0.8333
    """
    if not truth.any() or truth.all():
        return None
    right, wrong = _steps(score, truth)
    return float((np.diff(right, prepend=0) * right / (right + wrong)).sum() / right[-1])


def sensitivity_at(
    score: NDArray[np.float64], truth: NDArray[np.bool_], specificity: float = 0.9
) -> float | None:
    """The most sensitive threshold whose specificity is at least the one asked for; None as above.

    Example:
        >>> sensitivity_at(np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True]))
        0.5
    """
    if not truth.any() or truth.all():
        return None
    right, wrong = _steps(score, truth)
    allowed = 1 - wrong / wrong[-1] >= specificity - 1e-12
    return float(right[allowed].max(initial=0) / right[-1])


def _steps(
    score: NDArray[np.float64], truth: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """True and false positives at every threshold, the highest first."""
    order = np.argsort(-score, kind="stable")
    last = np.r_[np.flatnonzero(np.diff(score[order])), len(score) - 1]
    right = np.cumsum(truth[order], dtype=np.int64)[last]
    return right, last + 1 - right


def brier(score: NDArray[np.float64], truth: NDArray[np.bool_]) -> float | None:
    """Mean squared distance of the probability from what is so (Brier 1950).

    Example:
        >>> brier(np.array([0.5, 1.0]), np.array([False, True]))
        0.125
    """
    return float(np.square(score - truth).mean()) if len(score) else None


def reliability(
    score: NDArray[np.float64], truth: NDArray[np.bool_], bins: int = BINS
) -> list[tuple[float, float, int]]:
    """Mean probability, share that is so, and number of cases, in each bin of equal width that has any.

    Example:
        >>> reliability(np.array([0.1, 0.15, 0.95]), np.array([False, True, True]))
        [(0.125, 0.5, 2), (0.95, 1.0, 1)]
    """
    place = np.minimum((score * bins).astype(int), bins - 1)
    return [
        (float(score[place == b].mean()), float(truth[place == b].mean()), int((place == b).sum()))
        for b in np.unique(place)
    ]


def calibration_error(score: NDArray[np.float64], truth: NDArray[np.bool_], bins: int = BINS) -> float | None:
    """Expected calibration error: how far probability and share are apart in a bin, on average over cases.

    Example:
        >>> round(calibration_error(np.array([0.1, 0.15, 0.95]), np.array([False, True, True])), 4)
        0.2667
    """
    found = reliability(score, truth, bins)
    return sum(n * abs(p - t) for p, t, n in found) / len(score) if found else None
