"""One training in a folder: the same source, processes and progress for its parts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from medmeta.episodes import TaskSource
from medmeta.learners import Learner
from medmeta.training.checkpoint import read_tensors, write_tensors
from medmeta.training.outer import Schedule, Source, meta_train, module_of, on_device, rehearse
from medmeta.training.ranks import Ranks
from medmeta.training.run import Folder
from medmeta.volumes.progress import Track


@dataclass
class Stage:
    """One training in a folder: the same source, processes and progress for its parts."""

    source: TaskSource
    ranks: Ranks
    keeper: Folder
    track: Track
    resume: bool
    where: torch.device

    def pretrain(self, warm: Learner, schedule: Schedule) -> None:
        """Ordinary supervised training; done once, a resumed run takes what is there."""
        file = self.keeper.path / "pretrained.safetensors"
        if self.resume and file.is_file():
            module_of(warm).load_state_dict(read_tensors(file)[0])
            return
        far = _Shifted(self.source, 10**9)  # numbers that the outer loop does not reach
        keeper = Folder(self.keeper.path, writes=self.keeper.writes, stage="pretraining")
        self._loop(warm, far, schedule, keeper)
        keeper.close()
        if self.keeper.writes:
            write_tensors(file, module_of(warm).state_dict())
        self.ranks.wait()

    def rehearse(self, learner: Learner, schedule: Schedule) -> None:
        """Refuse a learner that cannot learn from these episodes, before the stages that come first."""
        if schedule.steps:
            module = module_of(learner).to(self.where)
            rehearse(learner, on_device(self.source, self.where), schedule)
            module.cpu()

    def run(self, learner: Learner, schedule: Schedule, validate: Callable[[Learner], float] | None) -> None:
        """The outer loop, from the start or from where it was."""
        again = getattr(learner, "recurring", None) if self.source.segments else None
        source = self.source if again is None else _Recurring(self.source, again)
        self._loop(learner, source, schedule, self.keeper, validate)

    def _loop(
        self,
        learner: Learner,
        source: Source,
        schedule: Schedule,
        keeper: Folder,
        validate: Callable[[Learner], float] | None = None,
    ) -> None:
        module = module_of(learner).to(self.where)
        optimiser = torch.optim.Adam(module.parameters(), lr=schedule.rate)
        progress = None
        if self.resume:
            saved = keeper.state.is_file()
            progress = keeper.restore(module, optimiser) if saved else keeper.start_over()
        meta_train(
            learner,
            on_device(source, self.where),
            schedule,
            keeper=keeper,
            validate=validate,
            optimiser=optimiser,
            progress=progress,
            track=self.track,
            ranks=self.ranks,
            seed=self.source.seed,
        )
        module.cpu()


@dataclass(frozen=True)
class _Shifted:
    """The same stream, further on."""

    source: TaskSource
    by: int

    def __getitem__(self, index: int) -> Any:
        return self.source[self.by + index]


@dataclass(frozen=True)
class _Recurring:
    """The first episodes of the stream, again and again."""

    source: TaskSource
    number: int

    def __getitem__(self, index: int) -> Any:
        return self.source[index % self.number]


def start_from(learner: Learner, warm: Learner) -> None:
    """Give the learner the pre-trained backbone, and the head where both have the same."""
    before = module_of(warm).state_dict()
    own = module_of(learner).state_dict()
    shared = {n: w for n, w in before.items() if n in own and own[n].shape == w.shape and n != "outer_steps"}
    module_of(learner).load_state_dict({**own, **shared})


__all__ = ["Stage", "start_from"]
