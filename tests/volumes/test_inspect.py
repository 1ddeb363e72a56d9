"""inspect: every volume, its verdict, its labels; nothing of the patient."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from typer.testing import CliRunner

from medmeta.cli import app
from medmeta.volumes import VolumeError, inspect, load, load_mask, patient_key
from tests.volumes.phantoms import MR, PET, SECRETS, affine, classic, enhanced, save, voxels
from tests.volumes.test_dicom_masks import SHAPE, mask, source, square, structures, write

KEYS = {
    "path",
    "ok",
    "code",
    "message",
    "patient",
    "modality",
    "unit",
    "shape",
    "spacing_mm",
    "affine",
    "labels",
    "warnings",
}


def nifti(file: Path, array: Any, place: Any = None) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    nibabel.Nifti1Image(array, np.diag([1.0, 2, 5, 1]) if place is None else place).to_filename(file)
    return file


def by_path(folder: Path) -> dict[str, dict[str, Any]]:
    found = inspect(folder)
    json.dumps(found, allow_nan=False)
    assert all(set(entry) >= KEYS for entry in found)
    return {entry["path"]: entry for entry in found}


def test_a_study(tmp_path: Path) -> None:
    _, made = source(tmp_path / "study")
    write(made, mask(), tmp_path / "study" / "seg.dcm")
    structures(made, [("CLOSED_PLANAR", square(0.5, 4.5, 2))], tmp_path / "study" / "rt.dcm")
    save(classic(voxels(SHAPE), sop_class=MR, modality="MR"), tmp_path / "study" / "mr")
    found = by_path(tmp_path)
    image = found["study/image"]
    assert image["ok"]
    assert (image["modality"], image["unit"]) == ("CT", "HU")
    assert image["shape"] == [10, 12, 6]
    assert image["spacing_mm"] == pytest.approx([0.9, 0.7, 2.5])
    np.testing.assert_allclose(image["affine"], affine(), atol=1e-5)
    assert image["labels"] == {
        "core": int((mask() == 1).sum()),
        "Edema": int((mask() == 2).sum()),
        "GTV": 16,
    }
    assert image["labels_ml"]["GTV"] == pytest.approx(16 * 0.9 * 0.7 * 2.5 / 1000, abs=1e-3)
    assert found["study/mr"]["ok"]
    assert len(found) == 2
    assert image["patient"] == found["study/mr"]["patient"] != ""


def test_each_series_of_a_folder_has_its_own_verdict(tmp_path: Path) -> None:
    good, gap = classic(voxels(SHAPE)), classic(voxels(SHAPE))
    both = [*good, *gap[:2], *gap[3:]]
    save(both, tmp_path, names=[f"{n:03d}" for n in range(len(both))])
    found = inspect(tmp_path)
    assert [entry["ok"] for entry in found].count(True) == 1
    assert {entry["code"] for entry in found} == {"", "missing-slice"}
    (right,) = [entry for entry in found if entry["ok"]]
    assert load(tmp_path, series=right["series"]).shape == (1, *right["shape"])


def test_a_mask_that_does_not_fit_is_a_finding_of_its_own(tmp_path: Path) -> None:
    array = np.zeros((4, 5, 6), np.int16)
    nifti(tmp_path / "imagesTr/a.nii.gz", array)
    nifti(tmp_path / "imagesTr/b.nii.gz", array)
    nifti(tmp_path / "labelsTr/a.nii.gz", (array + 1).astype(np.uint8))
    nifti(tmp_path / "labelsTr/b.nii.gz", (array + 1).astype(np.uint8)[:2])
    (tmp_path / "dataset.json").write_text('{"labels": {"0": "background", "1": "edema"}}')
    found = by_path(tmp_path)
    assert found["imagesTr/a.nii.gz"]["labels"] == {"edema": 120}
    assert found["imagesTr/a.nii.gz"]["labels_ml"] == {"edema": 1.2}
    assert found["imagesTr/b.nii.gz"]["ok"]
    assert found["labelsTr/b.nii.gz"]["code"] == "other-grid"
    assert "labelsTr/a.nii.gz" not in found


@pytest.mark.parametrize(
    ("images", "mask_name"),
    [
        (["p1_t1c.nii.gz", "p1_flair.nii.gz"], "p1_seg.nii.gz"),
        (["p1.nii.gz"], "p1_mask.nii.gz"),
        (["p1_image.nii.gz"], "p1_label.nii.gz"),
        (["imagesTr/p1_0000.nii.gz", "imagesTr/p1_0001.nii.gz"], "labelsTr/p1.nii.gz"),
        (["images/p1.nii"], "masks/p1.nii"),
        (["p1/scan.nii"], "p1/scan-seg.nii"),
        (["p1/t1.nii.gz"], "p1/mask.nii.gz"),
    ],
)
def test_masks_find_their_images(tmp_path: Path, images: list[str], mask_name: str) -> None:
    array = np.zeros((4, 5, 6), np.uint8)
    array[1:3] = 3
    for name in images:
        nifti(tmp_path / name, array)
        nifti(tmp_path / name.replace("p1", "p12"), array)
    nifti(tmp_path / mask_name, array)
    found = by_path(tmp_path)
    assert sorted(found) == sorted([*images, *(name.replace("p1", "p12") for name in images)])
    for name in images:
        assert found[name]["labels"] == {"3": 60}
        assert found[name.replace("p1", "p12")]["labels"] == {}
    assert len({found[name]["patient"] for name in images}) == 1


def test_several_masks_of_one_image_are_counted_apart(tmp_path: Path) -> None:
    """Two raters', or a file an organ; the count of one does not take the place of the other's."""
    array = np.zeros((4, 5, 6), np.uint8)
    nifti(tmp_path / "a.nii.gz", array)
    for number in (1, 2):
        array[:number] = 1
        nifti(tmp_path / f"a_mask_rater{number}.nii.gz", array)
    array[3] = 2
    nifti(tmp_path / "a_seg.nii.gz", array)
    _, made = source(tmp_path / "study")
    drawn = mask()
    for name in ("one", "two"):
        (tmp_path / "study" / name).mkdir()
    write(made, drawn, tmp_path / "study" / "one" / "seg.dcm")
    drawn[1] = 0
    write(made, drawn, tmp_path / "study" / "two" / "seg.dcm")
    found = by_path(tmp_path)
    assert set(found) == {"a.nii.gz", "study/image"}
    assert found["a.nii.gz"]["labels"] == {
        "1": 30,
        "1 (a_mask_rater2.nii.gz)": 60,
        "1 (a_seg.nii.gz)": 60,
        "2": 30,
    }
    assert found["a.nii.gz"]["labels_ml"]["1 (a_mask_rater2.nii.gz)"] == 0.6
    assert found["a.nii.gz"]["warnings"] == ["several masks of it have the label 1"]
    labels = found["study/image"]["labels"]
    assert labels == {
        "core": 36,
        "Edema": 12,
        "core (study/two/seg.dcm)": 18,
        "Edema (study/two/seg.dcm)": 12,
    }
    assert found["study/image"]["warnings"] == ["several masks of it have the label core, Edema"]


def test_volumes_of_formats_that_are_not_read_are_said(tmp_path: Path) -> None:
    array = np.ones((4, 5, 6), np.int16)
    nifti(tmp_path / "a.nii.gz", array)
    nibabel.AnalyzeImage(array, np.eye(4)).to_filename(tmp_path / "old.hdr")
    nibabel.Nifti1Pair(array, np.eye(4)).to_filename(tmp_path / "pair.img")
    nibabel.MGHImage(array, np.eye(4)).to_filename(tmp_path / "brain.mgz")
    (tmp_path / "spectrum.hdr").write_text("ENVI\n")  # a header of something else
    (tmp_path / "disk.img").write_bytes(b"x")
    found = by_path(tmp_path)
    assert {path for path, entry in found.items() if not entry["ok"]} == {"old.hdr", "pair.hdr", "brain.mgz"}
    assert set(found) == {"a.nii.gz", "old.hdr", "pair.hdr", "brain.mgz"}
    assert {found[name]["code"] for name in ("old.hdr", "pair.hdr", "brain.mgz")} == {"not-a-volume"}
    assert "Convert it to a NIfTI of one file" in found["old.hdr"]["message"]
    for name in ("old.hdr", "old.img"):
        with pytest.raises(VolumeError, match="found an Analyze or NIfTI pair"):
            load(tmp_path / name)
        with pytest.raises(VolumeError, match="found an Analyze or NIfTI pair"):
            load_mask(tmp_path / name, like=load(tmp_path / "a.nii.gz"))


def test_an_empty_mask_is_said(tmp_path: Path) -> None:
    nifti(tmp_path / "a.nii.gz", np.zeros((4, 5, 6), np.uint8))
    nifti(tmp_path / "a_seg.nii.gz", np.zeros((4, 5, 6), np.uint8))
    (entry,) = inspect(tmp_path)
    assert entry["warnings"] == ["the mask is empty"]


def test_a_single_file_and_nothing(tmp_path: Path) -> None:
    file = nifti(tmp_path / "a.nii.gz", np.zeros((4, 5, 6), np.uint8))
    (entry,) = inspect(file)
    assert entry["path"] == "a.nii.gz"
    folder = save([enhanced(voxels(SHAPE))], tmp_path / "d")
    assert inspect(folder / "000.dcm")[0]["shape"] == [10, 12, 6]
    (tmp_path / "empty").mkdir()
    for path, code in ((tmp_path / "empty", "not-a-volume"), (tmp_path / "gone", "not-found")):
        with pytest.raises(VolumeError) as caught:
            inspect(path)
        assert caught.value.code == code


def test_a_zip_is_looked_into(tmp_path: Path) -> None:
    import shutil

    save(classic(voxels(SHAPE)), tmp_path / "s" / "ct")
    shutil.make_archive(str(tmp_path / "all"), "zip", tmp_path / "s")
    shutil.rmtree(tmp_path / "s")
    (entry,) = inspect(tmp_path)
    assert entry["path"] == "all.zip/ct"
    assert entry["ok"]


def test_pixels_are_not_read(tmp_path: Path) -> None:
    """A series whose pixel data are nothing but a promise is judged by its header all the same."""
    folder = save(classic(voxels((3, 512, 512))), tmp_path / "s")
    for file in folder.iterdir():
        whole = file.stat().st_size
        with open(file, "r+b") as out:
            out.truncate(whole - 512 * 512 * 2)
            out.truncate(whole)  # a hole: no block of it on the disk
    (entry,) = inspect(tmp_path)
    assert entry["ok"]


def test_many_headers_in_several_processes_are_the_same(tmp_path: Path) -> None:
    from medmeta.volumes import headers

    files = []
    for number in range(6):
        files += sorted(save(classic(voxels(SHAPE)), tmp_path / str(number)).iterdir())
    (tmp_path / "0" / "000.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\xff" * 40)
    alone = list(headers.read_headers(files, workers=1, track=headers.silent))
    several = list(headers.read_headers(files, workers=2, track=headers.silent, least=1))
    assert [str(one) for one in several] == [str(one) for one in alone]
    assert isinstance(several[0], VolumeError)


# -- privacy ------------------------------------------------------------------------------------------------


def test_nothing_tells_of_the_patient(tmp_path: Path, caplog: Any, capfd: Any) -> None:
    caplog.set_level(logging.DEBUG)
    home = tmp_path / "MUELLER_HANS_1957"
    folder, made = source(home / "a")
    write(made, mask(), home / "a" / "seg.dcm")
    bad = classic(voxels(SHAPE))
    save(bad[:2] + bad[3:], home / "b")
    save(classic(voxels(SHAPE), sop_class=PET, modality="PT"), home / "c")
    (save(classic(voxels(SHAPE)), home / "d") / "000.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\xff" * 40)
    caplog.clear()  # of what writing the files said
    told = [json.dumps(inspect(home)), str(load(folder).meta), str(load(home / "c").meta)]
    for path in (home / "b", home / "d", home / "a", home / "gone"):
        with pytest.raises(VolumeError) as caught:
            load(path, series="1.2.3")
        told += [str(caught.value), repr(caught.value.__cause__)]
    shown = capfd.readouterr()
    told += [shown.out, shown.err, caplog.text]
    uids = [made[0].SeriesInstanceUID, made[0].FrameOfReferenceUID, made[0].StudyInstanceUID]
    for secret in (*SECRETS, *SECRETS[0].split("^"), *uids, "MUELLER", "20200102", str(tmp_path)):
        assert not [text for text in told if secret in text], secret


def test_patient_keys_need_the_salt(tmp_path: Path) -> None:
    save(classic(voxels(SHAPE)), tmp_path / "s")
    first, second = inspect(tmp_path)[0]["patient"], inspect(tmp_path)[0]["patient"]
    assert first != second
    assert inspect(tmp_path, salt="a")[0]["patient"] == inspect(tmp_path, salt="a")[0]["patient"]


# -- scale --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_hundred_thousand_files(tmp_path: Path) -> None:
    """2000 series of 50 slices (links to a few headers with their own numbers would not be 2000 series)."""
    made = classic(voxels((50, 4, 4)))
    import io

    raw = []
    for ds in made:
        out = io.BytesIO()
        pydicom.dcmwrite(out, ds, enforce_file_format=True)
        raw.append(out.getvalue())
    old = made[0].SeriesInstanceUID.encode()
    for number in range(2000):
        folder = tmp_path / f"{number:05d}"
        folder.mkdir()
        new = old[:-5] + f"{number:05d}".encode()
        for index, content in enumerate(raw):
            (folder / f"{index:03d}").write_bytes(content.replace(old, new))
    found = inspect(tmp_path, workers=os.cpu_count())
    assert len(found) == 2000
    assert all(entry["ok"] for entry in found)


def test_the_real_volumes(shared_data: Path) -> None:
    found = {entry["path"]: entry for entry in inspect(shared_data / "volumes")}
    assert all(entry["ok"] for entry in found.values())
    assert found["brain_rois/brain1_image.nii.gz"]["labels"] == {"1": 4137}
    assert len(found["nc/chaos_t2/imagesTr/chaos_01.nii.gz"]["labels"]) == 4
    assert not [path for path in found if "label" in path.lower() or "_seg" in path]


def study(folder: Path) -> Path:
    """A CT with its SEG, a T2 MR, a PET without description, and a NIfTI."""
    _, made = source(folder / "study")
    write(made, mask(), folder / "study" / "seg.dcm")
    for name, modality, sop_class, said in (("a", "MR", MR, "Ax T2 FLAIR"), ("b", "PT", PET, "")):
        slices = classic(voxels(SHAPE), sop_class=sop_class, modality=modality)
        for ds in slices:
            ds.SeriesDescription = said
        save(slices, folder / "study" / name)
    nifti(folder / "other" / "c.nii.gz", np.zeros((4, 5, 6), np.int16))
    return folder


def test_series_are_chosen(tmp_path: Path) -> None:
    folder = study(tmp_path)
    every = {entry["path"]: entry for entry in inspect(folder)}
    assert sorted(every) == ["other/c.nii.gz", "study/a", "study/b", "study/image"]
    for asked, path in (
        ({"modality": "mr"}, "study/a"),
        ({"description": "t2.*flair"}, "study/a"),
        ({"series": every["study/b"]["series"]}, "study/b"),
        ({"modality": "CT", "description": "phantom"}, "study/image"),
    ):
        (found,) = inspect(folder, **asked)
        assert found["path"] == path
        assert found["labels"] == every[path]["labels"]
        assert load(folder, **asked).shape[1:] == tuple(found["shape"])


def test_what_there_is_is_listed_where_nothing_fits(tmp_path: Path) -> None:
    folder = study(tmp_path)
    key = inspect(folder, modality="CT")[0]["series"]
    for asked in ({"modality": "US"}, {"description": "DWI"}, {"series": "1.2.3"}):
        with pytest.raises(VolumeError, match=rf"{key} \(CT 6 files\)") as caught:
            inspect(folder, **asked)
        assert caught.value.code == "no-such-series"
    with pytest.raises(VolumeError, match="found no DICOM series"):
        inspect(folder / "other", modality="CT")
    for look in (inspect, load):
        with pytest.raises(VolumeError, match="no regular expression"):
            look(folder, description="*T2*")


@pytest.mark.parametrize("width", [80, 100])
def test_the_table_can_be_read(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    folder = study(tmp_path)
    nifti(folder / "other/imagesTr/patient_with_a_name_that_goes_on_and_on_0001.nii.gz", np.zeros((4, 5, 6)))
    with pytest.raises(SystemExit) as ended:
        app(["inspect", str(folder)])
    assert ended.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width
    text = " ".join(lines)
    for cell in ("study/image", "CT HU", "MR stored", "10×12×6", "0.9×0.7×2.5", "core:", "0.0"):
        assert cell in text
    # cells are folded over a few lines, never squeezed to a column of letters
    assert len(lines) <= 16
    with pytest.raises(SystemExit):
        app(["inspect", str(folder), "--modality", "MR", "--json"])
    assert [entry["path"] for entry in json.loads(capsys.readouterr().out)] == ["study/a"]


def test_files_of_one_name_are_not_one_patient(tmp_path: Path) -> None:
    for name in ("p1", "p2"):
        nifti(tmp_path / name / "imaging.nii.gz", np.ones((4, 5, 6), np.float32))
        nifti(tmp_path / name / "segmentation.nii.gz", np.ones((4, 5, 6), np.uint8))
    nifti(tmp_path / "p3.nii.gz", np.ones((4, 5, 6), np.float32))
    assert len({entry["patient"] for entry in inspect(tmp_path)}) == 3


def test_a_patient_has_one_key_in_all_paths_of_a_call(tmp_path: Path) -> None:
    save(classic(voxels(SHAPE)), tmp_path / "one")
    save(classic(voxels(SHAPE)), tmp_path / "two")
    made = CliRunner().invoke(app, ["inspect", str(tmp_path / "one"), str(tmp_path / "two"), "--json"])
    first, second = json.loads(made.stdout)
    assert first["patient"] == second["patient"] != ""


def test_names_in_another_encoding(tmp_path: Path) -> None:
    """As an old system wrote them to a disk; the keys and the table are those of any other name."""
    raw = os.fsencode(tmp_path) + b"/M\xfcller.nii.gz"
    try:
        os.rename(nifti(tmp_path / "a.nii.gz", np.ones((4, 5, 6), np.float32)), raw)
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    (entry,) = inspect(tmp_path, salt="s")
    assert entry["ok"]
    assert os.fsencode(tmp_path / entry["path"]) == raw
    assert entry["patient"] == patient_key(os.fsdecode(b"M\xfcller"), "s")
    shown = CliRunner().invoke(app, ["inspect", str(tmp_path)])
    assert shown.exit_code == 0
    assert "M\N{REPLACEMENT CHARACTER}ller" in shown.output
