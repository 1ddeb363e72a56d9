"""Whole scans: one case that fails stops no other, nothing half done is left."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from medmeta.clinical import BundleError, export, predict


def scan(file: Path, shape: tuple[int, ...], affine: Any = None) -> Path:
    rng = np.random.default_rng(0)
    file.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(rng.random(shape, np.float32), np.eye(4) if affine is None else affine)
    image.to_filename(file)
    return file


@pytest.fixture
def flat_bundle(flat_parts: Callable[[], dict[str, Any]], tmp_path: Path) -> Path:
    return export(**flat_parts(), out=tmp_path / "bundle")


def test_a_failing_case_stops_no_other(flat_bundle: Path, tmp_path: Path) -> None:
    good = scan(tmp_path / "good.nii.gz", (20, 24, 1))
    bad = tmp_path / "bad.nii.gz"
    bad.write_bytes(good.read_bytes()[:200])
    results = predict(flat_bundle, [bad, good, tmp_path / "absent.nii.gz"], tmp_path / "out")
    assert [(r["case"], r["ok"]) for r in results] == [("bad", False), ("good", True), ("absent", False)]
    assert all(r["message"] and str(tmp_path) not in r["message"] for r in results if not r["ok"])
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["good"]


def test_what_is_there_is_refused_or_passed_over(flat_bundle: Path, tmp_path: Path) -> None:
    files = [scan(tmp_path / f"{name}.nii.gz", (20, 24, 1)) for name in "ab"]
    predict(flat_bundle, files[:1], tmp_path / "out")
    with pytest.raises(BundleError, match="1 of 2 there"):
        predict(flat_bundle, files, tmp_path / "out")
    results = predict(flat_bundle, files, tmp_path / "out", resume=True)
    assert [r["skipped"] for r in results] == [True, False]


@pytest.mark.parametrize("shape", [(20, 24, 1), (20, 24, 5)])
def test_a_network_in_2d_goes_through_a_volume_slice_by_slice(
    flat_bundle: Path, tmp_path: Path, shape: tuple[int, ...]
) -> None:
    affine = np.array([[0, -1.5, 0, 3], [1.5, 0, 0, -7], [0, 0, 4, 9], [0, 0, 0, 1.0]])
    file = scan(tmp_path / "scan.nii.gz", shape, affine)
    (result,) = predict(flat_bundle, [file], tmp_path / "out")
    assert result["ok"], result
    written = nibabel.load(tmp_path / "out" / result["files"][0])
    assert written.shape == shape
    assert np.allclose(written.affine, affine)


def test_a_zip_of_a_series_is_the_series(
    segment_bundle: Path, unseen: tuple[Path, Path], tmp_path: Path
) -> None:
    archive = shutil.make_archive(str(tmp_path / "study"), "zip", unseen[1])
    one, other = predict(segment_bundle, [unseen[1], archive], tmp_path / "out")
    assert one["ok"]
    assert other["case"] == "study"
    assert one["voxels"] == other["voxels"]


def test_inputs_that_cannot_be_told_apart(flat_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="found none"):
        predict(flat_bundle, [], tmp_path / "out")
    with pytest.raises(BundleError, match="doubles"):
        predict(flat_bundle, ["a.nii", "a.nii"], tmp_path / "out")
