"""The workflows in source form run one after the other, and give a bundle and its results."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from medmeta.clinical import verify
from medmeta.volumes import Cohort

WORKFLOWS = Path(__file__).resolve().parents[2] / "workflows"
SMALL = {
    "tumor_segmentation": {
        "options": {"steps": 1},
        "spacing": [5.0, 5.0, 5.0],
        "patch": [16, 16, 16],
        "shots": [1, 1],
    },
    "tumor_classification": {"patch": [16, 16, 16], "shots": [1, 1], "way": 2},
}


def few(cohort: Cohort, folder: Path, types: tuple[str, ...], patients: int) -> Path:
    """A cohort of a few patients, as a table."""
    folder.mkdir()
    with (folder / "cohort.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["patient", "image", "mask", "tumor"])
        for name in types:
            files = [v for v in cohort.of(name) if v.image[0].is_file()]
            for v in files[:patients]:
                table.writerow([v.patient, v.image[0].resolve(), v.mask and v.mask.resolve(), v.tumour])
    return folder


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", SMALL)
def test_train_adapt_predict(name: str, cohort: Cohort, unseen: tuple[Path, Path], tmp_path: Path) -> None:
    from monai.bundle import run

    configs = WORKFLOWS / name / "configs"
    seen = few(cohort, tmp_path / "seen", ("annular", "fluted", "mottled", "hollow"), 4)
    support = few(cohort, tmp_path / "support", ("brindled", "nodose"), 2)
    run(
        config_file=str(configs / "train.json"),
        bundle_root=str(tmp_path),
        dataset_dir=str(seen),
        hold_out=["mottled"],
        steps=1,
        warm_steps=1,
        **SMALL[name],
    )
    run(
        config_file=str(configs / "adapt.json"),
        bundle_root=str(tmp_path),
        dataset_dir=str(support),
        tumour="brindled",
    )
    assert verify(tmp_path / "adapted") == []
    run(
        config_file=str(configs / "inference.json"),
        bundle_root=str(tmp_path),
        datalist=[str(path) for path in unseen],
    )
    written = sorted(p.suffix for p in (tmp_path / "eval").rglob("*") if p.is_file())
    assert written == ([".gz"] * 2 if name == "tumor_segmentation" else [".json"] * 2)


@pytest.mark.parametrize("name", SMALL)
def test_a_workflow_is_a_whole_bundle(name: str) -> None:
    for part in ("LICENSE", "docs/README.md", "configs/metadata.json"):
        assert (WORKFLOWS / name / part).is_file()
    about = json.loads((WORKFLOWS / name / "configs" / "metadata.json").read_text())
    assert set(about["network_data_format"]) == {"inputs", "outputs"}
