"""What lies beside the slices of a study, and what a choice among series means for a file that is alone."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from medmeta.volumes import MedmetaReader, Volume, VolumeError, inspect, load
from medmeta.volumes.keys import series_key
from medmeta.volumes.reading import read_image
from tests.volumes.phantoms import classic, save, voxels

SHAPE = (4, 6, 5)
PHILIPS, SIEMENS = "1.3.46.670589.11.0.0.12.4", "1.3.12.2.1107.5.9.1"


def refused(code: str, path: Path, **options: Any) -> VolumeError:
    with pytest.raises(VolumeError) as caught:
        load(path, **options)
    assert caught.value.code == code
    return caught.value


def study(tmp_path: Path) -> Path:
    return save(classic(voxels(SHAPE)), tmp_path / "study")


# -- vendors' own objects -----------------------------------------------------------------------------------


def vendor(file: Path, sop_class: str = PHILIPS, **values: Any) -> Path:
    """An object of a vendor's own class, without rows or pixels."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = sop_class
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = generate_uid()
    ds.PatientID, ds.StudyInstanceUID, ds.SeriesInstanceUID = "x", generate_uid(), generate_uid()
    block = ds.private_block(0x2005, "A VENDOR", create=True)
    block.add_new(1, "OB", bytes(400))
    for name, value in values.items():
        setattr(ds, name, value)
    pydicom.dcmwrite(file, ds, enforce_file_format=True)
    return file


@pytest.mark.parametrize("sop_class", [PHILIPS, SIEMENS])
def test_objects_without_an_image_are_passed_over(tmp_path: Path, sop_class: str) -> None:
    folder = study(tmp_path)
    whole = load(folder)
    file = vendor(folder / "XX_0001.dcm", sop_class)
    np.testing.assert_array_equal(load(folder).numpy(), whole.numpy())
    assert [entry["ok"] for entry in inspect(folder)] == [True]
    refused("not-an-image", file)


@pytest.mark.parametrize("values", [{"BitsAllocated": 8, "PixelData": bytes(60)}, {"SeriesInstanceUID": ""}])
def test_an_object_that_may_be_an_image_is_not(tmp_path: Path, values: dict[str, Any]) -> None:
    folder = study(tmp_path)
    vendor(folder / "XX_0001.dcm", **values)
    refused("bad-header", folder)


def test_a_file_cut_before_its_size_is_refused(tmp_path: Path) -> None:
    """Of an image class always; of a vendor's, whose images look like this, where it ends in an element."""
    folder = study(tmp_path)
    file = folder / "001.dcm"
    raw = file.read_bytes()
    file.write_bytes(raw[: raw.index(b"IS") + 20])
    refused("truncated-file", folder)
    file.write_bytes(raw)
    file = vendor(folder / "XX_0001.dcm")
    file.write_bytes(file.read_bytes()[:-100])
    refused("bad-header", folder)


# -- choices ------------------------------------------------------------------------------------------------

OTHER = [{"series": "nonsense"}, {"modality": "MR"}, {"description": "thick"}]


@pytest.mark.parametrize("choice", OTHER)
def test_a_single_file_is_of_the_series_asked_for(tmp_path: Path, choice: dict[str, str]) -> None:
    file = study(tmp_path) / "000.dcm"
    uid = pydicom.dcmread(file).SeriesInstanceUID
    error = refused("no-such-series", file, **choice)
    assert series_key(uid) in error.found
    for right in ({"series": uid}, {"series": series_key(uid)}, {"modality": "ct"}, {"description": "THIN"}):
        assert tuple(load(file, **right).shape) == (1, 5, 6, 1)


@pytest.mark.parametrize("choice", OTHER)
def test_a_file_without_series_is_of_none(tmp_path: Path, choice: dict[str, str]) -> None:
    (tmp_path / "one").mkdir()
    file = tmp_path / "one" / "x.nii.gz"
    nibabel.Nifti1Image(np.ones((4, 5, 6), np.float32), np.eye(4)).to_filename(file)
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.write(file, "x.nii.gz")
    for path in (file, tmp_path / "one", tmp_path / "z.zip"):
        assert "Leave out series=" in refused("no-such-series", path, **choice).cure
        assert load(path).shape[0] == 1
    reader = MedmetaReader(**choice)
    with pytest.raises(VolumeError, match="a file without series"):
        reader.get_data(reader.read(file))


def test_the_series_of_a_row_is_no_matter_to_a_nifti(tmp_path: Path) -> None:
    """Tables keep the UID of the series that the file was made of."""
    file = tmp_path / "x.nii.gz"
    nibabel.Nifti1Image(np.ones((4, 5, 6), np.float32), np.eye(4)).to_filename(file)
    assert read_image(Volume("p", (file,), series="1.2.3")).shape[0] == 1
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(file, alone)
    (alone / "x.json").write_text("{}")  # as converters leave beside it
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        for one in alone.iterdir():
            archive.write(one, one.name)
    for place in (alone, tmp_path / "z.zip"):
        assert read_image(Volume("p", (place,), series="1.2.3")).shape[0] == 1
    with pytest.raises(VolumeError) as caught:
        read_image(Volume("p", (study(tmp_path) / "000.dcm",), series="1.2.3"))
    assert caught.value.code == "no-such-series"
