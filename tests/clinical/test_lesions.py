"""A bundle that classifies outlined lesions: MONAI alone says what predict says, and a mask is asked for."""

from __future__ import annotations

import csv
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from medmeta.clinical import BundleError, export, predict
from medmeta.episodes import generator_of, support_examples
from medmeta.learners import create_learner
from medmeta.networks import build, lesion_encoder
from medmeta.volumes import Cohort, Store, Volume, make_plan


@pytest.fixture(scope="module")
def scans(cohort: Cohort) -> list[Volume]:
    """NIfTI scans of two types, with their masks."""
    files = [v for v in cohort.of("brindled", "crested") if v.image[0].is_file()]
    return [v for t in ("brindled", "crested") for v in [f for f in files if f.tumour == t][:4]]


@pytest.fixture(scope="module")
def bundle(scans: list[Volume], tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    plan = make_plan(scans, spacing=(3.0, 3.0, 3.0), patch=(16, 16, 16), lesion=4.0)
    store = Store(plan)
    support = [v for n, v in enumerate(scans) if n % 4 < 2]
    examples = support_examples([store.read(v) for v in support], plan, generator_of(0))
    spec = lesion_encoder(plan.inputs, plan.patch, base=4)
    return export(
        create_learner("prototypical", build(spec)).adapt(examples),
        plan=plan,
        network_spec=spec,
        classes=examples.classes,
        task="classification",
        out=tmp_path_factory.mktemp("lesions") / "bundle",
    )


def test_monai_alone_says_what_predict_says(bundle: Path, scans: list[Volume], tmp_path: Path) -> None:
    new = [scans[2], scans[7]]
    images, masks = [str(v.image[0]) for v in new], [str(v.mask) for v in new]
    command = [sys.executable, "-W", "ignore", "-m", "monai.bundle", "run"]
    command += ["--config_file", str(bundle / "configs" / "inference.json"), "--bundle_root", str(bundle)]
    command += [
        "--datalist",
        repr(images),
        "--masklist",
        repr(masks),
        "--output_dir",
        str(tmp_path / "monai"),
    ]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert ran.returncode == 0, ran.stderr[-2000:]
    rows = list(csv.reader((tmp_path / "monai" / "predictions.csv").read_text().splitlines()))
    results = predict(bundle, images, tmp_path / "own", masks=masks)
    assert [r["ok"] for r in results] == [True, True], results
    for row, result in zip(rows, results, strict=True):
        assert row[0] == result["case"]
        assert [float(p) for p in row[1:]] == pytest.approx(list(result["probabilities"].values()), abs=1e-5)


def test_the_card_s_own_command_runs(bundle: Path, scans: list[Volume], tmp_path: Path) -> None:
    """As it is printed, but for the paths; and the masks found by name in a folder."""
    card = (bundle / "docs" / "README.md").read_text()
    printed = card[card.index("    python -m monai.bundle") : card.index("Without `--datalist`")]
    new = scans[2]
    for place, file in (("scans/one.nii.gz", new.image[0]), ("masks/one_seg.nii.gz", new.mask)):
        assert file is not None
        (tmp_path / place).parent.mkdir()
        shutil.copy(file, tmp_path / place)
    words = shlex.split(printed.replace("\\\n", " "))
    words[0] = sys.executable
    for option, value in (("--datalist", "scans/one.nii.gz"), ("--masklist", "masks/one_seg.nii.gz")):
        words[words.index(option) + 1] = repr([str(tmp_path / value)])
    words[words.index("--output_dir") + 1] = str(tmp_path / "given")
    at = words.index("--datalist")
    found = ["--dataset_dir", str(tmp_path / "scans"), "--mask_dir", str(tmp_path / "masks")]
    for command in (words, [*words[:at], *found, "--output_dir", str(tmp_path / "found")]):
        ran = subprocess.run(command, cwd=bundle, capture_output=True, text=True, check=False, timeout=300)
        assert ran.returncode == 0, ran.stderr[-2000:]
    given, by_name = ((tmp_path / n / "predictions.csv").read_text() for n in ("given", "found"))
    assert given == by_name != ""


def test_masks_are_asked_for(
    bundle: Path, classify_bundle: Path, scans: list[Volume], tmp_path: Path
) -> None:
    image, mask = scans[0].image[0], scans[0].mask
    assert mask is not None
    with pytest.raises(BundleError, match=r"1 mask\(s\), one a scan, that outline the lesions"):
        predict(bundle, [image], tmp_path / "a")
    with pytest.raises(BundleError, match="wanted no masks, found 1"):
        predict(classify_bundle, [image], tmp_path / "a", masks=[mask])
    masks = [v.mask for v in scans[1::-1] if v.mask is not None]
    with pytest.raises(BundleError, match="found 2 of 2 called as another scan"):
        predict(bundle, [v.image[0] for v in scans[:2]], tmp_path / "a", masks=masks)
    (other,) = predict(bundle, [image], tmp_path / "b", masks=[scans[1].mask])  # type: ignore[list-item]
    assert not other["ok"]
    assert "grid" in other["message"] or "shape" in other["message"] or "affine" in other["message"]
