"""What is the same for all of a few patients is not sure, and words do not make it so."""

from __future__ import annotations

import numpy as np
import pytest

from medmeta.evaluation import Case, Judged, advise
from medmeta.evaluation.differences import against, difference
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
