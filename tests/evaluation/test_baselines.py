"""Every baseline that is due, from one grid on tasks that are never judged."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from medmeta import open_cohort
from medmeta.episodes import Examples
from medmeta.evaluation import EvaluationError, baselines, propose
from medmeta.evaluation.baselines import Majority, NearestPixels, methods_of, tuned, validation_episodes
from medmeta.learners import Safeguarded, create_learner
from medmeta.learners.tuning import RATES, STEPS
from medmeta.networks import build
from medmeta.training import Recipe, Run, Schedule, train
from medmeta.volumes import Cohort, Store, Volume


@pytest.fixture(scope="module")
def cohort(sample_data: Path) -> Cohort:
    """Four patients of each of five types."""
    whole = open_cohort(sample_data)
    kept: list = []
    for name in whole.tumours[:5]:
        kept += [v for v in whole.volumes if v.tumour == name and v.image[0].is_file()][:4]
    return Cohort(whole.name, tuple(kept), whole.root)


@pytest.fixture(scope="module")
def run(cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A classifier of outlined lesions, hardly trained, validated on two types."""
    recipe = Recipe(
        task="classification",
        learner="prototypical",
        schedule=Schedule(steps=1),
        warm=Schedule(steps=1),
        shot=(1, 1),
        query=1,
        spacing=(4.0, 4.0, 4.0),
        patch=(8, 8, 8),
        lesion=4.0,
        validate_on=cohort.tumours[1:3],
    )
    return train(cohort, recipe, out=tmp_path_factory.mktemp("run") / "run", hold_out=cohort.tumours[:1])


def test_all_baselines_are_there_and_learn_from_a_support(run: Run, cohort: Cohort) -> None:
    made = baselines(run)
    assert set(made) == {
        "pretrain-finetune", "pretrain-linear", "finetune-scratch", "pixel-trees", "ridge-untrained",
        "nearest-pixels", "majority",
    }  # fmt: skip
    assert set(baselines(run)) == set(made)
    support = Examples(
        torch.randn(4, run.plan.inputs, 8, 8, 8), torch.tensor([0, 0, 1, 1]), ("a", "b"), tuple("pqrs")
    )
    for name, method in made.items():
        found = method.adapt(support)(support.image)  # type: ignore[union-attr]
        assert found.shape == (4, 2), name
        assert bool(torch.isfinite(found).all()), name


def test_the_linear_probe_moves_the_head_alone(run: Run) -> None:
    probe = baselines(run)["pretrain-linear"]
    support = Examples(torch.randn(2, run.plan.inputs, 8, 8, 8), torch.tensor([0, 1]), ("a", "b"))
    adapted = probe.adapt(support).network.state_dict()  # type: ignore[union-attr]
    for name, weight in run.warm.network.state_dict().items():  # type: ignore[union-attr]
        assert torch.equal(adapted[name], weight)


def test_a_run_of_lesions_cannot_choose_among_patients_without_outlines(run: Run, cohort: Cohort) -> None:
    bare = Cohort("bare", tuple(Volume(v.patient, v.image) for v in cohort.volumes), cohort.root)
    with pytest.raises(EvaluationError, match=r"found 20 of 20 scans without\. Leave --run out"):
        propose(bare, 2, run=run)


def test_why_a_classifier_cannot_say_what_choosing_gains(run: Run, cohort: Cohort) -> None:
    """Not for want of patients with masks, of whom there are four of a type that it has not seen."""
    found = propose(cohort, 1, run=run)
    assert (len(found["chosen"]), found["gain"]) == (1, None)
    assert "the run looks at whole volumes" in found["says"]


def test_rates_are_chosen_on_validation_types_from_one_grid(run: Run, cohort: Cohort) -> None:
    store = Store(run.plan, salt=run.config["salt"])
    tasks = validation_episodes(run, cohort.volumes, store, (1, 3), each=1)
    kinds = {c for e in tasks for c in e.support.classes}
    assert kinds == set(cohort.tumours[1:3])
    assert not kinds & {*run.types, *run.held_out}
    some = {name: m for name, m in baselines(run).items() if name in {"pretrain-linear", "majority"}}
    found, about = tuned(some, tasks)
    assert found["majority"] is some["majority"]
    assert about["tasks"] == len(tasks) > 0
    assert about["chosen"]["pretrain-linear"]["rate"] in RATES
    assert about["chosen"]["pretrain-linear"]["steps"] in STEPS
    assert found["pretrain-linear"].inner.adapt_steps in STEPS  # type: ignore[union-attr]
    ours = create_learner("maml", build(run.network), way=2)
    both, about = tuned({"maml": ours, "safeguarded": Safeguarded(ours)}, tasks)
    assert both["safeguarded"].learner is both["maml"]  # type: ignore[union-attr]
    assert about["chosen"].keys() == {"maml"}
    none = [v for v in cohort.volumes if v.tumour not in kinds]
    assert validation_episodes(run, none, store, (1,)) == []
    assert tuned(some, [])[1] == {"tasks": 0, "chosen": {}}


def test_nearest_voxels_are_those_of_scikit_learn_and_the_majority_is_counted() -> None:
    generator = np.random.default_rng(0)
    image = generator.normal(size=(20, 1, 4, 4)).astype("f4")
    label = generator.integers(0, 3, 20)
    label[:3] = 0, 1, 2
    support = Examples(torch.from_numpy(image), torch.from_numpy(label), ("a", "b", "c"))
    query = generator.normal(size=(30, 1, 4, 4)).astype("f4")
    expected = KNeighborsClassifier(1).fit(image.reshape(20, -1), label).predict(query.reshape(30, -1))
    assert NearestPixels().adapt(support)(torch.from_numpy(query)).argmax(1).tolist() == expected.tolist()
    said = Majority().adapt(support)(torch.from_numpy(query))
    assert torch.softmax(said, 1)[0].tolist() == pytest.approx((np.bincount(label) / 20).tolist())


def test_a_run_of_a_baseline_s_name_is_judged_itself(run: Run) -> None:
    """Pre-trained for longer, say: what was judged in its name was the short pre-training beside it."""
    assert run.warm is not None
    longer = replace(run, learner=copy.deepcopy(run.warm))
    made = methods_of(longer)
    assert made["pretrain-finetune"] is longer.learner
    assert next(iter(made)) == "pretrain-finetune"
