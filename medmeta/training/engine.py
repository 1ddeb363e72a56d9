"""Training as MONAI's workflows have it: an object that JSON describes and ``run`` starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from medmeta.training.run import Run
from medmeta.training.train import Recipe, train
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

    def run(self) -> Run:
        """Train, and leave the run folder.

        Raises:
            RunError, EpisodeError, VolumeError: as ``train``.
        """
        recipe = replace(self.recipe, schedule=replace(self.recipe.schedule, steps=self.max_epochs))
        return train(self.dataset, recipe, out=self.out, hold_out=self.hold_out, device=self.device)
