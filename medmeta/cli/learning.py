"""Commands that meta-train."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from medmeta.cli.terminal import Bar, Cache, Cohorts, Out, Seed, log, plain


def train(
    cohort: Cohorts,
    out: Out,
    task: Annotated[str, typer.Option(help="segmentation or classification.")] = "segmentation",
    learner: Annotated[str, typer.Option(help="See 'medmeta learners'.")] = "proto-maml",
    hold_out: Annotated[list[str] | None, typer.Option(help="Types that no stage may see.")] = None,
    validate_on: Annotated[list[str] | None, typer.Option(help="Types for early stopping.")] = None,
    steps: Annotated[int, typer.Option(help="Outer steps.")] = 300,
    pretrain: Annotated[int, typer.Option(help="Steps of ordinary supervised training before.")] = 300,
    meta_batch: Annotated[int, typer.Option(help="Episodes an outer step.")] = 2,
    way: Annotated[int, typer.Option(help="Classes an episode, to classify.")] = 2,
    against: Annotated[
        str | None, typer.Option(help="To classify: tell one type from the 'rest' or from 'none'.")
    ] = None,
    lesion: Annotated[
        float | None,
        typer.Option(help="To classify outlined lesions (masks needed), so many mm around them kept."),
    ] = None,
    seed: Seed = 0,
    cache: Cache = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
) -> None:
    """Meta-train a learner on cohorts; some types may be held out from every stage."""
    from medmeta.episodes import Augment
    from medmeta.training import Recipe, Schedule, Stopped
    from medmeta.training import train as run
    from medmeta.volumes import open_cohort

    recipe = Recipe(
        task=task,
        learner=learner,
        schedule=Schedule(steps=steps, meta_batch=meta_batch, patience=5 if validate_on else 0),
        warm=Schedule(steps=pretrain, meta_batch=meta_batch) if pretrain else None,
        way=way,
        against=against,
        lesion=lesion,
        augment=Augment(rotate=90.0, scale=0.15, apart=True) if lesion is not None else Augment(),
        validate_on=tuple(validate_on or ()),
        seed=seed,
    )
    cohorts = [open_cohort(p) for p in cohort]
    held = tuple(hold_out or ())
    with _interrupts_save() as interrupted:
        try:
            run(cohorts, recipe, out=out, hold_out=held, resume=resume, cache=cache, track=Bar())
        except Stopped:
            log.print("Stopped; go on with --resume.")
            raise typer.Exit(130 if interrupted.is_set() else 143) from None
    log.print(f"Run: {plain(str(out))}", soft_wrap=True)


@contextlib.contextmanager
def _interrupts_save() -> Iterator[threading.Event]:
    """Let the first Ctrl-C end training as SIGTERM does, its state saved, and the second one at once.

    Gives an event that is set by then. Where nothing is learnt yet, the first one ends the command, too. A
    process for which Ctrl-C is not meant, as a shell's in the background, goes on not to heed it.
    """
    interrupted = threading.Event()
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before is not signal.default_int_handler:
        yield interrupted
        return
    ends_at_once = signal.getsignal(signal.SIGTERM)

    def save(*_: Any) -> None:
        if interrupted.is_set() or signal.getsignal(signal.SIGTERM) is ends_at_once:
            raise KeyboardInterrupt
        interrupted.set()
        log.print("Ending this step, then saving; Ctrl-C again leaves at once.")
        os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(signal.SIGINT, save)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)


def learners() -> None:
    """List the learners and the tasks they can do."""
    from medmeta.learners import learner_names

    segmenting = set(learner_names("segmentation"))
    for name in learner_names():
        typer.echo(f"{name:20}{'classify, segment' if name in segmenting else 'classify'}")
