"""The laws of the protocol: one support for all methods, nobody judged who was learnt from."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass, field
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from medmeta import open_cohort
from medmeta.episodes import Examples
from medmeta.evaluation import (
    NAMES,
    Case,
    EvaluationError,
    Judged,
    Trees,
    evaluate,
    judge_classification,
    judge_segmentation,
    metrics,
    results,
)
from medmeta.training import Recipe, Schedule, train
from medmeta.volumes import Cohort, Store, Volume, make_plan


@pytest.fixture(scope="module")
def cohort(sample_data: Path) -> Cohort:
    """Few patients of three types, and some free of all."""
    whole = open_cohort(sample_data)
    kept: list = []
    for name in ("annular", "rimose", "sericate", None):
        kept += [v for v in whole.volumes if v.tumour == name and v.image[0].is_file()][:5]
    return Cohort(whole.name, tuple(kept), whole.root)


@dataclass
class Remembers:
    """A method that remembers its supports and outlines what is bright."""

    supports: list[Examples] = field(default_factory=list)

    def adapt(self, support: Examples):
        self.supports.append(support)
        dense, way = support.segments, len(support.classes)

        def predict(image: torch.Tensor) -> torch.Tensor:
            bright = image[:, :1] - image.mean()
            values = torch.cat([-bright, bright], 1)
            if dense:
                return values
            return torch.zeros(len(image), len(support.classes)) if way > 2 else values.flatten(2).amax(2)

        return predict


def test_every_method_learns_from_the_same_and_is_judged_on_others(cohort: Cohort) -> None:
    store = Store(make_plan(cohort.volumes, spacing=(4, 4, 4), patch=(16, 16, 16)), salt="s")
    one, other = Remembers(), Remembers()
    judged = judge_segmentation(
        {"one": one, "other": other}, cohort.volumes, ["rimose"], store, shots=(1, 3), episodes=2
    )
    for a, b in zip(one.supports, other.supports, strict=True):
        assert torch.equal(a.image, b.image)
        assert torch.equal(a.label, b.label)
    by_episode = zip([(1, 0), (1, 1), (3, 0), (3, 1)], one.supports, strict=True)
    for (shot, draw), support in by_episode:
        cases = [c for c in judged.cases if (c.shot, c.draw, c.method) == (shot, draw, "one")]
        assert sum(c.truth for c in cases) == 5 - shot
        assert sum(not c.truth for c in cases) == 5  # free of every type
        assert not {c.patient for c in cases} & set(support.patients)
    nested = set(one.supports[0].patients), set(one.supports[2].patients)
    assert nested[0] < nested[1]
    assert all(0 <= (c.values["dice"] or 0) <= 1 for c in judged.cases)


def test_pixel_trees_find_what_texture_tells() -> None:
    """A rough square in smooth surroundings of the same mean brightness."""
    generator = torch.Generator().manual_seed(0)
    image = 0.1 * torch.randn(4, 1, 32, 32, generator=generator)
    label = torch.zeros(4, 32, 32, dtype=torch.int64)
    for i, (x, y) in enumerate([(4, 6), (15, 15), (8, 18), (18, 5)]):
        label[i, x : x + 10, y : y + 10] = 1
    image[:, 0] += label * torch.randn(4, 32, 32, generator=generator)
    predictor = Trees().adapt(Examples(image[:3], label[:3], ("background", "rough")))
    found = predictor(image[3:]).argmax(1)[0] > 0
    assert metrics.dice(found, label[3] > 0) > 0.8  # type: ignore[operator]


def test_pictures_of_flat_scans_are_whole_slices(tmp_path: Path) -> None:
    """One slice, thinner than its pixels are wide: the picture is the slice, not a cut across it."""
    volumes = []
    for n in range(3):
        voxels, mask = (
            np.random.default_rng(n).random((24, 20, 1), np.float32),
            np.zeros((24, 20, 1), np.uint8),
        )
        mask[5:12, 6:12] = 1
        for name, array in {f"{n}": voxels, f"{n}_m": mask}.items():
            nibabel.save(
                nibabel.Nifti1Image(array, np.diag([2.0, 2.0, 1.0, 1.0])), tmp_path / f"{name}.nii.gz"
            )
        volumes.append(Volume(f"p{n}", (tmp_path / f"{n}.nii.gz",), tmp_path / f"{n}_m.nii.gz", "cyst"))
    store = Store(make_plan(volumes, patch=(16, 16)), salt="s")
    judged = judge_segmentation({"one": Remembers()}, volumes, ["cyst"], store, shots=(1,), episodes=1)
    assert {sorted(p.truth.shape)[0] for p in judged.pictures} == {20}
    assert {sorted(p.image.shape)[1] for p in judged.pictures} == {24}


def test_classification_asks_the_type_against_the_rest(cohort: Cohort) -> None:
    held = [v for v in cohort.volumes if v.tumour != "annular"]
    store = Store(make_plan(held, whole=True, patch=(16, 16, 16)), salt="s")
    judged = judge_classification({"one": Remembers()}, held, ["rimose"], store, shots=(1,), episodes=2)
    assert len(judged.cases) == 2 * (4 + 9)
    assert sum(c.truth for c in judged.cases) == 2 * 4
    names = {"accuracy", "auroc", "auprc", "sensitivity", "ece", "brier"}
    assert set(judged.table()["rimose"]["1"]["one"]) == names


def test_classification_asks_which_of_all_types(cohort: Cohort) -> None:
    """Known types are classes, too: learnt from those trained on, asked of others."""
    old = [v for v in cohort.volumes if v.tumour == "annular"]
    new = [v for v in cohort.volumes if v.tumour in {"rimose", "sericate"}]
    store = Store(make_plan(old, lesion=4.0, spacing=(4, 4, 4), patch=(8, 8, 8)), salt="s")
    known, others = old[:2], old[2:]
    learner = Remembers()
    judged = judge_classification(
        {"one": learner}, [*new, *others], ["rimose", "sericate"], store, known=known, shots=(1,), episodes=2
    )
    assert {c.kind for c in judged.cases} == {"rimose", "sericate", "annular"}
    asked = {c.patient for c in judged.cases}
    assert not asked & {store.patient(v) for v in known}
    # every draw: one patient of each new type is learnt from, all others are asked, for each new type
    assert len(judged.cases) == 2 * 2 * (len(new) - 2 + len(others))
    for support in learner.supports:
        assert support.classes == ("rimose", "sericate", "annular")
        assert set(support.patients) & {store.patient(v) for v in known}
    accuracy = judged.table()["rimose"]["1"]["one"]["accuracy"].mean
    assert accuracy == pytest.approx(1 / 3, abs=1e-4)  # it always says the same


def judged_phantom() -> Judged:
    """Made-up figures in which fine-tuning wins."""
    generator = np.random.default_rng(1)
    level = {"maml": 0.4, "pretrain-finetune": 0.8, "finetune-scratch": 0.1, "pixel-trees": 0.2}
    cases = []
    for shot, (method, mean), draw, p in itertools.product((1, 5), level.items(), range(2), range(9)):
        dice = float(np.clip(mean + generator.normal() / 20, 0, 1))
        values = {"dice": dice, "hd95_mm": 5.0, "volume_error_ml": 0.0}
        cases.append(Case("rimose", shot, method, draw, f"{p:016x}", values))
    return Judged("segmentation", tuple(cases), (), {"maml": 0.1, **{name: 1.0 for name in NAMES}})


def test_results_are_as_other_programs_expect_them() -> None:
    content = results([judged_phantom()], held_out=["rimose"], seed=3, seconds=1.0)
    assert set(content) >= {"results", "patients", "episodes", "held_out", "seed", "versions", "seconds"}
    cell = json.loads(json.dumps(content))["results"]["rimose"]["5"]["maml"]["dice"]
    assert set(cell) == {"mean", "low", "high"}
    assert cell["low"] <= cell["mean"] <= cell["high"]


def test_a_run_is_evaluated_only_on_what_it_has_not_seen(cohort: Cohort, tmp_path: Path) -> None:
    recipe = Recipe(
        learner="prototypical", schedule=Schedule(steps=2), shot=(1, 1), spacing=(4, 4, 4), patch=(16, 16, 16)
    )
    run = train(cohort, recipe, out=tmp_path / "run", hold_out=["rimose"])
    content = evaluate(run, cohort, tmp_path / "report", tumour="rimose", shots=(1,), episodes=2)
    assert content["patients"] == 5 + 2  # who has it, and who is free of every type and was not trained on
    assert {f.name for f in (tmp_path / "report").iterdir()} == {
        "report.html", "results.json", "cases.csv", "manifest.json",
    }  # fmt: skip
    assert {"prototypical", "finetune-scratch", "pixel-trees"} <= set(content["results"]["rimose"]["1"])
    with pytest.raises(EvaluationError, match="not seen 'sericate'"):
        evaluate(run, cohort, tmp_path / "other", tumour="sericate", shots=(1,))
    with pytest.raises(EvaluationError, match="Did you mean 'rimose'"):
        evaluate(run, cohort, tmp_path / "other", tumour="rimos", shots=(1,))
    with pytest.raises(EvaluationError, match="does not exist"):
        evaluate(run, cohort, tmp_path / "report", tumour="rimose", shots=(1,))
