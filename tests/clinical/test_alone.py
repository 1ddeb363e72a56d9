"""Bundles of every learner where medmeta cannot be imported: the same logits, or a word that says why."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from medmeta.clinical import export, load_bundle, verify
from medmeta.clinical.card import held_of
from medmeta.episodes import Examples
from medmeta.learners import LearnerError, create_learner, learner_names
from medmeta.networks import build, unet
from medmeta.volumes import Plan

BLOCKED = Path(__file__).with_name("without_medmeta.py")
STAYS = {("mann", "classification"), ("ranked-regions", "segmentation")} | {
    (name, task) for name in ("local-prototype", "in-context") for task in ("classification", "segmentation")
}
GROWN = {("body-trees", "segmentation")}  # trees are written down nowhere: only pickle could read them
CASES = [(n, t) for t in ("classification", "segmentation") for n in learner_names(t) if (n, t) not in GROWN]


def support(task: str) -> tuple[Examples, Plan, dict[str, Any]]:
    """Five examples, more of one class than of the other; with the plan and the network that fit."""
    torch.manual_seed(0)
    image = torch.rand(5, 1, 16, 16)
    if task == "classification":
        label, classes = torch.tensor([0, 1, 0, 0, 1]), ("glioma", "metastasis")
        return (
            Examples(image, label, classes),
            Plan(2, (1.0, 1.0, 1.0), (16, 16), 1, whole=True),
            unet(2, 1, base=2),
        )
    label = torch.zeros(5, 16, 16, dtype=torch.int64)
    label[:, 4:9, 4:9] = 1
    return (
        Examples(image, label, ("background", "glioma")),
        Plan(2, (1.0, 1.0, 1.0), (16, 16), 1),
        unet(2, 1, base=2),
    )


@pytest.mark.parametrize(("name", "task"), sorted(STAYS))
def test_a_bundle_says_what_it_holds_of_its_support(name: str, task: str, tmp_path: Path) -> None:
    examples, plan, spec = support(task)
    predictor = create_learner(name, build(spec)).adapt(examples)
    given = {"plan": plan, "network_spec": spec, "classes": examples.classes, "task": task}
    docs = export(predictor, **given, out=tmp_path / "bundle") / "docs"
    card, data = ((docs / file).read_text() for file in ("README.md", "data_license.txt"))
    assert "no annotation" not in data
    assert f"it holds {held_of([{'_target_': predictor.spec(spec)['_target_']}], task)}" in card
    assert ("mask at a lower resolution" in data) is ((name, task) == ("in-context", "segmentation"))


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Every learner's bundle, its own logits, and what the other process said."""
    folder = tmp_path_factory.mktemp("alone")
    image = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    save_file({"image": image}, folder / "image.safetensors")
    own = {}
    for name, task in CASES:
        examples, plan, spec = support(task)
        options: dict[str, Any] = {"classes": examples.classes} if name.startswith("pretrain") else {}
        if "steps" in create_learner(name, build(spec)).options:
            options["steps"] = 2
        learner = create_learner(name, build(spec), **options)
        predictor = learner.adapt(examples)
        bundle = export(
            predictor,
            plan=plan,
            network_spec=spec,
            classes=examples.classes,
            task=task,
            out=folder / f"{name} {task}",
        )
        with torch.no_grad():
            own[bundle.name] = predictor(image)
    command = [sys.executable, "-W", "ignore", str(BLOCKED), "logits", str(folder)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert ran.returncode == 0, ran.stderr[-2000:]
    return {"folder": folder, "own": own, "said": json.loads(ran.stdout.splitlines()[-1])}


@pytest.mark.parametrize(("name", "task"), [c for c in CASES if c not in STAYS])
def test_the_same_logits_with_monai_alone(answers: dict[str, Any], name: str, task: str) -> None:
    bundle = answers["folder"] / f"{name} {task}"
    assert answers["said"][bundle.name] == "ok"
    theirs, own = load_file(bundle / "logits.safetensors")["logits"], answers["own"][bundle.name]
    assert torch.allclose(theirs, own, rtol=1e-5, atol=1e-5), float((theirs - own).abs().max())
    about = json.loads((bundle / "configs" / "metadata.json").read_text())
    assert "medmeta" not in about["required_packages_version"]


@pytest.mark.parametrize(("name", "task"), sorted(STAYS))
def test_what_cannot_leave_says_so(answers: dict[str, Any], name: str, task: str) -> None:
    bundle = answers["folder"] / f"{name} {task}"
    assert "medmeta" in answers["said"][bundle.name]
    about = json.loads((bundle / "configs" / "metadata.json").read_text())
    assert "medmeta" in about["required_packages_version"]
    assert "**and medmeta**" in (bundle / "docs" / "README.md").read_text()
    assert verify(bundle) == []
    image = load_file(answers["folder"] / "image.safetensors")["image"]
    with torch.no_grad():
        assert torch.allclose(load_bundle(bundle)(image), answers["own"][bundle.name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "task"), sorted(GROWN))
def test_what_cannot_be_written_down_is_refused(tmp_path: Path, name: str, task: str) -> None:
    examples, plan, spec = support(task)
    predictor = create_learner(name, build(spec)).adapt(examples)
    with pytest.raises(LearnerError, match="runs with medmeta only"):
        export(
            predictor, plan=plan, network_spec=spec, classes=examples.classes, task=task, out=tmp_path / "no"
        )
    assert not (tmp_path / "no").exists()
