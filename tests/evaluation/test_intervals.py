"""Intervals against closed forms, analysis of variance, scipy's t test, and simulation with a known truth."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from medmeta.evaluation import clustered, metrics
from medmeta.evaluation.cells import cells_of, pseudo_values
from medmeta.evaluation.differences import against, difference
from medmeta.evaluation.intervals import interval, spread


def crossed(seed: int, draws: int, patients: int, *, by_draw: float = 0.5, noise: float = 0.5) -> np.ndarray:
    random = np.random.default_rng(seed)
    values = random.normal(size=patients)[None] + by_draw * random.normal(size=draws)[:, None]
    return values + noise * random.normal(size=(draws, patients))


def test_an_interval_is_wider_than_that_of_independent_cases() -> None:
    """Twenty voxels of one patient are not twenty patients."""
    generator = np.random.default_rng(0)
    patient = np.repeat(np.arange(8), 20)
    values = generator.normal(size=8)[patient] + 0.01 * generator.normal(size=160)
    mean = lambda i: float(values[i].mean())  # noqa: E731
    clusters = clustered([f"{p}" for p in patient], [0] * 160, mean)
    apart = clustered([f"{p}" for p in range(160)], [0] * 160, mean)
    assert clusters.high - clusters.low > 3 * (apart.high - apart.low)  # type: ignore[operator]


def test_the_variance_is_that_of_the_two_way_analysis() -> None:
    """Expected mean squares by hand: MS of patients + MS of draws - MS of what is left, over all cells."""
    cells = crossed(1, 4, 9)
    whole, rows, columns = cells.mean(), cells.mean(1), cells.mean(0)
    left = cells - rows[:, None] - columns[None] + whole
    squares = 4 * columns.var(ddof=1), 9 * rows.var(ddof=1), (left**2).sum() / (3 * 8)
    found = spread(cells)
    assert found is not None
    assert found.by_patient == pytest.approx(squares[0] / 36)
    assert found.by_draw == pytest.approx(squares[1] / 36)
    assert found.variance == pytest.approx((squares[0] + squares[1] - squares[2]) / 36)


def test_with_one_draw_the_test_is_the_paired_t_test() -> None:
    one, other = crossed(2, 1, 12), crossed(3, 1, 12)
    found = difference("a", "b", {"a": one, "b": other})
    expected = stats.ttest_rel(one[0], other[0])
    ends = expected.confidence_interval(0.95)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-2)
    assert (found.interval.low, found.interval.high) == pytest.approx((ends.low, ends.high), abs=1e-4)
    assert found.patients == 12


def test_pairing_sees_what_the_patients_hide() -> None:
    """Patients differ by far more than the methods do, yet the small difference is sure."""
    one = crossed(4, 10, 20, noise=0.02)
    found = against("a", {"a": one, "b": one - 0.05 + 0.02 * crossed(5, 10, 20, by_draw=0.1)})
    assert found[0].p is not None
    assert found[0].p < 0.001
    alone = [interval(one), interval(one - 0.05)]
    assert alone[0].low < alone[1].high  # type: ignore[operator]


def test_holm_adjusts_for_all_comparisons_at_once() -> None:
    cells = {name: crossed(6, 3, 15) + shift for name, shift in zip("abcd", (0, 0.4, 0.1, 0.0), strict=True)}
    found = against("a", {n: c + 0.1 * crossed(ord(n), 3, 15) for n, c in cells.items()})
    order = sorted(found, key=lambda d: d.p)  # type: ignore[arg-type, return-value]
    steps = np.maximum.accumulate([min(1, (3 - i) * d.p) for i, d in enumerate(order)])  # type: ignore[operator]
    assert [d.adjusted for d in order] == pytest.approx(steps.tolist(), rel=2e-2)


def test_pseudo_values_of_an_area_have_its_jackknife_variance_and_of_a_mean_are_the_values() -> None:
    random = np.random.default_rng(7)
    truth = np.arange(30) % 3 == 0
    score = random.normal(size=30) + truth
    cells = pseudo_values(list(range(30)), [0] * 30, lambda i: metrics.auroc(score[i], truth[i]))
    assert cells.mean() == pytest.approx(roc_auc_score(truth, score))
    without = [roc_auc_score(np.delete(truth, i), np.delete(score, i)) for i in range(30)]
    found = spread(cells)
    assert found is not None
    assert found.variance == pytest.approx(29 / 30 * ((without - np.mean(without)) ** 2).sum())
    assert pseudo_values("abc", "xxx", lambda i: float(score[i].mean()))[0] == pytest.approx(score[:3])


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (0.0, np.inf), (-np.inf, np.inf)])
def test_intervals_stay_where_the_score_can_be(bounds: tuple[float, float]) -> None:
    cells = np.clip(crossed(8, 3, 6) / 4 + 0.05, 0, 1)
    found = interval(cells, bounds=bounds)
    assert bounds[0] <= found.low <= found.mean <= found.high <= bounds[1]  # type: ignore[operator]


def test_what_is_undefined_is_none_and_never_nan() -> None:
    nothing = interval(np.full((2, 5), np.nan))
    assert (nothing.mean, nothing.low, nothing.high) == (None, None, None)
    one = interval(np.array([[np.nan, 0.5], [np.nan, 0.6]]))
    assert (one.mean, one.low) == (0.55, None)
    assert interval(np.ones((2, 5)), bounds=(0, 1)).low == pytest.approx(0.025 ** (1 / 5), abs=1e-4)
    assert difference("a", "b", {"a": np.array([[0.5, np.nan]]), "b": np.array([[np.nan, 0.5]])}).p is None
    assert np.isnan(cells_of(["a"], [0], [None])).all()


def test_values_that_are_all_the_same_say_not_how_sure_they_are() -> None:
    """But for a rate, where all or none were right."""
    for value, bounds in (
        (5.0, (0.0, np.inf)),
        (0.0, (0.0, np.inf)),
        (0.5, (0.0, 1.0)),
        (0.0, (-np.inf, np.inf)),
    ):
        found = interval(np.full((2, 4), value), bounds=bounds)
        assert (found.mean, found.low, found.high) == (value, None, None)
    assert interval(np.zeros((1, 4)), bounds=(0, 1)).high == pytest.approx(1 - 0.025 ** (1 / 4), abs=1e-4)
    found = spread(np.full((3, 4), 0.1) + 0.2)
    assert found is not None
    assert found.p is None


def test_scores_that_are_not_below_0_have_ends_that_can_be() -> None:
    """On the log scale HD95 of 3 and 40 mm reached from 0.0004 to 1.2 million, one false lesion to 7e70."""
    far = interval(np.array([[3.0, 40.0]]), bounds=(0, np.inf))
    half = float(stats.t.ppf(0.975, 1)) * 18.5
    assert (far.low, far.high) == (0.0, pytest.approx(21.5 + half, abs=1e-3))
    one = interval(np.array([[0.0, 0.0], [0.0, 1.0]]), bounds=(0, np.inf))
    assert one.low == 0
    assert one.high < 100  # type: ignore[operator]
    usual = interval(np.array([[3.0, 4.0, 5.0, 9.0]]), bounds=(0, np.inf))
    assert usual.low * usual.high == pytest.approx(5.25**2, rel=1e-3)  # type: ignore[operator]


@pytest.mark.parametrize("patients", [2, 3, 10])
def test_coverage_of_a_distance_of_few_patients(patients: int) -> None:
    random, expected, hits = np.random.default_rng(patients), np.exp(0.6**2 / 2), 0
    for _ in range(400):
        found = interval(np.exp(0.6 * random.normal(size=(1, patients))), bounds=(0, np.inf))
        hits += found.low <= expected <= found.high  # type: ignore[operator]
    assert hits / 400 >= 0.90


def test_coverage_with_few_patients_and_few_draws() -> None:
    """The truth lies in about 95 of 100 intervals; without the draws' variance in far fewer."""
    hits = [0, 0]
    for seed in range(400):
        cells = 0.5 + 0.08 * crossed(seed, 5, 12)
        found = interval(cells, bounds=(0, 1))
        hits[0] += found.low <= 0.5 <= found.high  # type: ignore[operator]
        plain = 1.96 * cells.mean(0).std(ddof=1) / np.sqrt(12)  # as if the draws were no second source
        hits[1] += abs(cells.mean() - 0.5) <= plain
    assert 0.92 <= hits[0] / 400 <= 0.98
    assert hits[1] / 400 < 0.90
