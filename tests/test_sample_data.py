"""The synthetic cohort is what its README says, and the same seed makes it again."""

from __future__ import annotations

import csv
import hashlib
import subprocess
import sys
from pathlib import Path

import highdicom as hd
import nibabel as nib
import numpy as np
import pydicom
import pytest
from sklearn.metrics import roc_auc_score


def rows(folder: Path) -> list[dict[str, str]]:
    """The rows of the cohort's table."""
    with (folder / "cohort.csv").open(newline="") as table:
        return list(csv.DictReader(table))


def digests(folder: Path) -> dict[str, str]:
    """The hash of every file."""
    return {
        str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest()
        for f in folder.rglob("*")
        if f.is_file()
    }


@pytest.fixture(scope="module")
def twice(tmp_path_factory: pytest.TempPathFactory, sample_data: Path) -> tuple[Path, Path]:
    """A tiny cohort, made twice with one seed."""
    made = []
    for name in ("first", "second"):
        out = tmp_path_factory.mktemp("made") / name
        command = [sys.executable, str(sample_data / "make.py"), "--out", str(out), "--patients", "1"]
        subprocess.run([*command, "--types", "1", "--seed", "5"], check=True)
        made.append(out)
    return made[0], made[1]


def test_the_same_seed_makes_the_same_bytes(twice: tuple[Path, Path]) -> None:
    assert digests(twice[0]) == digests(twice[1])
    assert len(rows(twice[0])) == 2


def test_a_cohort_that_is_there_is_not_overwritten(twice: tuple[Path, Path], sample_data: Path) -> None:
    command = [sys.executable, str(sample_data / "make.py"), "--out", str(twice[0])]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 2
    assert "--force" in answer.stderr


def test_what_the_table_names_is_there(sample_data: Path) -> None:
    table = rows(sample_data)
    assert len({row["patient"] for row in table}) == len(table) == 210
    assert all((sample_data / row["image"]).exists() for row in table)
    for row in table:
        assert bool(row["mask"]) == bool(row["tumor"])
        assert not row["mask"] or (sample_data / row["mask"]).is_file()
    types = {row["tumor"] for row in table} - {""}
    assert len(types) == 14
    assert not any(name in str(path) for name in types for path in sample_data.rglob("*"))
    assert sum(f.stat().st_size for f in sample_data.rglob("*") if f.is_file()) < 20e6


def test_the_segmentation_lies_on_its_series(sample_data: Path) -> None:
    row = next(r for r in rows(sample_data) if r["mask"].endswith("seg.dcm"))
    files = sorted((sample_data / row["image"]).glob("*.dcm"))
    slices = [pydicom.dcmread(f) for f in files]
    mask = hd.seg.segread(sample_data / row["mask"])
    volume = mask.get_volume(combine_segments=True)
    image = hd.get_volume_from_series(slices)
    assert mask.get_segment_description(1).segment_label == row["tumor"]
    assert volume.match_geometry(image).array.sum() > 30
    assert all(str(s.PatientName).startswith("Synthetic") for s in slices)


def test_brightness_alone_does_not_find_the_tumour(sample_data: Path) -> None:
    by_type: dict[str, list[float]] = {}
    for row in rows(sample_data):
        if row["mask"].endswith("nii.gz") and len(by_type.setdefault(row["tumor"], [])) < 3:
            image = np.asarray(nib.load(sample_data / row["image"]).dataobj)
            mask = np.asarray(nib.load(sample_data / row["mask"]).dataobj) > 0
            inside = image > 0.4 * np.median(image[mask])
            found = roc_auc_score(mask[inside], image[inside])
            by_type[row["tumor"]].append(max(found, 1 - found))
    means = [float(np.mean(values)) for values in by_type.values()]
    assert len(means) == 14
    assert 0.6 < np.median(means) < 0.93
