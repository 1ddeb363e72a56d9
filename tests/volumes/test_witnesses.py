"""Real files against what other programs and people say of them: dcm2niix, dicom2nifti, dcmqi, highdicom."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import nrrd
import numpy as np
import pydicom
import pytest

from medmeta.volumes import VolumeError, inspect, load, load_mask

TRUTHS = [
    "anatomical/001",
    "ge/anatomical/001",
    "ge/anatomical/001_single_slice",
    "generic/anatomical/001",
    "generic/anatomical/002_non_isotropic",
    "generic/compressed/001",
    "generic/compressed_j2k/001",
    "generic/compressed_jpeg/001",
    "philips/anatomical/001",
    "philips_enhanced/anatomical/001",
    "siemens/anatomical/001",
    "siemens_multiframe/anatomical/001",
]


@pytest.fixture(scope="session")
def dicom(shared_data: Path) -> Path:
    return shared_data / "dicom"


def canonical(array: np.ndarray, affine: Any) -> tuple[np.ndarray, np.ndarray]:
    """Axes turned to RAS order by nibabel, so that two storage orders can be compared."""
    turned = nibabel.as_closest_canonical(nibabel.Nifti1Image(array.astype(np.float64), np.asarray(affine)))
    return np.asarray(turned.dataobj), turned.affine


def same(image: Any, array: np.ndarray, affine: np.ndarray) -> None:
    found, place = canonical(image[0].numpy(), image.affine)
    expected, there = canonical(array, affine)
    np.testing.assert_allclose(found, expected, atol=2e-4, rtol=1e-6)
    np.testing.assert_allclose(place, there, atol=1e-4)


@pytest.mark.parametrize("name", TRUTHS)
def test_dicom2niftis_ground_truths(dicom: Path, name: str) -> None:
    truth = nibabel.load(dicom / "dicom2nifti" / f"{name}_ground_truth.nii.gz")
    array = truth.get_fdata().reshape(truth.shape[:3])  # one of them has a fourth axis of length 1
    same(load(dicom / "dicom2nifti" / name), array, truth.affine)


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("dicom2nifti/ge/fmri/001", "several-times"),
        ("dicom2nifti/philips/fmri/001", "several-times"),
        ("dicom2nifti/philips_enhanced/fmri/001", "several-times"),
        ("dicom2nifti/generic/rgb/001", "colour"),
        ("dcm_qa_nih/In/20180918GE/mr_0004", "several-times"),
        ("dcm_qa_nih/In/20180918Si/mr_0003", "mosaic"),
        ("dcm_qa_enh/In/Philips", "several-echoes"),
        ("dcm_qa_enh/In/Siemens/XA10", "several-times"),
        ("highdicom/dx_image.dcm", "missing-position"),
        ("highdicom/sm_image.dcm", "colour"),
        ("pydicom_data/parametric_map_float.dcm", "unsupported-pixels"),
        ("pydicom_data/HTJ2KLossless_08_RGB.dcm", "colour"),
    ],
)
def test_real_series_that_are_no_volume(dicom: Path, name: str, code: str) -> None:
    with pytest.raises(VolumeError) as caught:
        load(dicom / name)
    assert caught.value.code == code


@pytest.mark.parametrize("time", range(4))
def test_dcm2niixs_reference_of_one_enhanced_file(dicom: Path, time: int) -> None:
    truth = nibabel.load(dicom / "dcm_qa_enh/Ref/Siemens_REST1_w_SMS_PF7-8_6.nii.gz")
    file = dicom / f"dcm_qa_enh/In/Siemens/XA10/6_{time + 1}.dcm"
    same(load(file), np.asarray(truth.dataobj)[..., time], truth.affine)


@pytest.mark.parametrize("kind", ["RLE", "jpeg_2k_lossless", "jpeg_ls_lossless", "big_endian"])
def test_one_image_in_several_syntaxes(dicom: Path, kind: str) -> None:
    from medmeta.volumes.dicom_header import read_header
    from medmeta.volumes.dicom_read import frames_of

    first = dicom / "pydicom_data" / "emri_small.dcm"
    other = dicom / "pydicom_data" / f"emri_small_{kind}.dcm"
    if not other.exists():
        pytest.skip(f"{other.name} not present")
    header, again = read_header(first), read_header(other)
    assert header is not None
    assert again is not None
    one, two = frames_of(header), frames_of(again)
    for index in range(header.frames):
        np.testing.assert_array_equal(one(index), two(index))


def test_each_slice_lies_at_its_own_position(dicom: Path) -> None:
    """World coordinates from each file's tags, not from the affine's step."""
    for name in (
        "dicom2nifti/siemens/anatomical/001",
        "dicom2nifti/philips/anatomical/001",
        "dcmqi_seg/ct-3slice",
    ):
        image = load(dicom / name)
        affine = image.affine.numpy()
        for file in sorted((dicom / name).iterdir()):
            ds = pydicom.dcmread(file)
            row, column = np.reshape(ds.ImageOrientationPatient, (2, 3)).astype(float)
            corner = (
                np.array(ds.ImagePositionPatient, float)
                + row * 7 * ds.PixelSpacing[1]
                + column * 3 * ds.PixelSpacing[0]
            )
            x, y, z, _ = np.linalg.solve(affine, [-corner[0], -corner[1], corner[2], 1])
            np.testing.assert_allclose([x, y], [7, 3], atol=0.01)
            assert abs(z - round(z)) < 0.01
            stored = ds.pixel_array[3, 7] * float(ds.get("RescaleSlope", 1)) + float(
                ds.get("RescaleIntercept", 0)
            )
            assert float(image[0, 7, 3, round(z)]) == pytest.approx(stored)


# -- masks --------------------------------------------------------------------------------------------------


def truth_of(file: Path) -> np.ndarray:
    return nrrd.read(str(file))[0]


@pytest.mark.parametrize("size", ["23x38x3", "24x38x3"])
@pytest.mark.parametrize("image", ["image", "multiframe"])
def test_dcmqi_segment_is_its_nrrd(dicom: Path, size: str, image: str) -> None:
    folder = dicom / "dcmqi_seg" / size
    like = load(folder / image)
    found = load_mask(folder / "seg", like=like)[0].numpy()
    np.testing.assert_array_equal(found, truth_of(folder / "nrrd/label.nrrd") > 0)
    np.testing.assert_array_equal(load_mask(folder / "nrrd", like=like)[0].numpy() > 0, found > 0)


@pytest.mark.parametrize(
    "file", ["dcmqi_seg/liver.dcm", "pydicom_data/liver_rle.dcm", "pydicom_data/liver_j2k.dcm"]
)
def test_dcmqi_liver(dicom: Path, file: str) -> None:
    like = load(dicom / "dcmqi_seg/ct-3slice")
    found = load_mask(dicom / file, like=like)[0].numpy()
    np.testing.assert_array_equal(found, truth_of(dicom / "dcmqi_seg/liver_seg.nrrd") > 0)


def test_dcmqi_partial_overlaps(dicom: Path) -> None:
    folder = dicom / "dcmqi_seg"
    like = load(folder / "ct-3slice")
    for number in (1, 2, 3):
        for value in np.unique(truth := truth_of(folder / f"partial_overlaps-{number}.nrrd"))[1:]:
            found = load_mask(folder / "partial_overlaps.dcm", like=like, label=int(value))
            np.testing.assert_array_equal(found[0].numpy(), truth == value)


@pytest.mark.parametrize("kind", ["noppv", "ppv5"])
def test_dcmqi_label_map(dicom: Path, kind: str) -> None:
    from monai.data import MetaTensor

    folder = dicom / "dcmqi_seg"
    scan = load(folder / f"sparse_labelmap_{kind}_seg.nrrd")
    like = MetaTensor(scan.as_tensor(), affine=scan.affine)  # the NRRD's grid as the image
    found = load_mask(folder / f"sparse-labelmap-{kind}.dcm", like=like)[0].numpy()
    # the other program fills the slice that is left out with the padding value 5; no segment is called 5
    np.testing.assert_array_equal(found, scan[0].numpy() * (scan[0].numpy() == 1))


def test_highdicoms_single_frame_segment(dicom: Path) -> None:
    folder = dicom / "highdicom"
    like = load(folder / "ct_image.dcm")
    file = folder / "seg_image_ct_binary_single_frame.dcm"
    truth = pydicom.dcmread(file).pixel_array.T
    np.testing.assert_array_equal(load_mask(file, like=like)[0, ..., 0].numpy(), truth)


def test_contours_of_a_whole_scan_do_not_fit_one_slice_of_it(dicom: Path) -> None:
    like = load(dicom / "rtstruct/ct.0.dcm")
    with pytest.raises(VolumeError) as caught:
        load_mask(dicom / "rtstruct/rtss.dcm", like=like)
    assert caught.value.code == "bad-contour"


def test_contours_against_another_way_to_fill_them(dicom: Path) -> None:
    """All regions of a real file on a grid made to hold them, against scikit-image's polygons."""
    import torch
    from monai.data import MetaTensor
    from skimage.draw import polygon2mask

    ds = pydicom.dcmread(dicom / "rtstruct/rtss.dcm")
    ct = pydicom.dcmread(dicom / "rtstruct/ct.0.dcm")
    names = {int(r.ROINumber): str(r.ROIName) for r in ds.StructureSetROISequence}
    step = float(ct.PixelSpacing[0])
    origin = np.array(ct.ImagePositionPatient, float)
    checked = 0
    for roi in sorted(ds.ROIContourSequence, key=lambda roi: len(roi.get("ContourSequence", [])))[:6]:
        contours = [np.reshape(c.ContourData, (-1, 3)).astype(float) for c in roi.get("ContourSequence", [])]
        heights = sorted({round(c[0, 2], 3) for c in contours if len(c) > 2})
        if len(heights) < 2 or any(len(c) < 3 for c in contours):
            continue
        rise = min(np.diff(heights))
        count = round((heights[-1] - heights[0]) / rise) + 1
        affine = np.diag([-step, -step, rise, 1.0])
        affine[:3, 3] = -origin[0], -origin[1], heights[0]
        like = MetaTensor(torch.zeros(1, 512, 512, count), affine=torch.from_numpy(affine))
        number = int(roi.ReferencedROINumber)
        found = load_mask(dicom / "rtstruct/rtss.dcm", like=like, label=number)[0].numpy() > 0
        expected = np.zeros((512, 512, count), bool)
        for points in contours:
            flat = (points[:, :2] - origin[:2]) / step
            expected[..., round((points[0, 2] - heights[0]) / rise)] ^= polygon2mask((512, 512), flat)
        edge = (found ^ expected).sum() / max(expected.sum(), 1)
        assert edge < 0.02, (names[number], edge)  # voxels whose centre lies on an edge
        checked += 1
    assert checked >= 3


def test_everything_there_gets_a_verdict(dicom: Path) -> None:
    entries = inspect(dicom)
    assert len(entries) > 60
    for entry in entries:
        assert entry["ok"] or (entry["code"] and entry["message"])
        assert not entry["path"].startswith("/")
