"""What is the same for all of a few patients is not sure, and words do not make it so."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from medmeta.evaluation import Case, Judged, advise
from medmeta.evaluation.curve import Curve
from medmeta.evaluation.differences import against, difference
from medmeta.evaluation.labels_saved import slope
from medmeta.evaluation.words import answer


@pytest.mark.parametrize("apart", [0.0, 0.1, 0.5])
def test_a_difference_without_spread_has_no_test_and_no_ends(apart: float) -> None:
    """Cells that rounding alone tells apart count as the same."""
    cells = {"a": np.array([[0.1, 0.7, 0.3]]) + apart, "b": np.array([[0.1, 0.7, 0.3]])}
    found = difference("a", "b", cells)
    assert found.interval.mean == pytest.approx(apart)
    assert (found.interval.low, found.interval.high, found.p) == (None, None, None)


def test_a_comparison_that_cannot_be_tested_does_not_weigh_on_the_others() -> None:
    random = np.random.default_rng(0)
    ours = random.normal(size=(2, 9))
    cells = {"ours": ours, "same": ours - 0.5, "other": ours - 0.1 * random.normal(size=ours.shape)}
    same, other = against("ours", cells)
    assert (same.p, same.adjusted) == (None, None)
    assert other.adjusted == other.p


def test_the_difference_the_other_way_round_is_turned() -> None:
    random = np.random.default_rng(1)
    cells = {"a": random.normal(size=(3, 8)), "b": random.normal(size=(3, 8))}
    assert difference("a", "b", cells).turned == difference("b", "a", cells)


def test_a_lead_of_the_best_of_many_is_sure_only_after_holm() -> None:
    """The best of six was picked after looking: one comparison's p of 0.03 is no more than chance."""
    random = np.random.default_rng(0)
    base, noise = random.uniform(0.4, 0.6, 40), random.normal(size=(6, 40))
    noise -= noise.mean(1, keepdims=True)
    ahead = 2.25 * noise.std(1, ddof=1, keepdims=True) / 40**0.5  # t of each difference
    score = {"best": base, **{f"m{n}": base - (ahead + noise)[n] * 0.1 for n in range(6)}}
    cases = [
        Case("cyst", 1, method, 0, f"p{p:02}", {"dice": float(value)})
        for method, values in score.items()
        for p, value in enumerate(values)
    ]
    names = {m: m for m in score}
    (many,) = advise(Judged("segmentation", tuple(cases), (), dict.fromkeys(score, 1.0)), {"m0"})
    said = many.to_json()["lead"]
    assert said["p"] == pytest.approx(0.0302, abs=2e-4)
    assert said["p_adjusted"] == pytest.approx(6 * said["p"], rel=0.01)
    text = " ".join(answer(many, names))
    assert "This is not sure: it is only" in text
    assert "adjusted p = 0.18) ahead" in text
    two = tuple(c for c in cases if c.method in ("best", "m0"))
    (alone,) = advise(Judged("segmentation", two, (), {"best": 1.0, "m0": 1.0}), {"m0"})
    assert "This is sure for the one support that was drawn: it is" in " ".join(answer(alone, names))
    assert alone.to_json()["lead"]["p_adjusted"] == alone.to_json()["lead"]["p"]


def test_what_a_doubling_gains_has_the_interval_of_student() -> None:
    random = np.random.default_rng(2)
    now, then = random.uniform(size=(2, 1, 9))
    found = slope(Curve("m", {1: then, 8: now}, gain=now - then))
    low, high = stats.ttest_rel(now[0], then[0]).confidence_interval(0.95)
    assert found is not None
    assert (found.gain.low, found.gain.high) == pytest.approx((low / 3, high / 3), abs=1e-4)  # 3 doublings


def perfect(patients: int) -> Judged:
    """A method that tells all apart beside one that says the same of all; half have the type."""
    chance = {"ours": (0.1, 0.9), "constant": (0.5, 0.5)}
    cases = [
        Case("cyst", 1, method, 0, f"p{p}", truth=p % 2 == 1, probability=by_class[p % 2])
        for method, by_class in chance.items()
        for p in range(patients)
    ]
    return Judged("classification", tuple(cases), (), dict.fromkeys(chance, 1.0))


@pytest.mark.parametrize("learnt", ["ours", "constant"])
def test_four_patients_do_not_make_an_answer_sure(learnt: str) -> None:
    (advice,) = advise(perfect(4), {learnt})
    text = " ".join(answer(advice, {"ours": "network", "constant": "constant"}))
    assert "AUROC 1.00 (95 % interval 0.16 to 1.00)" in text
    assert "How sure this is cannot be told: it is 0.50 (difference n/a, p n/a) ahead" in text
    assert "This is sure" not in text
    assert "surely behind" not in text
    assert "saves no labels" not in text
