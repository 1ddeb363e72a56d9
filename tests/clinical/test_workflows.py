"""The workflows in source form run one after the other, and give a bundle and its results."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import nibabel
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from medmeta.clinical import BundleError, predict_all, verify
from medmeta.training import own_device
from medmeta.volumes import Cohort
from tests.clinical.schema import schema

WORKFLOWS = Path(__file__).resolve().parents[2] / "workflows"
SMALL: dict[str, dict[str, Any]] = {
    "tumor_segmentation": {
        "options": {"steps": 1},
        "spacing": [5.0, 5.0, 5.0],
        "patch": [16, 16, 16],
        "shots": [1, 1],
    },
    "tumor_classification": {"patch": [16, 16, 16], "shots": [1, 1], "way": 2, "spacing": [3.0, 3.0, 3.0]},
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


def steps(
    name: str, cohort: Cohort, unseen: tuple[Path, Path], folder: Path
) -> list[tuple[str, dict[str, Any]]]:
    """The four configurations of a workflow in their order, with what each is told on the command line."""
    seen = few(cohort, folder / "seen", ("annular", "fluted", "mottled", "hollow"), 4)
    support = few(cohort, folder / "support", ("brindled", "nodose"), 2)
    tiny = {"hold_out": ["mottled", "hollow"], "steps": 1, "warm_steps": 1, **SMALL[name]}
    scans = {"datalist": [str(path) for path in unseen]}
    if name == "tumor_classification":  # of outlined lesions
        masks = {v.image[0]: str(v.mask) for v in cohort.volumes}
        scans["masklist"] = [masks[path] for path in unseen]
    return [
        ("train", {"dataset_dir": str(seen), **tiny}),
        ("evaluate", {"dataset_dir": str(seen), "tumour": "mottled", "shots": [1], "episodes": 1}),
        ("adapt", {"support_dir": str(support), "tumour": "brindled", **scans}),
        ("inference", {**scans, "output_dir": str(folder / "again")}),
    ]


def answers(folder: Path) -> dict[Path, Any]:
    """What was answered, by file: voxels and where they lie, or what the JSON says."""
    found: dict[Path, Any] = {}
    for file in sorted(p for p in folder.rglob("[!.]*") if p.is_file()):
        if file.suffix == ".json":
            found[file.relative_to(folder)] = json.loads(file.read_text())
        else:
            image = nibabel.load(file)
            voxels = np.asanyarray(image.dataobj)
            found[file.relative_to(folder)] = (voxels.shape, voxels.tobytes(), image.affine.tolist())
    return found


def check(name: str, folder: Path) -> None:
    """What the four have left."""
    assert verify(folder / "adapted") == []
    at_once, after = (answers(folder / f) for f in ("eval", "again"))
    assert at_once == after  # adapting and predicting in one run is adapting, then predicting
    assert [f.suffix for f in at_once] == ([".gz"] if name == "tumor_segmentation" else [".json"]) * 2
    results = json.loads((folder / "report" / "results.json").read_text())
    assert set(results["results"]) == {"mottled"}


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", SMALL)
def test_train_evaluate_adapt_predict(
    name: str, cohort: Cohort, unseen: tuple[Path, Path], tmp_path: Path
) -> None:
    from monai.bundle import run

    for config, told in steps(name, cohort, unseen, tmp_path):
        if config in ("evaluate", "inference"):
            judged_or_predicted(name, config, told, tmp_path)
            continue
        file = WORKFLOWS / name / "configs" / f"{config}.json"
        run(config_file=str(file), logging_file=False, **{"bundle_root": str(tmp_path), **told})
    check(name, tmp_path)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
def test_the_learner_of_whole_scans_takes_the_same_way(
    cohort: Cohort, unseen: tuple[Path, Path], tmp_path: Path
) -> None:
    from monai.bundle import run

    configs = WORKFLOWS / "tumor_segmentation" / "configs"
    _, *later = steps("tumor_segmentation", cohort, unseen, tmp_path)
    told = {
        "dataset_dir": str(tmp_path / "seen"),
        "hold_out": ["mottled", "hollow"],
        "options": {"pool": 2},
        "spacing": [5.0, 5.0, 5.0],
        "steps": 1,
    }
    files = [str(configs / f"{f}.json") for f in ("train", "whole_scans")]
    run(config_file=files, logging_file=False, bundle_root=str(tmp_path), **told)
    for config, more in later:
        run(
            config_file=str(configs / f"{config}.json"),
            logging_file=False,
            bundle_root=str(tmp_path),
            **more,
        )
    check("tumor_segmentation", tmp_path)
    judged = json.loads((tmp_path / "report" / "results.json").read_text())["results"]["mottled"]["1"]
    assert "ranked-regions" in judged
    about = json.loads((tmp_path / "adapted" / "configs" / "metadata.json").read_text())
    assert "medmeta" in about["required_packages_version"]


def judged_or_predicted(name: str, config: str, told: Mapping[str, Any], folder: Path) -> None:
    """Run what MONAI calls a workflow of evaluation or inference, after looking at all its properties."""
    from monai.bundle import ConfigWorkflow
    from monai.inferers import Inferer

    workflow = ConfigWorkflow(
        config_file=str(WORKFLOWS / name / "configs" / f"{config}.json"),
        logging_file=False,
        workflow_type={"evaluate": "evaluation"}.get(config, config),
        bundle_root=str(folder),
        **told,
    )
    workflow.initialize()
    assert workflow.check_properties() == []
    assert workflow.device == torch.device("cpu")
    assert isinstance(workflow.network_def, torch.nn.Module)
    if config == "evaluate":
        assert workflow.evaluator.trained.learner is workflow.network_def
        assert workflow.dataset.tumours == ("annular", "fluted", "hollow", "mottled")
    else:
        assert workflow.evaluator.network is workflow.network_def
        assert list(workflow.dataset) == told["datalist"]
        plan = workflow.network_def.plan
        with torch.inference_mode():  # the inferer is one for this very network
            assert (
                len(workflow.inferer(torch.zeros(1, plan.inputs, *plan.patch), workflow.network_def)[0]) == 2
            )
    assert isinstance(workflow.inferer, Inferer)
    workflow.run()


def command(launch: Sequence[str], files: str, told: Mapping[str, Any]) -> None:
    """A config on the command line, in the workflow's folder."""
    line = [*launch, "-m", "monai.bundle", "run", "--config_file", files]
    for key, value in told.items():
        line += [f"--{key}", value if isinstance(value, str) else repr(value)]
    ran = subprocess.run(line, capture_output=True, text=True, check=False, timeout=600)
    assert ran.returncode == 0, ran.stderr[-3000:]


def first_gradient(state: Path) -> torch.Tensor:
    """Of all weights, but for its scale: Adam's first moment after one step."""
    tensors = load_file(state)
    assert {float(v) for k, v in tensors.items() if k.endswith(".step")} == {1.0}
    return torch.cat([tensors[k].flatten() for k in sorted(tensors) if k.endswith(".exp_avg")])


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_on_the_command_line_and_in_two_processes(
    name: str, cohort: Cohort, unseen: tuple[Path, Path], tmp_path: Path
) -> None:
    """As the card says it; training once more under torchrun, whose gradients are those of one process that
    takes as many episodes a step."""
    configs = WORKFLOWS / name / "configs"
    python = [sys.executable, "-W", "ignore"]
    for config, told in steps(name, cohort, unseen, tmp_path):
        command(python, str(configs / f"{config}.json"), {"bundle_root": str(tmp_path), **told})
        if config == "train":
            both = repr([str(configs / "train.json"), str(configs / "multi_gpu_train.json")])
            two = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
            there = {"bundle_root": str(tmp_path), **told, "output_dir": str(tmp_path / "two")}
            command(two, both, there)
            command(
                python,
                str(configs / "train.json"),
                {**there, "output_dir": str(tmp_path / "one"), "meta_batch": 4},
            )
    check(name, tmp_path)
    # gradients, not weights: Adam makes a whole step of what is rounding (of a bias before a norm, say).
    # The first step starts from equal weights, the other from weights that rounding has moved apart already.
    for file, near in (("pretraining-last", 1e-6), ("last", 2e-3)):
        alone, one, two = (
            first_gradient(tmp_path / n / f"{file}.safetensors") for n in ("run", "one", "two")
        )
        assert (one - two).norm() < near * one.norm(), file
        assert (one - alone).norm() > 0.01 * one.norm(), file  # fewer episodes a step are seen


def test_a_case_that_fails_fails_the_run(
    segment_bundle: Path, unseen: tuple[Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(BundleError, match="results of all 2 cases, found 1 that failed, empty first"):
        predict_all(segment_bundle, [unseen[0], tmp_path / "empty"], tmp_path / "out")
    assert len(list((tmp_path / "out").rglob("*.nii.gz"))) == 1


@pytest.mark.parametrize("name", SMALL)
def test_a_workflow_is_a_whole_bundle(name: str) -> None:
    parts = (
        "LICENSE",
        "docs/README.md",
        "docs/data_license.txt",
        "configs/metadata.json",
        "configs/logging.conf",
    )
    for part in parts:
        assert (WORKFLOWS / name / part).is_file(), part
    about = json.loads((WORKFLOWS / name / "configs" / "metadata.json").read_text())
    jsonschema.validate(about, schema())
    for side, tensor in (("inputs", "image"), ("outputs", "pred")):
        assert list(about["network_data_format"][side]) == [tensor]
    card = (WORKFLOWS / name / "docs" / "README.md").read_text()
    for heading in ("Intended use", "The data", "Held-out results", "Limits", "How to run it"):
        assert f"## {heading}" in card, heading
    assert "Research use only" in card


@pytest.mark.parametrize("name", SMALL)
def test_overrides_that_every_bundle_has(name: str) -> None:
    for file in sorted((WORKFLOWS / name / "configs").glob("*.json")):
        config = json.loads(file.read_text())
        if file.stem in ("train", "evaluate", "inference", "adapt"):
            assert {"bundle_root", "dataset_dir", "output_dir"} <= set(config), file.name
        assert ("support_dir" in config) == (file.stem == "adapt")


def test_whole_scans_are_classified_as_the_card_says() -> None:
    """MONAI passes over an override that is None: the card says what reaches the recipe instead."""
    from monai.bundle import ConfigParser
    from monai.bundle.scripts import update_kwargs

    folder = WORKFLOWS / "tumor_classification"
    (said,) = re.findall(r"`--lesion '([^']+)'`", (folder / "docs" / "README.md").read_text())
    config = ConfigParser.load_config_file(folder / "configs" / "train.json")
    for told, reached in ((None, 4.0), (said, None)):
        parser = ConfigParser({**config, **update_kwargs({"lesion": config["lesion"]}, lesion=told)})
        assert parser.get_parsed_content("recipe").lesion == reached


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", SMALL)
def test_monai_finds_the_properties_of_a_training_workflow(
    name: str, cohort: Cohort, unseen: tuple[Path, Path], tmp_path: Path
) -> None:
    from monai.bundle import ConfigWorkflow

    told = steps(name, cohort, unseen, tmp_path)[0][1]
    workflow = ConfigWorkflow(
        config_file=str(WORKFLOWS / name / "configs" / "train.json"),
        logging_file=False,
        workflow_type="train",
        bundle_root=str(tmp_path),
        **told,
    )
    workflow.initialize()
    assert workflow.check_properties() == []
    assert workflow.device == own_device()
    assert workflow.max_epochs == 1
    types = {workflow.train_dataset[i].tumour for i in range(len(workflow.train_dataset))}
    assert types == {"annular", "fluted", "mottled", "hollow"}
    # what a program sets is what is trained
    workflow.max_epochs = 2
    workflow.initialize()
    workflow.run()
    assert (tmp_path / "run" / "weights.safetensors").is_file()
    lines = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines if "step" in line][-1] == 2
