"""A bundle tried out on cohorts that people have: it runs, or says why it does not."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pydicom
import pytest
import torch
from pydicom.uid import generate_uid

from medmeta.clinical import BundleError
from medmeta.clinical.trial import Tried, _alone, _apart, _last, try_out
from medmeta.learners import create_learner
from medmeta.networks import build, unet
from medmeta.quickstart import Half, _bundle_or_why
from medmeta.training import Run
from medmeta.volumes import Cohort, Plan, Store, Volume, load, open_cohort

NAME = "O'BRIEN^MARY"


@pytest.fixture(scope="module")
def cohort(sample_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    """Two studies called by their patients, each a folder with two series and the SEG of one of them."""
    root = tmp_path_factory.mktemp("cohort")
    for number, patient in enumerate(sorted((sample_data / "dicom").iterdir())[:2]):
        study = Path(shutil.copytree(patient / "image", root / f"{NAME} {number}"))
        shutil.copy(patient / "seg.dcm", study)
        uid = generate_uid()
        for file in sorted((patient / "image").iterdir()):
            ds = pydicom.dcmread(file)
            ds.SeriesInstanceUID, ds.SOPInstanceUID = uid, generate_uid()
            ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
            ds.save_as(study / f"b{file.name}")
    found = open_cohort(root)
    return replace(found, volumes=tuple(replace(v, tumour="glioma") for v in found.volumes))


@pytest.fixture(scope="module")
def half(cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Half:
    """A segmenter that nobody trained."""
    torch.manual_seed(0)
    spec, plan = unet(3, 1, base=2), Plan(3, (6.0, 6.0, 6.0), (16, 16, 16), 1)
    config = {"types": [], "validated_on": [], "seen": [], "salt": "s"}
    learner = create_learner("prototypical", build(spec))
    path = tmp_path_factory.mktemp("run")
    run = Run(learner, plan, "segmentation", (), ("glioma",), spec, config, path)
    nothing: Any = None
    return Half(run, Store(plan), nothing, nothing, nothing)


def test_the_series_of_a_study_with_two_is_run(cohort: Cohort, half: Half, tmp_path: Path) -> None:
    """MONAI would read both as one; and an apostrophe in a path is no end of a string."""
    work = tmp_path / "d'Arc"
    work.mkdir()
    found = try_out(half.run, cohort.volumes, "glioma", work, store=half.store, seed=0)
    assert isinstance(found, Tried)
    assert found.shot == 1
    assert found.overlap is not None
    first = min(cohort.volumes, key=lambda v: v.patient)
    shape = load(first.image[0], series=first.series).shape[1:]
    assert found.grid == " x ".join(map(str, shape))
    written = [p.relative_to(work).as_posix() for p in (work / "predicted").rglob("*") if p.is_file()]
    assert written
    assert "BRIEN" not in str(written)


def test_a_bundle_that_does_not_run_is_kept_and_said(
    cohort: Cohort, half: Half, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.executable", shutil.which("false"))
    told: list[str] = []
    said = _bundle_or_why(cohort, "glioma", half, tmp_path, 0, told.append)
    assert said.startswith("not run: wanted a mask from 'python -m monai.bundle run', found exit code 1")
    assert told == [f"The bundle was {said}"]
    assert "--bundle_root bundle --datalist" in said
    assert (tmp_path / "bundle" / "configs" / "inference.json").is_file()
    for secret in (str(tmp_path), str(cohort.root), "BRIEN"):
        assert secret not in said


def test_a_series_that_is_not_there_is_said(cohort: Cohort, half: Half, tmp_path: Path) -> None:
    volumes = tuple(replace(v, series="1.2.3") for v in cohort.volumes)
    said = _bundle_or_why(replace(cohort, volumes=volumes), "glioma", half, tmp_path, 0, lambda _: None)
    assert said.startswith("not run: wanted a series of that key")
    assert "BRIEN" not in said


def test_files_of_one_series_alone(cohort: Cohort) -> None:
    volume = cohort.volumes[0]
    with _alone(volume) as scan:
        files = sorted(scan.iterdir())
        assert {pydicom.dcmread(f).SeriesInstanceUID for f in files} == {volume.series}
        assert torch.equal(load(scan).as_tensor(), load(volume.image[0], series=volume.series).as_tensor())
    assert not scan.exists()


def test_no_patient_is_adapted_on_and_run(tmp_path: Path) -> None:
    """A patient counts once, however many volumes there are."""
    file = (tmp_path / "x.nii",)

    def of(patient: str, image: tuple[Path, ...] = (tmp_path,), **more: Any) -> Volume:
        return Volume(patient, image, **{"mask": tmp_path / "m", "tumour": "t", **more})

    volumes = [of("b"), of("a", file), of("b", file), of("c", file), of("c"), of("d", mask=None)]
    support, unseen = _apart(volumes)
    assert (unseen, [v.patient for v in support]) == (volumes[0], ["a", "c"])
    many = [of("a"), *(of(f"p{n}") for n in range(9))]
    assert len(_apart(many)[0]) == 5
    for too_few in ([], [of("a"), of("a")], [of("a", file), of("b", file)], [of("a"), of("b", mask=None)]):
        with pytest.raises(BundleError, match="another one with a DICOM series"):
            _apart(too_few)


@pytest.mark.parametrize(
    ("stderr", "said"),
    [
        ("Traceback\nValueError: /home/O'BRIEN/image: no", "ValueError"),
        ("Traceback\nmedmeta.clinical.bundle.BundleError: wanted x, found y. Do z.", "found y"),
        ("", "no error named"),
        ("could not open /home/O'BRIEN", "no error named"),
    ],
)
def test_of_other_programs_errors_only_the_kind_is_said(stderr: str, said: str) -> None:
    assert said in _last(stderr)
    assert "BRIEN" not in _last(stderr)
