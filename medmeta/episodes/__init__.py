"""Support and query: few-shot tasks drawn from prepared volumes, never one patient on both sides."""

from __future__ import annotations

from medmeta.episodes.augment import Augment
from medmeta.episodes.crops import support_examples
from medmeta.episodes.examples import Episode, EpisodeError, Examples
from medmeta.episodes.prefetch import prefetch
from medmeta.episodes.source import TaskSource, generator_of
from medmeta.episodes.task import Task, classification_task, segmentation_task

__all__ = [
    "Augment",
    "Episode",
    "EpisodeError",
    "Examples",
    "Task",
    "TaskSource",
    "classification_task",
    "generator_of",
    "prefetch",
    "segmentation_task",
    "support_examples",
]
