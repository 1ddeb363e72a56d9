"""DICOM text in the character set that its data set names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from medmeta.volumes import load, load_mask
from medmeta.volumes.dicom_header import read_header
from medmeta.volumes.mask_loading import named_labels
from tests.volumes.phantoms import classic, save, voxels
from tests.volumes.test_dicom_masks import SHAPE, mask, source, square, structures, write

SETS = [
    ("ISO_IR 192", "Läsion 腫瘍"),
    ("ISO_IR 100", "gliome cérébral"),
    ("ISO_IR 144", "опухоль"),
    ("GB18030", "肿瘤"),
    (["", "ISO 2022 IR 87"], "axial 山田"),  # ASCII byte by byte, with escapes
]


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
@pytest.mark.parametrize(("charset", "name"), SETS)
def test_names_of_segments(tmp_path: Path, charset: str | Sequence[str], name: str, syntax: str) -> None:
    folder, made = source(tmp_path)
    file = write(made, mask(), tmp_path / "seg.dcm")
    ds = pydicom.dcmread(file)
    ds.SpecificCharacterSet = charset
    ds.SegmentSequence[0].SegmentLabel = name
    ds.file_meta.TransferSyntaxUID = syntax
    pydicom.dcmwrite(file, ds, implicit_vr=syntax == ImplicitVRLittleEndian, little_endian=True)
    assert named_labels(file)[1] == name
    found = load_mask(file, like=load(folder), label=name)
    assert int(found.sum()) == int((mask() == 1).sum())


def test_an_item_may_name_a_set_of_its_own(tmp_path: Path) -> None:
    _, made = source(tmp_path)
    file = write(made, mask(), tmp_path / "seg.dcm")
    ds = pydicom.dcmread(file)
    ds.SpecificCharacterSet = "ISO_IR 192"
    for item, charset in zip(ds.SegmentSequence, ("ISO_IR 100", None), strict=True):
        item.SegmentLabel = "cérébral"
        item.SegmentedPropertyTypeCodeSequence[0].CodeMeaning = "Mass"  # says less than the label
        if charset:
            item.SpecificCharacterSet = charset
    ds.save_as(file)
    assert named_labels(file) == {1: "cérébral", 2: "cérébral"}


def test_names_of_regions(tmp_path: Path) -> None:
    _, made = source(tmp_path)
    file = structures(made, [("CLOSED_PLANAR", square(1, 5, 2))], tmp_path / "rt.dcm")
    ds = pydicom.dcmread(file)
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.StructureSetROISequence[0].ROIName = "Läsion 腫瘍"
    ds.save_as(file)
    assert named_labels(file) == {3: "Läsion 腫瘍"}


def test_a_series_is_chosen_by_what_people_read(tmp_path: Path) -> None:
    folder = save([_with(ds, "Schädel axial") for ds in classic(voxels(SHAPE))], tmp_path / "series")
    assert tuple(load(folder, description="schädel").shape) == (1, 10, 12, 6)


def _with(ds: Dataset, description: str) -> Dataset:
    ds.SpecificCharacterSet, ds.SeriesDescription = "ISO_IR 192", description
    return ds


@pytest.mark.parametrize("charset", [b"ISO_IR 6", b"ISO_IR 192", b"ISO_IR 999"])
def test_bytes_of_another_set_than_named_are_latin_1(tmp_path: Path, charset: bytes) -> None:
    """Without a replacement character: two patients must not become one."""
    ds = _with(classic(voxels(SHAPE))[0], "Sch?del")
    file = save([ds], tmp_path / "s") / "000.dcm"
    raw = file.read_bytes().replace(b"ISO_IR 192", charset.ljust(10))
    file.write_bytes(raw.replace(b"Sch?del", b"Sch\xe4del"))
    header = read_header(file)
    assert header is not None
    assert header.description == "Schädel"
