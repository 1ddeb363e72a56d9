"""The synthetic cohort is what its README says, and the same seed makes it again."""

from __future__ import annotations

import csv
import hashlib
import itertools
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import highdicom as hd
import nibabel as nib
import numpy as np
import pydicom
import pytest
from scipy import ndimage
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_score

from sample_data import make

SEED = 5


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


def run(sample_data: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run the script in a process of its own."""
    command = [sys.executable, str(sample_data / "make.py"), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@dataclass(frozen=True)
class Made:
    """A tiny cohort made twice, and what the generator says of each patient: voxels, mask, RAS affine."""

    folder: Path
    again: Path
    truth: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]


def generated(case: make.Case, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A patient's voxels, mask and RAS affine, before any file is written."""
    return make.patient(case.kind, np.random.default_rng([seed, int(case.key[1:])]), series=case.dicom)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, sample_data: Path) -> Made:
    """Five patients: three DICOM with a tumour, one DICOM without, one NIfTI with; made again by force."""
    folder, again = (tmp_path_factory.mktemp("made") / name for name in ("first", "again"))
    (again / "nifti").mkdir(parents=True)
    (again / "nifti" / "old.nii.gz").touch()
    options = ["--patients", "5", "--types", "3", "--seed", str(SEED)]
    answer = run(sample_data, "--out", str(folder), *options)
    assert answer.returncode == 0, answer.stderr
    assert make.main(["--out", str(again), *options, "--force"]) == 0
    truth = {case.key: generated(case, SEED) for case in make.plan(3, 5, SEED)}
    return Made(folder, again, truth)


def test_the_same_seed_makes_the_same_bytes(made: Made) -> None:
    assert digests(made.folder) == digests(made.again)
    assert len(rows(made.folder)) == 5


def test_another_seed_gives_the_keys_to_other_types() -> None:
    first, second = make.plan(14, 210, 1), make.plan(14, 210, 2)
    assert [c.key for c in first] == [c.key for c in second]
    assert [c.kind for c in first] != [c.kind for c in second]


@pytest.mark.parametrize("patients", [15, 100, 210])
def test_the_types_share_the_patients_equally(patients: int) -> None:
    kinds = [case.kind for case in make.plan(14, patients, 0)]
    counts = [kinds.count(kind) for kind in (*make.TYPES, None)]
    assert sum(counts) == patients
    assert max(counts) - min(counts) <= 1


def test_the_folder_is_refused_unless_empty(made: Made, sample_data: Path) -> None:
    before = digests(made.folder)
    answer = run(sample_data, "--out", str(made.folder))
    assert answer.returncode == 2
    assert re.fullmatch(r"--out: .* is not empty .*--force to replace\.\n", answer.stderr)
    assert digests(made.folder) == before


def test_the_script_refuses_its_own_folder_a_file_and_too_few(tmp_path: Path, sample_data: Path) -> None:
    (tmp_path / "file").touch()
    assert "is not empty" in run(sample_data).stderr
    assert "wanted a folder" in run(sample_data, "--out", str(tmp_path / "file")).stderr
    assert "wanted at least 15" in run(sample_data, "--out", str(tmp_path / "x"), "--patients", "9").stderr


def test_dicom_says_where_each_voxel_lies(made: Made) -> None:
    series = [row for row in rows(made.folder) if row["image"].startswith("dicom")]
    assert len(series) == 4
    for row in series:
        array, mask, affine = made.truth[row["patient"]]
        slices = [pydicom.dcmread(f) for f in sorted((made.folder / row["image"]).glob("*.dcm"))]
        assert len(slices) == array.shape[2]
        for k, s in enumerate(slices):
            seen = s.pixel_array.T * s.RescaleSlope + s.RescaleIntercept
            np.testing.assert_array_equal(seen, array[:, :, k])
            across, down = np.array(s.ImageOrientationPatient, float).reshape(2, 3)
            for column, line in itertools.product((0, s.Columns - 1), (0, s.Rows - 1)):
                # DICOM PS3.3 C.7.6.2.1.1; PixelSpacing is between rows first
                lps = np.array(s.ImagePositionPatient, float)
                lps = lps + across * s.PixelSpacing[1] * column + down * s.PixelSpacing[0] * line
                expected = (affine @ (column, line, k, 1))[:3] * (-1, -1, 1)
                np.testing.assert_allclose(lps, expected, atol=1e-4)
        assert bool(row["mask"]) == bool(mask.any())


def test_the_segmentation_is_the_mask_voxel_for_voxel(made: Made) -> None:
    masks = [row for row in rows(made.folder) if row["mask"].endswith("seg.dcm")]
    assert len(masks) == 3
    for row in masks:
        _, mask, _ = made.truth[row["patient"]]
        seg = hd.seg.segread(made.folder / row["mask"])
        instances = [
            pydicom.dcmread(f, stop_before_pixels=True).SOPInstanceUID
            for f in sorted((made.folder / row["image"]).glob("*.dcm"))
        ]
        frames = seg.get_pixels_by_source_instance(instances, assert_missing_frames_are_empty=True)
        np.testing.assert_array_equal(frames[..., 0].transpose(2, 1, 0), mask)
        assert seg.segmentation_type is hd.seg.SegmentationTypeValues.BINARY
        assert seg.get_segment_description(1).segment_label == row["tumor"]
        assert seg.get_segment_description(1).segmented_property_type.meaning == row["tumor"]


def test_nifti_says_the_same_twice(made: Made) -> None:
    row = next(r for r in rows(made.folder) if r["mask"].endswith("nii.gz"))
    array, mask, affine = made.truth[row["patient"]]
    for path, expected in ((row["image"], array), (row["mask"], mask)):
        image = nib.load(made.folder / path)
        np.testing.assert_array_equal(np.asarray(image.dataobj), expected)
        np.testing.assert_allclose(image.get_sform(), affine, atol=1e-4)
        np.testing.assert_allclose(image.get_qform(), affine, atol=1e-3)
        assert image.header.get_xyzt_units()[0] == "mm"
        assert image.get_data_dtype() == expected.dtype
    assert set(np.unique(mask)) == {0, 1}


def test_the_script_made_what_lies_here(sample_data: Path) -> None:
    cases = make.plan(14, 210, 2026)
    table = rows(sample_data)
    named = [(case.key, case.kind.name if case.kind else "") for case in cases]
    assert [(row["patient"], row["tumor"]) for row in table] == named
    both = [(row, case) for row, case in zip(table, cases, strict=True) if case.kind and not case.dicom]
    for row, case in both[:2]:
        array, mask, _ = generated(case, 2026)
        # another release of scipy may round a voxel the other way
        assert (np.asarray(nib.load(sample_data / row["image"]).dataobj) != array).mean() < 1e-3
        assert (np.asarray(nib.load(sample_data / row["mask"]).dataobj) != mask).mean() < 1e-5


def test_what_the_table_names_is_there(sample_data: Path) -> None:
    table = rows(sample_data)
    assert list(table[0]) == ["patient", "image", "mask", "tumor", "modality"]
    assert len({row["patient"] for row in table}) == len(table) == 210
    for row in table:
        image = sample_data / row["image"]
        assert image.is_file() if image.name.endswith(".nii.gz") else list(image.glob("*.dcm"))
        assert bool(row["mask"]) == bool(row["tumor"])
        assert not row["mask"] or (sample_data / row["mask"]).is_file()
    free = [row["patient"] for row in table if not row["tumor"]]
    assert len(free) == 14
    assert not [p for key in free for p in sample_data.glob(f"**/{key}*") if "mask" in p.name]
    assert not [key for key in free if (sample_data / "dicom" / key / "seg.dcm").exists()]


def test_files_are_few_small_and_named_by_patient_only(sample_data: Path) -> None:
    types = sorted({row["tumor"] for row in rows(sample_data)} - {""})
    assert types == [kind.name for kind in make.TYPES]
    files = [f for name in make.MADE for f in (sample_data / name, *(sample_data / name).rglob("*"))]
    assert not [f for f in files for name in types if name in str(f.relative_to(sample_data))]
    assert sum(f.stat().st_size for f in files if f.is_file()) < 20e6
    per_type = [r["tumor"] for r in rows(sample_data) if r["image"].startswith("dicom")]
    assert all(per_type.count(name) >= 2 for name in ("", *types[-2:]))


def test_no_dicom_file_bears_a_person(sample_data: Path) -> None:
    for file in sample_data.glob("dicom/*/**/*.dcm"):
        header = pydicom.dcmread(file, stop_before_pixels=True)
        assert str(header.PatientName) == f"Synthetic^{header.PatientID}"
        assert header.PatientID == file.relative_to(sample_data / "dicom").parts[0]


def test_the_readme_lists_the_types(sample_data: Path) -> None:
    text = (sample_data / "README.md").read_text()
    for kind in make.TYPES:
        cells = [cell.strip() for cell in re.search(rf"^\| {kind.name} .*$", text, re.M)[0].split("|")[2:-1]]
        rim = {0: "none", 1: "bright", -1: "dark"}[int(np.sign(kind.rim))]
        core = "necrotic" if kind.core else "none"
        assert cells == [kind.texture, rim, core, kind.shape, kind.site, f"{kind.contrast:+.0f}"]


@dataclass(frozen=True)
class Scan:
    """A patient's voxels, tumour, body and spacing (mm)."""

    tumor: str
    image: np.ndarray
    mask: np.ndarray
    body: np.ndarray
    spacing: np.ndarray


@pytest.fixture(scope="module")
def scans(sample_data: Path) -> list[Scan]:
    """The NIfTI patients with a tumour."""
    found = []
    for row in rows(sample_data):
        if row["mask"].endswith("nii.gz"):
            stored = nib.load(sample_data / row["image"])
            image = np.asarray(stored.dataobj).astype(float)
            mask = np.asarray(nib.load(sample_data / row["mask"]).dataobj) > 0
            # air is an eighth of the darkest tissue, whatever the gain
            body = (image > 0.4 * np.median(image[mask])) | mask
            found.append(Scan(row["tumor"], image, mask, body, np.array(stored.header.get_zooms())))
    return found


def best_threshold_dice(mask: np.ndarray, brightness: np.ndarray) -> float:
    """The best Dice that one threshold, chosen with the truth in hand, can reach."""
    found = np.cumsum(mask[np.argsort(-brightness, kind="stable")])
    return float((2 * found / (np.arange(1, mask.size + 1) + mask.sum())).max())


def test_brightness_alone_does_not_find_the_tumour(scans: list[Scan]) -> None:
    area: dict[str, list[float]] = {}
    dice: dict[str, list[float]] = {}
    for scan in scans:
        mask, brightness = scan.mask[scan.body], scan.image[scan.body]
        if len(area.setdefault(scan.tumor, [])) < 8:
            found = roc_auc_score(mask, brightness)
            area[scan.tumor].append(max(found, 1 - found))
            best = max(best_threshold_dice(mask, sign * brightness) for sign in (1, -1))
            dice.setdefault(scan.tumor, []).append(best)
    medians = [float(np.median(values)) for values in area.values()]
    assert len(medians) == 14
    assert 0.6 < np.median(medians) < 0.9
    assert max(medians) < 0.96
    assert max(float(np.median(values)) for values in dice.values()) < 0.4


def lesion_features(scan: Scan) -> list[float]:
    """Rim, core, contrast, texture and shape of the tumour, by plain means."""
    depth = ndimage.distance_transform_edt(scan.mask, sampling=scan.spacing)
    grey = scan.image / np.median(scan.image[scan.body])
    rim, core = (depth > 0) & (depth < 3), depth > 0.6 * depth.max()
    inner = (depth >= 3) if (depth >= 3).sum() > 20 else scan.mask
    fine = grey - ndimage.gaussian_filter(grey, 1.8 / scan.spacing)
    coarse = grey - fine - ndimage.gaussian_filter(grey, 4 / scan.spacing)
    steep = np.stack(np.gradient(grey, *scan.spacing), -1)[inner]
    ways = np.linalg.eigvalsh(steep.T @ steep)
    spread = np.sqrt(np.linalg.eigvalsh(np.cov((np.argwhere(scan.mask) * scan.spacing).T)))
    radius = (scan.mask.sum() * scan.spacing.prod()) ** (1 / 3)
    q = grey[inner]
    return [
        grey[rim].mean() - q.mean(),
        grey[core].mean() - q.mean(),
        q.mean(),
        q.std(),
        ((q - q.mean()) ** 3).mean() / q.std() ** 3,
        fine[inner].std() / fine[scan.body & ~scan.mask].std(),
        coarse[inner].std(),
        ways[2] / ways.sum(),
        spread[2] / spread[1],
        spread[1] / spread[0],
        depth.max() / radius,
    ]


def test_the_lesion_shows_its_type_and_the_scanner_does_not(scans: list[Scan]) -> None:
    types = [scan.tumor for scan in scans]
    lesion = np.array([lesion_features(scan) for scan in scans])
    scanner = np.array([[*s.spacing, *s.image.shape, np.median(s.image), s.body.mean()] for s in scans])
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    seen, guessed = (
        cross_val_score(ExtraTreesClassifier(200, random_state=0), x, types, cv=folds).mean()
        for x in (lesion, scanner)
    )
    assert seen > 0.6  # chance is 1/14
    assert guessed < 0.2
