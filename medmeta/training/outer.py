"""The outer loop: any learner, any stream of episodes; stopped anywhere, it goes on exactly."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import nn

from medmeta.episodes import Episode
from medmeta.learners import Learner
from medmeta.learners.batch import copied, seeded
from medmeta.training.checkpoint import RunError
from medmeta.training.ranks import Ranks, local_rank
from medmeta.volumes.progress import Track, silent


class Source(Protocol):
    """Episodes by number, such as :class:`medmeta.episodes.TaskSource`."""

    def __getitem__(self, index: int) -> Episode:
        """Episode number ``index``, the same whenever it is asked for."""
        ...


class Stopped(BaseException):
    """Training was stopped by SIGTERM after its state was saved."""


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train.

    Args:
        steps: outer steps.
        meta_batch: episodes a step, over all processes.
        rate: highest learning rate of Adam; it rises over the first tenth and falls as a cosine.
        clip: longest meta-gradient.
        save_every, validate_every: outer steps between saves and between validations.
        patience: validations without a better score before training ends; 0 never ends it early.

    Raises:
        RunError: for a rate or a clip that is not a positive number, or a count below what makes sense.
    """

    steps: int = 300
    meta_batch: int = 2
    rate: float = 3e-3
    clip: float = 1.0
    save_every: int = 50
    validate_every: int = 50
    patience: int = 0

    def __post_init__(self) -> None:
        for name in ("rate", "clip"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise RunError(
                    f"a positive {name} of the outer loop", found=f"{name}={value}", cure="Give e.g. 1e-3."
                )
        least = {"steps": 0, "patience": 0, "meta_batch": 1, "save_every": 1, "validate_every": 1}
        for name, fewest in least.items():
            if getattr(self, name) < fewest:
                found = f"{name}={getattr(self, name)}"
                raise RunError(f"{name} of {fewest} or more", found=found, cure=f"Give {fewest} or more.")

    def rate_at(self, step: int) -> float:
        """Learning rate of a step; a function of the step alone, so that nothing of it needs saving.

        Example:
            >>> round(Schedule(steps=100, rate=1.0).rate_at(10), 3)
            1.0
        """
        rise = max(1, self.steps // 10)
        if step < rise:
            return self.rate * (step + 1) / rise
        return self.rate * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, self.steps - rise)))

    def saves_at(self, step: int) -> bool:
        """Whether to save after so many steps; after the last in any case."""
        return step == self.steps or step % self.save_every == 0

    def validates_at(self, step: int) -> bool:
        """Whether to validate after so many steps; after the last in any case."""
        return step == self.steps or step % self.validate_every == 0


@dataclass
class Progress:
    """Where training is.

    Args:
        step: outer steps done.
        best: highest score of a validation.
        since_best: validations since then.
        pending: figures of the last step while it is saved, but not yet validated and logged.
    """

    step: int = 0
    best: float = -math.inf
    since_best: int = 0
    pending: dict[str, Any] | None = None

    def ended(self, schedule: Schedule) -> bool:
        """Whether patience has run out."""
        return 0 < schedule.patience <= self.since_best


class Keeper(Protocol):
    """Keeps what training must not lose; :class:`medmeta.training.run.Folder` is one."""

    def save(self, learner: nn.Module, optimiser: torch.optim.Optimizer, progress: Progress) -> None:
        """Save all that is needed to go on."""
        ...

    def save_best(self, learner: nn.Module) -> None:
        """Save the best weights so far."""
        ...

    def note(self, record: dict[str, Any]) -> None:
        """Log one step."""
        ...


def meta_train(
    learner: Learner,
    source: Source,
    schedule: Schedule,
    *,
    keeper: Keeper | None = None,
    validate: Callable[[Learner], float] | None = None,
    optimiser: torch.optim.Optimizer | None = None,
    progress: Progress | None = None,
    track: Track = silent,
    ranks: Ranks | None = None,
    seed: int = 0,
) -> Progress:
    """Meta-train a learner in place.

    Args:
        learner: any; its parameters are changed.
        source: episodes by number; step ``s`` takes numbers ``s * meta_batch`` onwards, whichever process.
        schedule: how long and how fast.
        keeper: saves and logs; None keeps nothing.
        validate: gives a score (higher is better) on types neither trained on nor held out. Every process
            asks it, and the first one's answer counts.
        optimiser, progress: of an earlier run to go on with.
        track: shows progress; its ``note(record)``, where it has one, is told every step's figures.
        ranks: the processes that share the work; None is this one alone.
        seed: of what a step itself draws, such as dropout; the step's number goes into it too.

    Raises:
        RunError: where a loss is not finite (naming the step, the task and its hashed patients) or memory
            does not suffice (naming what to lower).
        Stopped: after a SIGTERM, once the state is saved.
    """
    model = module_of(learner)
    ranks = ranks or Ranks()
    optimiser = optimiser or torch.optim.Adam(model.parameters(), lr=schedule.rate)
    progress = progress or Progress()
    model.train()
    with _terminated() as stop:
        after = _AfterStep(learner, schedule, optimiser, progress, ranks, stop, keeper, validate, track)
        if progress.pending is not None:
            after.finish(progress.pending)
        began, first = time.monotonic(), progress.step
        left = range(first, first if progress.ended(schedule) else schedule.steps)
        for step in track(left, description="meta-training", total=len(left)):
            losses = _step(learner, source, schedule, step, optimiser, ranks, seed)
            progress.step = step + 1
            speed = (progress.step - first) * schedule.meta_batch / (time.monotonic() - began)
            after.finish(
                {
                    "step": progress.step,
                    "loss": sum(losses) / len(losses),
                    "rate": schedule.rate_at(step),
                    "tasks_per_second": speed,
                }
            )
            if progress.ended(schedule):
                break
    return progress


@dataclass(frozen=True)
class _AfterStep:
    """What follows an outer step: to validate, to log, to save, to stop."""

    learner: Learner
    schedule: Schedule
    optimiser: torch.optim.Optimizer
    progress: Progress
    ranks: Ranks
    stop: threading.Event
    keeper: Keeper | None
    validate: Callable[[Learner], float] | None
    track: Track

    def finish(self, record: dict[str, Any]) -> None:
        """Do what is due after a step of these figures.

        Raises:
            Stopped: after a SIGTERM, once the state is saved.
        """
        progress, saves = self.progress, self.schedule.saves_at(self.progress.step)
        if self.validate and self.schedule.validates_at(progress.step):
            progress.pending = record
            if saves:  # first, so that a validation that fails loses no step; going on, it is done again
                self._save()
            record["score"] = self._score(self.validate)
            progress.pending = None
        for listener in (self.keeper, self.track):  # a progress bar may show figures, too
            getattr(listener, "note", _ignore)(record)
        stopping = self.ranks.any(self.stop.is_set())
        if saves or stopping or progress.ended(self.schedule):
            self._save()
        if stopping:
            raise Stopped

    def _save(self) -> None:
        if self.keeper:
            self.keeper.save(module_of(self.learner), self.optimiser, self.progress)

    def _score(self, validate: Callable[[Learner], float]) -> float:
        """Validate, and keep the best weights."""
        # one process's score for all: by a rounding difference, one of them would stop while the others wait
        score = self.ranks.first(validate(self.learner))
        model = module_of(self.learner).train()
        if math.isfinite(score) and score > self.progress.best:
            self.progress.best, self.progress.since_best = score, 0
            if self.keeper:
                self.keeper.save_best(model)
        else:
            self.progress.since_best += 1
        return score


def _ignore(record: dict[str, Any]) -> None:
    """Nobody listens."""


def module_of(learner: Learner) -> nn.Module:
    """The learner as the module that it is."""
    if not isinstance(learner, nn.Module):
        raise TypeError(f"{type(learner).__name__} is not a torch.nn.Module")
    return learner


def _step(
    learner: Learner,
    source: Source,
    schedule: Schedule,
    step: int,
    optimiser: torch.optim.Optimizer,
    ranks: Ranks,
    seed: int,
) -> list[float]:
    """One outer step; the losses of all its episodes."""
    numbers = range(step * schedule.meta_batch, (step + 1) * schedule.meta_batch)
    mine = [source[number] for number in numbers[ranks.rank :: ranks.world]]
    optimiser.zero_grad(set_to_none=False)
    with seeded(seed, step, ranks.rank):  # dropout: a resumed run draws the same
        losses = _backward(learner, mine, schedule) if mine else []
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    ranks.add_gradients(parameters)
    losses = ranks.gather(losses)
    for number, loss in zip(numbers, losses, strict=True):
        if not math.isfinite(loss):
            raise _not_finite("loss", step, [source[number]])
    norm = nn.utils.clip_grad_norm_(parameters, schedule.clip)
    if not bool(torch.isfinite(norm)):
        blamed = [n for n in numbers if _breaks(learner, source[n], schedule)]
        raise _not_finite("meta-gradient", step, [source[n] for n in blamed or numbers])
    for group in optimiser.param_groups:
        group["lr"] = schedule.rate_at(step)
    optimiser.step()
    return losses


def _backward(learner: Learner, episodes: list[Episode], schedule: Schedule) -> list[float]:
    """Add the episodes' share of the meta-gradient; their losses."""
    try:
        losses: list[float] = learner.backward(episodes, scale=1 / schedule.meta_batch).tolist()
    except (RuntimeError, MemoryError) as error:
        if not _is_memory(error):
            raise
        raise _too_large(learner, schedule, episodes) from error
    return losses


def rehearse(learner: Learner, source: Source, schedule: Schedule) -> None:
    """Take the first episode with a copy, so that a learner that does not fit is refused before a long stage.

    Args:
        learner: left as it is.
        source: as of :func:`meta_train`.
        schedule: likewise.

    Raises:
        LearnerError: where the learner cannot learn from such an episode.
        RunError: where memory does not suffice.
    """
    trial = cast(Learner, copied(module_of(learner)).train())
    with seeded(0):
        _backward(trial, [source[0]], schedule)


def _breaks(learner: Learner, episode: Episode, schedule: Schedule) -> bool:
    """Whether an episode alone gives a gradient that is not finite; asked of a copy."""
    module = copied(module_of(learner))
    module.zero_grad(set_to_none=True)
    trial = cast(Learner, module)
    _backward(trial, [episode], schedule)
    slopes = [p.grad for p in module.parameters() if p.grad is not None]
    return not all(bool(torch.isfinite(slope).all()) for slope in slopes)


def _not_finite(what: str, step: int, episodes: list[Episode]) -> RunError:
    tasks = dict.fromkeys(" / ".join(e.support.classes) for e in episodes)
    patients = sorted({p for e in episodes for side in (e.support, e.query) for p in side.patients})
    return RunError(
        f"a finite {what}",
        found=f"NaN or infinity at outer step {step + 1}, task {' or '.join(tasks)}, "
        f"patients {', '.join(patients) or 'unnamed'}",
        cure="Lower the learning rates, or look at those patients' volumes. Nothing of this step was saved.",
    )


def _is_memory(error: Exception) -> bool:
    """Whether memory ran out; a CPU says so in a plain RuntimeError, as do libraries of a GPU."""
    words = ("enough memory", "allocate memory", "out of memory", "bad_alloc", "alloc_failed")
    said = str(error).lower()
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(w in said for w in words)


def _too_large(learner: Learner, schedule: Schedule, episodes: list[Episode]) -> RunError:
    largest = max((e.support for e in episodes), key=lambda support: support.image.numel())
    inner = learner.options.get("steps")
    steps = f", {inner} inner steps" if inner is not None else ""
    return RunError(
        "memory for the outer step",
        found=f"too little for patches of {' x '.join(map(str, largest.image.shape[2:]))} voxels, "
        f"{max(largest.shot)} shots ({len(largest.image)} support examples){steps} "
        f"and {schedule.meta_batch} tasks",
        cure="Lower the patch, the shots, the inner steps or the meta-batch, or take backend='recompute'.",
    )


@contextmanager
def _terminated() -> Iterator[threading.Event]:
    """An event that SIGTERM sets; only the main thread may listen."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, before)


def own_device() -> torch.device:
    """The device to train on: this process's GPU, or the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", local_rank())
    return torch.device("cpu")


def on_device(source: Source, where: torch.device) -> Source:
    """The same episodes on a device."""
    return _Moved(source, where)


@dataclass(frozen=True)
class _Moved:
    source: Source
    where: torch.device

    def __getitem__(self, index: int) -> Episode:
        return self.source[index].to(self.where)
