"""What early stopping looks at: tasks such as those trained on, of types of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from medmeta.episodes import EpisodeError, Task, classification_task, generator_of, segmentation_task
from medmeta.learners import Learner
from medmeta.learners.tuning import score
from medmeta.training.checkpoint import RunError
from medmeta.training.recipe import Recipe
from medmeta.volumes import Store, Volume

ROUNDS = 4
"""Episodes of each validation type."""


@dataclass(frozen=True)
class Validation:
    """The tasks to validate on, checked before anything is read or trained.

    Args:
        volumes: of the types to validate on, and of patients free of every type.
        recipe: whose task is validated: as many classes, told apart in the same way.
        store: gives the voxels.

    Raises:
        RunError: where there are fewer types than training tells apart.
        EpisodeError: where a task has too few patients.
    """

    volumes: tuple[Volume, ...]
    recipe: Recipe
    store: Store

    def __post_init__(self) -> None:
        types, way = self.recipe.validate_on, self.recipe.way
        if self._apart and len(types) < way:
            raise RunError(
                f"{way} types to validate on, as many as training tells apart",
                found=f"{len(types)}: {', '.join(types)}",
                cure="Name more types to validate on, or none, or tell fewer apart.",
            )
        for _, task in self._tasks():
            self._check(task)

    def scorer(self) -> Callable[[Learner], float]:
        """Draw the episodes, and give what scores a learner: its mean over them, always the same ones."""
        shot, seed = self.recipe.shot[0], self.recipe.seed
        episodes = [
            task.episode(shot=shot, query=self._query(task), generator=generator_of(seed, 1, number))
            for number, task in self._tasks()
        ]

        def validate(learner: Learner) -> float:
            return sum(score(learner.adapt(e.support), e.query) for e in episodes) / len(episodes)

        return validate

    def _query(self, task: Task) -> int:
        """Patients to ask of: as many as in training, or as there are."""
        return min(self.recipe.query, max(1, task.patients - self.recipe.shot[0]))

    @property
    def _apart(self) -> bool:
        """Whether types are told apart from each other."""
        return self.recipe.task == "classification" and self.recipe.against is None

    def _tasks(self) -> Iterator[tuple[int, Task]]:
        """Each round's number and its tasks; every type is in one of them."""
        recipe, volumes, store = self.recipe, self.volumes, self.store
        if recipe.task == "classification":
            volumes = _of_one_type(volumes)
        for number in range(ROUNDS):
            groups = _groups(recipe, number) if self._apart else [(name,) for name in recipe.validate_on]
            for names in groups:
                if recipe.task == "segmentation":
                    yield number, segmentation_task(volumes, names[0], store, crops=recipe.crops)
                else:
                    yield number, classification_task(volumes, names, store, against=recipe.against)

    def _check(self, task: Task) -> None:
        try:
            task.check(shot=self.recipe.shot[0], query=self._query(task))
        except EpisodeError as error:
            raise EpisodeError(
                f"{error.wanted} to validate on",
                found=error.found,
                cure="Name larger types to validate on, or none, or add patients.",
            ) from error


def _of_one_type(volumes: Sequence[Volume]) -> tuple[Volume, ...]:
    """Those of patients with one type, as training classifies them: of two, either answer would be right."""
    held: dict[str, set[str | None]] = {}
    for v in volumes:
        held.setdefault(v.patient, set()).add(v.tumour)
    return tuple(v for v in volumes if len(held[v.patient]) == 1)


def _groups(recipe: Recipe, number: int) -> Sequence[tuple[str, ...]]:
    """The validation types in random order, ``way`` at a time; the last group is filled up from the first."""
    types, way = recipe.validate_on, recipe.way
    order = torch.randperm(len(types), generator=generator_of(recipe.seed, 4, number)).tolist()
    return [
        tuple(types[order[(first + i) % len(types)]] for i in range(way))
        for first in range(0, len(types), way)
    ]


__all__ = ["Validation"]
