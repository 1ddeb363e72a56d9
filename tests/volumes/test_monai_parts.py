"""MedmetaReader and LoadVolumed in MONAI's own pipelines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor, decollate_batch
from monai.transforms import Compose, LoadImage, LoadImaged, Orientationd, SaveImage, SaveImaged, Spacingd

from medmeta.volumes import LoadVolumed, MedmetaReader, VolumeError, load
from tests.volumes.phantoms import OBLIQUE, affine, classic, save, voxels
from tests.volumes.test_dicom_masks import SHAPE, mask, source, write

PIXELS = voxels((6, 12, 10))


@pytest.fixture
def study(tmp_path: Path) -> dict[str, Path]:
    folder, made = source(tmp_path, OBLIQUE)
    return {"image": folder, "label": write(made, mask(), tmp_path / "seg.dcm")}


def test_a_pipeline(study: dict[str, Path]) -> None:
    keys = ["image", "label"]
    pipeline = Compose(
        [
            LoadVolumed("image", "label"),
            Orientationd(keys, axcodes="RAS", labels=(("L", "R"), ("P", "A"), ("I", "S"))),
            Spacingd(keys, pixdim=(1.5, 1.5, 1.5), mode=("bilinear", "nearest")),
        ]
    )
    data = pipeline(study)
    for key in keys:
        assert isinstance(data[key], MetaTensor)
        np.testing.assert_allclose(np.linalg.norm(data[key].affine[:3, :3], axis=0), 1.5, rtol=1e-5)
    assert set(data["label"].unique().tolist()) <= {0, 1, 2}
    assert data["image"].meta["unit"] == "HU"


def test_batches_come_apart_again(study: dict[str, Path]) -> None:
    dataset = Dataset([study, study], LoadVolumed("image", "label"))
    batch = next(iter(DataLoader(dataset, batch_size=2)))
    assert batch["image"].shape == (2, 1, 10, 12, 6)
    for item in decollate_batch(batch):
        np.testing.assert_array_equal(item["label"][0].numpy(), mask().transpose(2, 1, 0))
        assert torch.equal(torch.as_tensor(item["image"].affine), load(study["image"]).affine)
        assert item["image"].meta["unit"] == "HU"


@pytest.mark.parametrize("dtype", [np.float32, np.int16])
def test_saved_and_read_again(study: dict[str, Path], tmp_path: Path, dtype: Any) -> None:
    data = LoadVolumed("image", "label")(study)
    out = tmp_path / "out"
    saver = SaveImaged(["image"], output_dir=out, output_dtype=dtype, separate_folder=False, print_log=False)
    saver(data)
    (file,) = out.iterdir()
    again = load(file)
    np.testing.assert_array_equal(again.numpy(), data["image"].numpy())
    np.testing.assert_allclose(again.affine.numpy(), data["image"].affine.numpy(), atol=1e-4)
    assert "SECRET" not in file.name


def test_a_mask_saved_by_monai_is_still_on_the_grid(study: dict[str, Path], tmp_path: Path) -> None:
    from medmeta.volumes import load_mask

    data = LoadVolumed("image", "label")(study)
    SaveImage(tmp_path / "out", output_dtype=np.uint8, separate_folder=False, print_log=False)(data["label"])
    (file,) = (tmp_path / "out").iterdir()
    np.testing.assert_array_equal(load_mask(file, like=data["image"]).numpy(), data["label"].numpy())


def test_the_reader_in_monais_own_loader(tmp_path: Path) -> None:
    folder = save(classic(PIXELS), tmp_path / "s")
    image = LoadImage(reader=MedmetaReader(), ensure_channel_first=True)(folder)
    np.testing.assert_array_equal(image[0].numpy(), PIXELS.transpose(2, 1, 0))
    np.testing.assert_allclose(image.affine.numpy(), affine(), atol=1e-6)
    both = LoadImaged("image", reader=MedmetaReader())({"image": [folder, folder]})["image"]
    assert both.shape == (2, 10, 12, 6)


def test_no_other_reader_is_tried(tmp_path: Path) -> None:
    array = np.zeros((4, 5, 6), np.float32)
    array[0, 0, 0] = np.nan
    file = tmp_path / "a.nii.gz"
    nibabel.Nifti1Image(array, np.eye(4)).to_filename(file)
    assert LoadImage()(file).shape == (4, 5, 6)  # MONAI's own readers let it through
    for reading in (
        lambda: LoadImage(reader=MedmetaReader())(file),
        lambda: LoadImage(reader=MedmetaReader)(file),
        lambda: LoadVolumed("image")({"image": file}),
    ):
        with pytest.raises(VolumeError) as caught:
            reading()
        assert caught.value.code == "not-finite"


def test_channels_must_share_a_grid(tmp_path: Path) -> None:
    for name, size in (("a", 6), ("b", 6), ("c", 7)):
        nibabel.Nifti1Image(np.zeros((4, 5, size), np.float32), np.eye(4)).to_filename(
            tmp_path / f"{name}.nii"
        )
    a, b, c = (tmp_path / f"{name}.nii" for name in "abc")
    assert LoadVolumed("image")({"image": [a, b]})["image"].shape == (2, 4, 5, 6)
    for reading in (
        lambda: LoadVolumed("image")({"image": [a, c]}),
        lambda: MedmetaReader().get_data(MedmetaReader().read([a, c])),
    ):
        with pytest.raises(VolumeError) as caught:
            reading()
        assert caught.value.code == "other-grid"


def test_channels_on_a_fourth_axis(tmp_path: Path) -> None:
    """Read as channels, turned and saved as MONAI does, they are the same again."""
    made = np.random.default_rng(0).random((7, 6, 5, 3)).astype(np.float32)
    nibabel.Nifti1Image(made, np.diag([2.0, 1, 3, 1])).to_filename(tmp_path / "a.nii.gz")
    image = LoadVolumed("image", channels=3)({"image": tmp_path / "a.nii.gz"})["image"]
    assert np.array_equal(image.numpy(), np.moveaxis(made, -1, 0))
    reader = LoadImage(reader=MedmetaReader(channels=3), ensure_channel_first=True)
    assert np.array_equal(reader(tmp_path / "a.nii.gz").numpy(), image.numpy())
    with pytest.raises(VolumeError, match="found 3 volumes"):
        LoadVolumed("image")({"image": tmp_path / "a.nii.gz"})


def test_missing_keys(study: dict[str, Path]) -> None:
    assert "label" not in LoadVolumed("image", "label", allow_missing_keys=True)({"image": study["image"]})
    with pytest.raises(KeyError):
        LoadVolumed("image", "label")({"image": study["image"]})
    assert mask().shape == SHAPE


def test_metadata_hold_nothing_but_geometry(study: dict[str, Path]) -> None:
    image = LoadVolumed("image")(study)["image"]
    geometry = {"spacing", "affine", "space", "original_affine", "spatial_shape", "original_channel_dim"}
    assert set(image.meta) == geometry | {"unit", "frame", "series"}
    _, about = MedmetaReader().get_data(MedmetaReader().read(study["image"]))
    assert "SECRET" not in str(about)
    assert str(study["image"]) not in str(about)
