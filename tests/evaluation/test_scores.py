"""Scores count those patients alone who say something, and are no surer than the smaller class is large."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from medmeta.evaluation import Case, Judged, advise, clustered, results
from medmeta.evaluation.cells import pseudo_values
from medmeta.evaluation.curve import learning_curves
from medmeta.evaluation.intervals import Interval, interval
from medmeta.evaluation.labels_saved import slope
from medmeta.evaluation.scores import SCORES, summaries

EXACT = 0.1581
"""Lower end of 2 in 2 (Clopper & Pearson): 0.025 ** (1 / 2)."""


def ends(found: Interval) -> tuple[float | None, ...]:
    return found.mean, found.low, found.high


def classified(score: np.ndarray, truth: np.ndarray, draw: int = 0) -> list[Case]:
    return [
        Case("cyst", 1, "m", draw, f"p{i:03}", truth=bool(t), probability=float(s))
        for i, (s, t) in enumerate(zip(score, truth, strict=True))
    ]


def outlined(hit: Sequence[float], of: float, free: int) -> list[Case]:
    """Patients with lesions, and some free of them."""
    values = [{"lesions": of, "lesions_hit": h, "volume_error_ml": h} for h in hit]
    made = [Case("cyst", 1, "m", 0, f"p{i}", v) for i, v in enumerate(values)]
    return made + [Case("cyst", 1, "m", 0, f"f{i}", {}, truth=False) for i in range(free)]


@pytest.mark.parametrize("hit", [(1, 2, 4), (4, 4), (4, 4, 4)])
@pytest.mark.parametrize("name", ["lesion_sensitivity", "volume_limit_low_ml", "volume_limit_high_ml"])
def test_patients_without_a_lesion_do_not_make_lesions_surer(name: str, hit: Sequence[float]) -> None:
    alone, beside = (summaries(outlined(hit, 4, free))[name] for free in (0, 50))
    assert alone == beside


def test_two_patients_whose_lesions_were_all_found_say_what_two_patients_say() -> None:
    assert ends(summaries(outlined((4, 4), 4, 50))["lesion_sensitivity"]) == (1.0, EXACT, 1.0)
    limit = summaries(outlined((1, 3), 4, 50))["volume_limit_high_ml"]  # without either there is no deviation
    assert limit.mean is not None
    assert (limit.low, limit.high) == (None, None)


@pytest.mark.parametrize("name", ["accuracy", "auroc", "auprc", "sensitivity"])
@pytest.mark.parametrize("rare", [True, False])
def test_perfect_scores_are_as_sure_as_the_smaller_class(name: str, rare: bool) -> None:
    truth = np.arange(40) < 2 if rare else np.arange(40) >= 2
    found = summaries(classified(np.where(truth, 0.9, 0.1), truth))[name]
    assert ends(found) == (1.0, EXACT, 1.0)


@pytest.mark.parametrize("name", ["accuracy", "auroc", "auprc", "sensitivity"])
def test_one_patient_of_a_class_gives_no_ends(name: str) -> None:
    score = np.random.default_rng(0).random(31)
    for truth in (np.arange(31) == 3, np.arange(31) != 3):
        found = summaries(classified(score, truth))[name]
        assert found.mean is not None
        assert (found.low, found.high) == (None, None)
    assert summaries(classified(score, np.arange(31) == 3))["brier"].low is not None  # which has no classes


def test_a_draw_with_one_patient_of_a_class_counts_as_one_patient() -> None:
    """Where each draw judged another one of the three with the type, three are known, and their spread."""
    random, truth = np.random.default_rng(1), np.arange(12) < 3
    cases = []
    for draw in range(3):
        there = ~truth | (np.arange(12) == draw)
        cases += [c for c, t in zip(classified(random.random(12), truth, draw), there, strict=True) if t]
    cells = SCORES["classification"]["auroc"].make(cases)
    assert np.isfinite(cells).sum() == 3
    assert np.isfinite(cells).any(0).sum() == 3
    assert interval(cells, bounds=(0, 1)).low is not None


def test_groups_hold_each_class_and_their_mean_is_the_statistic() -> None:
    random, truth = np.random.default_rng(2), np.arange(25) % 5 == 0
    score = random.normal(size=25) + truth
    area = lambda i: float((score[i][truth[i]][:, None] > score[i][~truth[i]]).mean())  # noqa: E731
    cells = pseudo_values(list(range(25)), [0] * 25, area, classes=truth.tolist())
    assert np.flatnonzero(np.isfinite(cells[0])).tolist() == [
        0,
        5,
        10,
        15,
        20,
    ]  # each with four of the others
    assert np.nanmean(cells) == pytest.approx(area(np.arange(25)))
    fewer = pseudo_values(list(range(25)), [0] * 25, area, classes=truth.tolist(), least={False: 8})
    assert np.isfinite(fewer).sum() == 2


def test_a_score_is_the_mean_over_draws_however_many_groups_each_has() -> None:
    """By scikit-learn: two draws, in one of which fewer were judged, with the type and without."""
    random, truth = np.random.default_rng(4), np.arange(12) < 6
    cases, areas = [], []
    for draw, there in enumerate((np.isin(np.arange(12), (4, 5, 8, 9, 10, 11)), np.arange(12) >= 0)):
        score = random.random(12) + truth / 3
        cases += [c for c, t in zip(classified(score, truth, draw), there, strict=True) if t]
        areas.append(roc_auc_score(truth[there], score[there]))
    found = summaries(cases)["auroc"].mean
    assert found == pytest.approx(np.mean(areas), abs=1e-4)


def test_figures_are_the_same_under_other_salts() -> None:
    """A patient's key is salted, so its place among the keys is another in every folder."""
    random, truth = np.random.default_rng(3), np.arange(24) % 3 == 0
    cases = [c for draw in range(3) for c in classified(random.random(24) + truth / 2, truth, draw)]
    salted = [replace(c, patient=hashlib.sha256(f"salt{c.patient}".encode()).hexdigest()) for c in cases]
    assert sorted(salted, key=lambda c: c.patient) != salted
    assert summaries(salted) == summaries(cases)
    one, other = (learning_curves(some, "auroc")["m"] for some in (cases, salted))
    assert np.array_equal(one.samples(), other.samples())


def test_the_answer_and_the_tables_say_the_same_of_one_score() -> None:
    """Others are missing at each number of labels, for they were learnt from, and come later then."""
    random, truth = np.random.default_rng(0), np.arange(30) % 3 == 0
    cases = []
    for draw in range(4):
        order = random.permutation(30)
        for shot, method in itertools.product((1, 3), "ab"):
            out = {int(p) for here in (truth, ~truth) for p in [i for i in order if here[i]][:shot]}
            made = classified(random.random(30) + truth / 2, truth, draw)
            there = [c for i, c in enumerate(made) if i not in out]
            cases += [replace(c, shot=shot, method=method) for c in there]
    judged = Judged("classification", tuple(cases), (), {"a": 1.0, "b": 1.0})
    found = results([judged], held_out=["cyst"], seed=0, seconds=0)
    (answer,) = (a.to_json() for a in advise(judged, {"a"}))
    assert answer["score"] == found["results"]["cyst"]["3"][answer["use"]]["auroc"]
    (apart,) = found["differences"]["cyst"]["3"]["auroc"]
    sign = 1 if answer["use"] == "a" else -1
    assert answer["lead"]["mean"] == sign * apart["mean"]
    assert answer["lead"]["p"] == apart["p"]
    turned = [c for c in cases if c.method == "a"] + [c for c in cases if c.method == "b"][::-1]
    again = results([replace(judged, cases=tuple(turned))], held_out=["cyst"], seed=0, seconds=0)
    assert again["differences"] == found["differences"]  # pairs are of one patient in any order of the cases


def test_what_says_nothing_of_a_patient_who_says_something_elsewhere_is_no_class() -> None:
    cells = pseudo_values("aabb", "xxxx", lambda i: float(i.mean()), classes=[None, 1, 1, 1])
    assert np.isfinite(cells).all()


def test_among_many_types_the_smallest_says_how_sure_it_is() -> None:
    kinds = [*("glioma",) * 8, *("cyst",) * 8, *("rare",) * 2]
    cases = [
        Case("cyst", 1, "m", 0, f"p{i:02}", truth=k == "cyst", probability=0.5, kind=k, answer=k)
        for i, k in enumerate(kinds)
    ]
    assert ends(summaries(cases)["accuracy"]) == (1.0, EXACT, 1.0)


@pytest.mark.parametrize(("rare", "least"), [(3, 0.92), (10, 0.92)])
def test_coverage_where_one_class_is_rare(rare: int, least: float) -> None:
    """Counting all as patients held the truth of three with the type 84 times in 100."""
    truth = np.arange(rare + 30) < rare
    expected = stats.norm.cdf(1.5 / np.sqrt(2))
    score, hits = SCORES["classification"]["auroc"], 0
    for seed in range(200):
        values = np.random.default_rng(seed).normal(size=len(truth)) + 1.5 * truth
        found = interval(score.make(classified(stats.norm.cdf(values), truth)), bounds=(0, 1))
        # without ends nothing is claimed
        hits += found.low is None or found.low <= expected <= found.high  # type: ignore[operator]
    assert hits / 200 >= least


def test_a_statistic_without_classes_is_as_it_was() -> None:
    values = np.array([1.0, 2.0, 6.0, 3.0])
    found = clustered(list("abcd"), [0] * 4, lambda i: float(values[i].mean()))
    assert found.by_patient == pytest.approx(values.std(ddof=1) / 2, abs=1e-4)


@pytest.mark.parametrize(("having", "free"), [(6, 20), (20, 6), (7, 20)])
def test_what_more_labels_gain_is_the_difference_of_the_two_scores(having: int, free: int) -> None:
    """Also where a draw leaves one patient of a class, or others are in a group with it than before."""
    random, cases = np.random.default_rng(5), []
    truth = np.arange(having + free) < having
    for shot in (3, 5):
        for draw in range(10):
            learnt = set(random.permutation(having)[:shot]) | set(having + random.permutation(free)[:shot])
            score = random.normal(size=len(truth)) + shot / 3 * truth
            made = classified(stats.norm.cdf(score), truth, draw)
            cases += [replace(c, shot=shot) for i, c in enumerate(made) if i not in learnt]
    curve = learning_curves(cases, "auroc")["m"]
    found = slope(curve)
    assert found is not None
    assert found.gain.low is not None
    area = {
        shot: np.mean(
            [
                roc_auc_score([c.truth for c in some], [c.probability for c in some])
                for draw in range(10)
                if (some := [c for c in cases if (c.shot, c.draw) == (shot, draw)])
            ]
        )
        for shot in (3, 5)
    }
    assert found.gain.mean == pytest.approx((area[5] - area[3]) / np.log2(5 / 3), abs=1e-3)


def test_a_patient_with_several_scans_gains_what_their_mean_gains() -> None:
    """One easy and one hard scan of each patient, both a tenth better with twice the labels."""
    cases = [
        Case("cyst", shot, "m", draw, patient, {"dice": dice + 0.1 * (shot == 2) + 0.01 * draw})
        for shot in (1, 2)
        for draw in (0, 1)
        for patient, scans in {"a": (0.1, 0.8), "b": (0.2, 0.6), "c": (0.3, 0.7)}.items()
        for dice in scans
    ]
    curve = learning_curves(cases, "dice")["m"]
    assert curve.score == pytest.approx([0.455, 0.555])
    found = slope(curve)
    assert found is not None
    assert found.gain.mean == pytest.approx(0.1)


def test_patients_with_lesions_of_both_classes_are_scored() -> None:
    """A benign lesion beside the tumour in four of five: hours of judging ended in a division by zero."""
    patients, truth = [0, 1, 2, 3, 0, 1, 2, 3, 4], np.arange(9) // 4 == 1
    chance = np.random.default_rng(0).random((2, 9))
    cases = [
        replace(case, patient=f"p{p}")
        for draw in range(2)
        for p, case in zip(patients, classified(chance[draw], truth, draw), strict=True)
    ]
    found = summaries(cases)
    assert found["auroc"].mean == pytest.approx(np.mean([roc_auc_score(truth, c) for c in chance]), abs=1e-4)
    assert found["sensitivity"].mean is not None
