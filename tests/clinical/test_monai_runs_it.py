"""A bundle runs with MONAI alone, in another process, and says what predict says."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

from medmeta.clinical import export, load_bundle, predict
from medmeta.episodes import Examples
from medmeta.learners import create_learner
from medmeta.networks import build, unet
from medmeta.volumes import Plan, load, load_mask
from tests.clinical.schema import schema


def run_bundle(bundle: Path, images: Sequence[Path | list[Path]], out: Path) -> None:
    """As a hospital does: in another process, which is cannot import medmeta."""
    command = [sys.executable, "-W", "ignore", str(Path(__file__).with_name("without_medmeta.py")), "run"]
    command += ["--config_file", str(bundle / "configs" / "inference.json"), "--bundle_root", str(bundle)]
    command += ["--datalist", json.dumps(images, default=str), "--output_dir", str(out)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]


def dice(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def test_masks_on_the_scans_own_grid_agree_with_predict(
    segment_bundle: Path, unseen: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # predict leaves out the air, where an untrained network finds things: here all is body
    monkeypatch.setattr("medmeta.clinical.windows.AIR", -1.0)
    alike = Path(shutil.copytree(unseen[1], tmp_path / "other" / unseen[1].name))
    scans = [*unseen, alike]  # two folders of one name: neither result may replace the other
    run_bundle(segment_bundle, scans, tmp_path / "monai")
    results = predict(segment_bundle, scans, tmp_path / "own")
    assert [r["ok"] for r in results] == [True, True, True]
    for source, result in zip(scans, results, strict=True):
        image = load(source)
        own = tmp_path / "own" / result["files"][0]
        theirs = tmp_path / "monai" / result["case"] / f"{result['case']}_seg.nii.gz"
        written = nibabel.load(own)
        assert written.shape == tuple(image.shape[1:])
        assert np.allclose(written.affine, image.affine.numpy(), atol=1e-4)
        assert sorted(nibabel.load(theirs).shape) == sorted(image.shape[1:])
        # load_mask maps by the affine and refuses another grid
        mine, made = (load_mask(file, like=image)[0].as_tensor() > 0 for file in (own, theirs))
        assert mine.any()
        assert not mine.all()
        assert dice(mine, made) > 0.99
        assert result["voxels"]["brindled"] == int(mine.sum())


def test_several_channels_stored_as_sagittal_slices(
    unseen: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MONAI's writer took them for images of two axes, whose affine cannot be inverted."""
    monkeypatch.setattr("medmeta.clinical.windows.AIR", -1.0)
    torch.manual_seed(0)
    spec, label = unet(3, 2, base=4), torch.zeros(2, 16, 16, 16, dtype=torch.int64)
    label[:, 4:9, 4:9, 4:9] = 1
    support = Examples(torch.rand(2, 2, 16, 16, 16), label, ("background", "glioma"))
    bundle = export(
        create_learner("prototypical", build(spec)).adapt(support),
        plan=Plan(3, (4.0, 4.0, 4.0), (16, 16, 16), 2),
        network_spec=spec,
        classes=support.classes,
        task="segmentation",
        out=tmp_path / "bundle",
    )
    scan = nibabel.load(unseen[0])
    turn = ornt_transform(io_orientation(scan.affine), axcodes2ornt(("P", "S", "R")))
    files = [tmp_path / f"{name}.nii.gz" for name in ("t1", "t2")]
    for gain, file in enumerate(files, start=1):
        values = scan.get_fdata(dtype=np.float32) ** gain
        nibabel.Nifti1Image(values, scan.affine).as_reoriented(turn).to_filename(file)
    run_bundle(bundle, [files], tmp_path / "monai")
    (result,) = predict(bundle, [files], tmp_path / "own")
    assert result["ok"], result["message"]
    own, theirs = (nibabel.load(tmp_path / place / "t1" / "t1_seg.nii.gz") for place in ("own", "monai"))
    stored = nibabel.load(files[0])
    for found in (own, theirs):
        assert found.shape == stored.shape
        assert np.allclose(found.affine, stored.affine, atol=1e-4)
    mine, made = (torch.from_numpy(np.asarray(found.dataobj) > 0) for found in (own, theirs))
    assert dice(mine, made) > 0.99


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
def test_classification_agrees_with_predict(
    classify_bundle: Path, unseen: tuple[Path, Path], tmp_path: Path
) -> None:
    from monai.bundle import run

    run(
        config_file=str(classify_bundle / "configs" / "inference.json"),
        bundle_root=str(classify_bundle),
        datalist=[str(path) for path in unseen],
        output_dir=str(tmp_path / "monai"),
    )
    with (tmp_path / "monai" / "predictions.csv").open() as file:
        rows = list(csv.reader(file))
    results = predict(classify_bundle, unseen, tmp_path / "own")
    for row, result in zip(rows, results, strict=True):
        assert row[0] == result["case"]  # and not its path, whose folders may name the patient
        soft = json.loads((tmp_path / "own" / result["files"][0]).read_text())["probabilities"]
        assert [float(p) for p in row[1:]] == pytest.approx(list(soft.values()), abs=1e-3)
        assert sum(soft.values()) == pytest.approx(1, abs=1e-4)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
def test_network_fits_the_metadata(segment_bundle: Path, classify_bundle: Path, tmp_path: Path) -> None:
    from monai.bundle import verify_net_in_out

    def verified(bundle: Path, metadata: Path) -> None:
        config = str(bundle / "configs" / "inference.json")
        verify_net_in_out("network_def", meta_file=str(metadata), config_file=config, device="cpu")

    for bundle in (segment_bundle, classify_bundle):
        metadata = bundle / "configs" / "metadata.json"
        verified(bundle, metadata)  # and it would say so if it did not:
        about = json.loads(metadata.read_text())
        about["network_data_format"]["outputs"]["pred"]["num_channels"] = 3
        (tmp_path / "other.json").write_text(json.dumps(about))
        with pytest.raises(ValueError, match=r"output channel number `2` doesn't match: `3`"):
            verified(bundle, tmp_path / "other.json")


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
def test_metadata_fit_the_schema(segment_bundle: Path, classify_bundle: Path, tmp_path: Path) -> None:
    from monai.bundle import verify_metadata

    (tmp_path / "schema.json").write_text(json.dumps(schema()))
    for bundle in (segment_bundle, classify_bundle):
        metadata = bundle / "configs" / "metadata.json"
        verify_metadata(meta_file=str(metadata), filepath=str(tmp_path / "schema.json"))
        about = json.loads(metadata.read_text())
        del about["network_data_format"]["inputs"]["image"]["value_range"]
        (tmp_path / "other.json").write_text(json.dumps(about))
        with pytest.raises(ValueError, match="'value_range' is a required property"):
            verify_metadata(meta_file=str(tmp_path / "other.json"), filepath=str(tmp_path / "schema.json"))


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
def test_the_three_forms_of_the_weights_agree(segment_bundle: Path) -> None:
    predictor = load_bundle(segment_bundle)
    script = torch.jit.load(str(segment_bundle / "models" / "model.ts"))
    image = torch.randn(2, 1, 16, 16, 16)
    with torch.no_grad():
        assert torch.allclose(predictor(image), script(image), atol=1e-4)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
def test_monai_finds_the_properties_of_an_inference_workflow(segment_bundle: Path) -> None:
    from monai.bundle import ConfigWorkflow

    workflow = ConfigWorkflow(
        config_file=str(segment_bundle / "configs" / "inference.json"),
        meta_file=str(segment_bundle / "configs" / "metadata.json"),
        logging_file=False,
        workflow_type="inference",
        bundle_root=str(segment_bundle),
        datalist=[],
    )
    workflow.initialize()
    assert workflow.check_properties() == []
