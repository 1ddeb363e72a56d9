"""Whole scans: one case that fails stops no other, nothing half done is left."""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import highdicom as hd
import nibabel
import numpy as np
import pydicom
import pytest
from PIL import Image

from medmeta.clinical import BundleError, export, predict
from medmeta.clinical.cases import opened, read_channels
from medmeta.clinical.choose import Rules, study
from medmeta.clinical.dicom_objects import Maker, write_seg
from medmeta.clinical.outputs import FORMATS
from medmeta.volumes import load, load_mask
from medmeta.volumes.dicom_series import Choice
from tests.volumes.phantoms import classic, save, voxels


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
    # a pipeline that goes on where it was stopped reads on from the same lines
    assert len(results[0]["files"]) == len(results[1]["files"]) > 0
    assert all((tmp_path / "out" / name).is_file() for r in results for name in r["files"])


def test_results_have_a_name_that_can_be_seen(
    flat_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``..`` was taken for the name of a case, and results of hidden scans were hidden and not said."""
    study = tmp_path / "study"
    save(classic(voxels((2, 20, 24))), study / "image")
    monkeypatch.chdir(study / "image")
    hidden = scan(tmp_path / ".scan.nii.gz", (20, 24, 1))
    results = predict(flat_bundle, ["..", hidden], tmp_path / "out")
    assert [(r["case"], r["files"]) for r in results] == [
        ("study", ["study/study_seg.nii.gz"]),
        ("scan", ["scan/scan_seg.nii.gz"]),
    ]
    with pytest.raises(BundleError, match="the same one at places 1 and 2"):
        predict(flat_bundle, ["../image", "."], tmp_path / "out")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def test_another_scan_of_the_same_name_is_not_taken_for_done(flat_bundle: Path, tmp_path: Path) -> None:
    one, other = (scan(tmp_path / n / "scan.nii.gz", (20, 24, size)) for n, size in (("a", 1), ("b", 2)))
    fresh = scan(tmp_path / "fresh.nii.gz", (20, 24, 1))
    predict(flat_bundle, [one], tmp_path / "out")
    before = contents(tmp_path / "out")
    refused, made = predict(flat_bundle, [other, fresh], tmp_path / "out", resume=True)
    assert (refused["ok"], refused["skipped"], refused["files"]) == (False, False, [])
    assert "found those of another scan" in refused["message"]
    assert made["ok"]
    assert {k: v for k, v in contents(tmp_path / "out").items() if k in before} == before
    # the same scan elsewhere is the same scan
    moved = Path(shutil.copy(one, scan(tmp_path / "c" / "scan.nii.gz", (2, 2, 1))))
    (there,) = predict(flat_bundle, [moved], tmp_path / "out", resume=True)
    assert (there["ok"], there["skipped"]) == (True, True)
    # of a study's series another may be asked for
    (refused,) = predict(flat_bundle, [one], tmp_path / "out", resume=True, series=Choice(modality="CT"))
    assert "mask or series" in refused["message"]


def test_what_another_bundle_or_an_older_version_made_is_left(
    flat_bundle: Path, flat_parts: Callable[[], dict[str, Any]], tmp_path: Path
) -> None:
    file = scan(tmp_path / "scan.nii.gz", (20, 24, 1))
    predict(flat_bundle, [file], tmp_path / "out")
    before = contents(tmp_path / "out")
    another = export(**flat_parts(), about={"seed": 1}, out=tmp_path / "another")
    (refused,) = predict(another, [file], tmp_path / "out", resume=True)
    assert "found those of another bundle" in refused["message"]
    assert contents(tmp_path / "out") == before
    (tmp_path / "out" / "scan" / ".origin.json").unlink()
    (refused,) = predict(flat_bundle, [file], tmp_path / "out", resume=True)
    assert not refused["ok"]
    assert "does not say what it was made from" in refused["message"]


def test_a_case_without_a_format_is_made_again(flat_bundle: Path, tmp_path: Path) -> None:
    file = scan(tmp_path / "scan.nii.gz", (20, 24, 1))
    predict(flat_bundle, [file], tmp_path / "out")
    (again,) = predict(flat_bundle, [file], tmp_path / "out", formats=("json",), resume=True)
    assert (again["ok"], again["skipped"]) == (True, False)
    assert again["files"] == ["scan/scan.json", "scan/scan_seg.nii.gz"]
    (there,) = predict(flat_bundle, [file], tmp_path / "out", formats=("nifti", "json"), resume=True)
    assert there["skipped"]
    (tmp_path / "out" / "scan" / "scan_seg.nii.gz").unlink()
    (again,) = predict(flat_bundle, [file], tmp_path / "out", resume=True)
    assert (again["skipped"], len(again["files"])) == (False, 2)
    # one that cannot be made leaves what there is
    before = contents(tmp_path / "out")
    (failed,) = predict(flat_bundle, [file], tmp_path / "out", formats=("seg",), resume=True)
    assert "wanted a DICOM series" in failed["message"]
    assert contents(tmp_path / "out") == before
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["scan"]


def test_what_is_kept_of_a_scan_tells_of_no_patient(flat_bundle: Path, tmp_path: Path) -> None:
    file = scan(tmp_path / "DOE^JOHN" / "scan.nii.gz", (20, 24, 1))
    predict(flat_bundle, [file], tmp_path / "out")
    predict(flat_bundle, [file], tmp_path / "again")
    one, other = (json.loads((tmp_path / n / "scan/.origin.json").read_text()) for n in ("out", "again"))
    assert set(one) == {"salt", "scan", "bundle", "formats"}
    assert one["scan"] != other["scan"]  # equal scans are not to be told by equal hashes
    assert "DOE" not in str(one)
    assert str(tmp_path) not in str(one)


@pytest.mark.parametrize("error", [MemoryError("4 GiB of SECRET"), ValueError("SECRET"), KeyError("SECRET")])
def test_an_error_that_nobody_foresaw_stops_no_other_and_is_not_quoted(
    flat_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
) -> None:
    module = importlib.import_module("medmeta.clinical.predict")
    segment = module.segment

    def fails_at_first(*given: Any) -> Any:
        monkeypatch.setattr(module, "segment", segment)
        raise error

    monkeypatch.setattr(module, "segment", fails_at_first)
    caplog.set_level(logging.INFO)
    files = [scan(tmp_path / f"{name}.nii.gz", (20, 24, 1)) for name in "ab"]
    failed, made = predict(flat_bundle, files, tmp_path / "out")
    assert (failed["ok"], made["ok"]) == (False, True)
    assert f"found an error of the kind {type(error).__name__}" in failed["message"]
    assert "SECRET" not in failed["message"] + caplog.text
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["b"]


def test_a_case_that_another_program_made_meanwhile_is_left(
    flat_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, theirs = importlib.import_module("medmeta.clinical.predict"), tmp_path / "out" / "a" / "theirs"
    segment = module.segment

    def meanwhile(*given: Any) -> Any:
        theirs.parent.mkdir()
        theirs.write_text("another scan's")
        return segment(*given)

    monkeypatch.setattr(module, "segment", meanwhile)
    (refused,) = predict(flat_bundle, [scan(tmp_path / "a.nii.gz", (20, 24, 1))], tmp_path / "out")
    assert not refused["ok"]
    assert [p.name for p in (tmp_path / "out").rglob("*") if p.is_file()] == ["theirs"]


@pytest.mark.parametrize("moment", [0, 1, 2])
@pytest.mark.parametrize("after", [False, True])
def test_a_signal_while_a_case_is_exchanged_leaves_one_whole(
    moment: int, after: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before or just after any of the renames: the older case or the new one, nothing else."""
    module = importlib.import_module("medmeta.clinical.predict")
    for name in ("made", "case"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    replace, times = os.replace, iter(range(9))

    def interrupted(one: Path, other: Path) -> None:
        now = next(times)
        if now == moment and not after:
            raise KeyboardInterrupt
        replace(one, other)
        if now == moment:
            raise KeyboardInterrupt

    monkeypatch.setattr(module.os, "replace", interrupted)
    with contextlib.suppress(KeyboardInterrupt):
        module._exchange(tmp_path / "made", tmp_path / "case")
    assert (tmp_path / "case" / "file").read_text() in ("made", "case")
    assert {p.name for p in tmp_path.iterdir()} <= {"made", "case"}


def test_a_file_where_the_folder_is_to_be(flat_bundle: Path, tmp_path: Path) -> None:
    file = scan(tmp_path / "scan.nii.gz", (20, 24, 1))
    for out in (file, file / "below"):
        with pytest.raises(BundleError, match="wanted a folder to write, found a file"):
            predict(flat_bundle, [file], out)


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
    with pytest.raises(BundleError, match="wanted 4 different scans, found the same one at places 2 and 4"):
        predict(flat_bundle, ["b.nii", "a.nii", "c.nii", Path("a.nii").absolute()], tmp_path / "out")


def test_what_the_files_of_several_channels_warn_of_is_said_once(tmp_path: Path) -> None:
    turned = nibabel.Nifti1Image(np.ones((6, 7, 2), np.float32), np.eye(4))
    turned.set_qform(np.diag([1.0, 1.0, 2.0, 1.0]), code=1)
    turned.set_sform(np.eye(4), code=1)
    turned.to_filename(tmp_path / "t2.nii.gz")
    plain = scan(tmp_path / "t1.nii.gz", (6, 7, 2))
    image, warnings = read_channels((plain, tmp_path / "t2.nii.gz"), 2)
    assert tuple(image.shape) == (2, 6, 7, 2)
    assert [w.split(":")[0] for w in warnings] == ["channel 2"]
    assert "qform" in warnings[0]
    save(classic(voxels((2, 7, 6))), tmp_path / "dicom")  # a series and a NIfTI, of one grid or none
    with opened((tmp_path / "dicom",), 1, Rules()) as alone:
        assert alone.stack is not None
        assert alone.facts()["warnings"] == list(alone.stack.warnings)


def test_pictures_of_several_channels_have_no_voxel_size(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        Image.fromarray(np.arange(42, dtype=np.uint8).reshape(6, 7)).save(tmp_path / name)
    image, warnings = read_channels((tmp_path / "a.png", tmp_path / "b.png"), 2)
    assert tuple(image.shape) == (2, 7, 6, 1)
    assert ["voxel size unknown" in warning for warning in warnings].count(True) == 1


def test_dicom_objects_say_what_the_nifti_says(
    segment_bundle: Path, unseen: tuple[Path, Path], tmp_path: Path
) -> None:
    (result,) = predict(segment_bundle, [unseen[1]], tmp_path / "out", formats=FORMATS)
    assert result["ok"], result
    case = result["case"]
    assert [Path(f).name for f in result["files"]] == [
        f"{case}{end}"
        for end in (".json", "_preview.html", "_preview.png", "_seg.dcm", "_seg.nii.gz", "_sr.dcm")
    ]
    folder = tmp_path / "out" / case
    image = load(unseen[1])
    nifti, seg = (
        load_mask(folder / f"{case}_seg.{end}", like=image).as_tensor() for end in ("nii.gz", "dcm")
    )
    assert nifti.any()
    assert np.array_equal(nifti, seg)
    # an independent reader: each segment's frames by the source image they refer to
    data = hd.seg.segread(folder / f"{case}_seg.dcm")
    frames = [pydicom.dcmread(file) for file in sorted(unseen[1].iterdir())]
    read = data.get_pixels_by_source_instance(
        [f.SOPInstanceUID for f in frames], combine_segments=True, assert_missing_frames_are_empty=True
    )
    heights = [
        float(np.dot(f.ImagePositionPatient, np.cross(*np.reshape(f.ImageOrientationPatient, (2, 3)))))
        for f in frames
    ]
    own = nifti[0].numpy().transpose(2, 1, 0)
    order = np.argsort(heights)
    assert np.array_equal(read[order], own) or np.array_equal(read[order[::-1]], own)
    report = hd.sr.srread(folder / f"{case}_sr.dcm")
    (group,) = report.content.get_volumetric_roi_measurement_groups()
    measured, *_ = group.get_measurements()
    millilitres = float(nifti.sum()) * abs(np.linalg.det(image.affine.numpy()[:3, :3])) / 1000
    assert measured.value == pytest.approx(millilitres, rel=1e-3)
    assert group.reference_type is not None


def test_a_dicom_object_needs_a_dicom_scan(
    segment_bundle: Path, unseen: tuple[Path, Path], tmp_path: Path
) -> None:
    (result,) = predict(segment_bundle, [unseen[0]], tmp_path / "out", formats=("seg",))
    assert not result["ok"]
    assert "wanted a DICOM series" in result["message"]
    with pytest.raises(BundleError, match="formats among"):
        predict(segment_bundle, [unseen[0]], tmp_path / "out", formats=("sge",))


def test_an_empty_segmentation_and_an_anonymisers_dates(unseen: tuple[Path, Path], tmp_path: Path) -> None:
    series = Path(shutil.copytree(unseen[1], tmp_path / "series"))
    for file in series.iterdir():
        ds = pydicom.dcmread(file)
        with pydicom.config.disable_value_validation():
            ds.PatientBirthDate = "***"
            ds.save_as(file)
    image = load(series)
    labels = np.zeros(tuple(image.shape[1:]), np.uint8)
    with study(series, Rules()) as found:
        assert found is not None
        write_seg(labels, found[0], ("background", "glioma"), tmp_path / "empty.dcm", maker=Maker("test"))
    assert not hd.seg.segread(tmp_path / "empty.dcm").pixel_array.any()


def test_channels_on_a_fourth_axis_or_in_files_of_their_own(tmp_path: Path) -> None:
    both = np.random.default_rng(0).random((6, 7, 5, 2)).astype(np.float32)
    nibabel.Nifti1Image(both, np.eye(4)).to_filename(tmp_path / "both.nii.gz")
    files = [tmp_path / f"{n}.nii.gz" for n in range(2)]
    for n, file in enumerate(files):
        nibabel.Nifti1Image(both[..., n], np.eye(4)).to_filename(file)
    (one, _), (two, _) = read_channels([tmp_path / "both.nii.gz"], 2), read_channels(files, 2)
    assert one.shape == (2, 6, 7, 5)
    assert np.array_equal(one.numpy(), two.numpy())


def test_what_is_odd_of_a_file_that_is_no_dicom_is_in_its_result(flat_bundle: Path, tmp_path: Path) -> None:
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 255, (24, 20), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "slice.png")
    image = nibabel.Nifti1Image(pixels.T[..., None].astype(np.float32), np.diag([2.0, 2.0, 2.0, 1.0]))
    image.set_sform(np.diag([2.0, 2.0, 2.0, 1.0]), code=1)
    image.set_qform(np.array([[2.0, 0, 0, 5], [0, 2.0, 0, 0], [0, 0, 2.0, 0], [0, 0, 0, 1]]), code=1)
    image.to_filename(tmp_path / "moved.nii.gz")
    plain = scan(tmp_path / "plain.nii.gz", (20, 24, 1))
    formats = ("json", "html")
    results = predict(
        flat_bundle,
        [tmp_path / "slice.png", tmp_path / "moved.nii.gz", plain],
        tmp_path / "out",
        formats=formats,
    )
    assert [r["case"] for r in results] == ["slice", "moved", "plain"]  # no name with two suffixes
    assert ["voxel size unknown" in str(r["warnings"]) for r in results] == [True, False, False]
    assert ["qform" in str(r["warnings"]) for r in results] == [False, True, False]
    said = [(tmp_path / "out" / r["case"] / f"{r['case']}_preview.html").read_text() for r in results]
    assert ["voxel size unknown" in page for page in said] == [True, False, False]
