"""SEG and RTSTRUCT on the image's grid, by affine and never by flips."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from medmeta.volumes import VolumeError, inspect, load, load_mask, open_cohort
from medmeta.volumes.mask_loading import named_labels
from tests.volumes.phantoms import AXIAL, OBLIQUE, classic, save, voxels

SHAPE = (6, 12, 10)  # slice, row, column


def source(tmp_path: Path, orientation: Sequence[float] = AXIAL) -> tuple[Path, list[Dataset]]:
    made = classic(voxels(SHAPE), orientation=orientation)
    for ds in made:
        ds.PatientBirthDate = ""
    return save(made, tmp_path / "image"), made


def mask() -> NDArray[np.uint8]:
    found = np.zeros(SHAPE, np.uint8)
    found[1:3, 2:5, 3:9] = 1
    found[4, 7:11, 1:4] = 2  # slices 0, 3 and 5 empty: SEG leaves them out
    return found


def described(number: int, label: str, kind: Any = codes.SCT.Neoplasm) -> hd.seg.SegmentDescription:
    return hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=label,
        segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
        segmented_property_type=kind,
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.MANUAL,
    )


def write(
    images: Sequence[Dataset],
    pixels: NDArray[Any],
    file: Path,
    kind: str = "BINARY",
    labels: Sequence[str] = ("core", "edema"),
    kinds: Sequence[Any] = (codes.SCT.Neoplasm, codes.SCT.Edema),
) -> Path:
    seg = hd.seg.Segmentation(
        source_images=images,
        pixel_array=pixels,
        segmentation_type=getattr(hd.seg.SegmentationTypeValues, kind),
        segment_descriptions=[
            described(n + 1, *pair) for n, pair in enumerate(zip(labels, kinds, strict=True))
        ],
        series_instance_uid=generate_uid(),
        series_number=2,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="m",
        manufacturer_model_name="m",
        software_versions="1",
        device_serial_number="1",
    )
    seg.save_as(file)
    return file


def on_grid(pixels: NDArray[Any]) -> NDArray[Any]:
    return pixels.transpose(2, 1, 0)


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
@pytest.mark.parametrize("orientation", [AXIAL, OBLIQUE])
def test_segments_land_where_they_were_drawn(tmp_path: Path, kind: str, orientation: Any) -> None:
    folder, made = source(tmp_path, orientation)
    file = write(made, mask(), tmp_path / "seg.dcm", kind)
    found = load_mask(file, like=load(folder))
    np.testing.assert_array_equal(found[0].numpy(), on_grid(mask()))
    assert found.dtype.is_floating_point
    assert found.shape == (1, 10, 12, 6)


def test_source_frames_shuffled_and_reversed(tmp_path: Path) -> None:
    folder, made = source(tmp_path)
    order = [4, 2, 0, 5, 1, 3]
    file = write([made[i] for i in order], mask()[order], tmp_path / "seg.dcm")
    np.testing.assert_array_equal(load_mask(file, like=load(folder))[0].numpy(), on_grid(mask()))


def test_a_mask_on_an_image_stored_another_way(tmp_path: Path) -> None:
    """The same image as NIfTI in RAS order: the mask follows its affine."""
    import nibabel

    folder, made = source(tmp_path, OBLIQUE)
    file = write(made, mask(), tmp_path / "seg.dcm")
    image = load(folder)
    native = nibabel.Nifti1Image(image[0].numpy(), image.affine.numpy())
    turned = nibabel.as_closest_canonical(native)
    turned.to_filename(tmp_path / "ras.nii.gz")
    like = load(tmp_path / "ras.nii.gz")
    expected = nibabel.as_closest_canonical(
        nibabel.Nifti1Image(on_grid(mask()).astype(np.uint8), image.affine.numpy())
    )
    np.testing.assert_array_equal(load_mask(file, like=like)[0].numpy(), np.asarray(expected.dataobj))


def test_one_segment_by_number_or_name(tmp_path: Path) -> None:
    folder, made = source(tmp_path)
    file = write(made, mask(), tmp_path / "seg.dcm")
    like = load(folder)
    for label in (2, "edema", "EDEMA"):
        found = load_mask(file, like=like, label=label)
        np.testing.assert_array_equal(found[0].numpy(), on_grid(mask() == 2))
    for label in (3, "cyst"):
        with pytest.raises(VolumeError) as caught:
            load_mask(file, like=like, label=label)
        assert caught.value.code == "missing-label"


def test_names_come_from_the_segments_codes(tmp_path: Path) -> None:
    _, made = source(tmp_path)
    file = write(made, mask(), tmp_path / "seg.dcm", kinds=(codes.SCT.Mass, codes.SCT.Edema))
    assert named_labels(file) == {1: "core", 2: "Edema"}


def test_fractional_from_one_half_on(tmp_path: Path) -> None:
    folder, made = source(tmp_path)
    parts = np.random.default_rng(0).random(SHAPE)
    parts[0] = 0
    file = write(made, parts, tmp_path / "seg.dcm", "FRACTIONAL", ("core",), (codes.SCT.Neoplasm,))
    found = load_mask(file, like=load(folder))
    np.testing.assert_array_equal(found[0].numpy(), on_grid(np.around(parts * 255) / 255 >= 0.5))


def test_overlapping_segments_want_a_choice(tmp_path: Path) -> None:
    folder, made = source(tmp_path)
    both = np.stack([mask() > 0, mask() == 2], axis=-1)
    file = write(made, both, tmp_path / "seg.dcm")
    with pytest.raises(VolumeError) as caught:
        load_mask(file, like=load(folder))
    assert caught.value.code == "overlapping-segments"
    assert int(load_mask(file, like=load(folder), label=2).sum()) == int((mask() == 2).sum())


def test_another_frame_of_reference(tmp_path: Path) -> None:
    _, made = source(tmp_path)
    file = write(made, mask(), tmp_path / "seg.dcm")
    other = load(save(classic(voxels(SHAPE)), tmp_path / "other"))
    with pytest.raises(VolumeError) as caught:
        load_mask(file, like=other)
    assert caught.value.code == "other-frame"


def test_another_series_of_the_same_frame_and_grid(tmp_path: Path, caplog: Any) -> None:
    _, made = source(tmp_path)
    file = write(made, mask(), tmp_path / "seg.dcm")
    other = classic(voxels(SHAPE))
    for ds in other:
        ds.FrameOfReferenceUID = made[0].FrameOfReferenceUID
    found = load_mask(file, like=load(save(other, tmp_path / "other")))
    np.testing.assert_array_equal(found[0].numpy(), on_grid(mask()))
    assert "drawn on another series" in caplog.text


@pytest.mark.parametrize("change", [{"step": 5.0}, {"spacing": (0.8, 0.8)}, {"origin": (-20.3, 30.0, 5.0)}])
def test_another_grid_is_refused_unless_asked_for(tmp_path: Path, change: dict[str, Any]) -> None:
    _, made = source(tmp_path)
    file = write(made, mask(), tmp_path / "seg.dcm")
    other = classic(voxels(SHAPE), **change)
    for ds in other:
        ds.FrameOfReferenceUID = made[0].FrameOfReferenceUID
    like = load(save(other, tmp_path / "other"))
    with pytest.raises(VolumeError) as caught:
        load_mask(file, like=like)
    assert caught.value.code == "other-grid"
    if "step" not in change:  # coarser slices than the mask's are another matter
        assert int(load_mask(file, like=like, resample=True).sum()) > 0


def test_part_of_the_mask_outside_the_image(tmp_path: Path) -> None:
    _, made = source(tmp_path)
    file = write(made, mask(), tmp_path / "seg.dcm")
    with pytest.raises(VolumeError, match="outside the image"):
        load_mask(file, like=load(save(made[:3], tmp_path / "half")))


def test_an_image_given_as_a_mask_and_a_mask_as_an_image(tmp_path: Path) -> None:
    folder, made = source(tmp_path)
    file = write(made, mask(), tmp_path / "seg.dcm")
    with pytest.raises(VolumeError, match="segmentation"):
        load(file)
    with pytest.raises(VolumeError, match="an image"):
        load_mask(folder / "000.dcm", like=load(folder))


def test_a_report_and_a_folder_of_two_masks(tmp_path: Path) -> None:
    folder, made = source(tmp_path)
    image = load(folder)
    (tmp_path / "masks").mkdir()
    for name in ("a", "b"):
        write(made, mask(), tmp_path / "masks" / f"{name}.dcm")
    with pytest.raises(VolumeError, match="found 2 masks") as caught:
        load_mask(tmp_path / "masks", like=image)
    assert caught.value.code == "several-masks"
    report = Dataset()
    report.file_meta = FileMetaDataset()
    report.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    report.SOPClassUID, report.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.88.22", generate_uid()
    report.file_meta.MediaStorageSOPClassUID = report.SOPClassUID
    report.file_meta.MediaStorageSOPInstanceUID = report.SOPInstanceUID
    report.Modality, report.SeriesInstanceUID = "SR", generate_uid()
    pydicom.dcmwrite(tmp_path / "report.dcm", report, enforce_file_format=True)
    with pytest.raises(VolumeError) as caught:
        load(tmp_path / "report.dcm")
    assert caught.value.code == "not-an-image"


def test_an_empty_segmentation(tmp_path: Path) -> None:
    folder, made = source(tmp_path)
    file = write(made, np.zeros(SHAPE, np.uint8), tmp_path / "seg.dcm")
    with pytest.raises(VolumeError) as caught:
        load_mask(file, like=load(folder))
    assert caught.value.code in ("empty-mask", "missing-label")


# -- contours -----------------------------------------------------------------------------------------------


def structures(
    made: Sequence[Dataset],
    contours: Sequence[tuple[str, NDArray[np.float64]]],
    file: Path,
    *,
    frame: str | None = None,
) -> Path:
    """An RTSTRUCT of one region; points in (column, row, slice) of the axial phantom."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = "1.2.840.10008.5.1.4.1.1.481.3"
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = generate_uid()
    ds.Modality, ds.SeriesInstanceUID, ds.PatientID = "RTSTRUCT", generate_uid(), made[0].PatientID
    reference = Dataset()
    reference.FrameOfReferenceUID = frame or made[0].FrameOfReferenceUID
    ds.ReferencedFrameOfReferenceSequence = [reference]
    region = Dataset()
    region.ROINumber, region.ROIName = 3, "GTV"
    region.ReferencedFrameOfReferenceUID = reference.FrameOfReferenceUID
    ds.StructureSetROISequence = [region]
    drawn = Dataset()
    drawn.ReferencedROINumber = 3
    drawn.ContourSequence = []
    for kind, points in contours:
        item = Dataset()
        item.ContourGeometricType = kind
        item.NumberOfContourPoints = len(points)
        world = points * [0.9, 0.7, 2.5] + [-20.0, 30.0, 5.0]
        item.ContourData = [f"{v:.4f}" for v in world.ravel()]
        drawn.ContourSequence.append(item)
    ds.ROIContourSequence = [drawn]
    pydicom.dcmwrite(file, ds, enforce_file_format=True)
    return file


def square(low: float, high: float, slice: float) -> NDArray[np.float64]:
    return np.array([[low, low, slice], [high, low, slice], [high, high, slice], [low, high, slice]])


def test_contours_with_a_hole(tmp_path: Path) -> None:
    folder, made = source(tmp_path)
    closed = "CLOSED_PLANAR"
    file = structures(
        made,
        [(closed, square(0.5, 8.5, 2)), (closed, square(3.5, 5.5, 2)), (closed, square(1.5, 3.5, 3))],
        tmp_path / "rt.dcm",
    )
    expected = np.zeros((10, 12, 6))
    expected[1:9, 1:9, 2] = 1
    expected[4:6, 4:6, 2] = 0
    expected[2:4, 2:4, 3] = 1
    for label in (None, 3, "gtv"):
        found = load_mask(file, like=load(folder), label=label)[0].numpy()
        np.testing.assert_array_equal(found > 0, expected)
    assert named_labels(file) == {3: "GTV"}


def test_a_contour_that_is_there_twice_is_no_hole(tmp_path: Path) -> None:
    """From another corner, the other way round, closed with its first point again; and its hole twice."""
    folder, made = source(tmp_path)
    whole, hole = square(0.5, 8.5, 2), square(3.5, 5.5, 2)
    copies = [whole, np.roll(whole, 2, axis=0), whole[::-1], np.vstack([whole, whole[:1]]), hole, hole[::-1]]
    expected = np.zeros((10, 12, 6))
    expected[1:9, 1:9, 2] = 1
    expected[4:6, 4:6, 2] = 0
    for count in range(5, len(copies) + 1):
        file = structures(made, [("CLOSED_PLANAR", c) for c in copies[:count]], tmp_path / "rt.dcm")
        found = load_mask(file, like=load(folder))[0].numpy()
        np.testing.assert_array_equal(found > 0, expected)


def test_combined_by_xor_where_the_file_says_so(tmp_path: Path) -> None:
    folder, made = source(tmp_path)
    whole, hole = square(0.5, 8.5, 2), square(3.5, 5.5, 2)
    kept = square(0.5, 2.5, 3)
    contours = [("CLOSEDPLANAR_XOR", c) for c in (whole, hole, hole, square(3.5, 5.5, 3), kept)]
    file = structures(made, [*contours, ("CLOSEDPLANAR_XOR", contours[3][1])], tmp_path / "rt.dcm")
    expected = np.zeros((10, 12, 6))
    expected[1:9, 1:9, 2] = 1
    expected[1:3, 1:3, 3] = 1
    np.testing.assert_array_equal(load_mask(file, like=load(folder))[0].numpy() > 0, expected)


def test_contours_on_every_second_slice_are_said(tmp_path: Path, caplog: Any) -> None:
    folder, made = source(tmp_path)
    for slices, said in (((0, 1, 2, 4), False), ((0, 4), False), ((0, 2, 4), True)):
        caplog.clear()
        contours = [("CLOSED_PLANAR", square(0.5, 4.5, slice)) for slice in slices]
        found = load_mask(structures(made, contours, tmp_path / "rt.dcm"), like=load(folder))
        assert int((found > 0).sum()) == 16 * len(slices)
        assert ("one slice in 2" in caplog.text) == said


def test_a_hole_by_a_keyhole(tmp_path: Path) -> None:
    folder, made = source(tmp_path)
    whole, hole = square(0.5, 8.5, 2), square(3.5, 5.5, 2)
    keyhole = np.vstack([whole, whole[:1], hole, hole[:1], whole[:1]])
    file = structures(made, [("CLOSED_PLANAR", keyhole), ("CLOSED_PLANAR", keyhole)], tmp_path / "rt.dcm")
    expected = np.zeros((10, 12, 6))
    expected[1:9, 1:9, 2] = 1
    expected[4:6, 4:6, 2] = 0
    np.testing.assert_array_equal(load_mask(file, like=load(folder))[0].numpy() > 0, expected)


def test_a_disc_has_the_area_of_a_disc(tmp_path: Path) -> None:
    folder, made = source(tmp_path)
    turn = np.linspace(0, 2 * np.pi, 200, endpoint=False)
    disc = np.stack([4.5 + 4 * np.cos(turn), 5.5 + 4 * np.sin(turn), np.full(200, 1.0)], axis=1)
    file = structures(made, [("CLOSED_PLANAR", disc)], tmp_path / "rt.dcm")
    column, row = np.mgrid[:10, :12]
    expected = (column - 4.5) ** 2 + (row - 5.5) ** 2 < 16
    np.testing.assert_array_equal(load_mask(file, like=load(folder))[0, ..., 1].numpy() > 0, expected)


@pytest.mark.parametrize(
    ("kind", "points", "words"),
    [
        ("OPEN_PLANAR", square(1, 5, 2), "OPEN_PLANAR"),
        ("POINT", square(1, 5, 2)[:1], "POINT"),
        ("CLOSED_PLANAR", square(1, 5, 2)[:2], "2 point"),
        ("CLOSED_PLANAR", square(1, 5, 2.4), "off its slice"),
        (
            "CLOSED_PLANAR",
            square(1, 5, 2) + np.array([[0, 0, 0.4], [0, 0, 0], [0, 0, 0], [0, 0, 0]]),
            "off its",
        ),
        ("CLOSED_PLANAR", square(1, 5, 40), "outside the image"),
        ("CLOSED_PLANAR", square(1, 50, 2), "outside the image"),
    ],
)
def test_contours_that_do_not_fit(tmp_path: Path, kind: str, points: NDArray[np.float64], words: str) -> None:
    folder, made = source(tmp_path)
    file = structures(made, [(kind, points)], tmp_path / "rt.dcm")
    with pytest.raises(VolumeError, match=words) as caught:
        load_mask(file, like=load(folder))
    assert caught.value.code == "bad-contour"


def test_contours_in_another_frame_of_reference(tmp_path: Path) -> None:
    folder, made = source(tmp_path)
    contours = [("CLOSED_PLANAR", square(1, 5, 2))]
    file = structures(made, contours, tmp_path / "rt.dcm", frame=generate_uid())
    with pytest.raises(VolumeError) as caught:
        load_mask(file, like=load(folder))
    assert caught.value.code == "other-frame"


def with_regions(file: Path, *regions: tuple[str, str | None]) -> Path:
    """The same RTSTRUCT with further regions, each of one contour of a kind (a point's first), or of none."""
    ds = pydicom.dcmread(file)
    for number, (name, kind) in enumerate(regions, start=11):
        region, drawn = copy.deepcopy(ds.StructureSetROISequence[0]), Dataset()
        region.ROINumber, region.ROIName = number, name
        ds.StructureSetROISequence.append(region)
        drawn.ReferencedROINumber = number
        if kind is not None:
            drawn.ContourSequence = [copy.deepcopy(ds.ROIContourSequence[0].ContourSequence[0])]
            drawn.ContourSequence[0].ContourGeometricType = kind
            if kind == "POINT":
                drawn.ContourSequence[0].ContourData = drawn.ContourSequence[0].ContourData[:3]
        ds.ROIContourSequence.append(drawn)
    ds.save_as(file)
    return file


def test_isocentres_and_regions_never_drawn_are_no_targets(tmp_path: Path) -> None:
    """As every planning system exports them; they cost the regions beside them nothing."""
    folder, made = source(tmp_path)
    drawn = [("CLOSED_PLANAR", square(0.5, 4.5, 2))]
    file = with_regions(
        structures(made, drawn, tmp_path / "rt.dcm"),
        ("ISO", "POINT"),
        ("line", "OPEN_PLANAR"),
        ("PTV", None),
    )
    assert named_labels(file) == {3: "GTV"}
    cohort = open_cohort(tmp_path)
    assert [(v.tumour, v.label) for v in cohort.volumes] == [("GTV", 3)]
    assert cohort.problems == ("mask object 1: 3 region(s) without closed contours left out",)
    (entry,) = inspect(tmp_path)
    assert entry["labels"] == {"GTV": 16}
    with pytest.raises(VolumeError, match="POINT"):
        load_mask(file, like=load(folder), label="ISO")


def test_a_number_that_is_not_there_is_told_from_those_that_are(tmp_path: Path) -> None:
    folder, made = source(tmp_path)
    write(made, mask(), tmp_path / "seg.dcm")
    structures(made, [("CLOSED_PLANAR", square(0.5, 4.5, 2))], tmp_path / "rt.dcm")
    for name, held in (("seg.dcm", r"\[1, 2\]"), ("rt.dcm", r"\[3\]")):
        with pytest.raises(VolumeError, match=f"found {held}, not 9"):
            load_mask(tmp_path / name, like=load(folder), label=9)
