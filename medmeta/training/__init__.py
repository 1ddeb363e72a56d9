"""The outer loop and what it leaves: a run that can be resumed, opened and adapted."""

from medmeta.training.checkpoint import RunError
from medmeta.training.engine import Trainer
from medmeta.training.federated import Episodes, meta_score, meta_update
from medmeta.training.outer import Schedule, Stopped, meta_train, own_device
from medmeta.training.recipe import Recipe, plan_for, split
from medmeta.training.run import Run, load_run, open_run
from medmeta.training.train import train

__all__ = [
    "Episodes",
    "Recipe",
    "Run",
    "RunError",
    "Schedule",
    "Stopped",
    "Trainer",
    "load_run",
    "meta_score",
    "meta_train",
    "meta_update",
    "open_run",
    "own_device",
    "plan_for",
    "split",
    "train",
]
