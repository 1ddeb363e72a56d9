"""The launch recipes: each is read by the program that reads it, and run where that can be."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from medmeta.clinical import export
from medmeta.episodes import generator_of, support_examples
from medmeta.learners import create_learner
from medmeta.networks import build, unet
from medmeta.training import open_run
from medmeta.volumes import Store, make_plan, open_cohort

RECIPES = Path(__file__).resolve().parents[2] / "workflows" / "recipes"
SCRIPTS = ["watch/watch.sh", "docker/predict.sh", "torchrun/train.sh", "slurm/predict_array.sbatch"]


@pytest.fixture(scope="module")
def bundle(sample_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of an untrained network, at 5 mm."""
    torch.manual_seed(0)
    support = open_cohort(sample_data).of("brindled")[:2]
    plan = make_plan(support, spacing=(5.0, 5.0, 5.0), patch=(16, 16, 16))
    store, spec = Store(plan), unet(3, 1, base=2)
    examples = support_examples([store.read(v) for v in support], plan, generator_of(0))
    predictor = create_learner("prototypical", build(spec)).adapt(examples)
    given = {"plan": plan, "network_spec": spec, "classes": examples.classes, "task": "segmentation"}
    return export(predictor, **given, out=tmp_path_factory.mktemp("recipes") / "bundle")


def scans(sample_data: Path) -> list[Path]:
    return [v.image[0] for v in open_cohort(sample_data).of("sericate") if v.image[0].is_file()]


def run(script: str, *arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    """A recipe with this environment's programs first on its path."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", **variables}
    command = ["bash", str(RECIPES / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=600)


@pytest.mark.parametrize("script", SCRIPTS)
def test_bash_reads_it_and_it_says_what_it_wants(script: str) -> None:
    read = subprocess.run(["bash", "-n", str(RECIPES / script)], capture_output=True, text=True, check=False)
    assert (read.returncode, read.stderr) == (0, "")
    asked = run(script)
    assert asked.returncode == 2
    assert asked.stderr.startswith("wanted ")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_reads_the_units(tmp_path: Path) -> None:
    for name in ("medmeta-watch.service", "medmeta-watch.timer"):
        shutil.copy(RECIPES / "watch" / name, tmp_path)
    command = [
        "systemd-analyze",
        "verify",
        str(tmp_path / "medmeta-watch.timer"),
        str(tmp_path / "medmeta-watch.service"),
    ]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "medmeta-watch" not in said.stderr, said.stderr


def test_the_container_gets_no_network_and_read_only_inputs(tmp_path: Path) -> None:
    """A stand-in for the engine writes down what it was asked."""
    engine = tmp_path / "engine"
    engine.write_text('#!/bin/sh\nfor word in "$@"; do echo "$word"; done\n')
    engine.chmod(0o755)
    for name in ("bundle", "scans/study one"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "scans" / "scan.nii.gz").touch()
    ran = run(
        "docker/predict.sh", tmp_path / "bundle", tmp_path / "scans", tmp_path / "out", ENGINE=str(engine)
    )
    assert ran.returncode == 0, ran.stderr
    words = ran.stdout.splitlines()
    assert words[words.index("--network") + 1] == "none"
    assert {"--read-only", f"{tmp_path}/bundle:/bundle:ro", f"{tmp_path}/scans:/in:ro", "ALL"} <= set(words)
    assert [w for w in words if w.endswith(":rw")] == [f"{tmp_path}/out:/out:rw"]
    image = words.index("medmeta")
    assert words[image + 1 :] == [
        *("predict", "/bundle", "/in/scan.nii.gz", "/in/study one", "--out", "/out", "--resume", "--json")
    ]


def test_scans_are_put_away_beside_those_of_the_same_name(tmp_path: Path) -> None:
    """A stand-in for medmeta fails where the scan is called so."""
    inbox, away = tmp_path / "inbox", tmp_path / "programs"
    for name in ("study", "bad", ".done/study", ".done/study.1", ".failed/bad"):
        (inbox / name).mkdir(parents=True)
        (inbox / name / "slice.dcm").write_text(name)
    away.mkdir()
    (away / "medmeta").write_text('#!/bin/sh\ncase "$3" in */bad) exit 1 ;; esac\n')
    (away / "medmeta").chmod(0o755)
    path = {"PATH": f"{away}:{os.environ['PATH']}"}
    ran = run("watch/watch.sh", tmp_path / "bundle", inbox, tmp_path / "out", SETTLE="0", **path)
    assert (ran.returncode, ran.stderr) == (1, "")
    found = {str(f.parent.relative_to(inbox)): f.read_text() for f in inbox.rglob("*.dcm")}
    assert found == {
        ".done/study": ".done/study",
        ".done/study.1": ".done/study.1",
        ".done/study.2": "study",
        ".failed/bad": ".failed/bad",
        ".failed/bad.1": "bad",
    }


@pytest.mark.slow
def test_a_watched_folder(bundle: Path, sample_data: Path, tmp_path: Path) -> None:
    inbox, outbox = tmp_path / "inbox", tmp_path / "outbox"
    inbox.mkdir()
    shutil.copy(scans(sample_data)[0], inbox / "first scan.nii.gz")
    (inbox / "broken.nii.gz").write_bytes(b"no scan")
    for file in inbox.iterdir():
        os.utime(file, (0, 0))
    shutil.copyfile(scans(sample_data)[1], inbox / "arriving.nii.gz")
    ran = run("watch/watch.sh", bundle, inbox, outbox)
    assert ran.returncode == 1, ran.stderr
    assert sorted(p.name for p in inbox.glob("*.nii.gz")) == ["arriving.nii.gz"]
    assert (inbox / ".done" / "first scan.nii.gz").is_file()
    assert (inbox / ".failed" / "broken.nii.gz").is_file()
    told = [json.loads(line) for line in (outbox / "results.jsonl").read_text().splitlines()]
    assert {one["case"]: one["ok"] for one in told} == {"broken": False, "first scan": True}
    assert (outbox / "first scan" / "first scan_seg.nii.gz").is_file()
    again = run("watch/watch.sh", bundle, inbox, outbox, SETTLE="0")
    assert again.returncode == 0, again.stderr
    assert (outbox / "arriving" / "arriving_seg.nii.gz").is_file()
    assert not list(inbox.glob("*.nii.gz"))
    # another scan of a name that was there: not taken for done, and nothing is written over
    shutil.copyfile(scans(sample_data)[2], inbox / "arriving.nii.gz")
    before = (outbox / "arriving" / "arriving_seg.nii.gz").read_bytes()
    third = run("watch/watch.sh", bundle, inbox, outbox, SETTLE="0")
    assert third.returncode == 1, third.stderr
    assert "those of another scan" in (outbox / "results.jsonl").read_text().splitlines()[-1]
    assert (outbox / "arriving" / "arriving_seg.nii.gz").read_bytes() == before
    assert (inbox / ".failed" / "arriving.nii.gz").read_bytes() == scans(sample_data)[2].read_bytes()


@pytest.mark.slow
def test_a_bundle_that_is_refused_costs_no_scan(sample_data: Path, tmp_path: Path) -> None:
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    shutil.copy(scans(sample_data)[0], inbox / "scan.nii.gz")
    assert run("watch/watch.sh", tmp_path / "none", inbox, tmp_path / "out", SETTLE="0").returncode == 2
    assert (inbox / "scan.nii.gz").is_file()


@pytest.mark.slow
def test_an_array_of_tasks(bundle: Path, sample_data: Path, tmp_path: Path) -> None:
    listed = scans(sample_data)[:3]
    (tmp_path / "scans.txt").write_text("\n".join(map(str, listed)) + "\n")
    for task in ("0", "1", "2"):  # the third has nothing to do
        both = {"SLURM_ARRAY_TASK_ID": task, "SLURM_ARRAY_TASK_COUNT": "2" if task != "2" else "4"}
        if task == "2":
            (tmp_path / "scans.txt").write_text(str(listed[0]) + "\n")
        ran = run("slurm/predict_array.sbatch", bundle, tmp_path / "scans.txt", tmp_path / "out", **both)
        assert ran.returncode == 0, ran.stderr
    written = sorted(p.relative_to(tmp_path / "out").parts[0] for p in (tmp_path / "out").rglob("*.nii.gz"))
    assert written == ["task_0", "task_0", "task_1"]


@pytest.mark.slow
def test_two_processes_train_and_go_on(sample_data: Path, tmp_path: Path) -> None:
    tiny = ["--steps", "2", "--pretrain", "0"]
    first = run("torchrun/train.sh", sample_data, tmp_path / "run", *tiny, PROCESSES="2")
    assert first.returncode == 0, first.stderr[-2000:]
    assert open_run(tmp_path / "run").config["recipe"]["schedule"]["meta_batch"] == 4
    again = run("torchrun/train.sh", sample_data, tmp_path / "run", *tiny, PROCESSES="2")
    assert again.returncode == 0, again.stderr[-2000:]
