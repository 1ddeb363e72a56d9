"""Leaks: what is one patient's is found whatever was done to it; what is not is left alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, zoom
from typer.testing import CliRunner

from medmeta.cli import app
from medmeta.errors import MedmetaError
from medmeta.volumes import Cohort, Volume, find_leaks, open_cohort


def texture(seed: int, shape: tuple[int, ...] = (30, 28, 26)) -> np.ndarray:
    """A body with organs: smooth blobs of several sizes."""
    random = np.random.default_rng(seed)
    return sum(gaussian_filter(random.standard_normal(shape), s) * s**1.5 for s in (2, 4, 8)).astype(
        np.float32
    )


def cohort(folder: Path, name: str, **images: np.ndarray) -> Cohort:
    volumes = []
    for patient, voxels in images.items():
        file = folder / f"{name}_{patient}.nii.gz"
        nibabel.save(nibabel.Nifti1Image(voxels.astype(np.float32), np.eye(4)), file)
        volumes.append(Volume(patient, (file,), tumour="x"))
    return Cohort(name, tuple(volumes), folder)


def test_equal_ids_in_two_splits(tmp_path: Path) -> None:
    one = cohort(tmp_path, "train", p1=texture(0), p2=texture(1))
    two = cohort(tmp_path, "test", p3=texture(2), p2=texture(3))
    report = find_leaks([one, two])
    assert [(leak.kind, leak.first, leak.second) for leak in report] == [("same-patient", (0, 1), (1, 1))]
    assert "p2" not in str(report.leaks[0])
    assert not find_leaks([one])


def test_one_id_in_two_spellings(tmp_path: Path) -> None:
    """Nobody says capitals and dashes when he types an id into the second table."""
    one = cohort(tmp_path, "train", **{"Pat-07": texture(0), "pat1": texture(1)})
    two = cohort(tmp_path, "test", pat11=texture(2), PAT_07=texture(3), PAT1=texture(1))
    report = find_leaks([one, two])
    assert [(leak.kind, leak.first, leak.second) for leak in report] == [
        ("same-voxels", (0, 1), (1, 2)),  # what is sure is said
        ("same-patient", (0, 0), (1, 1)),
    ]


def test_pairs_as_json_and_no_choice_of_series(tmp_path: Path) -> None:
    for name, seed in {"p1": 0, "p2": 1, "p3": 0}.items():
        nibabel.save(nibabel.Nifti1Image(texture(seed), np.eye(4)), tmp_path / f"{name}.nii.gz")
    rows = [f"{name},{name}.nii.gz,x" for name in ("p1", "p2", "p3")]
    (tmp_path / "cohort.csv").write_text("\n".join(["patient,image,tumor", *rows]) + "\n")
    shown = CliRunner().invoke(app, ["inspect", "--leaks", "--json", str(tmp_path)])
    assert shown.exit_code == 1, shown.output
    assert [row["images"] for row in json.loads(shown.stdout)] == [["p1.nii.gz", "p3.nii.gz"]]
    with pytest.raises(MedmetaError, match="leave --leaks out"):
        CliRunner().invoke(
            app, ["inspect", "--leaks", "--modality", "MR", str(tmp_path)], catch_exceptions=False
        )


def test_equal_voxels_under_two_keys(tmp_path: Path) -> None:
    report = find_leaks([cohort(tmp_path, "a", p1=texture(0), p2=texture(1), p3=texture(0))])
    assert [(leak.kind, leak.first, leak.second) for leak in report] == [("same-voxels", (0, 0), (0, 2))]


@pytest.mark.parametrize("change", ["flip", "resample", "noise", "window", "all"])
@pytest.mark.parametrize("shape", [(30, 28, 26), (48, 40, 1)])
def test_near_duplicates(tmp_path: Path, change: str, shape: tuple[int, ...]) -> None:
    voxels = texture(5, shape)
    changed = {
        "flip": lambda v: v[::-1, :, ::-1],
        "resample": lambda v: zoom(v, [0.8 if n > 1 else 1 for n in v.shape], order=1),
        "noise": lambda v: v + np.random.default_rng(0).normal(0, 0.05 * v.std(), v.shape),
        "window": lambda v: np.clip(3 * v + 100, *np.percentile(3 * v + 100, [2, 98])),
    }
    copy = voxels
    for name, do in changed.items():
        copy = do(copy) if change in {name, "all"} else copy
    others = {f"q{i}": texture(20 + i, shape) for i in range(3)}
    report = find_leaks([cohort(tmp_path, "a", p1=voxels, **others), cohort(tmp_path, "b", p9=copy)])
    assert [(leak.kind, leak.first, leak.second) for leak in report] == [("near-duplicate", (0, 0), (1, 0))]
    assert report.leaks[0].similarity >= 0.9


def test_neighbouring_slices_stand_out(tmp_path: Path) -> None:
    images = {f"q{i}": texture(50 + i, (48, 40, 1)) for i in range(12)}
    stack = gaussian_filter(np.random.default_rng(3).standard_normal((48, 40, 24)), 4)
    images |= {"s1": stack[:, :, 10:11], "s2": stack[:, :, 12:13]}
    report = find_leaks([cohort(tmp_path, "a", **images)])
    assert [(leak.first, leak.second) for leak in report] == [((0, 12), (0, 13))]


def test_one_patient_s_own_images_are_no_leak(tmp_path: Path) -> None:
    both = cohort(tmp_path, "a", p1=texture(0), p2=texture(0))
    same = replace(both, volumes=tuple(replace(v, patient="p") for v in both.volumes))
    assert not find_leaks([same])
    # several targets in one image are one image
    assert not find_leaks([replace(both, volumes=(both.volumes[0], replace(both.volumes[0], tumour="y")))])


def test_constant_and_damaged_volumes(tmp_path: Path) -> None:
    made = cohort(tmp_path, "a", p1=np.zeros((8, 8, 8)), p2=np.ones((9, 8, 8)), p3=texture(0))
    made.volumes[2].image[0].write_bytes(b"x")
    report = find_leaks([made])
    assert not report
    assert len(report.problems) == 1
    assert report.problems[0].startswith("volume 3 of cohort 1 could not be read")


def test_real_patients_are_told_apart(shared_data: Path) -> None:
    hippocampus = open_cohort(shared_data / "volumes" / "hippocampus")
    some = replace(hippocampus, volumes=tuple(v for v in hippocampus.volumes if v.tumour == "label_1")[:40])
    report = find_leaks([some])
    assert not report, [str(leak) for leak in report]
    assert not report.problems
