"""From a run and a folder of scans to a bundle that says how it was made."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from medmeta.clinical import BundleError, adapt, load_bundle, predict, verify
from medmeta.clinical.adapt import fingerprint
from medmeta.learners import LearnerError, create_learner, stepping
from medmeta.training import Recipe, Run, Schedule, train
from medmeta.volumes import Cohort


@pytest.fixture(scope="module")
def run(cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Run:
    few = [v for name in ("annular", "fluted") for v in cohort.of(name)[:4]]
    recipe = Recipe(
        learner="proto-maml",
        options={"steps": 1},
        schedule=Schedule(steps=1),
        shot=(1, 1),
        query=1,
        spacing=(4.0, 4.0, 4.0),
        patch=(16, 16, 16),
    )
    small = Cohort(cohort.name, tuple(few), cohort.root)
    return train(small, recipe, out=tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture(scope="module")
def support(cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two patients of one type and one of another, as a folder of its own."""
    folder = tmp_path_factory.mktemp("support")
    rows = ["patient,image,mask,tumor"]
    files = [v for v in cohort.of("brindled") if v.image[0].is_file()][:2]
    files += [v for v in cohort.of("rimose") if v.image[0].is_file()][:1]
    for volume in files:
        assert volume.mask is not None
        for file in (volume.image[0], volume.mask):
            shutil.copy(file, folder)
        rows.append(f"{volume.patient},{volume.image[0].name},{volume.mask.name},{volume.tumour}")
    (folder / "cohort.csv").write_text("\n".join(rows) + "\n")
    return folder


def test_a_folder_becomes_a_bundle(
    run: Run, support: Path, unseen: tuple[Path, Path], tmp_path: Path
) -> None:
    bundle = adapt(run.path, support, tmp_path / "bundle", tumour="brindled", seed=3, description="t[12]")
    assert verify(bundle) == []
    about = json.loads((bundle / "configs" / "metadata.json").read_text())["medmeta"]["about"]
    assert (about["shots"], about["seed"], about["learner"]) == (2, 3, "proto-maml")
    assert about["series"] == {"description": "t[12]"}
    assert about["weights_before"] != about["weights_after"]
    loaded = load_bundle(bundle)
    assert loaded.classes == ("background", "brindled")
    assert fingerprint(loaded.network) == about["weights_after"]  # with the temperature in them
    asked = {"support", "shots", "steps", "seconds", "seed", "versions", "confidence"}
    assert asked <= set(about)
    assert about["confidence"]["why"] == "2 of the support left out in turn"
    (result,) = predict(bundle, unseen[:1], tmp_path / "out", formats=("json",))
    assert result["ok"]
    written = json.loads((tmp_path / "out" / result["files"][0]).read_text())
    assert 0 <= written["confidence"] <= 1
    assert written["temperature"] == about["confidence"]["temperature"] != 1
    assert written["threshold"] in [round(t, 6) for t in about["confidence"]["distance_thresholds"]]
    assert written["abstain"] == (written["distance"] > written["threshold"])
    assert "confidence: temperature" in (bundle / "docs" / "README.md").read_text()


def test_false_alarms_are_of_patients_who_were_not_learnt_from(
    run: Run, cohort: Cohort, tmp_path: Path
) -> None:
    learnt = cohort.of("brindled")[:2]
    free = [v for v in cohort.volumes if v.tumour is None][:2]
    earlier = replace(free[1], patient=learnt[0].patient)  # a scan of before the tumour
    support = Cohort(cohort.name, (*learnt, free[0], earlier), cohort.root)
    bundle = adapt(run, support, tmp_path / "bundle", calibrated=True)
    about = json.loads((bundle / "configs" / "metadata.json").read_text())["medmeta"]["about"]
    assert about["false_alarms"]["scans"] == 1


def test_the_temperature_is_in_the_weights_of_the_bundle(run: Run, support: Path, tmp_path: Path) -> None:
    made = [
        load_bundle(adapt(run, support, tmp_path / str(c), tumour="brindled", calibrated=c)) for c in (0, 1)
    ]
    image = torch.rand(1, 1, 16, 16, 16)
    plain, calibrated = (m(image) for m in made)
    temperature = made[1].confidence.temperature
    assert (made[0].confidence.temperature, made[0].confidence.likeness) == (1.0, None)
    assert torch.allclose(calibrated * temperature, plain, rtol=1e-3, atol=1e-4)


def test_another_likeness_is_not_trusted(run: Run, support: Path, tmp_path: Path) -> None:
    bundle = adapt(run, support, tmp_path / "bundle", tumour="brindled")
    file = bundle / "models" / "likeness.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    assert verify(bundle) == ["models/likeness.safetensors: changed since it was exported"]


def test_no_patient_is_named_anywhere(run: Run, support: Path, tmp_path: Path) -> None:
    bundle = adapt(run, support, tmp_path / "bundle", tumour="rimose")
    patients = [line.split(",")[0] for line in (support / "cohort.csv").read_text().splitlines()[1:]]
    for file in bundle.rglob("*"):
        content = file.read_bytes() if file.is_file() else b""
        assert not any(p.encode() in content for p in patients), file.name
        assert str(support).encode() not in content


def test_same_seed_same_weights(run: Run, support: Path, tmp_path: Path) -> None:
    hashes = []
    for name in "ab":
        bundle = adapt(run, support, tmp_path / name, tumour="brindled", seed=1)
        hashes.append(
            json.loads((bundle / "manifest.json").read_text())["sha256"]["models/model.safetensors"]
        )
    assert hashes[0] == hashes[1]


def test_refusals(run: Run, support: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="one tumour type"):
        adapt(run, support, tmp_path / "bundle")
    with pytest.raises(BundleError, match="Did you mean 'brindled'"):
        adapt(run, support, tmp_path / "bundle", tumour="brindle")
    (tmp_path / "there").mkdir()
    with pytest.raises(BundleError, match="does not exist"):
        adapt(run, support, tmp_path / "there", tumour="brindled")


def test_a_bundle_is_made_with_the_rate_and_steps_asked_for(run: Run, support: Path, tmp_path: Path) -> None:
    made = adapt(
        run, support, tmp_path / "b", tumour="brindled", rate=0.5, steps=3, calibrated=False
    )  # an evaluation may have chosen others than the run was trained with
    about = json.loads((made / "configs" / "metadata.json").read_text())["medmeta"]["about"]
    assert (about["steps"], about["rate"]) == (3, 0.5)
    own = adapt(run, support, tmp_path / "own", tumour="brindled", calibrated=False)
    was = json.loads((own / "configs" / "metadata.json").read_text())["medmeta"]["about"]
    assert was["steps"] == run.learner.options["adapt_steps"]
    assert was["weights_after"] != about["weights_after"]
    assert was["weights_before"] == about["weights_before"] == fingerprint(run.learner)
    with pytest.raises(LearnerError, match="a positive learning rate"):
        adapt(run, support, tmp_path / "none", tumour="brindled", rate=-1.0, calibrated=False)
    with pytest.raises(LearnerError, match=r"a learner that takes gradient steps.*found 'prototypical'"):
        stepping(create_learner("prototypical", run.learner.network), steps=3)
