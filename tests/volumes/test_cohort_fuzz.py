"""Whatever a list file says, there is a cohort or a CohortError, and nothing else."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medmeta.volumes import CohortError, open_cohort

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-5, 300)
    | st.floats()
    | st.sampled_from(
        ["a.nii.gz", "m.nii.gz", "../a.nii.gz", "", "glioma", "none", "x" * 300, "a\0b", "/", "."]
    )
    | st.text(max_size=5)
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3) | st.just("0"), inner, max_size=3)
    ),
    max_leaves=6,
)
entries = st.lists(
    st.dictionaries(st.sampled_from(["image", "label", "patient", "subject_id", "fold"]), values, max_size=4)
    | values,
    max_size=4,
)
about = st.fixed_dictionaries(
    {"training": entries | values},
    optional={
        "validation": entries | values,
        "labels": values,
        "modality": values,
        "channel_names": values,
    },
)
cells = st.sampled_from(
    ["a.nii.gz", "m.nii.gz", "", "glioma", "1", "-1", "1e9", "a\0b", '"', "x" * 300, "/", ";", "."]
)
tables = st.lists(st.lists(cells | st.text(max_size=4), max_size=6), max_size=5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fuzz")
    for name in ("a", "m"):
        nibabel.save(nibabel.Nifti1Image(np.ones((2, 2, 2), np.uint8), np.eye(4)), path / f"{name}.nii.gz")
    return path


def honest(read: Callable[[], object]) -> None:
    with contextlib.suppress(CohortError):
        read()


@given(about | values)
@settings(max_examples=150, deadline=None)
@pytest.mark.parametrize("name", ["dataset.json", "list.json"])
def test_any_json(folder: Path, name: str, made: object) -> None:
    file = folder / name
    file.write_text(json.dumps(made))
    honest(lambda: open_cohort(folder, layout="nnunet" if name == "dataset.json" else "datalist"))
    file.unlink()


@given(
    st.sampled_from(["patient,image,mask,tumor", "image,tumor,label", "tumor", "", '"', "image;tumor"]),
    tables,
)
@settings(max_examples=150, deadline=None)
def test_any_table(folder: Path, header: str, rows: list[list[str]]) -> None:
    file = folder / "cohort.csv"
    file.write_text("\n".join([header, *(",".join(row) for row in rows)]), encoding="utf-8", errors="replace")
    honest(lambda: open_cohort(folder))
    file.unlink()


@given(st.binary(max_size=200))
@settings(max_examples=60, deadline=None)
def test_any_bytes(folder: Path, made: bytes) -> None:
    for name in ("cohort.csv", "dataset.json", "list.json"):
        (folder / name).write_bytes(made)
        honest(lambda name=name: open_cohort(folder / name if name != "dataset.json" else folder))
        (folder / name).unlink()
