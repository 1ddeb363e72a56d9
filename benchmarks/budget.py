"""Training for so many minutes of the processor: how many steps those hold, counted anew as training goes.

A step may cost several times what the first ones did: derivatives of first order become those of second,
other programs come to share the processor. So training goes in legs, and after each the steps still to come
are counted from what the last leg took; the schedule's end moves with them.
"""

from __future__ import annotations

import copy
import itertools
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import rich.progress
import torch
from torch import nn

from medmeta.learners import Learner
from medmeta.training import Schedule, meta_train
from medmeta.training.outer import Progress, Source
from medmeta.training.run import Folder

FIRST = 4
"""Steps of the first leg; no leg is longer than all before it, so a bad first guess costs little."""
LEGS = 20
"""No leg is more than this part of all the steps."""


@dataclass(frozen=True)
class Plan:
    """How far a training is, and how far it is to go.

    Args:
        seconds: of the processor, to spend.
        steps: outer steps that they seem to hold, those taken included.
        done: steps taken.
        spent: seconds that they took.
    """

    seconds: float
    steps: int
    done: int = 0
    spent: float = 0.0

    @property
    def leg(self) -> int:
        """Steps to take before counting again; none at the end."""
        return min(self.steps - self.done, max(FIRST, min(self.done, self.steps // LEGS)))

    def after(self, done: int, seconds: float) -> Plan:
        """The plan once ``done`` steps are taken in all, those since the last count in ``seconds``.

        Example:
            >>> Plan(60.0, 600).after(100, 20.0)
            Plan(seconds=60.0, steps=300, done=100, spent=20.0)
        """
        taken, spent = done - self.done, self.spent + seconds
        if not taken:
            return replace(self, spent=spent)
        more = int(max(0.0, self.seconds - spent) * taken / seconds)
        return Plan(self.seconds, done + more, done, spent)


def train_for(
    learner: Learner,
    source: Source,
    schedule: Callable[[int], Schedule],
    minutes: float,
    folder: Path,
    bars: rich.progress.Progress,
) -> None:
    """Meta-train a learner in place for some minutes of the processor; goes on with what its folder holds.

    Args:
        learner, source: what to train, and on what.
        schedule: the one of so many steps.
        minutes: to spend.
        folder: keeps the state, and the plan in ``plan.json``.
        bars: one of them shows how much is spent.
    """
    assert isinstance(learner, nn.Module)
    keeper, file = Folder(folder), folder / "plan.json"
    optimiser = torch.optim.Adam(learner.parameters(), schedule(1).rate)
    at = keeper.restore(learner, optimiser) if keeper.state.is_file() else Progress()
    if file.is_file():  # which a kill may have left ahead of the state
        plan = replace(Plan(**json.loads(file.read_text())), done=at.step)
    else:
        pace = seconds_a_step(learner, source, schedule(1).meta_batch)
        plan = Plan(60 * minutes, max(FIRST, int(60 * minutes / pace)))
        folder.mkdir(parents=True, exist_ok=True)
    bar = bars.add_task(f"{learner.name}: meta-training", total=plan.seconds, completed=plan.spent)
    while plan.leg:
        leg, began = partial(_first, plan.leg), time.process_time()
        try:
            meta_train(
                learner,
                source,
                schedule(plan.steps),
                keeper=keeper,
                optimiser=optimiser,
                progress=at,
                track=leg,
            )
            keeper.save(learner, optimiser, at)
        finally:
            plan = plan.after(at.step, time.process_time() - began)
            file.write_text(json.dumps(asdict(plan)))
        bars.update(bar, completed=plan.spent)
    keeper.close()


def _first(many: int, steps: Iterable[int], **_: Any) -> Iterable[int]:
    """The first so many of the steps."""
    return itertools.islice(steps, many)


def seconds_a_step(learner: Learner, source: Source, meta_batch: int) -> float:
    """Processor seconds of an outer step, a first guess made on a copy."""
    trial = copy.deepcopy(learner)
    began = 0.0
    for step in range(3):
        if step == 1:  # the first one is slow
            began = time.process_time()
        trial.backward([source[step * meta_batch + i] for i in range(meta_batch)], scale=1.0)
    return (time.process_time() - began) / 2
