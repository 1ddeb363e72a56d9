"""The answer on one's own cases, by the command line: words, JSON, and one clear refusal each."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from medmeta.cli import app
from medmeta.episodes import Examples
from medmeta.evaluation import EvaluationError, Judged, Trees, advise_on
from medmeta.evaluation.advice import advise, judge_further
from medmeta.evaluation.supports import available
from medmeta.evaluation.words import answer
from medmeta.volumes import Plan, Volume, open_cohort
from tests.evaluation.test_report import phantom


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five patients with a bright square in one slice, two with another type."""
    folder = tmp_path_factory.mktemp("few")
    rows = ["patient,image,mask,tumor"]
    for n in range(7):
        generator = np.random.default_rng(n)
        mask = np.zeros((32, 32, 1), np.uint8)
        mask[5 + n : 14 + n, 8:18] = 1
        voxels = (100 + 10 * generator.normal(size=mask.shape) + 60.0 * mask).astype("f4")
        for name, array in {f"{n}": voxels, f"{n}_m": mask}.items():
            nibabel.save(nibabel.Nifti1Image(array, np.diag([2.0, 2, 1, 1])), folder / f"{name}.nii.gz")
        rows.append(f"SECRET{n},{n}.nii.gz,{n}_m.nii.gz,{'cyst' if n < 5 else 'other'}")
    (folder / "cohort.csv").write_text("\n".join(rows) + "\n")
    return folder


def test_advice_on_own_cases_in_words_and_as_json(few: Path) -> None:
    shown = CliRunner().invoke(app, ["advise", str(few), "--tumor", "cyst", "--episodes", "2", "--json"])
    assert shown.exit_code == 0, shown.output
    found = json.loads(shown.stdout)
    assert (found["tumour"], found["labelled"], found["shots"]) == ("cyst", 5, 4)
    assert found["use"] in {"pixel-trees", "finetune-scratch"}
    assert 0 <= found["score"]["mean"] <= 1
    assert found["label_more"] in {"more", "enough", "unknown"}
    assert found["says"].startswith("cyst: with 4 labelled patients, use the ")
    assert "with cyst: intervals are wide" in found["says"]
    assert found["score"]["mean"] > 0.5  # a bright square is easy
    assert "SECRET" not in shown.stdout


def test_what_cannot_be_advised_is_refused(few: Path) -> None:
    cohort = open_cohort(few)
    with pytest.raises(EvaluationError, match=r"at least 3 labelled patients with 'other'.*found 2\."):
        advise_on(cohort, "other")
    with pytest.raises(EvaluationError, match="Did you mean 'cyst'"):
        advise_on(cohort, "cist")
    with pytest.raises(EvaluationError, match=r"at least 1 episode .* found 0 episodes"):
        advise_on(cohort, "cyst", episodes=0)
    alone = replace(cohort, volumes=tuple(replace(v, mask=None) for v in cohort.of("cyst")))
    with pytest.raises(EvaluationError, match=r"3 labelled patients with 'cyst' and 3 others.* found 0 of"):
        advise_on(alone, "cyst")


def test_where_no_draw_is_at_both_numbers_of_labels_it_is_said() -> None:
    """As in a manifest of another program, whose draws are numbered through."""
    judged = phantom({"maml": 0.5, "pixel-trees": 0.3}, (1, 3))
    apart = tuple(replace(c, draw=c.draw + 100 * (c.shot == 3)) for c in judged.cases)
    (found,) = advise(replace(judged, cases=apart), {"maml"})
    text = " ".join(answer(found, {"maml": "ours", "pixel-trees": "trees"}))
    assert "cannot be told: after 1 and after 3 labelled patients nobody was judged with the same" in text
    assert found.to_json()["label_more"] == "unknown"


def test_patients_of_two_classes_are_not_counted_as_to_be_learnt_from(few: Path) -> None:
    """Five patients with the type and five others are three of each where two show both."""
    plan = Plan(3, (1.0, 1.0, 1.0), (8, 8, 8), 1, whole=True)
    kinds = ["a"] * 5 + ["b"] * 5
    volumes = [Volume(f"p{n}", (few / f"{n}.nii.gz",), None, kind) for n, kind in enumerate(kinds)]
    assert available(volumes, "a", plan=plan) == 5
    volumes += [Volume(f"p{n}", (few / f"{n}b.nii.gz",), None, "b") for n in (0, 1)]
    assert available(volumes, "a", plan=plan) == 3
    masked = [replace(v, mask=v.image[0]) for v in volumes[:4]]
    crops = replace(plan, whole=False)
    assert available([*masked, *volumes[4:]], "a", plan=crops) == 4


def test_trees_tell_images_apart_with_one_label_a_class() -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(12, 1, 8, 8, generator=generator) + 5 * (torch.arange(12) % 2).reshape(-1, 1, 1, 1)
    label = torch.arange(12) % 2
    predictor = Trees(0).adapt(Examples(image[:2], label[:2], ("a", "b"), ("p", "q")))
    assert torch.equal(predictor(image[2:]).argmax(1), label[2:])


def test_more_labels_are_judged_only_where_they_tell_what_is_saved() -> None:
    asked: list[tuple[str, list[int]]] = []

    def judge(method: str, shots: list[int]) -> Judged:
        asked.append((method, shots))
        return phantom({method: 0.4}, tuple(shots))

    ahead = phantom({"maml": 0.5, "pretrain-finetune": 0.4, "pixel-trees": 0.3})
    further = judge_further(ahead, {"maml"}, 50, judge)
    assert asked == [("pretrain-finetune", [10, 20])]
    assert further is not None
    assert {c.shot for c in further.cases} == {10, 20}
    assert judge_further(ahead, {"maml"}, 6, judge) is None  # too few patients for more
    assert judge_further(phantom({"maml": 0.2, "pixel-trees": 0.5}), {"maml"}, 50, judge) is None
    assert len(asked) == 1
