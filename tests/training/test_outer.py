"""Laws of the outer loop: repeatable, resumed exactly, stopped safely; errors name what went wrong."""

from __future__ import annotations

import io
import json
import os
import random
import re
import signal
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medmeta.episodes import Episode, Examples
from medmeta.learners import Learner, create_learner
from medmeta.training import RunError, Schedule, Stopped, meta_train
from medmeta.training.checkpoint import read_tensors, write_tensors
from medmeta.training.outer import Progress
from medmeta.training.run import Folder
from tests.training.phantoms import Points, learner, tensors

SCHEDULE = Schedule(steps=24, meta_batch=2, rate=1e-2, save_every=7, validate_every=5)


@dataclass
class Recording:
    """A source that remembers what was asked for."""

    source: Points
    asked: list[int]

    def __getitem__(self, index: int) -> Any:
        self.asked.append(index)
        return self.source[index]


class Stopping:
    """Progress that sends this process a SIGTERM in the middle of a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def __call__(self, items: Iterable[Any], **_: Any) -> Iterable[Any]:
        for item in items:
            if item == self.step:
                os.kill(os.getpid(), signal.SIGTERM)
            yield item


def trained(folder: Path | None = None, **options: Any) -> tuple[Learner, dict[str, Tensor], list[int]]:
    """Train from the start, or from what the folder holds."""
    made = learner()
    assert isinstance(made, nn.Module)
    optimiser = torch.optim.Adam(made.parameters(), lr=SCHEDULE.rate)
    keeper = Folder(folder) if folder else None
    progress = keeper.restore(made, optimiser) if keeper and keeper.state.is_file() else None
    source = Recording(Points(), [])
    try:
        meta_train(
            made,
            source,
            options.pop("schedule", SCHEDULE),
            keeper=keeper,
            optimiser=optimiser,
            progress=progress,
            **options,
        )
    finally:
        if keeper:
            keeper.close()
    return made, tensors(made, optimiser), source.asked


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def test_the_same_seed_gives_the_same_bits() -> None:
    assert same(trained()[1], trained()[1])


@pytest.mark.parametrize("stop", random.Random(0).sample(range(SCHEDULE.steps - 1), 10))
def test_a_run_stopped_by_sigterm_goes_on_exactly(stop: int, tmp_path: Path) -> None:
    _, whole, asked = trained()
    with pytest.raises(Stopped):
        trained(tmp_path, track=Stopping(stop))
    _, resumed, after = trained(tmp_path)
    assert same(whole, resumed)
    assert after[:20] == asked[2 * (stop + 1) :][:20]
    for index in after[:20]:
        assert torch.equal(Points()[index].support.image, Points()[asked[index]].support.image)
    steps = [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert steps == list(range(1, SCHEDULE.steps + 1))


def test_the_log_forgets_steps_that_a_kill_has_lost(tmp_path: Path) -> None:
    class KilledError(Exception):
        pass

    def killing(items: Iterable[Any], **_: Any) -> Iterable[Any]:
        for item in items:
            if item == 12:
                raise KilledError
            yield item

    with pytest.raises(KilledError):
        trained(tmp_path, track=killing)
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"step": 13, "lo')
    _, resumed, after = trained(tmp_path)
    assert after[0] == 14  # the last save was after 7 steps
    assert same(trained()[1], resumed)
    steps = [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert steps == list(range(1, SCHEDULE.steps + 1))


def test_sigterm_is_given_back_after_training() -> None:
    before = signal.getsignal(signal.SIGTERM)
    trained(schedule=replace(SCHEDULE, steps=1))
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_loss_that_is_not_finite_names_task_patients_and_step(tmp_path: Path) -> None:
    made = learner("prototypical", nn.Linear(5, 4))  # nothing bounds its features
    with pytest.raises(RunError, match=r"outer step 4, task background / tumour, patients a6-0, .*b6-5"):
        meta_train(made, Points(broken=6), SCHEDULE, keeper=Folder(tmp_path), validate=lambda _: 1.0)
    assert all(bool(torch.isfinite(w).all()) for w in made.state_dict().values())
    assert not (tmp_path / "weights.safetensors").exists()


class Root(nn.Module):
    """Its slope is infinite where all it sees is zero; what it gives is not."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 4, bias=False)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """The length of each number."""
        return (self.layer(image).square() + 1e-3 * image.square().sum(1, keepdim=True)).sqrt()


@pytest.mark.parametrize("blank", [8, 9])
def test_a_gradient_that_is_not_finite_names_the_task_it_is_of(blank: int) -> None:
    class Blank:
        def __getitem__(self, index: int) -> Episode:
            whole = Points()[index]
            if index != blank:
                return whole
            sides = [replace(side, image=0 * side.image) for side in (whole.support, whole.query)]
            return Episode(*sides)

    made = learner("prototypical", Root())
    with pytest.raises(RunError) as refused:
        meta_train(made, Blank(), replace(SCHEDULE, meta_batch=2))
    said = str(refused.value)
    assert "a finite meta-gradient, found NaN or infinity at outer step 5" in said
    assert f"a{blank}-0" in said
    assert f"a{17 - blank}-0" not in said
    assert all(bool(torch.isfinite(w).all()) for w in made.state_dict().values())


def test_a_score_that_is_not_finite_is_never_the_best(tmp_path: Path) -> None:
    keeper = Folder(tmp_path)
    end = meta_train(learner(), Points(), SCHEDULE, keeper=keeper, validate=lambda _: float("nan"))
    keeper.close()
    assert end.since_best == 5
    assert not (tmp_path / "weights.safetensors").exists()


def test_training_ends_early_where_the_score_does_not_rise(tmp_path: Path) -> None:
    scores = iter([0.1, 0.5, 0.4, 0.5])
    kept = []
    keeper = Folder(tmp_path)

    def validate(made: Learner) -> float:
        kept.append({n: w.clone() for n, w in made.state_dict().items()})
        return next(scores)

    end = meta_train(learner(), Points(), replace(SCHEDULE, patience=2), keeper=keeper, validate=validate)
    keeper.close()
    assert (end.step, end.best, end.since_best) == (20, 0.5, 2)
    assert same(read_tensors(tmp_path / "weights.safetensors")[0], kept[1])


def test_a_run_that_ended_early_is_not_trained_on(tmp_path: Path) -> None:
    schedule = replace(SCHEDULE, patience=1, save_every=7)
    scores = iter([0.5, 0.4, 0.9])
    _, ended, asked = trained(tmp_path, schedule=schedule, validate=lambda _: next(scores))
    assert len(asked) == 20
    kept = (tmp_path / "weights.safetensors").read_bytes()
    _, again, more = trained(tmp_path, schedule=schedule, validate=lambda _: next(scores))
    assert same(ended, again)  # step 10, at which no save is due, was saved
    assert more == []
    assert (tmp_path / "weights.safetensors").read_bytes() == kept


def test_a_validation_that_fails_loses_no_step_and_is_done_again(tmp_path: Path) -> None:
    schedule = replace(SCHEDULE, save_every=4, validate_every=4)

    whole = tmp_path / "whole"
    whole.mkdir()
    values = [0.1, 0.5, 0.2, 0.3, 0.4, 0.45]
    scores = iter(values)
    _, straight, _ = trained(whole, schedule=schedule, validate=lambda _: next(scores))
    for fails, step in ((0, 4), (1, 8), (2, 12), (5, 24)):
        folder = tmp_path / str(fails)
        folder.mkdir()
        scores, calls = iter(values), 0

        def validate(_: Learner, *, fails: int = fails, scores: Any = scores) -> float:
            nonlocal calls
            calls += 1
            if calls == fails + 1:
                raise RuntimeError("no")
            return next(scores)

        with pytest.raises(RuntimeError, match="no"):
            trained(folder, schedule=schedule, validate=validate)
        _, resumed, asked = trained(folder, schedule=schedule, validate=validate)
        assert asked == list(range(2 * step, 2 * SCHEDULE.steps))
        assert same(straight, resumed)
        for file in ("weights.safetensors", "last.safetensors"):
            (found, about), (wanted, said) = (read_tensors(at / file) for at in (folder, whole))
            assert same(found, wanted)
            assert about == said
        rows, expected = (
            [json.loads(line) for line in (at / "log.jsonl").read_text().splitlines()]
            for at in (folder, whole)
        )
        for row in (*rows, *expected):
            row.pop("tasks_per_second")
        assert rows == expected


def test_a_state_of_an_earlier_version_goes_on(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        trained(tmp_path, track=Stopping(9))
    file = tmp_path / "last.safetensors"
    tensors, about = read_tensors(file)
    assert about["progress"].pop("pending") is None
    write_tensors(file, tensors, about)
    assert same(trained()[1], trained(tmp_path)[1])


class Greedy(nn.Module):
    """Asks for more memory than there is."""

    name, options, tasks = "greedy", {"steps": 3}, frozenset({"classification"})

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Linear(1, 1)

    def backward(self, episodes: Any, *, scale: float) -> Tensor:
        return torch.empty(2**50)

    def adapt(self, support: Any) -> Any:
        raise NotImplementedError


def test_too_little_memory_names_what_to_lower() -> None:
    with pytest.raises(RunError, match=r"2 shots \(4 support examples\), 3 inner steps.*Lower the patch"):
        meta_train(Greedy(), Points(), SCHEDULE)


@pytest.mark.parametrize(
    "words",
    [
        "std::bad_alloc",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "unable to mmap 4096 bytes from file </torch_1>: Cannot allocate memory (12)",
    ],
)
def test_too_little_memory_in_other_words(words: str) -> None:
    class Starved(Greedy):
        def backward(self, episodes: Any, *, scale: float) -> Tensor:
            raise RuntimeError(words)

    with pytest.raises(RunError, match=r"memory for the outer step.*Lower the patch"):
        meta_train(Starved(), Points(), SCHEDULE)


def test_too_little_memory_names_the_patch() -> None:
    class Volumes:
        def __getitem__(self, index: int) -> Episode:
            label = torch.zeros(1, 4, 5, 6, dtype=torch.int64)
            label[:, 1:3] = 1
            one, other = (
                Examples(torch.zeros(1, 1, 4, 5, 6), label, ("background", "tumour"), (who,)) for who in "ab"
            )
            return Episode(one, other)

    with pytest.raises(RunError, match=r"patches of 4 x 5 x 6 voxels, 1 shots .*3 inner steps and 2 tasks"):
        meta_train(Greedy(), Volumes(), SCHEDULE)


def test_progress_shows_loss_score_speed_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    from medmeta.cli import terminal

    shown = io.StringIO()
    monkeypatch.setattr(terminal, "log", Console(file=shown, force_terminal=True, width=150))
    trained(track=terminal.Bar(), validate=lambda _: 0.25)
    last = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.getvalue()).splitlines()[-1]
    assert re.search(r"24/24 0:00:00 loss \d\.\d{3}  validation 0\.250  \d+\.\d tasks/s", last)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"rate": -0.1}, r"wanted a positive rate of the outer loop, found rate=-0\.1\. Give"),
        ({"rate": float("nan")}, "found rate=nan"),
        ({"clip": 0.0}, r"a positive clip.*found clip=0\.0"),
        ({"meta_batch": 0}, r"wanted meta_batch of 1 or more, found meta_batch=0\. Give 1 or more"),
        ({"steps": -1}, r"steps of 0 or more, found steps=-1"),
        ({"validate_every": 0}, "validate_every of 1 or more"),
    ],
)
def test_a_schedule_that_cannot_be(option: dict[str, Any], words: str) -> None:
    with pytest.raises(RunError, match=words):
        replace(SCHEDULE, **option)


def test_other_errors_come_as_they_are() -> None:
    class Wrong(Greedy):
        def backward(self, episodes: Any, *, scale: float) -> Tensor:
            return torch.ones(2) @ torch.ones(3)

    with pytest.raises(RuntimeError, match="inconsistent tensor size"):
        meta_train(Wrong(), Points(), SCHEDULE)


def dropping() -> tuple[Any, torch.optim.Optimizer]:
    """A learner that drops features in training, always with the same first weights."""
    torch.manual_seed(0)
    own: Any = create_learner("ridge", nn.Sequential(nn.Linear(5, 16), nn.Dropout(0.5), nn.Linear(16, 4)))
    return own, torch.optim.Adam(own.parameters(), lr=1e-2)


class StopsAtThree(Points):
    def __getitem__(self, index: int) -> Any:
        if index == 6:
            raise Stopped
        return super().__getitem__(index)


@pytest.mark.parametrize("seed", [0, 5])
def test_dropout_draws_the_same_after_a_stop(seed: int) -> None:
    """Another state of torch's own generator on the way in; every weight is that of a run without a stop."""
    schedule = Schedule(steps=6, meta_batch=2)
    (straight, first), (resumed, second) = dropping(), dropping()
    meta_train(straight, Points(), schedule, optimiser=first, seed=seed)
    progress = Progress()
    with pytest.raises(Stopped):
        meta_train(resumed, StopsAtThree(), schedule, optimiser=second, progress=progress, seed=seed)
    assert progress.step == 3
    torch.manual_seed(99)
    meta_train(resumed, Points(), schedule, optimiser=second, progress=progress, seed=seed)
    assert same(straight.state_dict(), resumed.state_dict())


def test_dropout_draws_by_the_seed_and_by_the_step() -> None:
    """The same weights and the same episode: what differs is what was dropped."""

    def loss(seed: int, step: int) -> float:
        class Logged:
            def note(self, record: dict[str, Any]) -> None:
                self.loss = record["loss"]

            def __call__(self, items: Iterable[Any], **_: Any) -> Iterable[Any]:
                return items

        class Same(Points):
            def __getitem__(self, index: int) -> Any:
                return super().__getitem__(0)

        own, optimiser = dropping()
        logged, schedule = Logged(), Schedule(steps=step + 1, meta_batch=1)
        meta_train(
            own, Same(), schedule, optimiser=optimiser, progress=Progress(step), track=logged, seed=seed
        )
        return logged.loss

    drawn = {(seed, step): loss(seed, step) for seed in (0, 1) for step in (0, 1)}
    assert len(set(drawn.values())) == 4
    assert drawn[1, 1] == loss(1, 1)
