"""An endless, addressable stream of training episodes: (seed, index) names one of them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import torch

from medmeta.episodes.augment import Augment
from medmeta.episodes.examples import Episode, EpisodeError
from medmeta.episodes.task import Task, check_against, classification_task, segmentation_task
from medmeta.errors import nearest
from medmeta.volumes import Store, Volume


def generator_of(seed: int, *index: int) -> torch.Generator:
    """The generator of one task, the same on every machine, rank and restart.

    Example:
        >>> a, b = generator_of(0, 7), generator_of(0, 7)
        >>> bool(torch.equal(torch.rand(3, generator=a), torch.rand(3, generator=b)))
        True
    """
    text = ",".join(str(i) for i in (seed, *index)).encode()
    number = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
    return torch.Generator().manual_seed(number % 2**63)


@dataclass(frozen=True)
class TaskSource:
    """Training episodes by number, over all types that are not held out.

    Volumes of a held-out type are dropped when the source is made, so no episode can name one. To classify,
    a patient with two types is left out, for either answer would be right. To segment, a patient who has a
    held-out type besides another stays, with the other: split by patient too where the same patients are
    judged on.

    Args:
        volumes: training volumes.
        store: gives the voxels; a plan of crops segments, a plan of whole volumes classifies.
        hold_out: types that no episode may name.
        seed: of the stream.
        shot: support patients a class, a number or (fewest, most) to draw from.
        query: query patients a class.
        way: classes an episode when classifying.
        against: instead of ``way`` types, one type against ``"rest"`` (every other volume) or ``"none"``
            (patients free of every type); None tells types apart.
        crops: pieces a patient when segmenting.
        augment: changes whole episodes.

    Raises:
        EpisodeError: where a held-out type is not in the volumes, too few types have enough patients, or
            those to tell a type from are too few.
    """

    volumes: tuple[Volume, ...]
    store: Store
    hold_out: tuple[str, ...] = ()
    seed: int = 0
    shot: int | tuple[int, int] = (1, 5)
    query: int = 2
    way: int = 2
    against: str | None = None
    crops: int = 2
    augment: Augment | None = None

    def __post_init__(self) -> None:
        there = {v.tumour for v in self.volumes if v.tumour}
        for name in self.hold_out:
            if name not in there:
                raise EpisodeError(
                    f"the held-out type {name!r} among the volumes",
                    found="no such type",
                    cure=nearest(name, there) if there else "Open a cohort with tumours.",
                )
        object.__setattr__(self, "volumes", tuple(v for v in self.volumes if v.tumour not in self.hold_out))
        self._refuse_numbers()
        check_against(self.against)
        self._refuse_types()
        if self.against and not self.segments:
            self._refuse_others()

    def _refuse_numbers(self) -> None:
        low, high = self.shots
        if not 1 <= low <= high:
            raise EpisodeError(
                "1 or more support patients a class, the fewest first",
                found=f"shot={self.shot}",
                cure="Give shot=1 or more, or the fewest and the most, such as shot=(1, 5).",
            )
        if self.query < 1:
            raise EpisodeError(
                "1 or more query patients a class",
                found=f"query={self.query}",
                cure="Give query=1 or more.",
            )
        if self.way < 2 and not self.segments:
            raise EpisodeError(
                "2 or more types to tell apart", found=f"way={self.way}", cure="Give way=2 or more."
            )

    def _refuse_types(self) -> None:
        fewest, there = self.shots[0], sorted(self._of)
        needed = 1 if self.segments or self.against else self.way
        if 1 < len(there) < needed:
            raise EpisodeError(
                f"{needed} types to tell apart",
                found=f"{len(there)}: {', '.join(there)}",
                cure=f"Give way={len(there)} or fewer, add patients of other types, or hold out fewer.",
            )
        if len(self.types) < needed:
            raise EpisodeError(
                f"{needed} type(s) with {fewest + self.query} patients each ({fewest} support, "
                f"{self.query} query)",
                found=f"{len(self.types)}",
                cure="Add patients, hold out fewer types, or ask for fewer shots or queries.",
            )

    def _refuse_others(self) -> None:
        """Refuse a type with too few patients to tell it from, before an episode does in mid-training."""
        fewest = self.shots[0] + self.query
        for name in self.types:
            there = self._against(name).patients
            if there < fewest:
                who = "free of every type" if self.against == "none" else f"other than {name!r}"
                raise EpisodeError(
                    f"{fewest} patients {who}, to tell it from ({self.shots[0]} support, {self.query} query)",
                    found=f"{there}",
                    cure="Add such patients, ask for fewer shots or queries, or leave 'against' out.",
                )

    @property
    def segments(self) -> bool:
        """Whether the episodes are for segmentation."""
        return not self.store.plan.whole

    @property
    def shots(self) -> tuple[int, int]:
        """Fewest and most support patients a class."""
        return (self.shot, self.shot) if isinstance(self.shot, int) else self.shot

    @cached_property
    def types(self) -> tuple[str, ...]:
        """The types with enough patients; ``"none"`` (free of every type) is one when classifying."""
        enough = self.shots[0] + self.query
        many = {t for t, vs in self._of.items() if len({v.patient for v in vs}) >= enough}
        return tuple(sorted(many - {"none"} if self.against else many))

    @property
    def drawn(self) -> tuple[str, ...]:
        """The types of all volumes that episodes draw: of ``"rest"`` also those of few patients."""
        return tuple(sorted(self._of.keys() - {"none"})) if self.against == "rest" else self.types

    @cached_property
    def _of(self) -> dict[str, tuple[Volume, ...]]:
        """The volumes of each type; to classify, those of patients with one type only."""
        of: dict[str, list[Volume]] = {}
        held: dict[str, set[str | None]] = {}
        for v in self.volumes:
            held.setdefault(v.patient, set()).add(v.tumour)
        for v in self.volumes:
            if not self.store.plan.takes(v):
                continue
            if (v.tumour and v.mask is not None) if self.segments else len(held[v.patient]) == 1:
                of.setdefault(v.tumour or "none", []).append(v)
        return {t: tuple(vs) for t, vs in of.items()}

    def __getitem__(self, index: int) -> Episode:
        """Episode number ``index``: the same for the same seed, wherever it is asked for."""
        generator = generator_of(self.seed, index)
        task = self.task(generator)
        low, high = self.shots
        high = max(low, min(high, task.patients - self.query))
        shot = low + int(torch.randint(high - low + 1, (), generator=generator))
        return task.episode(shot=shot, query=self.query, generator=generator)

    def task(self, generator: torch.Generator) -> Task:
        """Draw what to learn: one type to segment, ``way`` of them in random order to tell apart."""
        order = torch.randperm(len(self.types), generator=generator).tolist()
        if self.segments:
            name = self.types[order[0]]
            return segmentation_task(self._of[name], name, self.store, crops=self.crops, augment=self.augment)
        if self.against:
            return self._against(self.types[order[0]])
        names = [self.types[i] for i in order[: self.way]]
        volumes = [v for name in names for v in self._of[name]]
        return classification_task(volumes, names, self.store, augment=self.augment)

    def _against(self, name: str) -> Task:
        """The task of telling one type from the others."""
        everyone = [v for vs in self._of.values() for v in vs]
        return classification_task(everyone, [name], self.store, against=self.against, augment=self.augment)

    def batch(self, step: int, size: int, *, rank: int = 0, world: int = 1) -> list[Episode]:
        """This rank's share of the ``size`` episodes of an outer step; all ranks together give each once.

        Args:
            step: outer step, from 0.
            size: episodes of the step over all ranks.
            rank, world: this process and their number.
        """
        return [self[step * size + i] for i in range(rank, size, world)]
