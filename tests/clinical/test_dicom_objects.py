"""SEG and SR: others read in them what the labels say, and made again they are the same instances."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pytest
from pydicom.sr.codedict import codes

from medmeta.clinical.bundle import BundleError
from medmeta.clinical.choose import Rules, study
from medmeta.clinical.dicom_objects import Maker, write_report, write_seg
from medmeta.clinical.measure import measure
from medmeta.clinical.outputs import write_nifti
from medmeta.clinical.property_codes import kind_of
from medmeta.clinical.uids import derived
from medmeta.volumes import load, load_mask
from tests.volumes.phantoms import SECRETS, affine, classic, enhanced, save, voxels

CLASSES = ("background", "glioma", "cyst")
PLANES = {
    "axial": (1.0, 0, 0, 0, 1, 0),
    "coronal": (1.0, 0, 0, 0, 0, -1),
    "sagittal": (0.0, 1, 0, 0, 0, -1),
    "oblique": (0.8, 0.6, 0, 0, 0, -1),
    "flipped": (-1.0, 0, 0, 0, 1, 0),
    "turned": (0.0, -1, 0, 1, 0, 0),
}
MAKER = Maker("a bundle", "0123abcd")


def labels(shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    """Blobs of both classes, none symmetric, with slices that hold nothing."""
    rng = np.random.default_rng(seed)
    made = np.zeros(shape, np.uint8)
    made[1:5, 2:4, 1:3] = 1
    made[4:6, 5:8, 2:5] = 2
    made[6:9, 1:6, 3] = rng.integers(0, 3, (3, 5))
    return made


def made_of(folder: Path, file: Path, found: np.ndarray, maker: Maker = MAKER) -> tuple[Any, Any, Any]:
    """SEG and SR of a folder's series; the SEG, its sources and the stack."""
    with study(folder, Rules()) as chosen:
        assert chosen is not None
        made, images = write_seg(found, chosen[0], CLASSES, file, maker=maker)
        measured = {c: measure(found == n, chosen[0].affine) for n, c in enumerate(CLASSES) if n}
        write_report(made, images, measured, file.with_name("sr.dcm"), maker=maker)
        return made, images, chosen[0]


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("reverse", [False, True])
def test_opened_again_it_equals_the_nifti(plane: str, reverse: bool, tmp_path: Path) -> None:
    made = classic(voxels((6, 9, 11)), orientation=PLANES[plane])  # (slice, row, column)
    save(made[::-1] if reverse else made, tmp_path / "series")
    found = labels((11, 9, 6))
    seg, _, stack = made_of(tmp_path / "series", tmp_path / "seg.dcm", found)
    write_nifti(found, stack.affine, tmp_path / "seg.nii.gz")
    image = load(tmp_path / "series")
    assert np.allclose(image.affine.numpy(), affine(orientation=PLANES[plane]))
    for file in ("seg.dcm", "seg.nii.gz"):
        assert np.array_equal(load_mask(tmp_path / file, like=image)[0].numpy(), found), file
    # an independent reader: highdicom's volume, its axes and affine its own
    volume = hd.seg.segread(tmp_path / "seg.dcm").get_volume(combine_segments=True)
    index = np.argwhere(found)
    lps = (np.diag([-1.0, -1, 1, 1]) @ stack.affine @ np.c_[index, np.ones(len(index))].T)[:3].T
    own = np.rint(np.asarray(volume.map_reference_to_indices(lps))).astype(int)
    read = volume.array[tuple(own.T)]
    assert np.array_equal(read, found[tuple(index.T)])
    assert int((volume.array > 0).sum()) == len(index)
    referenced = {
        str(i.ReferencedSOPInstanceUID)
        for s in seg.ReferencedSeriesSequence
        for i in s.ReferencedInstanceSequence
    }
    assert referenced == {str(ds.SOPInstanceUID) for ds in made}


def test_one_enhanced_file_with_shuffled_frames(tmp_path: Path) -> None:
    save([enhanced(voxels((6, 9, 11)), order=[3, 1, 0, 5, 4, 2])], tmp_path / "series")
    found = labels((11, 9, 6))
    made_of(tmp_path / "series", tmp_path / "seg.dcm", found)
    image = load(tmp_path / "series")
    assert np.array_equal(load_mask(tmp_path / "seg.dcm", like=image)[0].numpy(), found)


def test_patient_fields_are_the_source_s_and_the_algorithm_is_named(tmp_path: Path) -> None:
    source = classic(voxels((6, 9, 11)))
    save(source, tmp_path / "series")
    made_of(tmp_path / "series", tmp_path / "seg.dcm", labels((11, 9, 6)))
    for name in ("seg.dcm", "sr.dcm"):
        ds = pydicom.dcmread(tmp_path / name)
        assert (str(ds.PatientName), ds.PatientID, ds.PatientBirthDate) == SECRETS
        assert ds.StudyInstanceUID == source[0].StudyInstanceUID
        assert ds.SeriesInstanceUID != source[0].SeriesInstanceUID
    first, second = pydicom.dcmread(tmp_path / "seg.dcm").SegmentSequence
    assert (first.SegmentLabel, second.SegmentLabel) == ("glioma", "cyst")
    algorithm = first.SegmentationAlgorithmIdentificationSequence[0]
    assert (algorithm.AlgorithmName, first.SegmentAlgorithmType) == ("a bundle", "AUTOMATIC")
    assert first.SegmentedPropertyTypeCodeSequence[0].CodeValue == "108369006"
    assert second.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Tissue"  # a cyst is no neoplasm
    groups = hd.sr.srread(tmp_path / "sr.dcm").content.get_volumetric_roi_measurement_groups()
    assert [group.finding_type.meaning for group in groups] == ["Neoplasm", "Tissue"]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((name, "Neoplasm") for name in ("tumor", "liver_tumour", "Glioma", "NSCLC-cancer", "Metastases")),
        *((name, "Lesion") for name in ("breast lesion", "lung_nodule", "lesions")),
        *((name, "Tissue") for name in ("liver", "label_2", "kidney_organ", "hematoma", "peritumoral edema")),
        *((name, "Tissue") for name in ("non-tumour", "2", "stomach", "")),
    ],
)
def test_a_neoplasm_is_claimed_of_what_is_called_one(name: str, kind: str) -> None:
    category, found = kind_of(name)
    assert found == kind
    assert getattr(codes.cid7150, category)
    assert getattr(codes.cid7151, found)


def test_the_report_says_what_was_measured(tmp_path: Path) -> None:
    save(classic(voxels((6, 9, 11))), tmp_path / "series")
    found = labels((11, 9, 6))
    seg, _, stack = made_of(tmp_path / "series", tmp_path / "seg.dcm", found)
    report = hd.sr.srread(tmp_path / "sr.dcm")
    groups = report.content.get_volumetric_roi_measurement_groups()
    assert len(groups) == 2
    for number, group in enumerate(groups, start=1):
        wanted = measure(found == number, stack.affine)
        read = {m.name.value: (m.value, m.unit.value) for m in group.get_measurements()}
        assert read == {
            "118565006": (wanted.volume_ml, "ml"),
            "246206008": (wanted.lesion_count, "1"),
            "103339001": (wanted.longest_diameter_mm, "mm"),
            "L0JK": (wanted.longest_diameter_3d_mm, "mm"),
        }
        segment = group.referenced_segment
        assert segment.referenced_sop_instance_uid == seg.SOPInstanceUID
        assert segment.referenced_segment_numbers in ([number], number)
    evidence = {
        str(i.ReferencedSOPInstanceUID)
        for study_item in report.CurrentRequestedProcedureEvidenceSequence
        for s in study_item.ReferencedSeriesSequence
        for i in s.ReferencedSOPSequence
    }
    assert str(seg.SOPInstanceUID) in evidence


def uids(folder: Path) -> list[str]:
    read = [pydicom.dcmread(folder / name) for name in ("seg.dcm", "sr.dcm")]
    return [str(value) for ds in read for value in (ds.SeriesInstanceUID, ds.SOPInstanceUID)]


def test_made_again_they_are_the_same_instances(tmp_path: Path) -> None:
    source = classic(voxels((6, 9, 11)))
    for name in ("a", "b"):
        save(source, tmp_path / name / "series")
        made_of(tmp_path / name / "series", tmp_path / name / "seg.dcm", labels((11, 9, 6)))
    assert uids(tmp_path / "a") == uids(tmp_path / "b")
    assert len(set(uids(tmp_path / "a"))) == 4
    for name in ("seg.dcm", "sr.dcm"):
        one, other = (pydicom.dcmread(tmp_path / folder / name) for folder in ("a", "b"))
        differing = {e.keyword for e in one.iterall() if e.VR in ("DA", "TM", "DT")}
        for ds in (one, other):
            ds.walk(lambda parent, e: parent.__delitem__(e.tag) if e.VR in ("DA", "TM", "DT") else None)
        assert one == other, differing
    # other labels: other instances of the same series; another bundle: other series
    made_of(tmp_path / "b" / "series", tmp_path / "b" / "seg.dcm", labels((11, 9, 6), seed=1))
    assert [a == b for a, b in zip(uids(tmp_path / "a"), uids(tmp_path / "b"), strict=True)] == [
        True,
        False,
        True,
        False,
    ]
    other = Maker(MAKER.title, "another")
    made_of(tmp_path / "b" / "series", tmp_path / "b" / "seg.dcm", labels((11, 9, 6)), other)
    assert not set(uids(tmp_path / "a")) & set(uids(tmp_path / "b"))


def test_derived_uids_are_valid() -> None:
    made = {derived("seg", str(n)) for n in range(100)}
    assert len(made) == 100
    assert all(pydicom.uid.UID(uid).is_valid and len(uid) <= 64 for uid in made)


ABSENT = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID"),
    *("AccessionNumber", "ReferringPhysicianName", "SliceThickness", "FrameOfReferenceUID"),
)
HEADERS: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    **{f"no {name}": ({name: None}, {} if name.endswith(("s", "UID")) else {name: ""}) for name in ABSENT},
    "Japanese": (
        {"SpecificCharacterSet": ["", "ISO 2022 IR 87"], "PatientName": "Yamada^Tarou=山田^太郎"},
        {"PatientName": "Yamada^Tarou=山田^太郎"},
    ),
    "Korean": (
        {"SpecificCharacterSet": ["", "ISO 2022 IR 149"], "PatientName": "Hong^Gildong=洪^吉洞"},
        {"PatientName": "Hong^Gildong=洪^吉洞"},
    ),
    "Latin": (
        {"SpecificCharacterSet": "ISO_IR 100", "PatientName": "Müller^Jörg"},
        {"PatientName": "Müller^Jörg"},
    ),
    "no such day": ({"PatientBirthDate": "19500000"}, {"PatientBirthDate": ""}),
    "no day": ({"PatientBirthDate": "00000000"}, {"PatientBirthDate": ""}),
    "a day written otherwise": ({"PatientBirthDate": "01.05.1950"}, {"PatientBirthDate": ""}),
    "a day": ({"PatientBirthDate": "19500501"}, {"PatientBirthDate": "19500501"}),
    "an anonymiser's time": ({"StudyTime": "***"}, {"StudyTime": ""}),
    "a time written otherwise": ({"StudyTime": "14:30:00"}, {"StudyTime": ""}),
    "a leap second": ({"StudyTime": "235960"}, {"StudyTime": "235960"}),
    "a time": ({"StudyTime": "143000.25"}, {"StudyTime": "143000.25"}),
    "a small letter": ({"PatientSex": "m"}, {"PatientSex": "M"}),
    "a word": ({"PatientSex": "male"}, {"PatientSex": ""}),
}


@pytest.mark.parametrize("name", HEADERS)
def test_headers_that_are_not_quite_dicom(name: str, tmp_path: Path) -> None:
    """Both results are written, hold the labels, and say of the patient what the source says, or nothing."""
    changes, wanted = HEADERS[name]

    def alter(ds: pydicom.Dataset, _: int) -> None:
        for keyword, value in changes.items():
            if value is None:
                delattr(ds, keyword)
            else:
                setattr(ds, keyword, value)

    with pydicom.config.disable_value_validation():
        save(classic(voxels((6, 9, 11)), alter=alter), tmp_path / "series")
    before = {f: f.read_bytes() for f in (tmp_path / "series").iterdir()}
    found = labels((11, 9, 6))
    made_of(tmp_path / "series", tmp_path / "seg.dcm", found)
    for file in ("seg.dcm", "sr.dcm"):
        ds = pydicom.dcmread(tmp_path / file)
        assert ds.SpecificCharacterSet == "ISO_IR 192"
        assert {keyword: str(ds[keyword].value or "") for keyword in wanted} == wanted
    image = load(tmp_path / "series")
    assert np.array_equal(load_mask(tmp_path / "seg.dcm", like=image)[0].numpy(), found)
    assert {f: f.read_bytes() for f in before} == before


def test_names_of_classes_in_any_script(tmp_path: Path) -> None:
    save(classic(voxels((6, 9, 11))), tmp_path / "series")
    with study(tmp_path / "series", Rules()) as chosen:
        assert chosen is not None
        names = ("background", "Läsion 腫瘍")
        write_seg(labels((11, 9, 6)) % 2, chosen[0], names, tmp_path / "seg.dcm", maker=MAKER)
    assert pydicom.dcmread(tmp_path / "seg.dcm").SegmentSequence[0].SegmentLabel == "Läsion 腫瘍"


def test_a_frame_of_reference_of_its_own_is_the_same_again(tmp_path: Path) -> None:
    def alter(ds: pydicom.Dataset, _: int) -> None:
        del ds.FrameOfReferenceUID

    save(classic(voxels((6, 9, 11)), alter=alter), tmp_path / "series")
    frames = set()
    for seed in (0, 1):
        made, *_ = made_of(tmp_path / "series", tmp_path / "seg.dcm", labels((11, 9, 6), seed))
        frames.add(made.FrameOfReferenceUID)
    assert len(frames) == 1
    assert frames.pop().is_valid


def test_a_header_of_which_nothing_can_be_made_is_one_refusal(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def alter(ds: pydicom.Dataset, _: int) -> None:
        del ds.StudyInstanceUID

    caplog.set_level("INFO")
    save(classic(voxels((6, 9, 11)), alter=alter), tmp_path / "series")
    with pytest.raises(BundleError, match="a DICOM Segmentation can be made, found one that gives Attribute"):
        made_of(tmp_path / "series", tmp_path / "seg.dcm", labels((11, 9, 6)))
    assert caplog.text == ""
    assert not (tmp_path / "seg.dcm").exists()


def test_frames_that_do_not_correspond_are_refused(tmp_path: Path) -> None:
    save(classic(voxels((6, 9, 11))), tmp_path / "series")
    with pytest.raises(BundleError, match="every frame"):
        made_of(tmp_path / "series", tmp_path / "seg.dcm", labels((11, 9, 5)))
