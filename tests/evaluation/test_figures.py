"""Bars of the reliability diagram, and methods that can be told apart."""

from __future__ import annotations

from medmeta.evaluation import Case
from medmeta.evaluation.figures import _bin, _look, curves
from medmeta.evaluation.intervals import Interval


def bar(right: int, of: int) -> tuple[float, float, float, float]:
    cases = [Case("cyst", 1, "m", 0, f"p{i}", truth=i < right, probability=0.9) for i in range(of)]
    found = _bin(cases, 4, 5)
    assert found is not None
    return found


def test_the_bar_of_a_bin_where_all_are_alike_is_that_of_a_rate() -> None:
    assert bar(3, 3)[1:] == (1.0, 0.2924, 1.0)  # Clopper & Pearson: 0.025 ** (1 / 3)
    assert bar(0, 3)[1:] == (0.0, 0.0, 0.7076)


def test_bars_stay_where_shares_can_be() -> None:
    for right in range(7):
        _, mean, low, high = bar(right, 6)
        assert 0 <= low <= mean <= high <= 1
        assert high > low


def test_no_two_methods_look_alike() -> None:
    assert len({tuple(_look(number).values()) for number in range(24)}) == 24


def test_names_are_shown_as_they_are() -> None:
    """A pair of dollars is no formula, least of all one that cannot be read."""
    row = {"dice": Interval(0.5, 0.4, 0.6)}
    page = curves({"$T_2^$": {"1": {"m": row}}}, "dice", "Dice", {"m": "US$ 5 to $_"}, {})
    assert "$T_2^$" in page
    assert "US$ 5 to $_" in page
