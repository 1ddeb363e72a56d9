"""Laws of a training by processor time: it keeps to its minutes, whatever steps cost; its schedule ends."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import rich.progress
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.budget import Plan, train_for
from medmeta.episodes import Episode
from medmeta.training import Schedule, Stopped
from medmeta.training.checkpoint import read_tensors
from medmeta.training.outer import Source
from tests.training.phantoms import Points, learner

COSTS: dict[str, Callable[[int], float]] = {
    "as guessed": lambda step: 0.1,
    "ten times the guess": lambda step: 1.0,
    "a third of the guess": lambda step: 0.03,
    "first order for 25 steps, then second": lambda step: 0.1 if step < 25 else 0.35,
    "slow for a while": lambda step: 0.25 if 300 < step < 700 else 0.1,
}


def walk(plan: Plan, cost: Callable[[int], float]) -> Plan:
    """Take every leg of a plan whose steps cost so many seconds."""
    while leg := plan.leg:
        plan = plan.after(plan.done + leg, sum(cost(plan.done + i) for i in range(leg)))
    return plan


@pytest.mark.parametrize("cost", COSTS.values(), ids=COSTS)
def test_a_training_keeps_to_its_seconds(cost: Callable[[int], float]) -> None:
    end = walk(Plan(240.0, 2400), cost)
    assert end.spent == pytest.approx(240.0, rel=0.08)


@pytest.mark.parametrize("cost", COSTS.values(), ids=COSTS)
def test_the_schedule_comes_to_its_end(cost: Callable[[int], float]) -> None:
    end = walk(Plan(240.0, 2400), cost)
    assert end.done == end.steps
    assert Schedule(end.steps, rate=1.0).rate_at(end.done - 1) < 1e-3


@given(st.floats(1.0, 100.0), st.integers(4, 10_000), st.lists(st.floats(0.01, 5.0), min_size=1, max_size=9))
def test_no_more_than_one_leg_is_too_much(seconds: float, guess: int, costs: list[float]) -> None:
    plan, last = Plan(seconds, guess), 0.0
    while plan.leg:
        assert plan.spent < seconds
        last = sum(costs[(plan.done + i) % len(costs)] for i in range(plan.leg))
        plan = plan.after(plan.done + plan.leg, last)
    assert plan.spent - last < seconds


def test_seconds_without_a_step_are_spent() -> None:
    assert Plan(60.0, 600, done=100, spent=20.0).after(100, 5.0) == Plan(60.0, 600, done=100, spent=25.0)


def test_a_training_killed_in_a_leg_goes_on_and_ends(tmp_path: Path) -> None:
    class Kills(Points):
        def __getitem__(self, index: int) -> Episode:
            if index == 11:
                raise Stopped
            return super().__getitem__(index)

    def run(source: Source) -> tuple[Plan, int]:
        made, bars = learner(), rich.progress.Progress(disable=True)
        rates = partial(Schedule, meta_batch=2, rate=1e-2, save_every=10**6)
        with contextlib.suppress(Stopped):
            train_for(made, source, rates, 0.05, tmp_path, bars)
        state = read_tensors(tmp_path / "last.safetensors")[1]
        return Plan(**json.loads((tmp_path / "plan.json").read_text())), state["progress"]["step"]

    plan, saved = run(Kills())
    assert (plan.done, saved) == (5, 4)  # in the second leg; what was not saved is taken again
    plan, saved = run(Points())
    assert plan.done == plan.steps == saved
    assert plan.spent == pytest.approx(3.0, rel=0.3)
    steps = [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert steps == list(range(1, plan.done + 1))
