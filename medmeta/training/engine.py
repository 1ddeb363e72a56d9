"""Training as MONAI's workflows have it: an object that JSON describes and ``run`` starts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from medmeta.training.events import Handlers
from medmeta.training.recipe import Recipe
from medmeta.training.run import Run
from medmeta.training.train import train
from medmeta.volumes import Cohort


@dataclass
class Trainer:
    """:func:`medmeta.training.train` with its arguments, to be started later.

    MONAI's ``ConfigWorkflow`` finds it as ``trainer``, and may change ``max_epochs`` before it runs. Patches
    go through the network as they are, which is what the ``train_inferer`` beside it says.

    Args:
        dataset: what to train on.
        recipe: what and how.
        out: the folder to write.
        max_epochs: outer steps, in place of the recipe's.
        hold_out: types that no stage sees.
        device: to train on.
        train_handlers: MONAI's, such as the MLFlowHandler that ``--tracking mlflow`` adds: an outer step is
            an iteration and an epoch to them; the metrics of ordinary pre-training before it begin with
            ``pretraining/``.

    Example:
        >>> trainer = Trainer(Cohort("none", (), Path()), Recipe(), "run", max_epochs=2)
        >>> trainer.run()
        Traceback (most recent call last):
            ...
        medmeta.volumes.layouts.listing.CohortError: wanted at least one volume to plan for, found none. \
Open a cohort with volumes.
    """

    dataset: Cohort
    recipe: Recipe
    out: str | Path
    max_epochs: int
    hold_out: Sequence[str] = ()
    device: torch.device | None = None
    train_handlers: Sequence[Any] = ()

    def run(self) -> Run:
        """Train, and leave the run folder.

        Raises:
            RunError, EpisodeError, VolumeError: as ``train``.
        """
        recipe = replace(self.recipe, schedule=replace(self.recipe.schedule, steps=self.max_epochs))
        with Handlers(self.train_handlers, max_epochs=self.max_epochs) as told:
            return train(
                self.dataset,
                recipe,
                out=self.out,
                hold_out=self.hold_out,
                device=self.device,
                track=_Figures(told, pretrains=recipe.warm is not None),
            )


class _Figures:
    """Gives the figures of every step to handlers; shows nothing.

    Args:
        told: the handlers.
        pretrains: whether ordinary pre-training comes before the outer loop.
    """

    def __init__(self, told: Handlers, *, pretrains: bool) -> None:
        self._told = told
        self._stages: Iterator[str] = iter(("pretraining/", "") if pretrains else ("",))
        self._stage = ""

    def __call__(self, items: Iterable[Any], *, description: str = "", **_: Any) -> Iterable[Any]:
        """A stage begins."""
        if description == "meta-training":
            self._stage = next(self._stages)
        return items

    def note(self, record: Mapping[str, float]) -> None:
        """A step is done."""
        if not self._stage:
            self._told.iteration(record)
        figures = {f"{self._stage}{name}": value for name, value in record.items() if name != "step"}
        self._told.epoch(figures, number=int(record["step"]))
