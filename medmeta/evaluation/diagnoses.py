"""Which type a patient has, learnt from a few patients of each, and asked of all others."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from medmeta.episodes import classification_task, generator_of
from medmeta.evaluation.answers import Answers
from medmeta.evaluation.catalogue import Catalogue
from medmeta.evaluation.manifest import Episode, Key, Manifest
from medmeta.evaluation.records import Case, Picture
from medmeta.learners import Predictor
from medmeta.volumes import Store


@dataclass(frozen=True)
class Classifying:
    """Adapts to episodes of types to tell apart, and asks of every query which it is."""

    manifest: Manifest
    catalogue: Catalogue
    store: Store
    pictures: tuple[Picture, ...] = ()

    def adapt(self, method: Any, episode: Episode) -> Predictor:
        """Learn from the support; a class of all others is not one type."""
        volumes = [self.catalogue[k] for k in episode.support]
        rest = "rest" if episode.classes[0] == "rest" else None
        classes = episode.classes[1:] if rest else episode.classes
        task = classification_task(volumes, classes, self.store, against=rest)
        predictor: Predictor = method.adapt(task.examples(volumes, generator_of(self.manifest.seed)))
        return predictor

    def cases(self, predictor: Any, episode: Episode, name: str) -> list[Case]:
        """Ask of every query; a case for each held-out type."""
        if isinstance(predictor, Answers):
            return self._answered(predictor, episode, name)
        prepared = [self.store.read(self.catalogue[k]) for k in episode.query]
        with torch.no_grad():
            logits = torch.cat([predictor(p.image[None]) for p in prepared])
        chances, answers = torch.softmax(logits, 1), logits.argmax(1).tolist()
        return [
            self._case(episode, name, tumour, key, chance, episode.classes[answer])
            for tumour in episode.tumours
            for key, chance, answer in zip(
                episode.query, chances[:, episode.classes.index(tumour)].tolist(), answers, strict=True
            )
        ]

    def _answered(self, answers: Answers, episode: Episode, name: str) -> list[Case]:
        return [
            self._case(
                episode,
                name,
                tumour,
                key,
                answers.probability(episode, key, tumour),
                answers.answer(episode, key),
            )
            for tumour in episode.tumours
            for key in episode.query
        ]

    def _case(
        self, episode: Episode, name: str, tumour: str, key: Key, chance: float | None, answer: str | None
    ) -> Case:
        """A case; where there is no probability, or none that is a number, the worst there can be."""
        kind = episode.classes[episode.label(key)]
        several = len(episode.classes) > 2
        missing = chance is None or math.isnan(chance)
        return Case(
            tumour,
            episode.shot,
            name,
            episode.draw,
            self.store.patient(self.catalogue[key]),
            truth=kind == tumour,
            probability=float(kind != tumour) if missing else chance,
            kind=kind if several else None,
            answer=answer if several and not missing else None,
            missing=missing,
        )
