"""From cohorts to a run and back: folders, refusals, hold-out, resume."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from medmeta.training import Recipe, RunError, Schedule, load_run, open_run, train
from medmeta.volumes import Cohort, CohortError, open_cohort

NAMES = ("Schmidt", "Okafor", "Ivanova", "Garcia")
TYPES = ("glioma", "cyst", "sarcoma")
RECIPE = Recipe(
    learner="prototypical",
    schedule=Schedule(steps=4, save_every=2, validate_every=2),
    warm=Schedule(steps=2),
    shot=(1, 1),
    query=1,
    crops=1,
    patch=(16, 16, 16),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of 12 patients with names, 4 of each of three types."""
    root = tmp_path_factory.mktemp("clinic")
    rng = np.random.default_rng(0)
    rows = ["patient,image,mask,tumor"]
    for tumour in TYPES:
        for name in NAMES:
            who = f"{name}_{tumour[0]}"
            mask = np.zeros((16, 16, 16), np.uint8)
            mask[4:9, 5:10, 6:11] = 1
            image = (rng.normal(100, 10, mask.shape) + 60 * mask).astype(np.float32)
            for kind, voxels in (("image", image), ("mask", mask)):
                nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), root / f"{who}_{kind}.nii.gz")
            rows.append(f"{who},{who}_image.nii.gz,{who}_mask.nii.gz,{tumour}")
    (root / "cohort.csv").write_text("\n".join(rows) + "\n")
    return root


@pytest.fixture(scope="module")
def cohort(folder: Path) -> Cohort:
    return open_cohort(folder)


@pytest.fixture(scope="module")
def done(cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(cohort, RECIPE, out=tmp_path_factory.mktemp("out") / "run", hold_out=["sarcoma"]).path


def test_what_is_held_out_stays_out(done: Path) -> None:
    run = open_run(done)
    assert (run.types, run.held_out) == (("cyst", "glioma"), ("sarcoma",))
    assert run.warm is not None
    assert run.learner.name == "prototypical"


def test_nobody_is_named_in_any_file(done: Path, folder: Path) -> None:
    for file in done.rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            for word in (*NAMES, str(folder)):
                assert word.encode() not in content, f"{word} in {file.name}"


def test_a_run_is_the_same_each_time(done: Path, cohort: Cohort, tmp_path: Path) -> None:
    again = train(cohort, RECIPE, out=tmp_path / "run", hold_out=["sarcoma"]).learner
    for name, weight in load_run(done).state_dict().items():
        assert torch.equal(weight, again.state_dict()[name])


def test_a_run_is_never_written_over(done: Path, cohort: Cohort) -> None:
    with pytest.raises(RunError, match="that does not exist: run, found one with files in it"):
        train(cohort, RECIPE, out=done)


def test_another_recipe_does_not_resume(done: Path, cohort: Cohort) -> None:
    with pytest.raises(RunError, match=r"found another .*held_out"):
        train(cohort, RECIPE, out=done, hold_out=["cyst"], resume=True)


def test_a_type_that_is_not_there_is_named(cohort: Cohort, tmp_path: Path) -> None:
    with pytest.raises(CohortError, match=r"the held-out type 'gliomma', .* Did you mean 'glioma'"):
        train(cohort, RECIPE, out=tmp_path / "run", hold_out=["gliomma"])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda c: c.update(format=99), r"wanted a run of format 2, found format 99, made by medmeta 0\.1"),
        (lambda c: c.pop("format"), "found another file"),
    ],
)
def test_what_cannot_be_opened_says_why(done: Path, tmp_path: Path, damage: object, words: str) -> None:
    config = json.loads((done / "config.json").read_text())
    assert callable(damage)
    damage(config)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(RunError, match=words):
        open_run(tmp_path)


def test_missing_files_are_named(done: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"a run folder with a config\.json"):
        open_run(tmp_path)
    (tmp_path / "config.json").write_bytes((done / "config.json").read_bytes())
    with pytest.raises(RunError, match=r"the file weights\.safetensors, found none"):
        open_run(tmp_path)


def test_the_command_stopped_by_sigterm_says_143_and_resumes(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-W", "ignore", "-m", "medmeta", "train", str(folder), "--out", str(out)]
    command += ["--learner", "prototypical", "--steps", "100000", "--pretrain", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        waited = time.monotonic()
        log = out / "log.jsonl"
        while not (log.is_file() and log.stat().st_size) and process.poll() is None:  # until its first step
            assert time.monotonic() - waited < 240
            time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 143, said
    assert (out / "last.safetensors").is_file()
    assert "--resume" in said


def test_a_learner_of_whole_scans_sees_them_and_the_same_episodes_again(
    cohort: Cohort, tmp_path: Path
) -> None:
    schedule = Schedule(steps=4, meta_batch=1)
    recipe = replace(RECIPE, learner="ranked-regions", warm=None, patch=None, schedule=schedule)
    run = train(cohort, replace(recipe, options={"pool": 1, "drop": 0.0}), out=tmp_path / "run")
    assert run.plan.patch == (16, 16, 16)
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows]
    assert len(set(losses)) == 4  # the ranker moves
    assert all(
        b < a for a, b in pairwise(losses)
    )  # on one and the same episode, so it gets better and better


def test_early_stopping_looks_at_types_of_its_own(cohort: Cohort, tmp_path: Path) -> None:
    recipe = replace(RECIPE, validate_on=("cyst",), warm=None)
    run = train(cohort, recipe, out=tmp_path / "run", hold_out=["sarcoma"])
    assert (run.types, run.held_out, run.config["validated_on"]) == (("glioma",), ("sarcoma",), ["cyst"])
    scores = [json.loads(line).get("score") for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert [score is None for score in scores] == [True, False, True, False]
    assert run.unseen(cohort.volumes) == tuple(v for v in cohort.volumes if v.tumour == "sarcoma")
    with pytest.raises(CohortError, match="sarcoma"):
        train(cohort, replace(recipe, validate_on=("sarcoma",)), out=tmp_path / "two", hold_out=["sarcoma"])


def test_two_processes_of_the_command_train_what_one_does(folder: Path, tmp_path: Path) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    weights = []
    for name, before in (("one", []), ("two", launcher)):
        command = [sys.executable, "-W", "ignore", *before, "-m", "medmeta", "train", str(folder)]
        command += ["--out", str(tmp_path / name), "--learner", "prototypical", "--steps", "3"]
        done = subprocess.run(
            [*command, "--pretrain", "0", "--hold-out", "sarcoma"],
            capture_output=True,
            text=True,
            timeout=300,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr[-8000:]
        weights.append(open_run(tmp_path / name).learner.state_dict())
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, rtol=1e-6, atol=1e-6)
