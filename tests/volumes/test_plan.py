"""The plan: from the fingerprint to MONAI transforms; and back to the native grid."""

from __future__ import annotations

import json
import math
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import Compose, LoadImaged

from medmeta.volumes import (
    CohortError,
    Plan,
    Store,
    Volume,
    VolumeError,
    inspect,
    load,
    make_plan,
    open_cohort,
    prepare,
    restore,
)
from tests.volumes import phantoms


def save(
    folder: Path,
    name: str,
    voxels: np.ndarray,
    spacing: tuple[float, ...] = (1, 1, 1),
    *,
    flip: tuple[int, ...] = (1, 1, 1),
) -> Path:
    affine = np.diag([*(s * f for s, f in zip(spacing, flip, strict=True)), 1.0])
    nibabel.save(nibabel.Nifti1Image(voxels, affine), folder / f"{name}.nii.gz")
    return folder / f"{name}.nii.gz"


def noise(shape: tuple[int, ...], seed: int = 0, scale: float = 1.0) -> np.ndarray:
    return (scale * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def test_spacing_is_the_median_and_fine_along_thick_slices(tmp_path: Path) -> None:
    spacings = [(1, 1, 5), (1, 1, 6), (1.2, 1, 7), (1, 1, 8), (1, 1, 9)]
    volumes = [
        Volume(f"p{i}", (save(tmp_path, str(i), noise((40, 40, 8)), s, flip=(-1, 1, 1)),))
        for i, s in enumerate(spacings)
    ]
    plan = make_plan(volumes)
    assert plan.spacing == (1.0, 1.0, pytest.approx(5.4, abs=0.01))
    assert (plan.spatial_dims, plan.channels, plan.intensity) == (3, 1, "zscore")
    assert all(p % 8 == 0 for p in plan.patch)
    assert plan.patch[0] > plan.patch[2]
    assert "5 of 5 images" in str(plan)
    assert make_plan(volumes, spacing=(2, 2, 2), patch=(16, 16, 8)).patch == (16, 16, 8)


def test_ct_is_clipped_by_the_target_s_hounsfield_units(tmp_path: Path) -> None:
    voxels = np.full((12, 12, 12), -1000, dtype=np.float32)
    voxels[3:9, 3:9, 3:9] = 40 + 10 * noise((6, 6, 6))
    mask = np.zeros((12, 12, 12), dtype=np.uint8)
    mask[3:9, 3:9, 3:9] = 1
    volume = Volume("p", (save(tmp_path, "a", voxels),), save(tmp_path, "m", mask), "x", modality=("CT",))
    plan = make_plan([volume])
    assert plan.intensity == "window"
    assert -60 < plan.low < 20
    assert 60 < plan.high < 140
    done = Store(plan).read(volume)
    inside = done.image[0][done.mask == 1]
    assert abs(float(inside.mean())) < 0.1
    assert abs(float(inside.std()) - 1) < 0.1
    assert float(done.image.min()) == pytest.approx((plan.low - plan.mean) / plan.std, abs=1e-3)


def test_single_slices_make_a_2d_plan(tmp_path: Path) -> None:
    shapes = [(40, 30, 1), (44, 31, 1), (38, 35, 1)]
    mask = np.zeros((40, 30, 1), dtype=np.uint8)
    mask[10:14, 20:24] = 1
    files = [save(tmp_path, str(i), noise(s)) for i, s in enumerate(shapes)]
    volumes = [Volume("p0", (files[0],), save(tmp_path, "m", mask), "x"), Volume("p1", (files[1],))]
    plan = make_plan(volumes)
    assert plan.spatial_dims == 2
    assert len(plan.patch) == 2
    done = Store(plan).read(volumes[0])
    assert tuple(done.image.shape) == (1, 40, 30)
    assert tuple(done.affine.shape) == (4, 4)
    assert done.target is not None
    assert done.target.shape == (16, 2)
    back = restore(done.mask[None].float(), done.affine, load(files[0]), mode="nearest")
    assert torch.equal(back.as_tensor()[0].byte(), torch.from_numpy(mask))
    whole = make_plan(volumes, whole=True)
    assert Store(whole).read(volumes[1]).image.shape == (1, *whole.patch)


def test_whole_volumes_come_in_one_shape(tmp_path: Path) -> None:
    shapes = [(30, 20, 10), (22, 28, 12), (200, 20, 10)]
    volumes = [Volume(f"p{i}", (save(tmp_path, str(i), noise(s)),), tumour="x") for i, s in enumerate(shapes)]
    small = make_plan(volumes[:2], whole=True)
    assert small.patch == (32, 32, 16)
    assert {tuple(Store(small).read(v).image.shape) for v in volumes} == {(1, 32, 32, 16)}
    large = make_plan(volumes, whole=True)
    assert max(large.patch) <= 64
    assert large.spacing[0] == large.spacing[1] > 2


def test_a_crop_that_covers_whole_scans(tmp_path: Path) -> None:
    """What looks at whole scans gets each in one crop at its own size; larger ones at a coarser spacing."""
    shapes = [(50, 20, 10), (22, 44, 12), (200, 20, 10)]
    volumes = [Volume(f"p{i}", (save(tmp_path, str(i), noise(s)),), tumour="x") for i, s in enumerate(shapes)]
    plan = make_plan(volumes[:2], cover=True)
    assert (plan.patch, plan.whole) == ((56, 48, 16), False)
    assert tuple(Store(plan).read(volumes[0]).image.shape) == (1, 50, 20, 10)
    large = make_plan(volumes, cover=True)
    assert max(large.patch) == 96
    assert large.spacing[0] == large.spacing[1] > 1.5


def test_store_is_bitwise_what_monai_alone_does(tmp_path: Path) -> None:
    """A bundle without medmeta reads, prepares and gets the very same voxels."""
    file = save(tmp_path, "a", noise((21, 18, 9), scale=100), (0.7, 1.1, 2.5), flip=(-1, -1, 1))
    plans = [
        Plan(3, (1.0, 1.0, 2.0), (16, 16, 8), 1),
        Plan(
            3, (1.0, 1.0, 2.0), (16, 16, 8), 1, intensity="window", low=-80.0, high=90.0, mean=3.0, std=40.0
        ),
        Plan(3, (1.0, 1.0, 2.0), (16, 16, 16), 1, whole=True),
    ]
    flat = save(tmp_path, "b", noise((21, 18, 1), scale=100), (0.7, 1.1, 4), flip=(-1, -1, 1))
    flats = [Plan(2, (1.0, 1.0, 1.0), (16, 16), 1, whole=w) for w in (False, True)]
    for plan, file in [*((p, file) for p in plans), *((p, flat) for p in flats)]:
        steps = ConfigParser(plan.transforms()).get_parsed_content()
        alone = Compose([LoadImaged("image", ensure_channel_first=True), *steps])({"image": file})["image"]
        ours = Store(plan).read(Volume("p", (file,)))
        assert torch.equal(alone.as_tensor(), ours.image)
        if plan.spatial_dims == 3:
            assert torch.allclose(alone.affine.double(), ours.affine)


def test_channels_on_one_grid(tmp_path: Path) -> None:
    a, b = save(tmp_path, "a", noise((8, 8, 8))), save(tmp_path, "b", noise((8, 8, 8), 1))
    volume = Volume("p", (a, b))
    plan = make_plan([volume])
    assert plan.channels == 2
    assert Store(plan).read(volume).image.shape == (2, 8, 8, 8)
    with pytest.raises(CohortError, match=r"2 channel\(s\), as planned, found 1"):
        Store(plan).read(Volume("p", (a,)))
    moved = save(tmp_path, "c", noise((8, 8, 8), 1), (1, 1, 2))
    with pytest.raises(CohortError, match="all channels of an image on one grid"):
        Store(plan).read(Volume("p", (a, moved)))
    with pytest.raises(CohortError, match="same number of channels"):
        make_plan([volume, Volume("q", (a,))])
    with pytest.raises(CohortError, match="at least one volume"):
        make_plan([])


def four(folder: Path, case: str, volumes: int) -> None:
    """A case as the Decathlon keeps brain tumours: the sequences one after another on the fourth axis."""
    folder.joinpath("imagesTr").mkdir(parents=True, exist_ok=True)
    folder.joinpath("labelsTr").mkdir(exist_ok=True)
    array = np.stack([noise((12, 12, 12), n) + 100 * n for n in range(volumes)], -1)
    nibabel.Nifti1Image(array, np.eye(4)).to_filename(folder / "imagesTr" / f"{case}.nii.gz")
    mask = np.zeros((12, 12, 12), np.uint8)
    mask[3:6, 4:8, 5:9] = 1
    nibabel.Nifti1Image(mask, np.eye(4)).to_filename(folder / "labelsTr" / f"{case}.nii.gz")


def test_a_fourth_axis_holds_the_channels_that_dataset_json_names(tmp_path: Path) -> None:
    for case in ("BRATS_001", "BRATS_002"):
        four(tmp_path, case, 4)
    modality = {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"}
    entries = [
        {"image": f"./imagesTr/{c}.nii.gz", "label": f"./labelsTr/{c}.nii.gz"}
        for c in ("BRATS_001", "BRATS_002")
    ]
    about = {"modality": modality, "labels": {"0": "background", "1": "glioma"}, "training": entries}
    (tmp_path / "dataset.json").write_text(json.dumps(about))
    cohort = open_cohort(tmp_path)
    assert cohort.volumes[0].modality == ("FLAIR", "T1W", "T1GD", "T2W")
    plan = make_plan(cohort.volumes)
    assert plan.channels == 4
    done = Store(plan).read(cohort.volumes[0])
    assert tuple(done.image.shape) == (4, 12, 12, 12)
    native = load(cohort.volumes[0].image[0], channels=4)
    assert [round(float(native[n].mean())) for n in range(4)] == [0, 100, 200, 300]
    listed = inspect(tmp_path)
    assert [(e["ok"], e["modality"], e["shape"]) for e in listed] == [
        (True, "FLAIR+T1W+T1GD+T2W", [12, 12, 12])
    ] * 2
    assert listed[0]["labels"] == {"glioma": 48}


def test_a_fourth_axis_of_another_length_is_refused(tmp_path: Path) -> None:
    four(tmp_path, "a", 3)
    file = tmp_path / "imagesTr" / "a.nii.gz"
    for channels, code in ((1, "several-times-file"), (4, "other-channels")):
        with pytest.raises(VolumeError, match=r"found 3 volumes") as caught:
            load(file, channels=channels)
        assert caught.value.code == code
    with pytest.raises(VolumeError, match="found one"):  # a folder of DICOM, say
        load(tmp_path, channels=2)
    flat = save(tmp_path, "b", noise((4, 4, 4)))
    with pytest.raises(VolumeError, match=r"found 1 volume "):
        Store(Plan(3, (1.0, 1.0, 1.0), (4, 4, 4), 2)).read(Volume("p", (flat,), modality=("T1", "T2")))


def test_ct_beside_mr_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = [save(tmp_path, str(n), noise((8, 8, 8), n)) for n in range(3)]
    volumes = [
        Volume(f"p{n}", (f,), modality=(m,))
        for n, (f, m) in enumerate(zip(files, ("CT", "MR", "CT"), strict=True))
    ]
    plan = make_plan(volumes)
    assert plan.intensity != "window"
    assert "CT and others, each standardised by itself" in str(plan)
    assert "plan them apart" in caplog.text
    caplog.clear()
    assert make_plan([volumes[0], volumes[2]]).intensity == "window"
    assert not caplog.records


def test_a_target_smaller_than_the_grid_is_kept(tmp_path: Path) -> None:
    mask = np.zeros((20, 20, 20), dtype=np.uint8)
    mask[7, 9, 11] = 1
    volume = Volume("p", (save(tmp_path, "a", noise((20, 20, 20))),), save(tmp_path, "m", mask), "x")
    done = Store(Plan(3, (4.0, 4.0, 4.0), (8, 8, 8), 1)).read(volume)
    assert done.mask is not None
    assert done.mask.nonzero().tolist() == [[2, 2, 3]]


def test_a_mask_without_the_label_is_refused(tmp_path: Path) -> None:
    mask = np.zeros((8, 8, 8), dtype=np.uint8)
    mask[2:4, 2:4, 2:4] = 3
    file, outline = save(tmp_path, "a", noise((8, 8, 8))), save(tmp_path, "m", mask)
    plan = Plan(3, (1.0, 1.0, 1.0), (8, 8, 8), 1)
    with pytest.raises(VolumeError, match=r"\[3\], not 2"):
        Store(plan).read(Volume("p", (file,), outline, "glioma", label=2))
    assert int(Store(plan).read(Volume("p", (file,), outline, "glioma", label=3)).mask.sum()) == 8  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "fields",
    [{"patch": (8, 8)}, {"spacing": (1.0, 0.0, 1.0)}, {"intensity": "x"}, {"version": 99}, {"channels": 0}],
)
def test_a_plan_that_cannot_be(fields: dict[str, object]) -> None:
    right = {"spatial_dims": 3, "spacing": (1.0, 1.0, 1.0), "patch": (8, 8, 8), "channels": 1}
    with pytest.raises(CohortError, match="wanted"):
        Plan(**{**right, **fields})  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"spacing": [1, 1, 1], "patch": [8], "x": 1}', "null"])
def test_json_that_is_no_plan(text: str) -> None:
    with pytest.raises(CohortError, match="a plan"):
        Plan.from_json(text)


axes = st.permutations([0, 1, 2])
signs = st.lists(st.sampled_from([-1, 1]), min_size=3, max_size=3)


@given(axes, signs, st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_restore_undoes_any_orientation(order: list[int], sign: list[int], seed: int) -> None:
    """Labels go to the plan's grid and come back unchanged where the spacing is the same."""
    random = np.random.default_rng(seed)
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[order] * sign
    affine[:3, 3] = random.uniform(-50, 50, 3)
    labels = torch.from_numpy((random.random((1, 6, 7, 5)) > 0.5).astype(np.float32))
    native = MetaTensor(labels, affine=torch.from_numpy(affine))
    plan = Plan(3, (1.0, 1.0, 1.0), (8, 8, 8), 1)
    done = prepare(plan, native, mask=native)
    assert done.mask is not None
    assert torch.equal(restore(done.mask[None], done.affine, native, mode="nearest").as_tensor(), labels)


def test_restore_of_an_oblique_grid_is_within_half_a_voxel() -> None:
    """A linear ramp in world coordinates keeps its value at every native voxel inside."""
    angle = math.radians(12)
    affine = np.eye(4)
    affine[:2, :2] = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    affine[:3, :3] *= [1.0, 1.5, 2.0]
    grid = np.stack(np.meshgrid(*map(np.arange, (16, 14, 9)), indexing="ij"), -1)
    world = grid @ affine[:3, :3].T
    native = MetaTensor(
        torch.from_numpy(world[..., 0].astype(np.float32))[None], affine=torch.from_numpy(affine)
    )
    plan = Plan(3, (1.3, 1.3, 1.3), (8, 8, 8), 1, intensity="window", low=-99.0, high=99.0, mean=0.0, std=1.0)
    done = prepare(plan, native)
    back = restore(done.image, done.affine, native)
    error = (back.as_tensor() - native.as_tensor()).abs()[0, 3:-3, 3:-3, 2:-2]
    assert float(error.max()) < 0.05


@pytest.mark.parametrize("flat", [0, 1, 2])
def test_a_single_slice_comes_back_without_a_word(flat: int, recwarn: pytest.WarningsRecorder) -> None:
    shape = [12, 10, 8]
    shape[flat] = 1
    labels = (torch.rand(1, *shape, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    native = MetaTensor(labels, affine=torch.diag(torch.tensor([-1.0, -1.0, 1.0, 1.0])).double())
    done = prepare(Plan(2, (1.0, 1.0, 1.0), (8, 8), 1, slice_axis=flat), native, mask=native)
    assert done.mask is not None
    back = restore(done.mask[None], done.affine, native, mode="nearest")
    assert torch.equal(back.as_tensor(), labels)
    prepare(Plan(2, (1.5, 1.5, 1.0), (8, 8), 1, slice_axis=flat), native, mask=native)  # resampled
    assert not [w for w in recwarn if "affine_grid" in str(w.message)]


def test_plan_of_the_hippocampus(shared_data: Path) -> None:
    cohort = open_cohort(shared_data / "volumes" / "hippocampus")
    plan = make_plan(cohort.volumes)
    assert (plan.spacing, plan.patch, plan.intensity) == ((1.0, 1.0, 1.0), (32, 32, 32), "zscore")


def test_a_smaller_shape_means_a_coarser_spacing(tmp_path: Path) -> None:
    volumes = [Volume("p", (save(tmp_path, "a", noise((40, 40, 20))),), tumour="x")]
    plan = make_plan(volumes, whole=True, patch=(16, 16, 16))
    assert plan.patch == (16, 16, 16)
    assert plan.spacing == (2.5, 2.5, 2.5)
    assert make_plan(volumes, whole=True, patch=(16, 16, 16), spacing=(1, 1, 1)).spacing == (1.0, 1.0, 1.0)
    with pytest.raises(CohortError, match="a patch of 3 numbers, found 2"):
        make_plan(volumes, whole=True, patch=(16, 16))
    for none in (0.0, float("nan")):
        with pytest.raises(CohortError, match="a positive spacing in mm"):
            make_plan(volumes, spacing=(none, 1, 1))


def test_series_of_one_folder_are_images_of_their_own(tmp_path: Path) -> None:
    """As archives export it: all files of all patients in one folder."""
    volumes = []
    for number, step in enumerate((2.0, 4.0, 3.0)):
        made = phantoms.classic(phantoms.voxels((4, 6, 5), seed=number), step=step, spacing=(1.0, 1.0))
        phantoms.save(made, tmp_path, names=[f"{number}{i}.dcm" for i in range(4)])
        volumes.append(Volume(f"p{number}", (tmp_path,), series=made[0].SeriesInstanceUID))
    plan = make_plan(volumes)
    assert plan.about.startswith("from 3 of 3 images")
    assert plan.spacing == (1.0, 1.0, 3.0)


def test_air_is_no_target_of_a_patient_free_of_any(tmp_path: Path) -> None:
    """A mask beside the word none is empty; the window is that of the body, not of the air around it."""
    voxels = np.full((20, 20, 20), -1000, np.float32)
    voxels[5:15, 5:15, 5:15] = noise((10, 10, 10), scale=20.0) + 40
    image = save(tmp_path, "a", voxels)
    empty = save(tmp_path, "m", np.zeros((20, 20, 20), np.uint8))
    plan = make_plan([Volume("p", (image,), empty, modality=("CT",))])
    assert plan.intensity == "window"
    assert plan.low > -200
    assert plan.mean == pytest.approx(40, abs=5)


@pytest.mark.parametrize("shape", [(16, 16, 9), (1, 16, 16), (16, 1, 16)])
def test_a_scan_of_other_slices_than_planned_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """A whole scan, or a slice that lies another way, given to a plan of axial slices."""
    plan = make_plan([Volume("p", (save(tmp_path, "a", noise((16, 16, 1))),))])
    with pytest.raises(CohortError, match="an image of one axial slice"):
        prepare(plan, load(save(tmp_path, "b", noise(shape))))
