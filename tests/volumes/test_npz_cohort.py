"""The script that turns npz slices into a cohort: readable, and patients kept together."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from medmeta.volumes import load, load_mask, open_cohort

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "npz_cohort.py"


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)], capture_output=True, text=True, check=False
    )


def npz(
    file: Path, patients: list[str], *, source: str = "who/set", kind: str = "tumour", first: int = 0
) -> np.ndarray:
    random = np.random.default_rng(len(patients))
    images = random.integers(0, 255, (len(patients), 12, 10), dtype=np.uint8)
    masks = np.zeros_like(images)
    masks[:, 2:4, 7:9] = 1
    ids = [f"{first + i}" for i in range(len(patients))]
    about = json.dumps({"source": source, "kind": kind})
    np.savez(
        file, images=images, masks=masks, patients=np.array(patients), ids=np.array(ids), meta=np.array(about)
    )
    return images


@pytest.mark.parametrize("form", ["nifti", "png"])
def test_slices_become_a_cohort(tmp_path: Path, form: str) -> None:
    (tmp_path / "in").mkdir()
    images = npz(tmp_path / "in" / "cyst.npz", ["a", "a", "b", "?", "?"])
    npz(tmp_path / "in" / "liver.npz", ["a", "c"], kind="organ")
    done = run(tmp_path / "in", "--out", tmp_path / "out", "--format", form)
    assert done.returncode == 0, done.stderr
    assert "2 of unknown patient taken as one patient each" in done.stdout
    cohort = open_cohort(tmp_path / "out")
    assert (len(cohort.volumes), cohort.tumours, cohort.problems) == (7, ("cyst", "liver"), ())
    assert len(cohort.patients) == 5  # both tasks are of one source, so a is one patient
    first = cohort.volumes[0]
    image = load(first.image[0])
    assert sorted(image.as_tensor().flatten().tolist()) == sorted(images[0].flatten().tolist())
    assert first.mask is not None
    assert int(load_mask(first.mask, like=image).sum()) == 4
    again = run(tmp_path / "in", "--out", tmp_path / "out")
    assert (again.returncode, "exists" in again.stderr) == (2, True)


def test_blocks_and_kinds(tmp_path: Path) -> None:
    npz(tmp_path / "cyst.npz", ["?"] * 7)
    npz(tmp_path / "liver.npz", ["?"], kind="organ")
    done = run(tmp_path, "--out", tmp_path / "out", "--block", 3, "--kind", "tumour")
    assert done.returncode == 0, done.stderr
    cohort = open_cohort(tmp_path / "out")
    assert cohort.tumours == ("cyst",)
    assert len(cohort.patients) == 3


def test_blocks_of_types_that_share_images_share_patients(tmp_path: Path) -> None:
    npz(tmp_path / "cyst.npz", ["?"] * 6)
    npz(tmp_path / "liver.npz", ["?"] * 6, kind="organ", first=2)  # ids 2 to 5 are in both
    npz(tmp_path / "other.npz", ["?"] * 6, source="who/else")
    done = run(tmp_path, "--out", tmp_path / "out", "--block", 3)
    assert done.returncode == 0, done.stderr
    cohort = open_cohort(tmp_path / "out")
    of = {t: [v.patient for v in cohort.of(t)] for t in cohort.tumours}
    assert of["cyst"][2:] == of["liver"][:4]
    assert len(set(of["cyst"] + of["liver"])) == 3  # ids 0 to 7 in threes
    assert not set(of["other"]) & set(of["cyst"] + of["liver"])
