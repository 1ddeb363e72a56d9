"""NRRD, MetaImage, pictures, npz and zip."""

from __future__ import annotations

import copy
import zipfile
import zlib
from pathlib import Path
from typing import Any

import nibabel
import nrrd
import numpy as np
import pytest
from PIL import Image

from medmeta.volumes import VolumeError, load, load_mask
from medmeta.volumes.archive import unpacked
from tests.volumes.phantoms import affine, classic, save, voxels

ARRAY = np.random.default_rng(0).integers(0, 999, (5, 6, 7)).astype(np.int16)
LPS = np.array([[0, -2.0, 0, 10], [1.5, 0, 0, -20], [0, 0, 3.0, 30], [0, 0, 0, 1]])
RAS = np.diag([-1.0, -1, 1, 1]) @ LPS


def refused(file: Path, code: str) -> None:
    with pytest.raises(VolumeError) as caught:
        load(file)
    assert caught.value.code == code, str(caught.value)


def write_nrrd(file: Path, array: Any = ARRAY, **header: Any) -> Path:
    about = {
        "space": "left-posterior-superior",
        "space directions": LPS[:3, :3].T,
        "space origin": LPS[:3, 3],
    }
    nrrd.write(str(file), array, {k: v for k, v in {**about, **header}.items() if v is not None})
    return file


@pytest.mark.parametrize("encoding", ["raw", "gzip", "bzip2"])
@pytest.mark.parametrize("name", ["a.nrrd", "a.nhdr"])
def test_nrrd(tmp_path: Path, encoding: str, name: str) -> None:
    image = load(write_nrrd(tmp_path / name, encoding=encoding))
    np.testing.assert_array_equal(image[0].numpy(), ARRAY)
    np.testing.assert_allclose(image.affine.numpy(), RAS)


def test_nrrd_in_ras(tmp_path: Path) -> None:
    image = load(write_nrrd(tmp_path / "a.nrrd", space="right-anterior-superior"))
    np.testing.assert_allclose(image.affine.numpy(), LPS)


def test_nrrds_that_are_refused(tmp_path: Path) -> None:
    refused(write_nrrd(tmp_path / "a.nrrd", space="scanner-xyz"), "bad-affine")
    refused(
        write_nrrd(tmp_path / "b.nrrd", np.stack([ARRAY] * 2), **{"space directions": None}),
        "several-times-file",
    )
    bad = ARRAY.astype(np.float32)
    bad[0, 0, 0] = np.nan
    refused(write_nrrd(tmp_path / "c.nrrd", bad), "not-finite")
    whole = write_nrrd(tmp_path / "d.nrrd").read_bytes()
    (tmp_path / "d.nrrd").write_bytes(whole[: len(whole) // 2])
    refused(tmp_path / "d.nrrd", "damaged-file")
    (tmp_path / "e.nrrd").write_bytes(b"hello")
    refused(tmp_path / "e.nrrd", "damaged-file")
    head = (
        write_nrrd(tmp_path / "f.nhdr").read_text().replace("data file: f.raw.gz", "data file: /etc/passwd")
    )
    (tmp_path / "f.nhdr").write_text(head)
    refused(tmp_path / "f.nhdr", "unreadable")


def write_meta(file: Path, *, packed: bool = False, **fields: Any) -> Path:
    """MetaImage as ITK's documentation describes it; the matrix is written axis by axis."""
    raw = ARRAY.tobytes(order="F")
    raw = zlib.compress(raw) if packed else raw
    unit = LPS[:3, :3] / np.linalg.norm(LPS[:3, :3], axis=0)
    about = {
        "ObjectType": "Image",
        "NDims": 3,
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False",
        "CompressedData": packed,
        "TransformMatrix": " ".join(str(v) for v in unit.T.ravel()),
        "Offset": "10 -20 30",
        "ElementSpacing": "1.5 2 3",
        "DimSize": "5 6 7",
        "ElementType": "MET_SHORT",
        **fields,
    }
    local = file.suffix == ".mha"
    about["ElementDataFile"] = fields.get("ElementDataFile", "LOCAL" if local else f"{file.stem}.raw")
    head = "".join(f"{key} = {value}\n" for key, value in about.items()).encode()
    file.write_bytes(head + (raw if local else b""))
    if not local:
        file.with_suffix(".raw").write_bytes(raw)
    return file


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ["a.mha", "a.mhd"])
def test_metaimage(tmp_path: Path, packed: bool, name: str) -> None:
    image = load(write_meta(tmp_path / name, packed=packed))
    np.testing.assert_array_equal(image[0].numpy(), ARRAY)
    np.testing.assert_allclose(image.affine.numpy(), RAS)


def test_metaimage_agrees_with_itk(tmp_path: Path) -> None:
    sitk = pytest.importorskip("SimpleITK")
    image = sitk.GetImageFromArray(ARRAY.transpose(2, 1, 0))
    image.SetSpacing((1.5, 2.0, 3.0))
    image.SetOrigin((10.0, -20.0, 30.0))
    image.SetDirection((LPS[:3, :3] / np.linalg.norm(LPS[:3, :3], axis=0)).ravel().tolist())
    sitk.WriteImage(image, str(tmp_path / "a.mha"), useCompression=True)
    found = load(tmp_path / "a.mha")
    np.testing.assert_array_equal(found[0].numpy(), ARRAY)
    np.testing.assert_allclose(found.affine.numpy(), RAS)


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"ElementNumberOfChannels": 3}, "not-scalar"),
        ({"DimSize": "5 6 70"}, "truncated-file"),
        ({"DimSize": "50000 60000 70000"}, "too-large"),
        ({"DimSize": "5 6 x"}, "damaged-file"),
        ({"ElementSpacing": "0 1 1"}, "bad-affine"),
        ({"TransformMatrix": "1 0 0 1 0 0 0 0 1"}, "bad-affine"),
        ({"ElementDataFile": "../x.raw"}, "unreadable"),
        ({"ElementDataFile": "gone.raw"}, "not-found"),
    ],
)
def test_metaimages_that_are_refused(tmp_path: Path, fields: dict[str, Any], code: str) -> None:
    refused(write_meta(tmp_path / "a.mha", **fields), code)


def test_pictures_have_no_place(tmp_path: Path) -> None:
    grey = np.random.default_rng(0).integers(0, 255, (8, 12), dtype=np.uint8)
    Image.fromarray(grey).save(tmp_path / "a.png")
    Image.fromarray(np.stack([grey] * 3, axis=-1)).save(tmp_path / "b.png")
    for name in ("a.png", "b.png"):
        np.testing.assert_array_equal(load(tmp_path / name)[0, :, :, 0].numpy(), grey.T)
    colour = np.stack([grey, grey[::-1], grey], axis=-1)
    Image.fromarray(colour).save(tmp_path / "c.png")
    refused(tmp_path / "c.png", "colour")
    (tmp_path / "d.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    with pytest.raises(VolumeError) as caught:
        load(tmp_path / "d.png")
    assert caught.value.code in ("truncated-file", "damaged-file")


def test_a_picture_mask_of_0_and_255(tmp_path: Path) -> None:
    grey = np.zeros((8, 12), np.uint8)
    grey[2:4, 5:9] = 255
    Image.fromarray(grey).save(tmp_path / "m.png")
    Image.fromarray(grey // 2).save(tmp_path / "a.png")
    found = load_mask(tmp_path / "m.png", like=load(tmp_path / "a.png"))
    np.testing.assert_array_equal(found[0, :, :, 0].numpy(), grey.T // 255)


def test_npz(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", image=ARRAY, spacing=np.array([1.0, 2, 3]))
    image = load(tmp_path / "a.npz")
    np.testing.assert_array_equal(image[0].numpy(), ARRAY)
    assert image.meta["spacing"] == (1, 2, 3)
    np.savez(tmp_path / "b.npz", ARRAY, ARRAY)
    refused(tmp_path / "b.npz", "several-volumes")
    np.savez(tmp_path / "c.npz", image=np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(VolumeError):
        load(tmp_path / "c.npz")


# -- zip ----------------------------------------------------------------------------------------------------


def test_a_zip_of_a_study(tmp_path: Path) -> None:
    folder = save(classic(voxels((4, 6, 5))), tmp_path / "s")
    with zipfile.ZipFile(tmp_path / "study.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in folder.iterdir():
            archive.write(file, f"DICOM/{file.stem}")
    image = load(tmp_path / "study.zip")
    np.testing.assert_allclose(image.affine.numpy(), affine(), atol=1e-6)
    assert "study" not in str(image.meta)


@pytest.mark.parametrize(
    "name", ["../out.dcm", "a/../../out.dcm", "/tmp/out.dcm", "..\\out.dcm", "C:\\out.dcm"]
)
def test_a_zip_that_climbs_out(tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.writestr(name, b"x")
    refused(tmp_path / "z.zip", "unsafe-zip")
    assert not (tmp_path / "out.dcm").exists()


def test_a_zip_with_a_link(tmp_path: Path) -> None:
    entry = zipfile.ZipInfo("link")
    entry.create_system, entry.external_attr = 3, 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.writestr(entry, "/etc/passwd")
    refused(tmp_path / "z.zip", "unsafe-zip")


def claiming(file: Path, size: int, entries: int = 1) -> Path:
    """A zip whose directory says of each entry that it unpacks to ``size`` bytes."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(entries):
            archive.writestr(f"{number}.dcm", bytes(1 << 20))
    raw = bytearray(file.read_bytes())
    place = -1
    for _ in range(entries):
        place = raw.index(b"PK\x01\x02", place + 1)
        raw[place + 24 : place + 28] = size.to_bytes(4, "little")
    file.write_bytes(raw)
    return file


@pytest.mark.parametrize(("size", "entries"), [(2 << 30, 1), (100 << 20, 20), (4_000_000_000, 5)])
def test_a_zip_bomb(tmp_path: Path, size: int, entries: int) -> None:
    refused(claiming(tmp_path / "z.zip", size, entries), "unsafe-zip")


def test_a_bomb_of_entries_that_share_their_bytes(tmp_path: Path) -> None:
    """Each alone is packed as images are; together they are a hundred times what the file could hold."""
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.writestr("a.dcm", bytes(1 << 20))
        for number in range(2000):
            twin = copy.copy(archive.filelist[0])
            twin.filename = f"{number}.dcm"
            archive.filelist.append(twin)
    refused(tmp_path / "z.zip", "unsafe-zip")


def test_a_label_map_with_little_in_it_is_no_bomb(tmp_path: Path) -> None:
    """It packs a thousandfold, as does a segmentation of nothing beside its series."""
    mask = np.zeros((512, 512, 60), np.uint8)
    mask[200:230, 200:230, 30] = 1
    nibabel.Nifti1Image(mask, np.eye(4)).to_filename(tmp_path / "m.nii")
    with zipfile.ZipFile(tmp_path / "z.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(tmp_path / "m.nii", "m.nii")
        entry = archive.getinfo("m.nii")
        assert entry.file_size > 900 * entry.compress_size
    like = load(tmp_path / "z.zip")
    assert int(load_mask(tmp_path / "z.zip", like=like).sum()) == 900


def test_a_damaged_zip(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.writestr("a.dcm", bytes(range(256)) * 10)
    raw = bytearray((tmp_path / "z.zip").read_bytes())
    raw[100] ^= 1
    (tmp_path / "z.zip").write_bytes(raw)
    refused(tmp_path / "z.zip", "damaged-file")
    (tmp_path / "z.zip").write_bytes(raw[:50])
    refused(tmp_path / "z.zip", "damaged-file")


def test_nothing_is_left_of_a_zip(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.writestr("a.txt", b"x")
    with unpacked(tmp_path / "z.zip") as folder:
        assert (folder / "a.txt").read_bytes() == b"x"
    assert not folder.exists()


@pytest.mark.parametrize("fields", [{"HeaderSize": -1}, {"ElementDataFile": "./a.raw"}])
def test_metaimages_as_other_programs_write_them(tmp_path: Path, fields: dict[str, Any]) -> None:
    """HeaderSize -1: the voxels are the last bytes of the file, whatever stands before (MetaIO)."""
    file = write_meta(tmp_path / "a.mhd", **fields)
    raw = tmp_path / "a.raw"
    if "HeaderSize" in fields:
        raw.write_bytes(b"a header of another format" + raw.read_bytes())
    np.testing.assert_array_equal(load(file)[0].numpy(), ARRAY)


def test_a_colon_climbs_nowhere(tmp_path: Path) -> None:
    save(classic(voxels((3, 5, 4))), tmp_path / "study")
    with zipfile.ZipFile(tmp_path / "study.zip", "w") as archive:
        for file in (tmp_path / "study").iterdir():
            archive.write(file, f"T1: post contrast/{file.name}")
    assert load(tmp_path / "study.zip").shape == (1, 4, 5, 3)


def test_a_nrrd_of_two_axes(tmp_path: Path) -> None:
    """As ITK writes a picture: the same as its MetaImage."""
    plane = ARRAY[:, :, 0]
    about = {"space dimension": 2, "space directions": np.diag([0.5, 0.7]), "space origin": [0.0, 0.0]}
    nrrd.write(str(tmp_path / "a.nrrd"), plane, about)
    image = load(tmp_path / "a.nrrd")
    np.testing.assert_array_equal(image[0, :, :, 0].numpy(), plane)
    assert image.affine.diag().tolist() == [-0.5, -0.7, 1, 1]
