"""Stored bits, transfer syntaxes and units: the value of each voxel is the one that was written."""

from __future__ import annotations

import base64
import copy
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import torch
from numpy.typing import NDArray
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames

from medmeta.volumes import CohortError, Plan, Volume, VolumeError, inspect, load, make_plan, prepare
from tests.volumes.phantoms import PET, classic, enhanced, save, voxels

PIXELS = voxels((3, 40, 36))


def values(folder: Path) -> np.ndarray:
    return load(folder)[0].numpy().transpose(2, 1, 0)


def test_rescaled_slice_by_slice_in_float(tmp_path: Path) -> None:
    def alter(ds: Dataset, index: int) -> None:
        ds.RescaleSlope, ds.RescaleIntercept = 0.1 * (index + 1), -3.5

    slopes = np.array([0.1, 0.2, 0.3])[:, None, None]
    expected = (PIXELS * np.round(slopes, 6) - 3.5).astype(np.float32)
    np.testing.assert_allclose(
        values(save(classic(PIXELS, alter=alter), tmp_path / "s")), expected, atol=1e-4
    )


def test_hounsfield_units_are_whole(tmp_path: Path) -> None:
    pixels = voxels((3, 8, 8), low=0, high=4000).astype(np.uint16)
    found = values(save(classic(pixels, intercept=-1024), tmp_path / "s"))
    np.testing.assert_array_equal(found, pixels.astype(np.float32) - 1024)


@pytest.mark.parametrize("frames", [False, True])
@pytest.mark.parametrize("signed", [False, True])
def test_bits_above_bits_stored_are_not_part_of_the_value(tmp_path: Path, frames: bool, signed: bool) -> None:
    low, high = (-2048, 2048) if signed else (0, 4096)
    clean = np.random.default_rng(1).integers(low, high, (3, 40, 36)).astype(np.int16)
    overlay = np.random.default_rng(2).integers(0, 16, clean.shape).astype(np.uint16) << 12
    dirty = ((clean.view(np.uint16) & 0x0FFF) | overlay).astype(np.uint16)

    def alter(ds: Dataset, index: int = 0) -> None:
        ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 12, 11, int(signed)

    if frames:
        made = [enhanced(dirty)]
        alter(made[0])
    else:
        made = classic(dirty, alter=alter)
    np.testing.assert_array_equal(values(save(made, tmp_path / "s")), clean.astype(np.float32))


@pytest.mark.parametrize("kind", [np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32])
def test_every_whole_number_type(tmp_path: Path, kind: Any) -> None:
    info = np.iinfo(kind)
    pixels = np.random.default_rng(0).integers(info.min, info.max, (2, 8, 8), endpoint=True).astype(kind)
    found = values(save(classic(pixels), tmp_path / "s"))
    np.testing.assert_array_equal(found, pixels.astype(np.float64).astype(np.float32))


def test_monochrome1_keeps_its_stored_values(tmp_path: Path) -> None:
    def alter(ds: Dataset, index: int) -> None:
        ds.PhotometricInterpretation = "MONOCHROME1"

    np.testing.assert_array_equal(values(save(classic(PIXELS, alter=alter), tmp_path / "s")), PIXELS)


LOSSLESS = {
    "implicit": uid.ImplicitVRLittleEndian,
    "big endian": uid.ExplicitVRBigEndian,
    "deflated": uid.DeflatedExplicitVRLittleEndian,
    "RLE": uid.RLELossless,
    "JPEG-LS": uid.JPEGLSLossless,
    "JPEG 2000": uid.JPEG2000Lossless,
}


def rewritten(folder: Path, syntax: uid.UID) -> None:
    for file in folder.iterdir():
        ds = pydicom.dcmread(file)
        if syntax.is_compressed and syntax != uid.DeflatedExplicitVRLittleEndian:
            ds.compress(syntax, generate_instance_uid=False)
        elif syntax == uid.ExplicitVRBigEndian:
            ds.PixelData = np.frombuffer(ds.PixelData, "<i2").astype(">i2").tobytes()
        ds.file_meta.TransferSyntaxUID = syntax
        file.unlink()
        pydicom.dcmwrite(
            file,
            ds,
            implicit_vr=syntax == uid.ImplicitVRLittleEndian,
            little_endian=syntax != uid.ExplicitVRBigEndian,
        )


@pytest.mark.parametrize("name", LOSSLESS)
def test_lossless_syntaxes(tmp_path: Path, name: str) -> None:
    folder = save(classic(PIXELS), tmp_path / "s")
    rewritten(folder, LOSSLESS[name])
    np.testing.assert_array_equal(values(folder), PIXELS)


@pytest.mark.parametrize("name", ["RLE", "JPEG-LS", "JPEG 2000"])
def test_compressed_frames(tmp_path: Path, name: str) -> None:
    folder = save([enhanced(PIXELS, order=[2, 0, 1])], tmp_path / "s")
    rewritten(folder, LOSSLESS[name])
    np.testing.assert_array_equal(values(folder), PIXELS)


@pytest.mark.parametrize(
    ("syntax", "lossless"),
    [("57", True), ("70", True), ("50", False), ("80", True), ("90", True), ("91", False)],
)
def test_syntaxes_written_by_gdcm(tmp_path: Path, syntax: str, lossless: bool) -> None:
    gdcm = pytest.importorskip("gdcm")
    ramp = (
        np.arange(32)[None, :, None] * 4 + np.arange(32)[None, None, :] * 3 + np.arange(3)[:, None, None]
    ).astype(np.uint8)
    folder = save(classic(ramp), tmp_path / "s")
    for file in folder.iterdir():
        reader = gdcm.ImageReader()
        reader.SetFileName(str(file))
        assert reader.Read()
        change = gdcm.ImageChangeTransferSyntax()
        target = f"1.2.840.10008.1.2.4.{syntax}"
        change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(target)))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer = gdcm.ImageWriter()
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        writer.SetFileName(str(file))
        assert writer.Write()
        assert pydicom.dcmread(file).file_meta.TransferSyntaxUID == target
    found = values(folder)
    if lossless:
        np.testing.assert_array_equal(found, ramp)
    else:
        np.testing.assert_allclose(found, ramp, atol=6)


# three slices of 16 x 16, encoded by OpenJPH (imagecodecs): no package here writes high-throughput streams
HTJ2K = (
    (
        "/0//UQApQAAAAAAQAAAAEAAAAAAAAAAAAAAAEAAAABAAAAAAAAAAAAABDwEB/1AACAACAAAACv9SAAwAAgABAAUEBEAB/1wA"
        "EyCIkJCQkJCQkJCQkJCQiIiI/2QAFwABT3BlbkpQSCBWZXIgMC4yNi4zLv+QAAoAAAAAANYAAf+TwAAmMfsFB3QAAMAAE0AA"
        "E0AAEwCe+QMHdADC/gKHdACM/QMHdADAABUQAAVMAAFQB4CF6ACgVAAAJHAAdgCjlAAAGRc1AGOUAMAAFbAABXQAAVi0XLDA"
        "GpSe/pe4glUAAPQsQEdrbOHAYYBMtgDgBQAGYCnxg4eT5QDAAC2YAAWzAAC0QE6RvZJn8vn3r/86W6T255ACQXFSPRxCWwD+"
        "JZPeKdH868D+i8r+/QAlg+ziCB7KQFwA/ve//3l//0cC/UAaCMpgWAD/2Q=="
    ),
    (
        "/0//UQApQAAAAAAQAAAAEAAAAAAAAAAAAAAAEAAAABAAAAAAAAAAAAABDwEB/1AACAACAAAACv9SAAwAAgABAAUEBEAB/1wA"
        "EyCIkJCQkJCQkJCQkJCQiIiI/2QAFwABT3BlbkpQSCBWZXIgMC4yNi4zLv+QAAoAAAAAARwAAf+TwAAmSfMFB3QAAMAAE0AA"
        "E0AAEwDu+AMHdACy/QKHdAAo+wMHdADAABVQAAVUAAFUuKAHa/bzAYK0ALioRpzu/gFGtAByAbWegH8A4pQAwAAWrAABakAA"
        "Fqjfk6MSgFfg3IU136kY/lKWGQWf1wD/Sg+Y7hzLfPXQSzvqQwMcwmfXAP89/3Avn/PzF/uFf2nEAVUcgmfXAMAALp4AAXUQ"
        "AAt0Tt+//zipL/uPf/zvv/zHwfzEP/75D/9gXbblxGf46MFhGBCUQl0A/36j/3w//3F//O9//nO98e/V/32xf1zkieP2AZKI"
        "MISlCas4wJZeAP97f/97/3/n/32//vf/frf2gAKAUujyVzFAVl0A/9k="
    ),
    (
        "/0//UQApQAAAAAAQAAAAEAAAAAAAAAAAAAAAEAAAABAAAAAAAAAAAAABDwEB/1AACAACAAAACv9SAAwAAgABAAUEBEAB/1wA"
        "EyCIkJCQkJCQkJCQkJCQiIiI/2QAFwABT3BlbkpQSCBWZXIgMC4yNi4zLv+QAAoAAAAAAWEAAf+TwAAmVe0FB3QAAMAAE0AA"
        "EsAAEwAa/gIHdADLAId0AOHzA4d0AMAAFVAABVQAAVTbpdDJUusAwZQAZ36jtqz2AMKUAC/d1+sOIQDilADAABbkAAFtwAAW"
        "2AYufl6wmaZpXgF9rPF9XucWiH31AZDkRhAAWAAOi+ev7GviF70D+DY45BN465YJAGBRIABYWAAevPjyhb8LEADzHYD/YwEB"
        "WIClWB20SiAwVwDAAC7iAAF3EAALrv9OMLJ//v2//37n0vLxj3//T3/4/2dP8/zHv/91P/znn/9/O0OGyzWvr+OHACnC+M3F"
        "BRhAl9IB/37rf/989/9/559//3zf/34f/3/x739F/rPIf0Tj4n+G8v8W/xHLlfyCKHBnTvRincUFIEC30gH/f3//c3/+93/8"
        "7/993/95/3//f/99/3+XCPzKAYnjlKAXGcFk9EPnBSjAd9MB/9k="
    ),
)


def htj2k(folder: Path, syntax: str) -> NDArray[Any]:
    """Write the slices; gives what they hold, by the formula that they were made with."""
    y, x = np.mgrid[:16, :16]
    made = np.stack([(x * y * (n + 3) * 7 + 40 * x + 1000 * n) % 4096 for n in range(3)])
    datasets = classic(made.astype(np.uint16))
    for ds, text in zip(datasets, HTJ2K, strict=True):
        ds.BitsStored, ds.HighBit = 16, 15
        ds.PixelData = encapsulate([base64.b64decode(text)])
        ds["PixelData"].is_undefined_length = True
        ds.file_meta.TransferSyntaxUID = syntax
    save(datasets, folder)
    return made


@pytest.mark.parametrize("number", [201, 202, 203])
def test_high_throughput_jpeg_2000(tmp_path: Path, number: int) -> None:
    made = htj2k(tmp_path / "s", f"1.2.840.10008.1.2.4.{number}")
    np.testing.assert_array_equal(values(tmp_path / "s"), made)


def test_a_damaged_high_throughput_stream(tmp_path: Path) -> None:
    htj2k(tmp_path / "s", "1.2.840.10008.1.2.4.201")
    ds = pydicom.dcmread(tmp_path / "s" / "001.dcm")
    ds.PixelData = encapsulate([base64.b64decode(HTJ2K[1])[:200]])
    ds.save_as(tmp_path / "s" / "001.dcm")
    with pytest.raises(VolumeError) as caught:
        load(tmp_path / "s")
    assert caught.value.code == "truncated-pixels"


def test_a_cut_jpeg_2000_stream_is_noticed(tmp_path: Path) -> None:
    folder = save(classic(PIXELS), tmp_path / "s")
    rewritten(folder, uid.JPEG2000Lossless)
    ds = pydicom.dcmread(folder / "001.dcm")
    frame = next(iter(generate_frames(ds.PixelData, number_of_frames=1)))
    ds.PixelData = encapsulate([frame[: len(frame) // 2]])
    ds.save_as(folder / "001.dcm")
    with pytest.raises(VolumeError) as caught:
        load(folder)
    assert caught.value.code == "truncated-pixels"


@pytest.mark.parametrize("name", ["RLE", "JPEG-LS", "JPEG 2000"])
def test_a_cut_file_is_noticed(tmp_path: Path, name: str) -> None:
    folder = save(classic(voxels((3, 64, 64))), tmp_path / "s")
    rewritten(folder, LOSSLESS[name])
    file = folder / "002.dcm"
    file.write_bytes(file.read_bytes()[:-1500])
    with pytest.raises(VolumeError) as caught:
        load(folder)
    assert caught.value.code in ("truncated-pixels", "damaged-pixels")


def test_missing_decoder_names_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from medmeta.volumes import decoders

    folder = save(classic(PIXELS), tmp_path / "s")
    rewritten(folder, uid.JPEG2000Lossless)
    monkeypatch.setattr(decoders, "_installed", lambda module: False)
    with pytest.raises(VolumeError, match="pip install pylibjpeg-openjpeg") as caught:
        load(folder)
    assert caught.value.code == "missing-decoder"


# -- PET ----------------------------------------------------------------------------------------------------

ACTIVITY = np.full((3, 4, 4), 5000, np.int16)


def pet(ds: Dataset, index: int) -> None:
    ds.Units, ds.DecayCorrection = "BQML", "START"
    ds.CorrectedImage = ["DECY", "ATTN", "SCAT"]
    ds.PatientWeight = 70
    ds.SeriesDate, ds.SeriesTime = "20200102", "110000"
    ds.AcquisitionDate, ds.AcquisitionTime = "20200102", f"11{index:02d}00"
    drug = Dataset()
    drug.RadionuclideTotalDose, drug.RadionuclideHalfLife = 3.7e8, 6586.2
    drug.RadiopharmaceuticalStartTime = "100000.00"
    ds.RadiopharmaceuticalInformationSequence = [drug]


def pet_series(**changes: Any) -> list[Dataset]:
    def alter(ds: Dataset, index: int) -> None:
        pet(ds, index)
        for name, value in changes.items():
            where = ds.RadiopharmaceuticalInformationSequence[0] if name.startswith("Radio") else ds
            if value is None:
                delattr(where, name)
            else:
                setattr(where, name, value)

    return classic(ACTIVITY, sop_class=PET, modality="PT", alter=alter)


def test_uptake_by_body_weight(tmp_path: Path) -> None:
    image = load(save(pet_series(), tmp_path / "s"))
    left = 3.7e8 * 0.5 ** (3600 / 6586.2)
    assert image.meta["unit"] == "SUV"
    assert float(image.max()) == pytest.approx(5000 * 70_000 / left, rel=1e-5)


def test_uptake_across_midnight_and_corrected_to_injection(tmp_path: Path) -> None:
    late = pet_series(RadiopharmaceuticalStartTime="233000", SeriesTime="003000", AcquisitionTime="003000")
    left = 3.7e8 * 0.5 ** (3600 / 6586.2)
    assert float(load(save(late, tmp_path / "a")).max()) == pytest.approx(5000 * 70_000 / left, rel=1e-5)
    admin = load(save(pet_series(DecayCorrection="ADMIN"), tmp_path / "b"))
    assert float(admin.max()) == pytest.approx(5000 * 70_000 / 3.7e8, rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "unit", "words"),
    [
        ({"PatientWeight": None}, "BQML", "no PatientWeight"),
        ({"PatientWeight": 0}, "BQML", "no PatientWeight"),
        ({"RadionuclideTotalDose": None}, "BQML", "no RadionuclideTotalDose"),
        ({"RadionuclideHalfLife": None}, "BQML", "no RadionuclideHalfLife"),
        ({"RadiopharmaceuticalStartTime": None}, "BQML", "no usable time"),
        ({"CorrectedImage": ["ATTN"]}, "BQML", "not decay corrected"),
        ({"DecayCorrection": "NONE"}, "BQML", "DecayCorrection is 'NONE'"),
        ({"SeriesTime": "150000"}, "BQML", "no usable time"),
        ({"Units": "CNTS"}, "CNTS", "cannot be turned into SUV"),
    ],
)
def test_without_the_tags_it_stays_as_stored(
    tmp_path: Path, caplog: Any, changes: dict[str, Any], unit: str, words: str
) -> None:
    image = load(save(pet_series(**changes), tmp_path / "s"))
    assert image.meta["unit"] == unit
    assert float(image.max()) == 5000
    assert words in caplog.text


def test_an_ultrasound_volume_lies_in_the_frame_of_its_probe(tmp_path: Path) -> None:
    """The same frames, their place told as an ultrasound volume tells it: the same grid, and a warning."""
    pixels = np.random.default_rng(0).integers(0, 200, (5, 6, 7), dtype=np.uint16)
    plain = load(save([enhanced(pixels)], tmp_path / "plain"))

    def alter(frame: Dataset, _: int) -> None:
        place = Dataset()
        place.ImagePositionVolume = frame.PlanePositionSequence[0].ImagePositionPatient
        frame.PlanePositionVolumeSequence = [place]
        del frame.PlanePositionSequence

    ds = enhanced(pixels, alter=alter, order=[3, 0, 4, 1, 2])
    shared, way = ds.SharedFunctionalGroupsSequence[0], Dataset()
    way.ImageOrientationVolume = shared.PlaneOrientationSequence[0].ImageOrientationPatient
    shared.PlaneOrientationVolumeSequence = [way]
    del shared.PlaneOrientationSequence
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = uid.EnhancedUSVolumeStorage
    ds.Modality = "US"
    ds.VolumeFrameOfReferenceUID = ds.FrameOfReferenceUID
    del ds.FrameOfReferenceUID
    image = load(save([ds], tmp_path / "us"))
    assert torch.equal(image.as_tensor(), plain.as_tensor())
    assert torch.equal(image.affine, plain.affine)
    (told,) = inspect(tmp_path / "us")
    assert told["ok"]
    assert any("axes are those of the probe" in warning for warning in told["warnings"])


def enhanced_pet(**changes: Any) -> Dataset:
    """One multi-frame file: the unit stands in a mapping to real values, times are whole moments."""

    def alter(frame: Dataset, _: int) -> None:
        frame.PixelValueTransformationSequence[0].RescaleSlope = 2.0
        mapping, unit = Dataset(), Dataset()
        unit.CodeValue, unit.CodingSchemeDesignator = changes.get("code", "Bq/ml"), "UCUM"
        unit.CodeMeaning = "unit"
        mapping.MeasurementUnitsCodeSequence = [unit]
        mapping.RealWorldValueSlope, mapping.RealWorldValueIntercept = changes.get("slope", 2.0), 0.0
        frame.RealWorldValueMappingSequence = [mapping]

    ds = enhanced(ACTIVITY, alter=alter)
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = "1.2.840.10008.5.1.4.1.1.130"
    ds.Modality, ds.PatientWeight = "PT", changes.get("weight", 70)
    ds.DecayCorrected = changes.get("corrected", "YES")
    ds.DecayCorrectionDateTime = changes.get("at", "20200103003000")
    drug = Dataset()
    drug.RadionuclideTotalDose, drug.RadionuclideHalfLife = 3.7e8, 6586.2
    drug.RadiopharmaceuticalStartDateTime = "20200102233000.00"
    ds.RadiopharmaceuticalInformationSequence = [drug]
    return ds


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian])
def test_uptake_of_an_enhanced_file(tmp_path: Path, syntax: str) -> None:
    ds = enhanced_pet()
    ds.file_meta.TransferSyntaxUID = syntax
    image = load(save([ds], tmp_path / "s"))
    left = 3.7e8 * 0.5 ** (3600 / 6586.2)
    assert image.meta["unit"] == "SUV"
    assert float(image.max()) == pytest.approx(10_000 * 70_000 / left, rel=1e-5)
    ready = load(save([enhanced_pet(code="g/ml{SUVbw}")], tmp_path / "t"))
    assert (ready.meta["unit"], float(ready.max())) == ("SUV", 10_000)


@pytest.mark.parametrize(
    ("changes", "unit", "words"),
    [
        ({"weight": 0}, "BQML", "no PatientWeight"),
        ({"corrected": "NO"}, "BQML", "not decay corrected"),
        ({"at": "20200102220000"}, "BQML", "no usable time"),
        ({"slope": 3.0}, "stored", "cannot be turned into SUV"),
        ({"code": "{counts}"}, "{counts}", "cannot be turned into SUV"),
    ],
)
def test_enhanced_uptake_without_the_tags(
    tmp_path: Path, caplog: Any, changes: dict[str, Any], unit: str, words: str
) -> None:
    image = load(save([enhanced_pet(**changes)], tmp_path / "s"))
    assert (image.meta["unit"], float(image.max())) == (unit, 10_000)
    assert words in caplog.text


def test_ct_that_is_not_in_hounsfield_units_says_so(tmp_path: Path, caplog: Any) -> None:
    made = classic(PIXELS, alter=lambda ds, _: setattr(ds, "RescaleType", "HU_MOD"))
    assert load(save(made, tmp_path / "s")).meta["unit"] == "HU_MOD"
    assert "not in HU" in caplog.text


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("BurnedInAnnotation", "YES", "burned-in annotation"),
        ("ConversionType", "WSD", "secondary capture"),
        ("Modality", "US", "ultrasound"),
    ],
)
def test_pixels_that_may_show_a_name(tmp_path: Path, caplog: Any, name: str, value: str, words: str) -> None:
    load(save(classic(PIXELS, alter=lambda ds, _: setattr(ds, name, value)), tmp_path / "s"))
    assert words in caplog.text


def test_a_file_that_changes_between_header_and_pixels(tmp_path: Path) -> None:
    from medmeta.volumes.dicom_read import read_stack
    from medmeta.volumes.dicom_series import find_series
    from medmeta.volumes.preflight import preflight

    made = classic(PIXELS)
    folder = save(made, tmp_path / "s")
    stack = preflight(find_series(folder)[0].headers)
    other = copy.deepcopy(made[0])
    other.SOPInstanceUID = uid.generate_uid()
    pydicom.dcmwrite(folder / "000.dcm", other)
    with pytest.raises(VolumeError) as caught:
        read_stack(stack)
    assert caught.value.code == "damaged-file"
    (folder / "000.dcm").unlink()
    with pytest.raises(VolumeError) as caught:
        read_stack(stack)
    assert caught.value.code == "not-found"


def test_a_ct_without_its_rescale_is_not_in_hounsfield_units(tmp_path: Path, caplog: Any) -> None:
    def bare(ds: Dataset, _: int) -> None:
        del ds.RescaleSlope, ds.RescaleIntercept

    image = load(save(classic(voxels((3, 5, 4)), alter=bare), tmp_path))
    assert image.meta["unit"] == "stored"
    assert "no RescaleIntercept" in caplog.text
    plan = make_plan([Volume("p", (tmp_path,), modality=("CT",))])
    assert plan.intensity == "zscore"
    window = Plan(3, (1.0, 1.0, 1.0), (8, 8, 8), 1, intensity="window", low=-100.0, high=200.0)
    with pytest.raises(CohortError, match="found values in 'stored'"):
        prepare(window, image)


def test_an_enhanced_ct_without_its_rescale_is_not_in_hounsfield_units(tmp_path: Path) -> None:
    ds = enhanced(voxels((3, 5, 4)))
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2.1"
    ds.Modality = "CT"
    for frame in ds.PerFrameFunctionalGroupsSequence:
        frame.PixelValueTransformationSequence[0].RescaleType = "HU"
    assert load(save([ds], tmp_path / "told")).meta["unit"] == "HU"
    for frame in ds.PerFrameFunctionalGroupsSequence:
        del frame.PixelValueTransformationSequence
    assert load(save([ds], tmp_path / "bare")).meta["unit"] == "stored"
