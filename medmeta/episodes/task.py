"""One thing to learn: a tumour type to segment, or types to tell apart; the one place where they differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from medmeta.episodes.augment import Augment, augment_episode
from medmeta.episodes.crops import crop_examples, whole_examples
from medmeta.episodes.examples import Episode, EpisodeError, Examples
from medmeta.errors import nearest
from medmeta.volumes import Store, Volume


@dataclass(frozen=True)
class Task:
    """A tumour type to segment, or types to tell apart.

    Made by :func:`segmentation_task` and :func:`classification_task`.

    Args:
        name: of the task.
        classes: name of each label; ``"background"`` first when segmenting.
        volumes: who can be drawn.
        labels: class of each volume (1 for all when segmenting).
        store: gives the voxels.
        crops: pieces a patient when segmenting, 0 to classify.
        augment: changes a whole episode at a time; None while evaluating. Never touches :meth:`support`.
    """

    name: str
    classes: tuple[str, ...]
    volumes: tuple[Volume, ...]
    labels: tuple[int, ...]
    store: Store
    crops: int = 0
    augment: Augment | None = None

    @property
    def segments(self) -> bool:
        """Whether the labels are one a voxel."""
        return self.crops > 0

    @property
    def patients(self) -> int:
        """The number of patients of the class that has fewest."""
        return min(len(self._patients.get(label, ())) for label in self._drawn())

    def episode(self, *, shot: int, query: int, generator: torch.Generator) -> Episode:
        """Draw a support of ``shot`` and a query of ``query`` other patients a class.

        With the same generator state, the support of fewer shots is a part of that of more.

        Args:
            shot: labelled patients a class, 1 or more.
            query: other patients a class, 1 or more.
            generator: draws patients, crops and augmentation.

        Raises:
            EpisodeError: where there are not enough patients, with the numbers.
        """
        self.check(shot=shot, query=query)
        support, others = self._draw(shot, query, generator)
        episode = Episode(self._examples(support, generator), self._examples(others, generator))
        if self.augment is None:
            return episode
        plan = self.store.plan
        outlined = plan.lesion is not None
        return augment_episode(episode, self.augment, generator, outlined=outlined, spacing=plan.sides)

    def support(self, shot: int, generator: torch.Generator) -> tuple[Examples, tuple[Volume, ...]]:
        """Draw a support for evaluation, and name its volumes; :meth:`without` gives the ones to judge on.

        Raises:
            EpisodeError: where there are not enough patients to leave one to judge on.
        """
        drawn = self.draw(shot, generator)
        return self.examples(drawn, generator), drawn

    def draw(self, shot: int, generator: torch.Generator) -> tuple[Volume, ...]:
        """Draw whom to learn from, and read nothing yet.

        Raises:
            EpisodeError: where there are not enough patients to leave one to judge on.
        """
        self.check(shot=shot, query=1)
        drawn, _ = self._draw(shot, 1, generator)
        return tuple(self.volumes[i] for i in drawn)

    def examples(self, volumes: Sequence[Volume], generator: torch.Generator) -> Examples:
        """What a learner gets of some of the task's volumes; when segmenting, crops are drawn."""
        return self._examples([self.volumes.index(v) for v in volumes], generator)

    def without(self, volumes: Sequence[Volume]) -> Task:
        """The same task without the patients of some volumes."""
        gone = {v.patient for v in volumes}
        kept = [i for i, v in enumerate(self.volumes) if v.patient not in gone]
        return replace(
            self,
            volumes=tuple(self.volumes[i] for i in kept),
            labels=tuple(self.labels[i] for i in kept),
        )

    # -- drawing ---------------------------------------------------------------------------------

    def _drawn(self) -> tuple[int, ...]:
        """The labels patients are drawn for."""
        return (1,) if self.segments else tuple(range(len(self.classes)))

    @cached_property
    def _patients(self) -> dict[int, list[list[int]]]:
        """Volumes of each patient of each class; sorted, so that the order of ``volumes`` does not matter."""
        found: dict[int, dict[str, list[int]]] = {}
        for i in sorted(range(len(self.volumes)), key=lambda i: self.volumes[i].place):
            found.setdefault(self.labels[i], {}).setdefault(self.volumes[i].patient, []).append(i)
        return {label: list(patients.values()) for label, patients in found.items()}

    def _draw(self, shot: int, query: int, generator: torch.Generator) -> tuple[list[int], list[int]]:
        """Volumes of the support and of the query; one volume a patient."""
        support, others = [], []
        for label in self._drawn():
            patients = self._patients[label]
            order = torch.randperm(len(patients), generator=generator).tolist()[: shot + query]
            pick = torch.rand(len(patients), generator=generator).tolist()
            chosen = [patients[p][int(pick[p] * len(patients[p]))] for p in order]
            support += chosen[:shot]
            others += chosen[shot:]
        return support, others

    def _examples(self, drawn: Sequence[int], generator: torch.Generator) -> Examples:
        prepared = [self.store.read(self.volumes[i]) for i in drawn]
        if not self.segments:
            return whole_examples(prepared, [self.labels[i] for i in drawn], self.classes)
        patch = self.store.plan.patch
        return crop_examples(prepared, patch, generator, classes=self.classes, crops=self.crops)

    def check(self, *, shot: int, query: int) -> None:
        """Refuse what :meth:`episode` could not draw; reads nothing.

        Raises:
            EpisodeError: where there are not enough patients, with the numbers.
        """
        for what, number in (("shot", shot), ("query", query)):
            if number < 1:
                raise EpisodeError(
                    f"at least 1 {what} patient a class", found=str(number), cure=f"Ask for 1 {what} or more."
                )
        for label in self._drawn():
            there = len(self._patients.get(label, ()))
            if there < shot + query:
                raise EpisodeError(
                    f"{shot + query} patients with {self.classes[label]!r} ({shot} support + {query} query)",
                    found=f"{there}",
                    cure="Add patients, or ask for fewer shots or queries.",
                )


def segmentation_task(
    volumes: Sequence[Volume],
    tumour: str,
    store: Store,
    *,
    crops: int = 2,
    augment: Augment | None = None,
) -> Task:
    """The task of outlining one tumour type.

    Args:
        volumes: of any types; those of ``tumour`` that have a mask are taken.
        tumour: the type.
        store: gives the voxels; its plan cuts crops.
        crops: pieces a patient, the first half of them (rounded up) around the tumour.
        augment: changes whole episodes.

    Raises:
        EpisodeError: where no volume has the type, or none of them has a mask.
    """
    if store.plan.whole or crops < 1:
        raise EpisodeError(
            "a plan of crops and at least 1 crop to segment",
            found="a plan of whole volumes" if store.plan.whole else f"{crops} crops",
            cure="Make the plan with make_plan(volumes).",
        )
    of_type = _of_type(volumes, tumour)
    masked = tuple(v for v in of_type if v.mask is not None)
    if not masked:
        raise EpisodeError(
            f"masks of {tumour!r} to segment",
            found=f"none in {len(of_type)} volume(s)",
            cure="Add masks, or classify instead.",
        )
    return Task(tumour, ("background", tumour), masked, (1,) * len(masked), store, crops, augment)


def classification_task(
    volumes: Sequence[Volume],
    classes: Sequence[str],
    store: Store,
    *,
    against: str | None = None,
    augment: Augment | None = None,
) -> Task:
    """The task of telling tumour types apart, or one from the rest.

    A patient who has two of the classes would be right either way and is left out; where the plan cuts
    lesions out, so is one without an outlined lesion.

    Args:
        volumes: of any types.
        classes: the types, in the order of their labels; ``"none"`` stands for patients free of every type.
        store: gives the voxels; its plan keeps whole volumes.
        against: ``"rest"`` puts a first class of every other volume before ``classes``, ``"none"`` one
            of the patients free of every type.
        augment: changes whole episodes.

    Raises:
        EpisodeError: where there are fewer than two classes, one twice, or one without a volume.
    """
    if not store.plan.whole:
        raise EpisodeError(
            "a plan of whole volumes to classify",
            found="a plan of crops",
            cure="Make the plan with make_plan(volumes, whole=True).",
        )
    check_against(against)
    names = (*((against,) if against else ()), *classes)
    if len(set(names)) < 2 or len(set(names)) != len(names):
        raise EpisodeError(
            "two or more different classes",
            found=", ".join(names) or "none",
            cure="Name more types, or give against='rest' or 'none'.",
        )
    volumes = tuple(v for v in volumes if store.plan.takes(v))
    for name in classes:
        _of_type(volumes, name)
    labelled = [(v, names.index(n)) for v in volumes if (n := _class(v, names)) is not None]
    sides: dict[str, set[int]] = {}
    for volume, label in labelled:
        sides.setdefault(volume.patient, set()).add(label)
    kept = [(v, label) for v, label in labelled if len(sides[v.patient]) == 1]
    return Task(
        " vs ".join(names),
        names,
        tuple(v for v, _ in kept),
        tuple(label for _, label in kept),
        store,
        0,
        augment,
    )


def check_against(against: str | None) -> None:
    """Refuse to tell a type from anything but the rest or the tumour-free.

    Raises:
        EpisodeError: naming the two.
    """
    if against not in {None, "rest", "none"}:
        raise EpisodeError("against 'rest' or 'none'", found=repr(against), cure="Name one of the two.")


def _class(volume: Volume, names: Sequence[str]) -> str | None:
    own = volume.tumour or "none"
    return own if own in names else "rest" if "rest" in names else None


def _of_type(volumes: Sequence[Volume], tumour: str) -> tuple[Volume, ...]:
    found = tuple(v for v in volumes if (v.tumour or "none") == tumour)
    if not found:
        types = {v.tumour or "none" for v in volumes}
        raise EpisodeError(
            f"volumes with {tumour!r}",
            found="none" if types else "an empty cohort",
            cure=nearest(tumour, types) if types else "Open a cohort with volumes.",
        )
    return found
