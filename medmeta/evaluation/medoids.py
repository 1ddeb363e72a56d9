"""The k points that all others lie nearest to: partitioning around medoids on a matrix of distances."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Distance = NDArray[np.float64]


def k_medoids(distance: Distance, k: int) -> list[int]:
    """Choose k points such that the sum of distances from every point to the nearest of them is small.

    Greedy building, then the best swap of a chosen for another point until none helps (PAM; Kaufman &
    Rousseeuw 1990, the swap's cost for all points at once as in FastPAM1, Schubert & Rousseeuw 2019).
    Nothing is drawn: the same distances give the same points.

    Args:
        distance: ``(n, n)``, symmetric, 0 on the diagonal.
        k: 1 to n.

    Returns:
        Numbers of the points, the one that most others lie nearest to first.

    Example:
        >>> points = np.array([0.0, 1.0, 2.0, 10.0, 11.0])
        >>> k_medoids(abs(points[:, None] - points), 2)
        [1, 3]
    """
    chosen = _build(distance, k)
    while (better := _swap(distance, chosen)) is not None:
        chosen = better
    nearest = distance[:, chosen].argmin(1)
    size = np.bincount(nearest, minlength=k)
    return [chosen[i] for i in sorted(range(k), key=lambda i: (-size[i], chosen[i]))]


def cost(distance: Distance, chosen: list[int]) -> float:
    """Sum of the distances from every point to the nearest chosen one."""
    return float(distance[:, chosen].min(1).sum())


def _build(distance: Distance, k: int) -> list[int]:
    nearest = np.full(len(distance), np.inf)
    chosen: list[int] = []
    for _ in range(k):
        costs = np.minimum(nearest[:, None], distance).sum(0)
        costs[chosen] = np.inf
        chosen.append(int(costs.argmin()))
        nearest = np.minimum(nearest, distance[:, chosen[-1]])
    return chosen


def _swap(distance: Distance, chosen: list[int]) -> list[int] | None:
    """The chosen points after the best swap; None where no swap lowers the cost."""
    near = distance[:, chosen]
    order = near.argsort(1)
    rows = np.arange(len(distance))
    first = near[rows, order[:, 0]]
    second = near[rows, order[:, 1]] if len(chosen) > 1 else np.full(len(distance), np.inf)
    gained = np.minimum(distance - first[:, None], 0.0)  # (point, candidate): the candidate is nearer
    lost = np.minimum(second[:, None], distance) - first[:, None] - gained  # the point's own one goes away
    change = np.stack([gained.sum(0) + lost[order[:, 0] == i].sum(0) for i in range(len(chosen))])
    change[:, chosen] = np.inf
    out, candidate = np.unravel_index(int(change.argmin()), change.shape)
    if change[out, candidate] >= -1e-9 * max(1.0, float(first.sum())):
        return None
    return [*chosen[:out], int(candidate), *chosen[out + 1 :]]
