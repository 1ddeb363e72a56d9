"""Every layout gives the same list of volumes; what is wrong is counted or refused with its cure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest

from medmeta.volumes import CohortError, VolumeError, inspect, load_mask, open_cohort
from medmeta.volumes import load as load_image
from medmeta.volumes.layouts.labels import label_values
from tests.volumes.test_dicom_masks import mask as segments
from tests.volumes.test_dicom_masks import source, write


def save(file: Path, voxels: np.ndarray) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), file)
    return file


def image(file: Path, seed: int = 0) -> Path:
    return save(file, np.random.default_rng(seed).random((6, 5, 4), dtype=np.float32))


def mask(file: Path, labels: Sequence[int]) -> Path:
    voxels = np.zeros((6, 5, 4), dtype=np.uint8)
    for i, label in enumerate(labels):
        voxels[i] = label
    return save(file, voxels)


def table(
    folder: Path, *rows: str, header: str = "patient,image,mask,tumor", name: str = "cohort.csv"
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("\n".join([header, *rows, ""]))
    return folder


def test_table_gives_a_volume_a_row(tmp_path: Path) -> None:
    image(tmp_path / "a.nii.gz")
    mask(tmp_path / "a_mask.nii.gz", [1])
    table(
        tmp_path, "p1,a.nii.gz,a_mask.nii.gz,glioma", "p2,a.nii.gz,,", "p3,a.nii.gz;a.nii.gz,,none", "", ",,,"
    )
    cohort = open_cohort(tmp_path)
    assert [v.tumour for v in cohort.volumes] == ["glioma", None, None]
    assert cohort.volumes[0].mask == tmp_path / "a_mask.nii.gz"
    assert len(cohort.volumes[2].image) == 2
    assert cohort.tumours == ("glioma",)
    assert cohort.patients == ("p1", "p2", "p3")
    assert cohort.problems == ()


@pytest.mark.parametrize(
    ("name", "between"), [("list.tsv", "\t"), ("cohort.csv", ";"), ("cohort.csv", ","), ("any.csv", ",")]
)
def test_table_separators_and_column_names(tmp_path: Path, name: str, between: str) -> None:
    image(tmp_path / "a.nii.gz")
    header = between.join(["Subject_ID", "Image", "Diagnosis", "Modality"])
    table(tmp_path, between.join(["p1", "a.nii.gz", "cyst", "mr"]), header=header, name=name)
    volume = open_cohort(tmp_path).volumes[0]
    assert (volume.patient, volume.tumour, volume.modality) == ("p1", "cyst", ("MR",))


def test_table_names_the_row_and_not_the_file(tmp_path: Path) -> None:
    image(tmp_path / "a.nii.gz")
    table(tmp_path, "p1,a.nii.gz,,x", "DOE,DOE_JANE.nii.gz,,x", "p3,,,x", "p4,a.nii.gz,lost.nii.gz,x")
    problems = open_cohort(tmp_path).problems
    assert len(problems) == 3
    assert "row 3" in problems[0]
    assert not any("DOE" in p or "JANE" in p for p in problems)


def test_table_without_a_tumour_column(tmp_path: Path) -> None:
    table(tmp_path, "p1,a", header="patient,image,tumr")
    with pytest.raises(CohortError, match=r"column 'tumor'.*Did you mean 'tumr'"):
        open_cohort(tmp_path)


def test_nnunet_without_names_counts_labels(tmp_path: Path) -> None:
    for case, labels in {"c_1": [1, 2], "c_2": [2], "c_3": []}.items():
        image(tmp_path / "imagesTr" / f"{case}_0000.nii.gz")
        image(tmp_path / "imagesTr" / f"{case}_0001.nii.gz")
        mask(tmp_path / "labelsTr" / f"{case}.nii.gz", labels)
    image(tmp_path / "imagesTr" / "c_4_0000.nii.gz")
    mask(tmp_path / "labelsTr" / "c_4.nii.gz", [1])
    image(tmp_path / "imagesTr" / "c_5_0000.nii.gz")
    mask(tmp_path / "labelsTr" / "c_6.nii.gz", [1])
    cohort = open_cohort(tmp_path)
    assert [(v.patient, v.tumour, v.label) for v in cohort.volumes] == [
        ("c_1", "label_1", 1),
        ("c_1", "label_2", 2),
        ("c_2", "label_2", 2),
        ("c_3", None, None),
    ]
    assert all(len(v.image) == 2 for v in cohort.volumes)
    assert any("1 of 2 channels" in p for p in cohort.problems)
    assert any("no mask" in p for p in cohort.problems)
    assert any("without an image" in p for p in cohort.problems)


@pytest.mark.parametrize("labels", [{"0": "background", "1": "edema"}, {"background": 0, "edema": 1}])
def test_decathlon_names_labels_either_way(tmp_path: Path, labels: dict[str, object]) -> None:
    image(tmp_path / "imagesTr" / "liver_7.nii.gz")
    mask(tmp_path / "labelsTr" / "liver_7.nii.gz", [1, 3])
    about = {
        "labels": labels,
        "modality": {"0": "CT"},
        "training": [
            {"image": "./imagesTr/liver_7.nii.gz", "label": "./labelsTr/liver_7.nii.gz"},
            "x.nii.gz",
        ],
    }
    (tmp_path / "dataset.json").write_text(json.dumps(about))
    cohort = open_cohort(tmp_path)
    assert [(v.patient, v.tumour, v.modality) for v in cohort.volumes] == [("liver_7", "edema", ("CT",))]
    assert any("without a name: 3" in p for p in cohort.problems)


def test_damaged_mask_is_that_case_s_problem(tmp_path: Path) -> None:
    for case in ("a", "b"):
        image(tmp_path / "imagesTr" / f"{case}.nii.gz")
        mask(tmp_path / "labelsTr" / f"{case}.nii.gz", [1])
    file = tmp_path / "labelsTr" / "b.nii.gz"
    file.write_bytes(file.read_bytes()[:40])
    cohort = open_cohort(tmp_path)
    assert [v.patient for v in cohort.volumes] == ["a"]
    assert cohort.problems[0].startswith("case 2: the mask has contents that cannot be read")


def test_datalist_with_masks_and_with_classes(tmp_path: Path) -> None:
    image(tmp_path / "a.nii.gz")
    mask(tmp_path / "m.nii.gz", [2])
    about = {
        "labels": {"0": "benign", "2": "malignant"},
        "training": [
            {"image": "a.nii.gz", "label": "m.nii.gz", "patient": "p1"},
            {"image": ["a.nii.gz", "a.nii.gz"], "label": 0},
            {"image": "a.nii.gz", "label": "cyst"},
            {"image": "a.nii.gz", "label": "lost.nii.gz"},
            {"image": "lost.nii.gz", "label": 0},
        ],
        "validation": [{"image": "a.nii.gz"}],
    }
    (tmp_path / "folds.json").write_text(json.dumps(about))
    cohort = open_cohort(tmp_path)
    assert {(v.tumour, v.label) for v in cohort.volumes} == {
        ("malignant", 2),
        ("benign", None),
        ("cyst", None),
    }
    assert len(cohort.problems) == 3
    assert open_cohort(tmp_path / "folds.json") == cohort


def test_folder_a_class(tmp_path: Path) -> None:
    image(tmp_path / "Glioma" / "a.nii.gz")
    mask(tmp_path / "Glioma" / "a_mask.nii.gz", [1])
    image(tmp_path / "Glioma" / "p2" / "scan.nii.gz")
    mask(tmp_path / "Glioma" / "p2" / "seg.nii.gz", [1])
    image(tmp_path / "no_tumor" / "c.nii.gz")
    (tmp_path / "cyst" / "p4").mkdir(parents=True)
    (tmp_path / "cyst" / "p4" / "IM0").write_bytes(bytes(128) + b"DICM")
    cohort = open_cohort(tmp_path)
    found = {(v.patient, v.tumour, v.mask is not None) for v in cohort.volumes}
    assert found == {
        ("a", "Glioma", True),
        ("p2", "Glioma", True),
        ("c", None, False),
        ("p4", "cyst", False),
    }


def test_missing_empty_and_unknown_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CohortError, match="nothing at the path"):
        open_cohort(tmp_path / "absent")
    with pytest.raises(CohortError, match=r"an empty folder.*cohort.csv"):
        open_cohort(tmp_path)
    table(tmp_path, "p1,lost.nii.gz,,x")
    with pytest.raises(CohortError, match=r"at least one usable volume.*row 2"):
        open_cohort(tmp_path)
    with pytest.raises(CohortError, match="Did you mean 'table'"):
        open_cohort(tmp_path, layout="tabel")


def test_real_cohorts_without_dataset_json(shared_data: Path) -> None:
    hippocampus = open_cohort(shared_data / "volumes" / "hippocampus")
    assert (len(hippocampus.patients), hippocampus.tumours) == (98, ("label_1", "label_2"))
    chaos = open_cohort(shared_data / "volumes" / "nc" / "chaos_t2")
    assert (len(chaos.patients), len(chaos.tumours), chaos.problems) == (20, 4, ())


def test_dicom_tree_of_the_sample_data(sample_data: Path) -> None:
    listed = {v.patient: v for v in open_cohort(sample_data).volumes}
    tree = open_cohort(sample_data / "dicom")
    assert tree.layout == "dicom"
    assert len(tree.volumes) >= 10
    for volume in tree.volumes:
        row = listed[volume.patient]
        assert (volume.tumour, volume.mask, volume.image) == (row.tumour, row.mask, row.image)
        assert volume.label == 1
        assert volume.series
    assert any("without a SEG or RTSTRUCT" in p for p in tree.problems)


def test_rtstruct_names_its_rois(shared_data: Path) -> None:
    tree = open_cohort(shared_data / "dicom" / "rtstruct")
    assert "Heart" in tree.tumours
    assert len({v.label for v in tree.volumes}) == len(tree.volumes) == 9  # the tenth was never drawn


def test_sample_data(sample_data: Path) -> None:
    cohort = open_cohort(sample_data)
    assert cohort.layout == "table"
    assert cohort.problems == ()
    assert len(cohort.tumours) >= 8
    assert any(v.tumour is None for v in cohort.volumes)


def test_a_pattern_finds_the_patient_of_a_slice(tmp_path: Path) -> None:
    for name in ("a_slice1", "a_slice2", "b_slice1"):
        image(tmp_path / "imagesTr" / f"{name}.nii.gz")
        mask(tmp_path / "labelsTr" / f"{name}.nii.gz", [1])
    assert open_cohort(tmp_path).patients == ("a_slice1", "a_slice2", "b_slice1")
    assert open_cohort(tmp_path, patient=r"^(.*)_slice\d+$").patients == ("a", "b")
    assert open_cohort(tmp_path, patient="^[ab]").patients == ("a", "b")
    with pytest.raises(CohortError, match="1 of 3 volumes it does not fit"):
        open_cohort(tmp_path, patient="^a")
    with pytest.raises(CohortError, match="regular expression"):
        open_cohort(tmp_path, patient="(")


@pytest.mark.parametrize(
    ("values", "dtype", "found"),
    [
        ([0, 3, 255], np.uint8, (3, 255)),
        ([0, 1, 2], np.float32, (1, 2)),
        ([0, 10**6, 5], np.int32, (5, 10**6)),
        ([0, 0, 0], np.uint8, ()),
    ],
)
def test_label_values(tmp_path: Path, values: list[int], dtype: type, found: tuple[int, ...]) -> None:
    voxels = np.resize(np.array(values, dtype=dtype), (7, 6, 5))
    assert label_values(save(tmp_path / "m.nii.gz", voxels)) == found


@pytest.mark.parametrize(
    ("value", "code"), [(0.5, "not-whole"), (-1, "not-whole"), (np.nan, "not-finite"), (np.inf, "not-finite")]
)
def test_label_values_that_are_not_whole(tmp_path: Path, value: float, code: str) -> None:
    voxels = np.full((4, 4, 4), value, dtype=np.float32)
    with pytest.raises(VolumeError) as caught:
        label_values(save(tmp_path / "m.nii.gz", voxels))
    assert caught.value.code == code


def test_a_folder_a_patient_is_not_taken_for_a_folder_a_class(sample_data: Path, tmp_path: Path) -> None:
    for patient in sorted((sample_data / "dicom").iterdir())[:3]:
        (tmp_path / patient.name).mkdir()
        (tmp_path / patient.name / "series").symlink_to((patient / "image").resolve())
    with pytest.raises(CohortError, match="none of them"):
        open_cohort(tmp_path)


# -- what a layout must not get silently wrong ---------------------------------------------------------------


def test_a_mask_s_labels_are_what_loading_it_finds(tmp_path: Path) -> None:
    from PIL import Image

    drawn = np.zeros((5, 6), np.uint8)
    drawn[1:3] = 255
    Image.fromarray(drawn).save(tmp_path / "mask.png")
    Image.fromarray(np.arange(30, dtype=np.uint8).reshape(5, 6)).save(tmp_path / "image.png")
    (value,) = label_values(tmp_path / "mask.png")
    found = load_mask(tmp_path / "mask.png", like=load_image(tmp_path / "image.png"), label=value)
    assert int(found.sum()) == 12
    np.savez_compressed(tmp_path / "mask.npz", mask=drawn // 255 * 3)
    assert label_values(tmp_path / "mask.npz") == (3,)


def test_one_flipped_bit_in_a_mask_is_that_case_s_problem(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for case in ("a", "b"):
        image(tmp_path / "imagesTr" / f"{case}.nii.gz")
        save(tmp_path / "labelsTr" / f"{case}.nii.gz", rng.integers(0, 2, (6, 5, 4)).astype(np.uint8))
    file = tmp_path / "labelsTr" / "b.nii.gz"
    raw = bytearray(file.read_bytes())
    raw[-6] ^= 1  # of the checksum
    file.write_bytes(raw)
    cohort = open_cohort(tmp_path)
    assert {v.patient for v in cohort.volumes} == {"a"}
    assert cohort.problems == ("case 2: the mask has contents that cannot be read (damaged-file)",)


def test_a_mask_of_undeclared_labels_makes_nobody_free_of_tumours(tmp_path: Path) -> None:
    for case, labels in {"a": [1], "b": [2], "c": []}.items():
        image(tmp_path / "imagesTr" / f"{case}.nii.gz")
        mask(tmp_path / "labelsTr" / f"{case}.nii.gz", labels)
    (tmp_path / "dataset.json").write_text('{"labels": {"background": 0, "glioma": 1}}')
    cohort = open_cohort(tmp_path)
    assert [(v.patient, v.tumour) for v in cohort.volumes] == [("a", "glioma"), ("c", None)]
    assert any("case 2: the mask holds none of the labels" in p for p in cohort.problems)


def test_a_row_with_a_mask_of_nothing_said(tmp_path: Path) -> None:
    image(tmp_path / "a.nii.gz")
    mask(tmp_path / "m.nii.gz", [1])
    table(tmp_path, "p1,a.nii.gz,m.nii.gz,", "p2,a.nii.gz,m.nii.gz,none", "p3,a.nii.gz,,")
    cohort = open_cohort(tmp_path)
    assert [v.patient for v in cohort.volumes] == ["p2", "p3"]
    assert cohort.problems == ("row 2: a mask, and nothing in the column tumor to say of what",)


def test_channels_keep_the_order_of_their_numbers() -> None:
    from medmeta.volumes.layouts.decathlon import modalities

    names = {str(n): f"m{n}" for n in reversed(range(12))}
    assert modalities({"channel_names": names}) == tuple(f"M{n}" for n in range(12))


def test_one_name_in_two_formats_is_said(tmp_path: Path) -> None:
    for kind in ("glioma", "cyst"):
        image(tmp_path / kind / "a.nii.gz")
    image(tmp_path / "cyst" / "a.nii")
    assert open_cohort(tmp_path).problems == ("class cyst: 1 file(s) of one name in two formats",)


def tree(root: Path) -> Path:
    """A CT with a SEG in a folder of archives' own making."""
    _, made = source(root / "study")
    write(made, segments(), root / "study" / "seg.dcm")
    return root


def test_dicom_masks_of_another_patient_or_nobody(tmp_path: Path) -> None:
    file = tree(tmp_path) / "study" / "seg.dcm"
    right = open_cohort(tmp_path)
    assert {v.tumour for v in right.volumes} == {"core", "Edema"}
    ds = pydicom.dcmread(file)
    ds.PatientID = ""
    ds.save_as(file)
    assert open_cohort(tmp_path).volumes == right.volumes
    ds.PatientID = "somebody else"
    ds.save_as(file)
    with pytest.raises(CohortError, match="mask object 1: it and its series are of 2 patients"):
        open_cohort(tmp_path, layout="dicom")


def test_dicom_files_that_cannot_be_read_are_counted(tmp_path: Path) -> None:
    root = tree(tmp_path)
    slices = sorted((root / "study" / "image").iterdir())
    slices[2].write_bytes(b"\0" * 128 + b"DICM" + b"\xff" * 40)
    assert "1 file(s) that cannot be read" in open_cohort(root).problems[0]


def test_a_link_to_nothing_is_passed_over(tmp_path: Path) -> None:
    (tree(tmp_path) / "study" / "image" / "zzz").symlink_to(tmp_path / "gone")
    assert len(open_cohort(tmp_path).volumes) == 2


def issued(root: Path, study: str, *, image: str = "", mask: str = "") -> None:
    """A study of the one PatientID, with the issuers that its slices and its mask name."""
    _, made = source(root / study)
    file = write(made, segments(), root / study / "seg.dcm")
    for issuer, files in ((image, (root / study / "image").iterdir()), (mask, [file])):
        for one in files if issuer else ():
            ds = pydicom.dcmread(one)
            ds.IssuerOfPatientID = issuer
            ds.save_as(one)


@pytest.mark.parametrize("named", [{"image": "A"}, {"mask": "A"}])
def test_an_issuer_named_by_the_image_or_the_mask_alone(tmp_path: Path, named: dict[str, str]) -> None:
    issued(tmp_path, "one", **named)
    issued(tmp_path, "two")
    found = open_cohort(tmp_path)
    assert not found.problems
    assert [p.endswith("^A") for p in found.patients] == [True]
    assert len({entry["patient"] for entry in inspect(tmp_path, salt="s")}) == 1


def test_an_issuer_named_by_some_slices_alone(tmp_path: Path) -> None:
    issued(tmp_path, "one")
    file = tmp_path / "one" / "image" / "002.dcm"
    ds = pydicom.dcmread(file)
    ds.IssuerOfPatientID = "A"
    ds.save_as(file)
    assert load_image(tmp_path / "one" / "image").shape[0] == 1
    assert [p.endswith("^A") for p in open_cohort(tmp_path).patients] == [True]


def test_two_issuers_of_one_number_and_a_study_without(tmp_path: Path) -> None:
    for study, names in {"one": {"image": "A"}, "two": {"image": "B"}, "three": {}}.items():
        issued(tmp_path, study, **names)
    found = open_cohort(tmp_path)
    assert [p[-2:] for p in found.patients] == ["^A", "^B"]
    # by order of path: one, three, two
    assert found.problems[0].startswith("mask object 2: no issuer of a PatientID that several issuers gave")
    issued(tmp_path, "three", mask="B")
    assert len(open_cohort(tmp_path).volumes) == 6


def test_an_image_and_a_mask_of_two_issuers(tmp_path: Path) -> None:
    issued(tmp_path, "one", image="A", mask="B")
    with pytest.raises(CohortError, match="of 2 patients"):
        open_cohort(tmp_path, layout="dicom")


def test_what_is_left_out_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A row that cannot be used is not lost without a word, whoever opens the cohort."""
    image(tmp_path / "a.nii.gz")
    table(tmp_path, "p1,a.nii.gz,,glioma", *(f"p{i},gone.nii.gz,,glioma" for i in range(2, 10)))
    assert len(open_cohort(tmp_path).volumes) == 1
    assert "row 3: the image file does not exist" in caplog.text
    assert "and 3 more" in caplog.text
    assert "gone" not in caplog.text


@pytest.mark.parametrize("other", ["P1", "p 1", "p_1", "p-1\N{ZERO WIDTH SPACE}"])
def test_one_patient_under_two_spellings_is_said(tmp_path: Path, other: str) -> None:
    image(tmp_path / "a.nii.gz")
    first = "p-1" if other != "P1" else "p1"
    table(tmp_path, f"{first},a.nii.gz,,glioma", f"{other},a.nii.gz,,glioma", "p11,a.nii.gz,,glioma")
    cohort = open_cohort(tmp_path)
    assert len(cohort.patients) == 3
    (problem,) = cohort.problems
    assert problem.startswith("2 patients whose keys differ only")


@pytest.mark.parametrize("parts", [("Training", "Testing"), ("train", "val", "test_set")])
def test_parts_of_a_split_are_no_classes(tmp_path: Path, parts: Sequence[str]) -> None:
    """As many public sets come: a network would have learnt to tell Training from Testing."""
    for part in parts:
        for kind in ("glioma", "none"):
            image(tmp_path / part / kind / f"{part}{kind}.nii.gz")
    with pytest.raises(CohortError, match="a folder a part of a split"):
        open_cohort(tmp_path)
    assert open_cohort(tmp_path / parts[0]).tumours == ("glioma",)


@pytest.mark.parametrize("masks", ["masks", "labels", "Ground_Truth"])
def test_images_and_masks_apart_are_no_classes(tmp_path: Path, masks: str) -> None:
    image(tmp_path / "images" / "a.nii.gz")
    mask(tmp_path / masks / "a.nii.gz", [1])
    with pytest.raises(CohortError, match="labelsTr"):
        open_cohort(tmp_path)


def test_numbered_masks_are_masks(tmp_path: Path) -> None:
    """As in BUSI: the second outline of an image is not an image of the class."""
    for kind in ("benign", "normal"):
        for name in ("one", "two"):
            image(tmp_path / kind / f"{kind} ({name}).nii.gz")
            mask(tmp_path / kind / f"{kind} ({name})_mask.nii.gz", [1])
        mask(tmp_path / kind / f"{kind} (two)_mask_1.nii.gz", [1])
    cohort = open_cohort(tmp_path)
    assert [v.patient for v in cohort.volumes] == ["benign (one)", "normal (one)", "normal (two)"]
    assert len(cohort.problems) == 1
    assert cohort.problems[0].startswith("class benign: 1 image(s) with several masks left out")


@pytest.mark.parametrize("raters", [("mask_rater1", "mask_rater2"), ("seg-JD", "seg-MK"), ("mask_a", "mask")])
def test_the_masks_of_two_raters_are_no_images(tmp_path: Path, raters: tuple[str, str]) -> None:
    for kind in ("benign", "malignant"):
        for name in ("one", "two"):
            image(tmp_path / kind / f"{name}.nii.gz")
        mask(tmp_path / kind / f"one_{raters[0]}.nii.gz", [1])
        for rater in raters:
            mask(tmp_path / kind / f"two_{rater}.nii.gz", [1])
            mask(tmp_path / kind / "three" / f"{rater}.nii.gz", [1])
        image(tmp_path / kind / "three" / "t1.nii.gz")
        mask(tmp_path / kind / "four" / f"{raters[0]}.nii.gz", [1])
        image(tmp_path / kind / "four" / "t1.nii.gz")
    cohort = open_cohort(tmp_path)
    called = [(v.patient, v.mask.name.partition(".")[0] if v.mask else "") for v in cohort.volumes]
    assert called == 2 * [("one", f"one_{raters[0]}"), ("four", raters[0])]
    assert len(cohort.problems) == 4
    assert all("1 image(s) with several masks left out" in problem for problem in cohort.problems)


def test_two_masks_of_one_type_in_one_image_are_said(tmp_path: Path) -> None:
    """Two raters', or one a lesion: each is learnt as if the other's voxels were background."""
    image(tmp_path / "a.nii.gz")
    for name in ("one", "two"):
        mask(tmp_path / f"{name}.nii.gz", [1, 2])
    header = "patient,image,mask,tumor,label"
    table(tmp_path, "p,a.nii.gz,one.nii.gz,x,1", "p,a.nii.gz,one.nii.gz,y,2", "p,a.nii.gz,,z,", header=header)
    assert open_cohort(tmp_path).problems == ()
    rows = [f"p,a.nii.gz,{name}.nii.gz,{kind}" for name in ("one", "two") for kind in ("x,1", "y,2")]
    table(tmp_path, *rows, header=header)
    cohort = open_cohort(tmp_path)
    assert len(cohort.volumes) == 4
    assert len(cohort.problems) == 1
    assert cohort.problems[0].startswith("1 image(s) with several masks of one tumour type")


def test_a_table_of_something_else_is_no_cohort(tmp_path: Path) -> None:
    """TCIA puts a metadata.csv beside its series, BraTS a table of survival."""
    image(tmp_path / "imagesTr" / "a.nii.gz")
    mask(tmp_path / "labelsTr" / "a.nii.gz", [1])
    table(tmp_path, "1.2.3,CBIS", header="Series UID,Collection", name="metadata.csv")
    assert open_cohort(tmp_path).layout == "nnunet"
    table(tmp_path / "alone", "1.2.3,CBIS", header="Series UID,Collection", name="metadata.csv")
    with pytest.raises(CohortError, match="a column 'image'"):
        open_cohort(tmp_path / "alone")


def test_a_table_in_windows_code_page(tmp_path: Path) -> None:
    image(tmp_path / "a.nii.gz")
    text = "patient,image,mask,tumor\np1,a.nii.gz,,gliome \N{EN DASH} grade 2\N{HORIZONTAL ELLIPSIS}\n"
    for coding in ("cp1252", "utf-8"):
        (tmp_path / "cohort.csv").write_bytes(text.encode(coding))
        cohort = open_cohort(tmp_path)
        assert cohort.tumours == ("gliome \N{EN DASH} grade 2\N{HORIZONTAL ELLIPSIS}",)
        assert cohort.problems == ()


def test_only_line_ends_end_a_row(tmp_path: Path) -> None:
    image(tmp_path / "a.nii.gz")
    table(tmp_path, "p1,a.nii.gz,,one\N{LINE SEPARATOR}two", 'p2,a.nii.gz,,"one\nline"')
    assert [v.tumour for v in open_cohort(tmp_path).volumes] == ["one\N{LINE SEPARATOR}two", "one\nline"]


def test_a_label_that_pandas_wrote(tmp_path: Path) -> None:
    image(tmp_path / "a.nii.gz")
    mask(tmp_path / "m.nii.gz", [1])
    table(tmp_path, "p1,a.nii.gz,m.nii.gz,x,1.0", "p2,a.nii.gz,,,", header="patient,image,mask,tumor,label")
    assert [v.label for v in open_cohort(tmp_path).volumes] == [1, None]


@pytest.mark.parametrize("layout", ["table", "datalist"])
def test_files_of_one_name_are_not_one_patient(tmp_path: Path, layout: str) -> None:
    """As in KiTS: case_00000/imaging.nii.gz."""
    folders = [f"case_{n}" for n in range(3)]
    for folder in folders:
        image(tmp_path / folder / "imaging.nii.gz")
        mask(tmp_path / folder / "segmentation.nii.gz", [1])
    pairs = [(f"{f}/imaging.nii.gz", f"{f}/segmentation.nii.gz") for f in folders]
    if layout == "table":
        table(tmp_path, *(f"{i},{m},kidney" for i, m in pairs), header="image,mask,tumor")
    else:
        entries = [{"image": i, "label": m} for i, m in pairs]
        (tmp_path / "list.json").write_text(json.dumps({"training": entries}))
    cohort = open_cohort(tmp_path)
    assert cohort.patients == tuple(f"{folder}/imaging" for folder in folders)
    assert any("3 images without a patient" in problem for problem in cohort.problems)
    assert open_cohort(tmp_path, patient=r"^(.*)/").patients == tuple(folders)


def test_classes_of_a_datalist_are_numbers_or_names(tmp_path: Path) -> None:
    image(tmp_path / "a.nii.gz")
    entries = [{"image": "a.nii.gz", "label": label} for label in (1, 1.0, "1", "cyst", [0, 1], True, 0.5)]
    (tmp_path / "l.json").write_text(json.dumps({"training": entries, "labels": {"0": "none", "1": "cyst"}}))
    cohort = open_cohort(tmp_path)
    assert [v.tumour for v in cohort.volumes] == ["cyst"] * 4
    assert cohort.problems == tuple(f"entry {n}: neither a mask nor a class" for n in (5, 6, 7))


def test_channels_of_other_numbers_are_left_out(tmp_path: Path) -> None:
    """The second channel of b is what the others have as their third."""
    for case, second in (("a", "0001"), ("b", "0002"), ("c", "0001")):
        for channel in ("0000", second):
            image(tmp_path / "imagesTr" / f"{case}_{channel}.nii.gz")
        mask(tmp_path / "labelsTr" / f"{case}.nii.gz", [1])
    cohort = open_cohort(tmp_path)
    assert cohort.patients == ("a", "c")
    assert cohort.problems == ("case 2 of imagesTr: channels of other numbers than the rest's",)


def test_numbers_that_are_no_channels(tmp_path: Path) -> None:
    for case in ("case_0001", "case_0002"):
        image(tmp_path / "imagesTr" / f"{case}.nii.gz")
        mask(tmp_path / "labelsTr" / f"{case}.nii.gz", [1])
    cohort = open_cohort(tmp_path)
    assert cohort.patients == ("case_0001", "case_0002")
    assert cohort.problems == ()


def test_one_mask_object_there_twice_is_one(tmp_path: Path) -> None:
    _, made = source(tmp_path)
    file = write(made, segments(), tmp_path / "a.dcm")
    (tmp_path / "b.dcm").write_bytes(file.read_bytes())
    cohort = open_cohort(tmp_path)
    assert [v.label for v in cohort.volumes] == [1, 2]
    assert cohort.problems == ("1 mask object(s) there twice: one of each is used",)
