"""Every refusal and every acceptance of a DICOM series, each on files made for it."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from medmeta.volumes import VolumeError, load
from tests.volumes.phantoms import AXIAL, MR, OBLIQUE, affine, classic, enhanced, save, voxels

PIXELS = voxels((8, 6, 5))


def refused(folder: Path, code: str, words: str | None = None) -> None:
    with pytest.raises(VolumeError, match=words) as caught:
        load(folder)
    assert caught.value.code == code, str(caught.value)


def expected(pixels: np.ndarray) -> np.ndarray:
    return pixels.transpose(2, 1, 0).astype(np.float32)


# -- right volumes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", [AXIAL, OBLIQUE, (0, 1.0, 0, 0, 0, -1.0), (-1.0, 0, 0, 0, -1.0, 0)])
def test_every_voxel_lies_where_the_tags_say(tmp_path: Path, orientation: tuple[float, ...]) -> None:
    image = load(save(classic(PIXELS, orientation=orientation), tmp_path / "s"))
    assert image.shape == (1, 5, 6, 8)
    np.testing.assert_array_equal(image[0].numpy(), expected(PIXELS))
    np.testing.assert_allclose(image.affine.numpy(), affine(orientation=orientation), atol=1e-5)
    assert image.meta["unit"] == "HU"
    assert image.meta["spacing"] == pytest.approx((0.9, 0.7, 2.5), abs=1e-5)


def test_order_is_by_position_whatever_names_and_numbers_say(tmp_path: Path) -> None:
    made = classic(PIXELS)
    numbers = list(range(100, 108))
    random.Random(0).shuffle(numbers)
    for ds, number in zip(made, numbers, strict=True):
        ds.InstanceNumber = number
    made[3].InstanceNumber = None
    del made[4].InstanceNumber
    names = [f"IM{number}" for number in numbers[::-1]]  # no suffix either
    image = load(save(made, tmp_path / "s", names=names))
    np.testing.assert_array_equal(image[0].numpy(), expected(PIXELS))
    np.testing.assert_allclose(image.affine.numpy(), affine(), atol=1e-6)


def test_sub_folders_and_foreign_files_do_not_matter(tmp_path: Path) -> None:
    folder = save(classic(PIXELS)[:4], tmp_path / "s" / "a" / "b")
    made = classic(PIXELS)
    for ds, first in zip(made, [pydicom.dcmread(folder / "000.dcm")] * 8, strict=True):
        for name in ("SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID"):
            setattr(ds, name, getattr(first, name))
    save(made[4:], tmp_path / "s" / "c")
    (tmp_path / "s" / "README").write_text("08 notes")
    (tmp_path / "s" / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    (tmp_path / "s" / "._000.dcm").write_bytes(b"\0" * 128 + b"DICM")
    np.testing.assert_array_equal(load(tmp_path / "s")[0].numpy(), expected(PIXELS))


def test_the_same_instance_twice_is_used_once_and_said(tmp_path: Path, caplog: Any) -> None:
    made = classic(PIXELS)
    folder = save([*made, made[2]], tmp_path / "s")
    assert load(folder).shape == (1, 5, 6, 8)
    assert "1 file(s) there twice" in caplog.text


def test_position_jitter_below_one_per_cent_is_accepted(tmp_path: Path) -> None:
    def jitter(ds: Dataset, index: int) -> None:
        ds.ImagePositionPatient = [-20.0, 30.0, 5.0 + 2.5 * index + (0.01 if index % 2 else -0.01)]

    assert load(save(classic(PIXELS, alter=jitter), tmp_path / "s")).meta["spacing"][2] == pytest.approx(
        2.5, abs=0.01
    )


def test_long_decimal_strings_are_read(tmp_path: Path) -> None:
    folder = save(classic(PIXELS), tmp_path / "s")
    for index in range(8):
        file = folder / f"{index:03d}.dcm"
        ds = pydicom.dcmread(file)
        old = ds["ImagePositionPatient"]
        position = f"-20.00000000000000000\\30.00000000000000000\\{5 + 2.5 * index:.17f}".encode()
        ds._dict[old.tag] = pydicom.dataelem.RawDataElement(
            old.tag, "DS", len(position), position + b" " * (len(position) % 2), 0, False, True
        )
        pydicom.dcmwrite(file, ds)
    np.testing.assert_allclose(load(folder).affine.numpy(), affine(), atol=1e-6)


def test_one_slice_is_read_with_a_warning(tmp_path: Path, caplog: Any) -> None:
    assert load(save(classic(PIXELS[:1]), tmp_path / "s")).shape == (1, 5, 6, 1)
    assert "one slice only" in caplog.text


# -- refusals -----------------------------------------------------------------------------------------------


def test_missing_slice(tmp_path: Path) -> None:
    made = classic(PIXELS)
    refused(save(made[:3] + made[4:], tmp_path / "s"), "missing-slice", "1 missing in 1 gap")


def test_doubled_slice(tmp_path: Path) -> None:
    made = classic(PIXELS)
    other = copy.deepcopy(made[2])
    other.SOPInstanceUID = generate_uid()
    refused(save([*made, other], tmp_path / "s"), "doubled-slice", "9 slices in 8 place")


def test_one_instance_uid_with_two_contents(tmp_path: Path) -> None:
    made = classic(PIXELS)
    made[5].SOPInstanceUID = made[4].SOPInstanceUID
    refused(save(made, tmp_path / "s"), "doubled-slice")


def test_uneven_spacing(tmp_path: Path) -> None:
    def uneven(ds: Dataset, index: int) -> None:
        ds.ImagePositionPatient = [-20.0, 30.0, 5.0 + 2.5 * index + (0.8 if index > 4 else 0)]

    refused(save(classic(PIXELS, alter=uneven), tmp_path / "s"), "uneven-spacing", "2.5 to 3.3 mm")


def test_shifted_slice(tmp_path: Path) -> None:
    def shifted(ds: Dataset, index: int) -> None:
        ds.ImagePositionPatient = [-20.0 + (1.0 if index == 3 else 0), 30.0, 5.0 + 2.5 * index]

    refused(save(classic(PIXELS, alter=shifted), tmp_path / "s"), "shifted-slice")


def test_sheared_stack(tmp_path: Path) -> None:
    def tilted(ds: Dataset, index: int) -> None:
        ds.ImagePositionPatient = [-20.0, 30.0 + 0.6 * index, 5.0 + 2.5 * index]

    refused(save(classic(PIXELS, alter=tilted), tmp_path / "s"), "tilted-gantry", "13.5 degrees")


def test_tilt_that_the_orientation_hides(tmp_path: Path) -> None:
    def tilted(ds: Dataset, index: int) -> None:
        ds.GantryDetectorTilt = 12

    refused(save(classic(PIXELS, alter=tilted), tmp_path / "s"), "tilted-gantry")


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("PatientID", "ANOTHER", "mixed-series"),
        ("FrameOfReferenceUID", "1.2.3", "mixed-series"),
        ("SOPClassUID", MR, "mixed-series"),
        ("Modality", "MR", "mixed-series"),
        ("PixelSpacing", [0.8, 0.9], "mixed-series"),
        ("ImageOrientationPatient", [0.0, 1, 0, 0, 0, 1], "localizer"),
        ("EchoTime", 80, "several-echoes"),
        ("TemporalPositionIdentifier", 2, "several-times"),
        ("DiffusionBValue", 1000.0, "several-directions"),
        ("ImageType", ["ORIGINAL", "PRIMARY", "LOCALIZER"], "several-components"),
        ("PhotometricInterpretation", "RGB", "colour"),
        ("PhotometricInterpretation", "PALETTE COLOR", "colour"),
        ("ImageType", ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"], "mosaic"),
        ("ImageType", ["ORIGINAL", "PRIMARY", "M", "VFRAME"], "mosaic"),
        ("RescaleSlope", None, ""),
        ("RescaleSlope", 0, "bad-rescale"),
        ("BitsStored", 20, "unsupported-pixels"),
        ("Rows", 0, "bad-header"),
        ("Rows", 60, "mixed-series"),
    ],
)
def test_one_slice_that_does_not_belong(tmp_path: Path, name: str, value: Any, code: str) -> None:
    def alter(ds: Dataset, index: int) -> None:
        if index == 3:
            setattr(ds, name, value)

    folder = save(classic(PIXELS, alter=alter), tmp_path / "s")
    if code:
        with pytest.raises(VolumeError) as caught:
            load(folder)
        assert caught.value.code in (code, "truncated-pixels"), str(caught.value)
    else:
        assert load(folder).shape == (1, 5, 6, 8)


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("ImagePositionPatient", "missing-position"),
        ("ImageOrientationPatient", "missing-orientation"),
        ("PixelSpacing", "missing-spacing"),
        ("PixelData", "missing-pixels"),
    ],
)
def test_absent_tags(tmp_path: Path, name: str, code: str) -> None:
    def alter(ds: Dataset, index: int) -> None:
        if index == 2:
            delattr(ds, name)

    refused(save(classic(PIXELS, alter=alter), tmp_path / "s"), code)


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("ImageOrientationPatient", [1.0, 0, 0, 1, 0, 0], "missing-orientation"),
        ("ImageOrientationPatient", [0.0, 0, 0, 0, 0, 0], "missing-orientation"),
        ("PixelSpacing", [0.0, 0.9], "missing-spacing"),
        ("PixelSpacing", [-1.0, 0.9], "missing-spacing"),
        ("NumberOfFrames", 3, "missing-position"),
        ("HighBit", 9, "unsupported-pixels"),
    ],
)
def test_tags_that_make_no_sense(tmp_path: Path, name: str, value: Any, code: str) -> None:
    refused(save(classic(PIXELS, alter=lambda ds, _: setattr(ds, name, value)), tmp_path / "s"), code)


def test_times_without_a_tag_for_them(tmp_path: Path) -> None:
    first, second = classic(PIXELS), classic(PIXELS)
    for a, b in zip(first, second, strict=True):
        b.SeriesInstanceUID, b.FrameOfReferenceUID = a.SeriesInstanceUID, a.FrameOfReferenceUID
    refused(save([*first, *second], tmp_path / "s"), "several-times", "16 slices in 8 place")


@pytest.mark.parametrize("keep", [-2, -100, 10])
def test_truncated_pixels(tmp_path: Path, keep: int) -> None:
    folder = save(classic(voxels((3, 32, 32))), tmp_path / "s")
    file = folder / "001.dcm"
    whole = file.read_bytes()
    file.write_bytes(whole[: keep if keep < 0 else len(whole) - 2048 + keep])
    refused(folder, "truncated-pixels", "of 2048 bytes in '001.dcm'")


def test_a_syntax_that_nothing_decodes(tmp_path: Path) -> None:
    folder = save(classic(PIXELS), tmp_path / "s")
    file = folder / "000.dcm"
    file.write_bytes(file.read_bytes().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.7\0"))
    with pytest.raises(VolumeError) as caught:
        load(file)
    assert caught.value.code == "missing-decoder"


def test_several_series_want_a_choice(tmp_path: Path) -> None:
    save(classic(PIXELS), tmp_path / "s" / "a")
    save(classic(PIXELS * 2, sop_class=MR, modality="MR", alter=_called("t1 fat sat")), tmp_path / "s" / "b")
    refused(tmp_path / "s", "several-volumes", "2 series")
    assert load(tmp_path / "s", modality="mr").meta["unit"] == "stored"
    assert load(tmp_path / "s", description="FAT").meta["unit"] == "stored"
    uid = pydicom.dcmread(tmp_path / "s" / "a" / "000.dcm").SeriesInstanceUID
    assert load(tmp_path / "s", series=uid).meta["unit"] == "HU"
    with pytest.raises(VolumeError, match="wanted a series of that key, modality or description") as caught:
        load(tmp_path / "s", series="1.2")
    assert caught.value.code == "no-such-series"


def _called(description: str) -> Any:
    return lambda ds, _: setattr(ds, "SeriesDescription", description)


# -- enhanced -----------------------------------------------------------------------------------------------


def test_enhanced_frames_in_any_order_with_slopes_of_their_own(tmp_path: Path) -> None:
    slopes = [0.5 + index for index in range(8)]
    order = [3, 1, 0, 2, 7, 6, 5, 4]
    ds = enhanced(PIXELS, orientation=OBLIQUE, slopes=slopes, order=order)
    image = load(save([ds], tmp_path / "s"))
    scaled = expected(PIXELS) * np.array(slopes, np.float32)
    np.testing.assert_allclose(image[0].numpy(), scaled, rtol=1e-6)
    np.testing.assert_allclose(image.affine.numpy(), affine(orientation=OBLIQUE), atol=1e-5)


def test_enhanced_echoes_times_and_weightings(tmp_path: Path) -> None:
    def echo(frame: Dataset, index: int) -> None:
        item = Dataset()
        item.EffectiveEchoTime = 10.0 * (1 + index % 2)
        frame.MREchoSequence = [item]

    def time(frame: Dataset, index: int) -> None:
        frame.FrameContentSequence[0].TemporalPositionIndex = 1 + index % 2

    def weighting(frame: Dataset, index: int) -> None:
        item = Dataset()
        item.DiffusionBValue = 1000.0 * (index % 2)
        frame.MRDiffusionSequence = [item]

    def stack(frame: Dataset, index: int) -> None:
        frame.FrameContentSequence[0].StackID = str(index % 2)

    for alter, code in (
        (echo, "several-echoes"),
        (time, "several-times"),
        (weighting, "several-directions"),
        (stack, "mixed-series"),
    ):
        refused(save([enhanced(PIXELS, alter=alter)], tmp_path / code), code)


def test_enhanced_frame_count_must_fit(tmp_path: Path) -> None:
    ds = enhanced(PIXELS)
    ds.NumberOfFrames = 7
    refused(save([ds], tmp_path / "s"), "bad-header", "7 frames and the place of 8")


@pytest.mark.parametrize("path", ["nothing-here", "text.txt", "empty", "empty.dcm"])
def test_what_is_no_volume(tmp_path: Path, path: str) -> None:
    (tmp_path / "text.txt").write_text("hello")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.dcm").touch()
    refused(tmp_path / path, "not-found" if path == "nothing-here" else "not-a-volume")
