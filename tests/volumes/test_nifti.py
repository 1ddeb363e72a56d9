"""NIfTI: what common readers let through is refused or said."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from medmeta.volumes import VolumeError, load, load_mask

SHAPE = (5, 6, 7)
ARRAY = np.arange(np.prod(SHAPE)).reshape(SHAPE).astype(np.int16)
TURNED = np.array([[0, -2.0, 0, 10], [1.5, 0, 0, -20], [0, 0, 3.0, 30], [0, 0, 0, 1]])


def write(
    file: Path, array: Any = ARRAY, affine: Any = TURNED, alter: Any = None, kind: Any = nibabel.Nifti1Image
) -> Path:
    image = kind(array, affine)
    image.set_qform(affine, 1)
    if alter is not None:
        alter(image)
    image.to_filename(file)
    return file


def patched(file: Path, offset: int, values: bytes) -> Path:
    """The header with other bytes at a place, compressed anew."""
    raw = bytearray(gzip.decompress(file.read_bytes()))
    raw[offset : offset + len(values)] = values
    file.write_bytes(gzip.compress(bytes(raw)))
    return file


def refused(file: Path, code: str) -> str:
    with pytest.raises(VolumeError) as caught:
        load(file)
    assert caught.value.code == code, str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.float32, np.float64, ">i2", ">f4"])
def test_reads_as_nibabel_does(tmp_path: Path, name: str, kind: Any, dtype: Any) -> None:
    array = (ARRAY % 200).astype(dtype)
    file = write(tmp_path / name, array, kind=kind)
    image, witness = load(file), nibabel.load(file)
    np.testing.assert_array_equal(image[0].numpy(), witness.get_fdata())
    np.testing.assert_array_equal(image.affine.numpy(), witness.affine)
    assert image.meta["spacing"] == pytest.approx((1.5, 2, 3))


def test_slope_and_intercept(tmp_path: Path) -> None:
    file = write(tmp_path / "a.nii.gz", alter=lambda i: i.header.set_slope_inter(0.5, -7))
    patched(file, 112, np.array([0.5, -7], "<f4").tobytes())
    np.testing.assert_allclose(load(file)[0].numpy(), nibabel.load(file).get_fdata(), rtol=1e-6)


@pytest.mark.parametrize(("slope", "inter"), [(np.inf, 0), (-np.inf, 0), (1, np.inf), (1, np.nan)])
def test_slopes_that_are_no_numbers(tmp_path: Path, slope: float, inter: float) -> None:
    refused(
        patched(write(tmp_path / "a.nii.gz"), 112, np.array([slope, inter], "<f4").tobytes()), "bad-slope"
    )


def test_one_flipped_bit_in_the_voxels(tmp_path: Path) -> None:
    file = tmp_path / "a.nii.gz"
    write(file, np.random.default_rng(0).integers(0, 255, (20, 20, 20)).astype(np.uint8))
    raw = bytearray(gzip.compress(gzip.decompress(file.read_bytes()), compresslevel=0))
    raw[-60] ^= 1
    file.write_bytes(raw)
    assert nibabel.load(file).get_fdata().shape == (20, 20, 20)  # others read on
    refused(file, "damaged-file")


@pytest.mark.parametrize("left", [4, 100, 0.5, -1, -8])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_truncation(tmp_path: Path, left: float, name: str) -> None:
    file = write(tmp_path / name, np.random.default_rng(0).integers(0, 999, SHAPE).astype(np.int16))
    raw = file.read_bytes()
    count = int(len(raw) * left) if 0 < left < 1 else int(left)
    file.write_bytes(raw[:count])
    with pytest.raises(VolumeError) as caught:
        load(file)
    assert caught.value.code in ("truncated-file", "damaged-file", "not-a-volume")


def test_a_header_that_claims_terabytes(tmp_path: Path) -> None:
    file = write(tmp_path / "a.nii.gz")
    message = refused(patched(file, 42, np.array([30000, 30000, 30000], "<i2").tobytes()), "too-large")
    assert "30000" in message


def test_a_header_that_claims_more_than_the_file_can_hold(tmp_path: Path) -> None:
    file = write(tmp_path / "a.nii.gz")
    refused(patched(file, 42, np.array([1000, 1000, 500], "<i2").tobytes()), "truncated-file")


def test_a_bomb_after_the_voxels(tmp_path: Path) -> None:
    file = write(tmp_path / "a.nii")
    packed = tmp_path / "b.nii.gz"
    packed.write_bytes(gzip.compress(file.read_bytes() + bytes(80 << 20)))
    refused(packed, "damaged-file")


def test_more_than_asked_for(tmp_path: Path) -> None:
    with pytest.raises(VolumeError) as caught:
        load(write(tmp_path / "a.nii.gz"), max_voxels=100)
    assert caught.value.code == "too-large"


def test_sform_beside_another_qform(tmp_path: Path, caplog: Any) -> None:
    other = TURNED.copy()
    other[:3, 3] += 4
    file = write(tmp_path / "a.nii.gz", alter=lambda i: i.set_qform(other, 1))
    np.testing.assert_array_equal(load(file).affine.numpy(), TURNED)
    assert "up to 4 mm apart" in caplog.text


def test_sform_that_disagrees_with_pixdim_is_still_the_sform(tmp_path: Path) -> None:
    file = write(
        tmp_path / "a.nii.gz", alter=lambda i: i.header.__setitem__("pixdim", [1, 9, 9, 9, 1, 1, 1, 1])
    )
    np.testing.assert_array_equal(load(file).affine.numpy(), TURNED)


def test_forms_of_two_hands(tmp_path: Path) -> None:
    mirrored = TURNED @ np.diag([-1.0, 1, 1, 1])
    refused(write(tmp_path / "a.nii.gz", alter=lambda i: i.set_qform(mirrored, 1)), "flipped-forms")


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0, 1e30])
def test_a_broken_sform_is_not_replaced_by_the_qform(tmp_path: Path, value: float) -> None:
    file = write(tmp_path / "a.nii.gz")
    refused(patched(file, 280, np.full(4, value, "<f4").tobytes()), "bad-affine")


def test_shear(tmp_path: Path) -> None:
    sheared = TURNED.copy()
    sheared[0, 2] = 1.0
    file = tmp_path / "a.nii.gz"
    image = nibabel.Nifti1Image(ARRAY, None)
    image.set_sform(sheared, 1)
    image.to_filename(file)
    assert "18.4 degrees" in refused(file, "sheared")


def test_orientation_unknown(tmp_path: Path, caplog: Any) -> None:
    file = write(tmp_path / "a.nii.gz", alter=lambda i: (i.set_sform(None, 0), i.set_qform(None, 0)))
    load(file)
    assert "orientation unknown" in caplog.text


def test_microns_become_millimetres(tmp_path: Path, caplog: Any) -> None:
    file = write(
        tmp_path / "a.nii.gz",
        affine=np.diag([500.0, 500, 2000, 1]),
        alter=lambda i: i.header.set_xyzt_units("micron"),
    )
    assert load(file).meta["spacing"] == pytest.approx((0.5, 0.5, 2))
    assert "microns" in caplog.text


def test_four_axes(tmp_path: Path) -> None:
    assert load(write(tmp_path / "a.nii.gz", ARRAY[..., None])).shape == (1, *SHAPE)
    message = refused(write(tmp_path / "b.nii.gz", np.stack([ARRAY] * 3, axis=-1)), "several-times-file")
    assert "3 volumes" in message


def test_complex_and_colour(tmp_path: Path) -> None:
    refused(write(tmp_path / "a.nii.gz", ARRAY.astype(np.complex64)), "not-scalar")
    rgb = np.zeros(SHAPE, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    refused(write(tmp_path / "b.nii.gz", rgb), "not-scalar")


@pytest.mark.parametrize("value", [np.nan, np.inf, -1e39])
def test_voxels_that_are_no_numbers(tmp_path: Path, value: float) -> None:
    """Nor would be as the 32 bits that they are given in."""
    array = ARRAY.astype(np.float64 if abs(value) > 1e38 else np.float32)
    array[1, 2, 3] = value
    assert "1 voxel" in refused(write(tmp_path / "a.nii.gz", array), "not-finite")
    np.savez(tmp_path / "a.npz", image=array)
    assert "1 voxel" in refused(tmp_path / "a.npz", "not-finite")


def test_two_axes_are_one_slice(tmp_path: Path) -> None:
    assert load(write(tmp_path / "a.nii.gz", ARRAY[..., 0])).shape == (1, 5, 6, 1)


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"\x1f\x8b", b"\x1f\x8bxyz" * 30, bytes(400), bytes(2000)]
)
def test_not_a_nifti(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "a.nii.gz"
    file.write_bytes(content)
    with pytest.raises(VolumeError) as caught:
        load(file)
    assert caught.value.code in ("truncated-file", "damaged-file", "not-a-volume")


# -- masks --------------------------------------------------------------------------------------------------


def labels() -> np.ndarray:
    mask = np.zeros(SHAPE, np.uint8)
    mask[1:3, 2:4, 3:6] = 1
    mask[4, 5, 0] = 2
    return mask


def test_a_mask_on_the_images_grid(tmp_path: Path) -> None:
    image = load(write(tmp_path / "a.nii.gz"))
    mask = load_mask(write(tmp_path / "m.nii.gz", labels()), like=image)
    np.testing.assert_array_equal(mask[0].numpy(), labels())
    assert bool((mask.affine == image.affine).all())
    one = load_mask(tmp_path / "m.nii.gz", like=image, label=2)
    np.testing.assert_array_equal(one[0].numpy(), labels() == 2)


def test_a_mask_stored_in_another_orientation(tmp_path: Path) -> None:
    image = load(write(tmp_path / "a.nii.gz"))
    canonical = nibabel.as_closest_canonical(nibabel.Nifti1Image(labels(), TURNED))
    assert canonical.shape != SHAPE
    canonical.to_filename(tmp_path / "m.nii.gz")
    np.testing.assert_array_equal(load_mask(tmp_path / "m.nii.gz", like=image)[0].numpy(), labels())


def moved(by: float) -> np.ndarray:
    other = TURNED.copy()
    other[2, 3] += by
    return other


@pytest.mark.parametrize(
    ("array", "affine", "code"),
    [
        (labels(), moved(3.0), "other-grid"),
        (labels(), moved(0.5), "other-grid"),
        (labels()[:4], TURNED, "other-grid"),
        (labels(), TURNED @ np.diag([-1.0, 1, 1, 1]), "other-grid"),
        (labels(), np.diag([1.0, 1, 1, 1]), "other-grid"),
        (labels() * 0.5, TURNED, "not-whole"),
        ((labels() == 1) * np.uint8(255), TURNED, "grey-mask"),
        (-labels().astype(np.int16), TURNED, "not-whole"),
        (np.where(labels(), np.nan, 0.0), TURNED, "not-finite"),
        (labels() * 0, TURNED, "empty-mask"),
        (labels() * 0, moved(3.0), "other-grid"),  # of another image, and an answer "nothing" to none
        (labels()[:4] * 0, TURNED, "other-grid"),
        (ARRAY, TURNED, "image-as-mask"),
    ],
)
def test_masks_that_do_not_fit(tmp_path: Path, array: np.ndarray, affine: np.ndarray, code: str) -> None:
    image = load(write(tmp_path / "a.nii.gz"))
    file = write(tmp_path / "m.nii.gz", array, affine)
    with pytest.raises(VolumeError) as caught:
        load_mask(file, like=image)
    assert caught.value.code == code, str(caught.value)
    if code == "other-grid":
        assert "for an image of 5 x 6 x 7 voxels of 1.5 x 2 x 3 mm" in str(caught.value)


def test_the_label_asked_for_must_be_there(tmp_path: Path) -> None:
    image = load(write(tmp_path / "a.nii.gz"))
    file = write(tmp_path / "m.nii.gz", labels())
    with pytest.raises(VolumeError, match=r"\[1, 2\], not 3") as caught:
        load_mask(file, like=image, label=3)
    assert caught.value.code == "missing-label"


def test_resampled_only_when_asked(tmp_path: Path) -> None:
    image = load(write(tmp_path / "a.nii.gz"))
    fine = np.kron(labels(), np.ones((2, 2, 2), np.uint8))
    affine = TURNED @ np.diag([0.5, 0.5, 0.5, 1])
    affine[:3, 3] = (TURNED @ [-0.25, -0.25, -0.25, 1])[:3]
    file = write(tmp_path / "m.nii.gz", fine, affine)
    with pytest.raises(VolumeError):
        load_mask(file, like=image)
    found = load_mask(file, like=image, resample=True)
    np.testing.assert_array_equal(found[0].numpy(), labels())


@pytest.mark.parametrize("dtype", [np.uint8, np.int16])
@pytest.mark.parametrize("values", [(0, 1), (0, 1, 2, 4)])
def test_a_mask_scaled_to_its_type(tmp_path: Path, dtype: Any, values: tuple[int, ...]) -> None:
    """nibabel's way to write a mask of floats as whole numbers: 1 comes back as 1.00000006, or 1.004."""
    voxels = np.random.default_rng(0).choice(values, SHAPE).astype(np.float64)
    image = nibabel.Nifti1Image(voxels, np.eye(4))
    image.set_data_dtype(dtype)
    image.to_filename(tmp_path / "mask.nii.gz")
    assert nibabel.load(tmp_path / "mask.nii.gz").dataobj.slope != 1
    nibabel.Nifti1Image(np.zeros(SHAPE, np.float32), np.eye(4)).to_filename(tmp_path / "image.nii.gz")
    found = load_mask(tmp_path / "mask.nii.gz", like=load(tmp_path / "image.nii.gz"))
    np.testing.assert_array_equal(found[0].numpy(), voxels)


@pytest.mark.parametrize(("written", "hand"), [(0.0, 1), (1.0, 1), (-1.0, -1)])
def test_the_hand_of_a_qform(tmp_path: Path, written: float, hand: int) -> None:
    """0, which old writers leave there, is the right hand (nifti1.h, method 2)."""
    image = nibabel.Nifti1Image(np.zeros((4, 5, 6), np.float32), None)
    image.header.set_qform(np.diag([2.0, 2, 3, 1]), 1)
    image.to_filename(tmp_path / "a.nii")
    raw = bytearray((tmp_path / "a.nii").read_bytes())
    raw[76:80] = np.float32(written).tobytes()
    (tmp_path / "a.nii").write_bytes(raw)
    assert load(tmp_path / "a.nii").affine.diag().tolist() == [2, 2, 3 * hand, 1]


def test_forms_apart_are_told_in_millimetres(tmp_path: Path, caplog: Any) -> None:
    image = nibabel.Nifti1Image(np.zeros((4, 5, 6), np.float32), np.diag([1000.0, 1000, 2000, 1]))
    image.header.set_xyzt_units("micron")
    image.set_qform(np.diag([1000.0, 1000, 2010, 1]), 1)
    image.to_filename(tmp_path / "a.nii")
    load(tmp_path / "a.nii")
    assert "up to 0.05 mm apart" in caplog.text
