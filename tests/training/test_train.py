"""From cohorts to a run and back: folders, refusals, hold-out, resume."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch

from medmeta.episodes import EpisodeError, Examples
from medmeta.learners import LearnerError
from medmeta.training import Recipe, RunError, Schedule, load_run, open_run, train
from medmeta.training.recipe import options_of, split
from medmeta.training.run import Folder, read_config
from medmeta.training.stage import start_from
from medmeta.training.validation import Validation
from medmeta.volumes import Cohort, CohortError, Plan, Store, make_plan, open_cohort
from tests.training.phantoms import learner

THICK = Plan(3, (1.0, 1.0, 3.0), (8, 8, 8), 1)
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


def test_one_patient_under_two_spellings_in_two_cohorts_is_said(
    cohort: Cohort, caplog: pytest.LogCaptureFixture
) -> None:
    other = tuple(replace(v, patient=v.patient.upper().replace("_", " ")) for v in cohort.volumes[:2])
    split([cohort, cohort], RECIPE, [])
    split(Cohort("other", (*cohort.volumes, *other), cohort.root), RECIPE, [])
    assert not caplog.messages  # of one cohort it is said when that is opened
    split([cohort, Cohort("other", other, cohort.root)], RECIPE, [])
    (said,) = caplog.messages
    assert "in these 2 cohorts together, 4 patients whose keys differ only in capitals" in said
    assert not any(name.lower() in said.lower() for name in NAMES)


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


@pytest.mark.parametrize(("told", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_command_stopped_by_a_signal_saves_says_so_and_resumes(
    folder: Path, tmp_path: Path, told: signal.Signals, code: int
) -> None:
    out = tmp_path / "run"
    # a shell's jobs in the background do not heed Ctrl-C: here it is heeded wherever tests run
    heeding = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    program = f"{heeding}; from medmeta.cli import main; main()"
    command = [sys.executable, "-W", "ignore", "-c", program, "train", str(folder), "--out", str(out)]
    command += ["--learner", "prototypical", "--steps", "100000", "--pretrain", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        waited = time.monotonic()
        log = out / "log.jsonl"
        while not (log.is_file() and log.stat().st_size) and process.poll() is None:  # until its first step
            assert time.monotonic() - waited < 240
            time.sleep(0.2)
        process.send_signal(told)
        said, _ = process.communicate(timeout=60)
    assert process.returncode == code, said
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
    weights, salts = [], set()
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
        run = open_run(tmp_path / name)
        weights.append(run.learner.state_dict())
        salts.add(run.config["salt"])
        assert len(run.config["salt"]) == 32
    assert len(salts) == 2  # nobody can guess them
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, rtol=1e-6, atol=1e-6)


class KilledError(Exception):
    pass


class Killing:
    """Progress of a process that is killed before a step of the outer loop."""

    def __init__(self, step: int, stages: int = 1) -> None:
        self.step, self.stages = step, stages

    def __call__(self, items: Iterable[Any], *, description: str = "", **_: Any) -> Iterable[Any]:
        self.stages -= description == "meta-training"
        for item in items:
            if not self.stages and description == "meta-training" and item == self.step:
                raise KilledError
            yield item


DYNUNET = {
    "_target_": "monai.networks.nets.DynUNet",
    "spatial_dims": 3,
    "in_channels": 1,
    "out_channels": 4,
    "kernel_size": [3, 3, 3],
    "strides": [1, 2, 2],
    "upsample_kernel_size": [2, 2],
    "norm_name": "instance",
    "filters": [4, 8, 8],
}
"""Its layers go by two names each."""


@pytest.mark.parametrize(
    ("name", "network"), [("in-context", None), ("prototypical", DYNUNET)], ids=["in-context", "DynUNet"]
)
def test_weights_under_two_names_are_saved_and_gone_on_with(
    name: str, network: dict[str, Any] | None, cohort: Cohort, tmp_path: Path
) -> None:
    recipe = replace(RECIPE, learner=name, network=network)
    straight = train(cohort, recipe, out=tmp_path / "one").learner.state_dict()
    with pytest.raises(KilledError):
        train(cohort, recipe, out=tmp_path / "two", track=Killing(3, stages=2))
    train(cohort, recipe, out=tmp_path / "two", resume=True)
    opened = load_run(tmp_path / "two").state_dict()
    assert straight.keys() == opened.keys()
    assert all(torch.equal(w, opened[n]) for n, w in straight.items())


def test_a_backbone_under_two_names_starts_from_the_pretrained_one() -> None:
    warm, own = learner("pretrain-finetune"), learner("in-context")
    with torch.no_grad():
        for weight in warm.parameters():
            weight.add_(1)
    start_from(own, warm)
    started, before = own.state_dict(), warm.state_dict()
    names = [n for n in before if n.startswith("network.")]
    assert names
    for name in names:
        assert torch.equal(started[name], before[name])
        assert torch.equal(started[f"reading.{name}"], before[name])


def test_a_kill_before_the_first_save_leaves_each_step_once(cohort: Cohort, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recipe = replace(RECIPE, schedule=Schedule(steps=4, save_every=50))
    with pytest.raises(KilledError):
        train(cohort, recipe, out=tmp_path / "run", track=Killing(2, stages=2))
    before = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in before] == [1, 2]
    first = read_config(tmp_path / "run")["seconds"]
    assert first > 0
    began = time.monotonic()
    train(cohort, recipe, out=tmp_path / "run", resume=True)
    # those of both processes
    assert first < read_config(tmp_path / "run")["seconds"] <= first + time.monotonic() - began + 0.1
    for stage, steps in (("log", [1, 2, 3, 4]), ("pretraining", [1, 2])):
        lines = (tmp_path / "run" / f"{stage}.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == steps
    for stage, tag, steps in (("", "loss", [1, 2, 3, 4]), ("pretraining", "pretraining/loss", [1, 2])):
        board = EventAccumulator(str(tmp_path / "run" / "tensorboard" / stage)).Reload()
        assert [point.step for point in board.Scalars(tag)] == steps


def test_a_learner_of_another_task_is_refused_in_the_recipe() -> None:
    with pytest.raises(
        RunError, match=r"wanted a learner of segmentation, found matching\. Take one of .*ridge"
    ):
        replace(RECIPE, learner="matching")
    assert Recipe(task="classification", learner="matching").learner == "matching"


@pytest.mark.parametrize(
    ("option", "words"),
    [({"against": "rest"}, "one type against 'rest' to classify"), ({"lesion": 4.0}, "lesions to classify")],
)
def test_what_only_classification_heeds_is_refused_when_segmenting(
    option: dict[str, Any], words: str
) -> None:
    with pytest.raises(RunError, match=f"{words}, found the task segmentation. Train for classification"):
        replace(RECIPE, **option)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"learner": "finetune-scratch"}, LearnerError, "something to meta-learn"),
        (
            {"learner": "maml", "task": "classification", "options": {"way": 3}},
            LearnerError,
            "tasks of 3 classes, which this maml has a head for, found 2",
        ),
        (
            {"task": "classification", "against": "rest", "validate_on": ("cyst",)},
            EpisodeError,
            r"wanted 2 patients with 'rest' \(1 support \+ 1 query\) to validate on, found 0\. Name larger",
        ),
        (
            {"task": "classification", "validate_on": ("cyst",)},
            RunError,
            "wanted 2 types to validate on, as many as training tells apart, found 1: cyst",
        ),
        (
            {"task": "classification", "against": "none"},
            EpisodeError,
            "2 patients free of every type.*found 0",
        ),
        ({"validate_on": ("cyst",), "query": 4}, EpisodeError, "5 .*patients"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_the_pretraining(
    options: dict[str, Any], error: type[Exception], words: str, cohort: Cohort, tmp_path: Path
) -> None:
    with pytest.raises(error, match=words):
        train(cohort, replace(RECIPE, **options), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_begun_before_its_learner_had_an_option_is_resumed(cohort: Cohort, tmp_path: Path) -> None:
    recipe = replace(RECIPE, task="classification", learner="siamese", warm=None)
    run = train(cohort, recipe, out=tmp_path / "run")
    file = run.path / "config.json"
    config = json.loads(file.read_text())
    assert config["learner"]["options"].pop("margin") == 1.0
    file.write_text(json.dumps(config))
    again = train(cohort, recipe, out=run.path, resume=True)
    assert again.learner.options["margin"] == 1.0
    with pytest.raises(RunError, match="found another learner"):
        train(cohort, replace(recipe, options={"metric": "contrastive"}), out=run.path, resume=True)


class Listening(torch.nn.Module):
    """A learner that remembers what it was asked to learn, and always answers the first class."""

    name, options, tasks, network = "listening", {}, frozenset({"classification"}), None

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[tuple[str, ...]] = []

    def adapt(self, support: Examples) -> Any:
        self.heard.append(support.classes)
        assert support.shot == (1,) * len(support.classes)
        return lambda image: torch.eye(len(support.classes))[:1].expand(len(image), -1)


@pytest.mark.parametrize(("against", "episodes"), [(None, 8), ("rest", 12)])
def test_validation_is_of_the_task_that_is_trained(
    against: str | None, episodes: int, cohort: Cohort
) -> None:
    recipe = replace(RECIPE, task="classification", against=against, validate_on=TYPES)
    store = Store(make_plan(cohort.volumes, patch=(16, 16, 16), whole=True))
    score = Validation(cohort.volumes, recipe, store).scorer()
    one, other = Listening(), Listening()
    assert score(one) == score(other) == 0.5  # of two classes, always
    assert one.heard == other.heard
    assert len(one.heard) == episodes
    if against:
        assert one.heard == [("rest", name) for _ in range(4) for name in TYPES]
    else:
        pairs = list(zip(one.heard[::2], one.heard[1::2], strict=True))
        assert all({*a, *b} == set(TYPES) for a, b in pairs)
        assert len(set(one.heard)) > 2


def test_asking_what_a_learner_is_like_changes_nothing_that_is_drawn() -> None:
    """Or the weights of every run would hang on what is asked beforehand."""
    torch.manual_seed(0)
    wanted = torch.rand(3)
    torch.manual_seed(0)
    options_of(Recipe(task="classification", learner="maml", way=3, lesion=4.0, patch=(8, 8, 8)), THICK)
    assert torch.equal(torch.rand(3), wanted)


def test_a_learner_that_turns_its_support_is_told_how_long_voxels_are() -> None:
    outlined = Recipe(task="classification", learner="refined-ridge", lesion=4.0, patch=(8, 8, 8))
    assert options_of(outlined, THICK) == {"outlined": True, "spacing": [1.0, 1.0, 3.0]}
    assert options_of(replace(outlined, options={"spacing": [2.0, 2.0, 2.0]}), THICK)["spacing"] == [2.0] * 3
    assert options_of(Recipe(learner="ridge"), THICK) == {}


@pytest.mark.parametrize(
    ("out", "words"),
    [
        ("file", r"a folder that can be written: file, found Not a directory\. Give another --out"),
        ("file/run", r"a folder that can be written: run, found Not a directory"),
        ("/proc/none/run", "a folder that can be written: run, found No such file or directory"),
        ("r" * 300, "found File name too long"),
    ],
)
def test_a_folder_that_cannot_be_written_is_refused_first(
    out: str, words: str, cohort: Cohort, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=words):
        train(cohort, RECIPE, out=tmp_path / out)
    assert [f.name for f in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_stops_the_log_with_a_word_of_how_to_go_on(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.log.symlink_to("/dev/full")
    words = r"wanted room to write log\.jsonl, found No space left on device\. Free disk space; .* --resume\."
    with pytest.raises(RunError, match=words):
        folder.note({"step": 1, "loss": 0.5})


def test_a_type_is_not_trained_on_under_another_name_than_it_is_validated_on(
    cohort: Cohort, tmp_path: Path
) -> None:
    half = [v.patient for v in cohort.volumes if v.tumour == "glioma"][:2]
    volumes = tuple(replace(v, tumour="Gliomas") if v.patient in half else v for v in cohort.volumes)
    with pytest.raises(
        RunError, match=r"no type that is 'glioma' .*found 'Gliomas'.* Validate on 'Gliomas' too"
    ):
        train(
            replace(cohort, volumes=volumes), replace(RECIPE, validate_on=("glioma",)), out=tmp_path / "run"
        )


def test_what_does_not_resume_says_what_to_give(done: Path, cohort: Cohort) -> None:
    fewer = replace(cohort, volumes=cohort.volumes[1:])
    with pytest.raises(RunError, match=r"found another .*seen.* Resume with the same cohort and options"):
        train(fewer, RECIPE, out=done, hold_out=["sarcoma"], resume=True)
    run = open_run(done)
    with pytest.raises(RunError, match=r"a store with the salt .*salt of the run's config\.json"):
        train(cohort, RECIPE, out=done, hold_out=["sarcoma"], resume=True, store=Store(run.plan))
    store = Store(run.plan, salt=run.config["salt"])
    train(cohort, RECIPE, out=done, hold_out=["sarcoma"], resume=True, store=store)
