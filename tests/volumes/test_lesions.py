"""Lesions cut out of their scans: the same as MONAI alone does, so many millimetres around, or refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.transforms import Compose, LoadImaged
from scipy import ndimage

from medmeta.volumes import CohortError, Plan, Store, Volume, make_plan

AFFINE = np.diag([-0.8, -1.1, 2.0, 1.0])
PLAN = Plan(3, (1.0, 1.0, 2.0), (24, 24, 12), 1, whole=True, lesion=3.0)
FLAT = Plan(2, (1.0, 1.0, 2.0), (16, 16), 1, whole=True, lesion=2.0)


def patient(folder: Path, *, depth: int = 12, empty: bool = False, size: int = 6) -> Volume:
    """Noise with an outlined box somewhere off the middle."""
    folder.mkdir(parents=True, exist_ok=True)
    voxels = 100 + 20 * np.random.default_rng(0).standard_normal((30, 26, depth)).astype(np.float32)
    mask = np.zeros(voxels.shape, np.uint8)
    if not empty:
        mask[18 : 18 + size, 4:9, : max(1, depth // 2)] = 1
    for name, array in {"a": voxels, "m": mask}.items():
        nibabel.save(nibabel.Nifti1Image(array, AFFINE), folder / f"{name}.nii.gz")
    return Volume("p", (folder / "a.nii.gz",), folder / "m.nii.gz", "glioma")


@pytest.mark.parametrize(
    ("plan", "depth"),
    [
        (PLAN, 12),
        (replace(PLAN, intensity="window", low=40.0, high=160.0, mean=90.0, std=20.0), 12),
        (replace(PLAN, lesion=0.0), 12),
        (FLAT, 1),
    ],
    ids=["zscore", "window", "nothing around", "2D"],
)
@pytest.mark.parametrize("on_disk", [False, True])
def test_a_lesion_is_cut_bitwise_as_monai_alone_does(
    tmp_path: Path, plan: Plan, depth: int, on_disk: bool
) -> None:
    volume = patient(tmp_path, depth=depth)
    keys = ["image", "mask"]
    steps = ConfigParser(plan.transforms(masks=("mask",))).get_parsed_content()
    alone = Compose([LoadImaged(keys, ensure_channel_first=True), *steps])(
        {"image": volume.image[0], "mask": volume.mask}
    )
    ours = Store(plan, tmp_path / "store" if on_disk else None).read(volume)
    assert ours.image.shape == (plan.inputs, *plan.patch)
    assert torch.equal(alone["image"].as_tensor(), ours.image)
    assert torch.equal(ours.image[-1], ours.mask.float())  # type: ignore[union-attr]


def test_so_many_millimetres_around_it_stay(tmp_path: Path) -> None:
    volume = patient(tmp_path)
    whole = Store(replace(PLAN, lesion=None, whole=False)).read(volume)
    cut = Store(PLAN).read(volume)
    near = ndimage.distance_transform_edt(whole.mask == 0, sampling=PLAN.spacing) <= 3.0  # type: ignore[operator]
    assert int((cut.image[0] != 0).sum()) == int(near.sum())
    assert int(cut.mask.sum()) == int(whole.mask.sum())  # type: ignore[union-attr]
    kept = cut.image[0][cut.image[0] != 0]
    assert float(kept.mean()) == pytest.approx(0, abs=1e-5)
    assert float(kept.std(correction=0)) == pytest.approx(1, abs=1e-4)
    # the outline is where it was: the same world coordinates
    there = (whole.mask.nonzero().double().mean(0), whole.affine)  # type: ignore[union-attr]
    here = (cut.mask.nonzero().double().mean(0), cut.affine)  # type: ignore[union-attr]
    places = [affine[:3, :3] @ voxel + affine[:3, 3] for voxel, affine in (there, here)]
    assert torch.allclose(places[0], places[1], atol=1e-6)


def test_no_outline_is_refused(tmp_path: Path) -> None:
    volume = patient(tmp_path)
    with pytest.raises(CohortError, match="an outlined lesion to classify, found no mask"):
        Store(PLAN).read(replace(volume, mask=None))
    with pytest.raises(CohortError, match="an outlined lesion to classify, found no mask"):
        make_plan([replace(volume, mask=None)], lesion=4.0)
    assert PLAN.takes(volume)
    assert not PLAN.takes(replace(volume, tumour=None))
    with pytest.raises(CohortError, match="0 mm or more around each lesion"):
        replace(PLAN, lesion=-1.0)
    with pytest.raises(CohortError, match="0 mm or more around each lesion"):
        replace(PLAN, whole=False)


def test_the_patch_holds_lesion_and_margin(tmp_path: Path) -> None:
    plan = make_plan([patient(tmp_path, size=8)], spacing=(1, 1, 1), lesion=4.0)
    # 8 x 0.8, 5 x 1.1 and 6 x 2 mm, and 8 mm around
    assert plan.patch == (16, 16, 24)
    assert plan.whole
    assert plan.lesion == 4.0
    assert Plan.from_json(plan.to_json()) == plan
    assert "lesions with 4 mm around them, in 16 × 16 × 24 voxels" in str(plan)
