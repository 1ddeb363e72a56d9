"""Bad input through the command line: one line of wanted, found and cure, exit code 2, nothing left."""

from __future__ import annotations

import csv
import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest

from medmeta.cli import main
from medmeta.errors import MedmetaError

Row = dict[str, str]


def rows_of(sample_data: Path) -> list[Row]:
    """NIfTI patients of three types, four each."""
    with (sample_data / "cohort.csv").open() as file:
        rows = [r for r in csv.DictReader(file) if r["image"].endswith(".nii.gz")]
    types = ("annular", "brindled", "crested")
    return [r for t in types for r in [r for r in rows if r["tumor"] == t][:4]]


def table(cohort: Path) -> list[Row]:
    return list(csv.DictReader((cohort / "cohort.csv").read_text().splitlines()))


def write_table(folder: Path, rows: list[Row], name: str = "cohort.csv") -> Path:
    with (folder / name).open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder


@pytest.fixture
def cohort(sample_data: Path, tmp_path: Path) -> Path:
    """A small cohort of its own, to be damaged."""
    folder = tmp_path / "cohort"
    (folder / "nifti").mkdir(parents=True)
    rows = rows_of(sample_data)
    for row in rows:
        for file in (row["image"], row["mask"]):
            shutil.copy(sample_data / file, folder / file)
    return write_table(folder, rows)


@pytest.fixture(scope="module")
def run(sample_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has not seen ``crested``."""
    folder = tmp_path_factory.mktemp("run")
    rows = [{**r, **{k: str(sample_data / r[k]) for k in ("image", "mask")}} for r in rows_of(sample_data)]
    command(["train", str(write_table(folder, rows) / "cohort.csv"), "--out", str(folder / "run"), *QUICK], 0)
    return folder / "run"


QUICK = ["--learner", "prototypical", "--steps", "1", "--pretrain", "0", "--hold-out", "crested"]


def command(arguments: list[str], code: int) -> None:
    """Run the command line as a shell would."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["medmeta", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
    assert ended.value.code == code


@pytest.fixture
def refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that must be refused; what it said, in one line, with nothing left behind."""

    def check(*arguments: object) -> str:
        before = {p for p in tmp_path.rglob("*") if "cohort" not in p.parts}
        capfd.readouterr()
        command([str(a) for a in arguments], 2)
        said = capfd.readouterr()
        (line,) = [part for part in said.err.splitlines() if part.startswith("medmeta:")]
        assert "Traceback" not in said.err
        assert "wanted" in line
        assert "found" in line
        assert {p for p in tmp_path.rglob("*") if "cohort" not in p.parts} == before
        return line

    return check


def test_folders_that_are_not_there_or_empty(refused: Callable[..., str], tmp_path: Path) -> None:
    out = ("--out", tmp_path / "run")
    assert "found nothing at the path" in refused("train", tmp_path / "nowhere", *out)
    (tmp_path / "empty").mkdir()
    refused("train", tmp_path / "empty", *out)
    refused("evaluate", tmp_path / "empty", tmp_path / "empty", "--tumor", "x", *out)
    refused("advise", tmp_path / "empty", "--tumor", "x")
    refused("select", tmp_path / "empty", "--shots", "2")
    refused("adapt", tmp_path / "empty", tmp_path / "empty", *out)
    refused("predict", tmp_path / "empty", tmp_path / "empty", *out)


def test_a_list_of_images_names_its_cure(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "cohort.csv").write_text("patient,image\na,a.nii.gz\n")
    assert "found a list of them, cohort.csv. Give the folder" in refused("inspect", tmp_path / "cohort.csv")


def test_too_few_patients(refused: Callable[..., str], cohort: Path, run: Path, tmp_path: Path) -> None:
    rows = table(cohort)
    write_table(cohort, rows[:1])
    assert "patient" in refused("train", cohort, "--out", tmp_path / "run")
    write_table(cohort, rows)
    said = refused("evaluate", run, cohort, "--tumor", "crested", "--shots", "5", "--out", tmp_path / "r")
    assert "5 support" in said
    assert "found 4" in said


def other_shape(image: Path, mask: Path) -> None:
    shape = nibabel.load(image).shape
    new = np.zeros((shape[0] + 1, *shape[1:]), np.uint8)
    new[5:9, 5:9, 5:9] = 1
    nibabel.save(nibabel.Nifti1Image(new, nibabel.load(image).affine), mask)


def other_affine(image: Path, mask: Path) -> None:
    old = nibabel.load(mask)
    voxels, affine = np.asarray(old.dataobj), old.affine.copy()
    affine[0, 3] += 4.0
    nibabel.save(nibabel.Nifti1Image(voxels, affine), mask)


def nan_voxels(image: Path, mask: Path) -> None:
    old = nibabel.load(image)
    voxels, affine = np.asarray(old.dataobj).astype(np.float32), old.affine
    voxels[3, 3, 3] = np.nan
    nibabel.save(nibabel.Nifti1Image(voxels, affine), image)


def truncated(image: Path, mask: Path) -> None:
    image.write_bytes(image.read_bytes()[:-2000])


def flipped_bit(image: Path, mask: Path) -> None:
    content = bytearray(gzip.decompress(image.read_bytes()))
    packed = bytearray(gzip.compress(bytes(content), mtime=0))
    packed[-6] ^= 1  # the check sum at the end no longer fits
    image.write_bytes(bytes(packed))


def empty_mask(image: Path, mask: Path) -> None:
    old = nibabel.load(mask)
    voxels, affine = np.zeros(old.shape, np.uint8), old.affine
    nibabel.save(nibabel.Nifti1Image(voxels, affine), mask)


@pytest.mark.parametrize(
    "damage",
    [other_shape, other_affine, nan_voxels, truncated, flipped_bit, empty_mask],
    ids=lambda f: f.__name__,
)
def test_a_damaged_file_is_named(
    refused: Callable[..., str], cohort: Path, tmp_path: Path, damage: Callable[[Path, Path], None]
) -> None:
    row = table(cohort)[0]
    damage(cohort / row["image"], cohort / row["mask"])
    said = refused("train", cohort, "--out", tmp_path / "run", *QUICK)
    assert Path(row["image"]).name.removesuffix(".nii.gz") in said


def test_a_mask_without_the_label_asked_for(
    refused: Callable[..., str], cohort: Path, tmp_path: Path
) -> None:
    rows = table(cohort)
    made = cohort / "as_nnunet"
    for name in ("imagesTr", "labelsTr"):
        (made / name).mkdir(parents=True)
    for n, row in enumerate(rows):
        shutil.copy(cohort / row["image"], made / "imagesTr" / f"case{n}_0000.nii.gz")
        shutil.copy(cohort / row["mask"], made / "labelsTr" / f"case{n}.nii.gz")
    about = {
        "channel_names": {"0": "T2"},
        "labels": {"background": 0, "liver": 2},
        "numTraining": len(rows),
        "file_ending": ".nii.gz",
    }
    (made / "dataset.json").write_text(json.dumps(about))
    said = refused("train", made, "--out", tmp_path / "run", "--learner", "prototypical", "--steps", "1")
    assert "label" in said


def test_a_series_with_a_missing_slice(
    refused: Callable[..., str], sample_data: Path, cohort: Path, tmp_path: Path
) -> None:
    series = next(p for p in sorted((sample_data / "dicom").iterdir()) if (p / "seg.dcm").is_file())
    shutil.copytree(series, cohort / "series")
    sorted((cohort / "series" / "image").iterdir())[12].unlink()
    rows = table(cohort)
    damaged = {**rows[0], "patient": "X", "image": "series/image", "mask": "series/seg.dcm"}
    write_table(cohort, [*rows, damaged])
    said = refused("train", cohort, "--out", tmp_path / "run", *QUICK)
    assert "missing" in said or "slice" in said


def test_names_that_are_not_known_get_the_nearest(
    refused: Callable[..., str], cohort: Path, run: Path, tmp_path: Path
) -> None:
    out = ("--out", tmp_path / "run")
    assert "proto-maml" in refused("train", cohort, "--learner", "proto-mamll", *out)
    assert "crested" in refused("train", cohort, "--hold-out", "crestd", *out)
    assert "crested" in refused("evaluate", run, cohort, "--tumor", "crestd", *out)
    assert "crested" in refused("advise", cohort, "--tumor", "crestd")
    assert "annular" in refused("advise", cohort, "--tumor", "annular", "--run", run)
    assert "more than 500 patients" in refused("select", cohort, "--shots", "500")
    assert "segmentation" in refused("train", cohort, "--task", "segmentatoin", *out)
    assert "--hold-out annular" in refused("evaluate", run, cohort, "--tumor", "annular", *out)


def test_what_is_there_is_not_written_over(
    refused: Callable[..., str], cohort: Path, run: Path, tmp_path: Path
) -> None:
    there = tmp_path / "there"
    there.mkdir()
    (there / "mine.txt").write_text("kept")
    for arguments in (
        ["train", cohort],
        ["evaluate", run, cohort, "--tumor", "crested", "--shots", "1"],
        ["adapt", run, cohort, "--tumor", "crested"],
        ["quickstart"],
    ):
        assert "--out" in refused(*arguments, "--out", there)
    assert (there / "mine.txt").read_text() == "kept"


def test_a_run_of_another_version(
    refused: Callable[..., str], cohort: Path, run: Path, tmp_path: Path
) -> None:
    old = tmp_path / "old"
    shutil.copytree(run, old)
    config = json.loads((old / "config.json").read_text())
    (old / "config.json").write_text(json.dumps({**config, "format": 999}))
    said = refused("evaluate", old, cohort, "--tumor", "crested", "--out", tmp_path / "report")
    assert "999" in said


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["medmeta", "train", str(tmp_path / "nowhere"), "--out", "x", "--debug"])
        with pytest.raises(MedmetaError, match="a cohort folder"):
            main()
