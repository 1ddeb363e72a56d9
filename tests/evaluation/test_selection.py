"""Which cases to label: medoids beside brute force, a choice without labels, a gain that can be nothing."""

from __future__ import annotations

import itertools
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from medmeta.episodes import EpisodeError, Examples
from medmeta.evaluation import EvaluationError, propose
from medmeta.evaluation.gain import Trial, gains, trials, verdict
from medmeta.evaluation.medoids import cost, k_medoids
from medmeta.evaluation.selection import embedding, one_a_patient, select, untrained
from medmeta.volumes import Cohort, Store, Volume, make_plan


@pytest.mark.parametrize("seed", range(6))
def test_medoids_are_nearly_the_best_and_no_swap_betters_them(seed: int) -> None:
    points = np.random.default_rng(seed).normal(size=(14, 3))
    distance = cdist(points, points)
    for k in (1, 2, 4):
        chosen = k_medoids(distance, k)
        assert len(set(chosen)) == k
        best = min(cost(distance, list(some)) for some in itertools.combinations(range(14), k))
        assert cost(distance, chosen) <= 1.06 * best + 1e-9
        swaps = [
            [*chosen[:i], other, *chosen[i + 1 :]] for i in range(k) for other in set(range(14)) - set(chosen)
        ]
        assert cost(distance, chosen) <= min(cost(distance, s) for s in swaps) + 1e-9


def test_medoids_of_groups_are_one_a_group_and_the_largest_comes_first() -> None:
    generator = np.random.default_rng(0)
    sizes = (4, 12, 7)
    points = np.concatenate([generator.normal(20 * i, 1, (n, 2)) for i, n in enumerate(sizes)])
    chosen = k_medoids(cdist(points, points), 3)
    group = np.repeat([0, 1, 2], sizes)
    assert [int(group[i]) for i in chosen] == [1, 2, 0]
    assert k_medoids(np.zeros((3, 3)), 3) in [list(p) for p in itertools.permutations(range(3))]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    """Two scanners, ten patients of one and four of the other; a square to find that is bright, or dark."""
    folder = tmp_path_factory.mktemp("cohort")
    volumes = []
    for n in range(14):
        generator = np.random.default_rng(n)
        coarse = n >= 10  # the second scanner smears its noise and turns the contrast round
        noise = generator.normal(size=(24, 24, 1))
        voxels = 100 + 8 * (np.repeat(np.repeat(noise[:6, :6], 4, 0), 4, 1) if coarse else noise)
        mask = np.zeros((24, 24, 1), np.uint8)
        x, y = generator.integers(2, 14, 2)
        mask[x : x + 7, y : y + 7] = 1
        voxels = voxels + (-60.0 if coarse else 60.0) * mask
        for name, array in {f"{n}": voxels.astype("f4"), f"{n}_m": mask}.items():
            nibabel.save(nibabel.Nifti1Image(array, np.diag([2.0, 2, 1, 1])), folder / f"{name}.nii.gz")
        volumes.append(Volume(f"p{n:02d}", (folder / f"{n}.nii.gz",), folder / f"{n}_m.nii.gz", "cyst"))
    return Cohort("made up", tuple(volumes), folder)


def test_of_several_series_in_one_folder_the_first_is_the_same_in_any_order() -> None:
    series = [Volume("p", (Path("study"),), None, "cyst", series=f"1.2.{n}") for n in range(3)]
    assert one_a_patient(series) == one_a_patient(series[::-1]) == [series[0]]


def test_what_is_chosen_stands_for_both_scanners_and_looks_at_no_label(cohort: Cohort) -> None:
    plan = make_plan(cohort.volumes, patch=(24, 24))
    embed = embedding(untrained(plan), plan)
    found = select(cohort.volumes, 2, Store(plan, salt="s"), embed)
    assert sorted(v.patient >= "p10" for v in found.volumes) == [False, True]
    assert found.stands_for == (10, 4)
    bare = [Volume(v.patient, v.image) for v in reversed(cohort.volumes)]
    again = select(bare, 2, Store(plan, salt="s"), embed)
    assert [v.patient for v in again.volumes] == [v.patient for v in found.volumes]


class Counts:
    """A method that remembers how bright the target was, and finds what is as bright."""

    def adapt(self, support: Examples):
        inside = [
            float(i[0][lab > 0].mean())
            for i, lab in zip(support.image, support.label, strict=True)
            if bool((lab > 0).any())
        ]

        def predict(image: torch.Tensor) -> torch.Tensor:
            near = torch.stack([(image[:, 0] - v).abs() < 1.0 for v in inside]).any(0)
            return torch.stack([(~near).float(), near.float()], 1)

        return predict


def test_choosing_gains_where_patients_differ_and_the_pool_is_not_judged(cohort: Cohort) -> None:
    plan = make_plan(cohort.volumes, patch=(24, 24))
    store = Store(plan, salt="s")
    embed = embedding(untrained(plan), plan)
    options = {"shots": (2,), "repeats": 12, "draws": 4}
    both = trials(
        Counts(), cohort.volumes, "cyst", store, {"real": embed, "blind": lambda scan: np.ones(3)}, **options
    )
    real, blind = both["real"], both["blind"]
    assert [t.drawn for t in real] == [t.drawn for t in blind]  # the very same draws
    assert all(len({t.patient for t in real if t.repeat == r}) == 7 for r in range(12))
    found = gains(real)["cyst"]["2"]
    assert found["low"] is not None
    assert found["low"] > 0
    assert verdict(found).startswith("gains Dice")
    assert "gains nothing that is sure" in verdict({"mean": 0.0, "low": -0.1, "high": 0.1})
    assert verdict({"mean": -0.1, "low": -0.2, "high": -0.05}).startswith("loses")


def test_over_types_the_interval_is_of_types() -> None:
    """A thousand cases of two types that disagree are not a thousand witnesses."""
    some = [
        Trial(t, 1, r, f"{t}{p}", 0.5 + d, 0.5)
        for t, d in (("a", 0.2), ("b", -0.2))
        for r in range(5)
        for p in range(50)
    ]
    whole = gains(some)["all"]["1"]
    assert whole["low"] == pytest.approx(-0.2) or whole["low"] < -0.2
    assert whole["high"] >= 0.2


def test_propose_says_what_it_gains_and_refuses_what_cannot_be(cohort: Cohort, tmp_path: Path) -> None:
    found = propose(cohort, 2, repeats=2)
    assert len(found["chosen"]) == 2
    assert found["patients"] == 14
    assert {c["image"] for c in found["chosen"]} <= {f"{n}.nii.gz" for n in range(14)}
    assert found["gain"]["cyst"]["2"]["low"] is not None
    assert found["says"].startswith("Choosing 2 patients instead of drawing them ")
    bare = Cohort("bare", tuple(Volume(v.patient, v.image) for v in cohort.volumes), cohort.root)
    unmeasured = propose(bare, 2)
    assert unmeasured["gain"] is None
    assert unmeasured["says"].startswith("What choosing gains was not measured")
    with pytest.raises(EvaluationError, match="more than 14 patients to choose 14 from, found 14 patients"):
        propose(cohort, 14)
    with pytest.raises(EvaluationError, match="Did you mean 'cyst'"):
        propose(cohort, 2, tumour="cist")
    with pytest.raises(EpisodeError, match="half of them to choose from"):
        trials(Counts(), cohort.volumes, "cyst", Store(make_plan(cohort.volumes)), {}, shots=(9,))
