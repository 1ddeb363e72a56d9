"""Laws of the split: by patient, nothing lost, same seed same split."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medmeta.volumes import CohortError, Volume, hold_out, open_cohort, split_patients

volumes_of = st.lists(
    st.tuples(st.integers(0, 30), st.sampled_from(["glioma", "cyst", None])), min_size=1, max_size=60
).map(lambda rows: [Volume(f"p{p}", (Path(f"{i}.nii"),), tumour=t) for i, (p, t) in enumerate(rows)])
weights = st.lists(st.integers(1, 9), min_size=1, max_size=4)


@given(volumes_of, weights, st.integers(0, 5))
@settings(max_examples=150, deadline=None)
def test_parts_share_no_patient_and_lose_none(volumes: list[Volume], parts: list[int], seed: int) -> None:
    fractions = [w / sum(parts) for w in parts]
    patients = {v.patient for v in volumes}
    if len(patients) < len(parts):
        with pytest.raises(CohortError, match="one a part"):
            split_patients(volumes, fractions, torch.Generator().manual_seed(seed))
        return
    split = split_patients(volumes, fractions, torch.Generator().manual_seed(seed))
    owners = [{v.patient for v in part} for part in split]
    assert all(owners)
    assert sum(map(len, owners)) == len(patients) == len(set().union(*owners))
    assert sorted(map(repr, volumes)) == sorted(repr(v) for part in split for v in part)
    again = split_patients(volumes[::-1], fractions, torch.Generator().manual_seed(seed))
    assert [{v.patient for v in part} for part in again] == owners
    if len(patients) >= 10 * len(parts):
        shares = [len(o) / len(patients) for o in owners]
        assert all(abs(s - f) <= 2 / len(patients) for s, f in zip(shares, fractions, strict=True))


def test_types_are_spread_evenly() -> None:
    volumes = [Volume(f"{t}{i}", (Path("x"),), tumour=t) for t in ("a", "b", "c") for i in range(10)]
    for seed in range(5):
        large, small = split_patients(volumes, (0.8, 0.2), torch.Generator().manual_seed(seed))
        assert all(sum(v.tumour == t for v in small) == 2 for t in ("a", "b", "c"))
        assert len(large) == 24


@pytest.mark.parametrize("fractions", [(), (0.5,), (1.2, -0.2), (0.5, 0.6)])
def test_fractions_that_are_not_shares(fractions: tuple[float, ...]) -> None:
    with pytest.raises(CohortError, match="sum to 1"):
        split_patients([Volume("p", (Path("x"),))], fractions, torch.Generator())


@given(volumes_of, st.integers(0, 5), st.floats(0.2, 0.8))
@settings(max_examples=150, deadline=None)
def test_hold_out_shares_neither_patient_nor_type(volumes: list[Volume], seed: int, share: float) -> None:
    there = {v.tumour for v in volumes}
    try:
        train, judge = hold_out(volumes, ["glioma"], torch.Generator().manual_seed(seed), share=share)
    except CohortError:
        if {"glioma", "cyst"} <= there:  # refused only where too few patients have to serve both sides
            both = {v.patient for v in volumes if v.tumour == "glioma"} & {
                v.patient for v in volumes if v.tumour == "cyst"
            }
            alone = [{v.patient for v in volumes if v.tumour == t} - both for t in ("glioma", "cyst")]
            assert not all(alone)
            assert len(both) < 5
        return
    assert not {v.patient for v in train} & {v.patient for v in judge}
    assert {v.tumour for v in train} - {None} == {"cyst"}
    assert {v.tumour for v in judge} - {None} == {"glioma"}
    again = hold_out(volumes[::-1], ["glioma"], torch.Generator().manual_seed(seed), share=share)
    assert ({v.patient for v in again[0]}, {v.patient for v in again[1]}) == (
        {v.patient for v in train},
        {v.patient for v in judge},
    )


def test_hold_out_of_an_unknown_type() -> None:
    with pytest.raises(CohortError, match="Did you mean 'glioma'"):
        hold_out([Volume("p", (Path("x"),), tumour="glioma")], ["gliom"], torch.Generator())


def test_hold_out_of_a_cohort_whose_masks_show_both(shared_data: Path) -> None:
    cohort = open_cohort(shared_data / "volumes" / "hippocampus")
    train, judge = hold_out(cohort.volumes, ["label_2"], torch.Generator().manual_seed(0))
    assert (len(train), len(judge)) == (49, 49)
