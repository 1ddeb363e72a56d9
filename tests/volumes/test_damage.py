"""Damaged files: the right volume or a VolumeError, never another exception, never another geometry."""

from __future__ import annotations

import gzip
import io
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import nrrd
import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import uid
from pydicom.datadict import keyword_for_tag

from medmeta.volumes import VolumeError, inspect, load, load_mask
from tests.volumes.phantoms import OBLIQUE, affine, classic, enhanced, save, voxels

SHAPE = (4, 10, 8)
PIXELS = voxels(SHAPE)


@dataclass(frozen=True)
class Sample:
    """Files as written, and what they hold."""

    name: str
    files: dict[str, bytes]
    array: Any
    affine: Any


def _bytes(ds: pydicom.Dataset) -> bytes:
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of values that are wrong on purpose
        pydicom.dcmwrite(out, ds, enforce_file_format=True)
    return out.getvalue()


def _samples() -> list[Sample]:
    right = PIXELS.transpose(2, 1, 0).astype(np.float32)
    made = classic(PIXELS, orientation=OBLIQUE)
    plain = {f"s/{n}.dcm": _bytes(ds) for n, ds in enumerate(made)}
    for ds in made:
        ds.compress(uid.RLELossless, generate_instance_uid=False)
    packed = {f"s/{n}.dcm": _bytes(ds) for n, ds in enumerate(made)}
    multi = {"s/0.dcm": _bytes(enhanced(PIXELS))}
    place = affine()
    with tempfile.TemporaryDirectory() as folder:
        nibabel.Nifti1Image(right, place).to_filename(f"{folder}/a.nii")
        nrrd.write(
            f"{folder}/a.nrrd",
            right,
            {"space": "RAS", "space directions": place[:3, :3].T, "space origin": place[:3, 3]},
        )
        nifti, nearly = Path(f"{folder}/a.nii").read_bytes(), Path(f"{folder}/a.nrrd").read_bytes()
    return [
        Sample("classic", plain, right, affine(orientation=OBLIQUE)),
        Sample("run lengths", packed, right, affine(orientation=OBLIQUE)),
        Sample("enhanced", multi, right, place),
        Sample("nifti", {"s/a.nii": nifti}, right, place),
        Sample("nifti packed", {"s/a.nii.gz": gzip.compress(nifti)}, right, place),
        Sample("nrrd", {"s/a.nrrd": nearly}, right, place),
    ]


SAMPLES = _samples()
# what a slice of a classic series says of its place; a change in one slice alone must be noticed
GEOMETRY = (
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "SamplesPerPixel",
    "NumberOfFrames",
    "PhotometricInterpretation",
    "RescaleSlope",
    "FrameOfReferenceUID",
    "SOPClassUID",
    "PatientID",
    "ImageType",
)


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp())
    yield folder
    shutil.rmtree(folder)


def outcome(sample: Sample, files: dict[str, bytes], folder: Path) -> Any:
    """The image, or None where it was refused; any other exception fails the test."""
    shutil.rmtree(folder / "s", ignore_errors=True)
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    try:
        image = load(folder / "s", max_voxels=1 << 22)
    except VolumeError as refusal:
        told = str(refusal)
        image = None
    if image is None:
        assert "SECRET" not in told
        return None
    assert image.ndim == 4
    assert bool(image.isfinite().all())
    return image


def same(sample: Sample, image: Any) -> bool:
    return (
        image.shape[1:] == sample.array.shape
        and bool(np.allclose(image.affine.numpy(), sample.affine, atol=0.03))
        and bool(np.array_equal(image[0].numpy(), sample.array))
    )


slow = pytest.mark.slow
OPTIONS: dict[str, Any] = {
    "deadline": None,
    "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    "derandomize": True,
    "database": None,
}


def cut(data: st.DataObject, place: Path) -> None:
    """Truncation anywhere: whatever is read is what was written."""
    sample = data.draw(st.sampled_from(SAMPLES))
    name = data.draw(st.sampled_from(sorted(sample.files)))
    content = sample.files[name]
    left = data.draw(st.integers(0, len(content) - 1))
    image = outcome(sample, {**sample.files, name: content[:left]}, place)
    assert image is None or same(sample, image)


def flip(data: st.DataObject, place: Path) -> None:
    """Bytes changed anywhere: no other exception, no hang."""
    sample = data.draw(st.sampled_from(SAMPLES))
    name = data.draw(st.sampled_from(sorted(sample.files)))
    content = bytearray(sample.files[name])
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    image = outcome(sample, {**sample.files, name: bytes(content)}, place)
    if image is not None and sample.name == "nifti packed":
        assert same(sample, image)  # the checksum sees every change that matters


VALUES = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True, width=32),
    st.integers(-5, 70000),
    st.sampled_from(
        ["", "RGB", "1e400", "nan", "-", "MOSAIC", "0", "\\", "1\\2", "1\\2\\3", "9" * 40, "ä", "*"]
    ),
)


def field(data: st.DataObject, place: Path) -> None:
    """One slice's field changed: the old volume or a refusal, never a volume of another geometry."""
    sample = SAMPLES[0]
    name = data.draw(st.sampled_from(sorted(sample.files)))
    ds = pydicom.dcmread(io.BytesIO(sample.files[name]))
    keyword = data.draw(st.sampled_from(GEOMETRY))
    value = data.draw(VALUES)
    element = ds.get(keyword)
    raw = str(value).encode("latin-1")
    tag = pydicom.datadict.tag_for_keyword(keyword)
    assert tag is not None
    assert keyword_for_tag(tag) == keyword
    vr = pydicom.datadict.dictionary_VR(tag)
    if vr == "US":
        raw = int(abs(value) if isinstance(value, int) else 7).to_bytes(4, "little")[:2]
    raw += b" " * (len(raw) % 2)
    ds[tag] = pydicom.dataelem.RawDataElement(pydicom.tag.Tag(tag), vr, len(raw), raw, 0, False, True)
    image = outcome(sample, {**sample.files, name: _bytes(ds)}, place)
    if image is not None and keyword != "RescaleSlope":
        assert same(sample, image), (keyword, value, element)


@pytest.mark.parametrize("damage", [cut, flip, field])
def test_damage(place: Path, damage: Any) -> None:
    settings(max_examples=34, **OPTIONS)(given(data=st.data())(lambda data: damage(data, place)))()


@slow
@pytest.mark.parametrize("damage", [cut, flip, field])
def test_much_damage(place: Path, damage: Any) -> None:
    settings(max_examples=1000, **OPTIONS)(given(data=st.data())(lambda data: damage(data, place)))()


# -- damage by hand -----------------------------------------------------------------------------------------


def test_the_samples_are_read_right(place: Path) -> None:
    for sample in SAMPLES:
        image = outcome(sample, sample.files, place)
        assert image is not None
        assert same(sample, image), sample.name


def test_a_file_that_vanishes_between_listing_and_reading(tmp_path: Path, monkeypatch: Any) -> None:
    from medmeta.volumes import dicom_series

    folder = save(classic(PIXELS), tmp_path / "s")
    listed = list(dicom_series.files_below(folder))
    monkeypatch.setattr(dicom_series, "dicom_files", lambda files: iter(listed))
    (folder / "002.dcm").unlink()
    with pytest.raises(VolumeError) as caught:
        load(folder)
    assert caught.value.code == "not-found"


def test_compressed_frames_that_are_said_to_be_plain(tmp_path: Path) -> None:
    """Read as they lie, the frames' own headers would be taken for voxels."""
    ds = classic(PIXELS[:1])[0]
    file = save([ds], tmp_path / "s") / "000.dcm"
    plain = file.read_bytes()
    at = plain.index(b"\xe0\x7f\x10\x00OW")
    item = b"\xfe\xff\x00\xe0" + len(ds.PixelData).to_bytes(4, "little") + ds.PixelData
    ending = b"\xfe\xff\xdd\xe0\0\0\0\0"
    empty = b"\xfe\xff\x00\xe0\0\0\0\0"
    file.write_bytes(plain[:at] + b"\xe0\x7f\x10\x00OW\0\0\xff\xff\xff\xff" + empty + item + ending)
    with pytest.raises(VolumeError, match="compressed frames in an uncompressed syntax") as caught:
        load(file)
    assert caught.value.code == "damaged-pixels"


def test_one_bad_series_does_not_hide_the_good_ones(tmp_path: Path) -> None:
    save(classic(PIXELS), tmp_path / "good")
    bad = classic(PIXELS)
    save(bad[:2] + bad[3:], tmp_path / "gap")
    (save(classic(PIXELS), tmp_path / "cut") / "001.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\xff" * 50)
    found = {entry["path"]: entry for entry in inspect(tmp_path)}
    assert found["good"]["ok"]
    assert found["gap"]["code"] == "missing-slice"
    assert not found["cut"]["ok"]
    assert np.array_equal(load(tmp_path / "good")[0].numpy(), PIXELS.transpose(2, 1, 0))


def test_a_mask_that_is_damaged(tmp_path: Path) -> None:
    image = load(save(classic(PIXELS), tmp_path / "s"))
    for content in (b"", b"\0" * 128 + b"DICM", b"\0" * 128 + b"DICM" + bytes(range(256)) * 4):
        (tmp_path / "m.dcm").write_bytes(content)
        with pytest.raises(VolumeError):
            load_mask(tmp_path / "m.dcm", like=image)


@slow
def test_a_two_gigabyte_multi_frame_file(tmp_path: Path) -> None:
    """Headers of it cost nothing; its pixels are refused where they would not fit."""
    ds = enhanced(np.zeros((4, 512, 512), np.int16))
    frames = [ds.PerFrameFunctionalGroupsSequence[0]] * 4096
    ds.PerFrameFunctionalGroupsSequence = []
    for index, frame in enumerate(frames):
        one = pydicom.dataset.Dataset()
        item = pydicom.dataset.Dataset()
        item.ImagePositionPatient = [0.0, 0.0, float(index)]
        one.PlanePositionSequence = [item]
        one.PixelValueTransformationSequence = frame.PixelValueTransformationSequence
        ds.PerFrameFunctionalGroupsSequence.append(one)
    ds.NumberOfFrames = 4096
    del ds.PixelData
    file = tmp_path / "big.dcm"
    pydicom.dcmwrite(file, ds, enforce_file_format=True)
    with open(file, "ab") as out:
        size = 4096 * 512 * 512 * 2
        out.write(b"\xe0\x7f\x10\x00OW\0\0" + (size & 0xFFFFFFFF).to_bytes(4, "little"))
        out.truncate(out.tell() + size)
    (entry,) = inspect(file)
    assert entry["ok"], entry["message"]
    assert entry["shape"] == [512, 512, 4096]
    with pytest.raises(VolumeError) as caught:
        load(file, max_voxels=1 << 28)
    assert caught.value.code == "too-large"
    # 4.3 GB as float32; what is held beside it is a frame and the program (the limit is on the process)
    program = f"""
import resource, numpy
from pathlib import Path
from medmeta.volumes.dicom_header import read_header
from medmeta.volumes.dicom_read import read_stack
from medmeta.volumes.preflight import preflight
stack = preflight([read_header(Path({str(file)!r}))])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
scan = read_stack(stack)
assert scan.array.shape == (1, 512, 512, 4096)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    command = [sys.executable, "-c", program]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) * 1024 < 1.05 * 4 * 512 * 512 * 4096
