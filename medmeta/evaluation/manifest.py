"""The episodes of an evaluation, written before anything is judged, that anyone with the data can replay.

A manifest names cases by keys made of their images' bytes: whoever has the data finds them again, whoever has
not learns nothing, and no identifier of a patient is in it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from medmeta.evaluation.records import EvaluationError

FORMAT = "medmeta-episodes-1"
FREE = "none"
"""The type of a patient known to be free of every target."""


@dataclass(frozen=True, order=True)
class Key:
    """A case in a manifest.

    Args:
        image: key of the image, from its bytes.
        kind: the tumour type that the case is of; ``"none"`` where the patient is free.
    """

    image: str
    kind: str


@dataclass(frozen=True)
class Episode:
    """Whom to learn from and whom to judge, once.

    Args:
        tumours: the held-out types that are scored: one to segment.
        shot: labelled patients a class.
        draw: number of the support.
        classes: what is told apart, ``"rest"`` being every other type; ``("background", type)`` to segment.
        support, query: the cases; when segmenting, a query of another kind is one without the target.
    """

    tumours: tuple[str, ...]
    shot: int
    draw: int
    classes: tuple[str, ...]
    support: tuple[Key, ...]
    query: tuple[Key, ...]

    @property
    def name(self) -> str:
        """Of the episode, fit for a folder: ``cyst-3-0``."""
        plain = "".join(c if c.isalnum() or c in "_." else "_" for c in "+".join(self.tumours))
        return f"{plain}-{self.shot}-{self.draw}"

    def label(self, case: Key) -> int:
        """The class of a case."""
        if self.classes[0] == "background":
            return int(case.kind == self.classes[1])
        kind = case.kind if case.kind in self.classes else "rest"
        return self.classes.index(kind)


@dataclass(frozen=True)
class Manifest:
    """All episodes of an evaluation.

    Args:
        task: ``"segmentation"`` or ``"classification"``.
        seed: that patients were drawn with, and crops are.
        crops: pieces a support patient when segmenting.
        episodes: in the order they are judged.

    Example:
        >>> one, other = Key("a", "cyst"), Key("b", "cyst")
        >>> episode = Episode(("cyst",), 1, 0, ("background", "cyst"), (one,), (other,))
        >>> made = Manifest("segmentation", 0, 2, (episode,))
        >>> read(made.text()) == made, episode.name
        (True, 'cyst-1-0')
    """

    task: str
    seed: int
    crops: int
    episodes: tuple[Episode, ...]

    @property
    def tumours(self) -> tuple[str, ...]:
        """The held-out types."""
        return tuple(dict.fromkeys(t for e in self.episodes for t in e.tumours))

    @property
    def cases(self) -> frozenset[Key]:
        """All that are learnt from or judged."""
        return frozenset(k for e in self.episodes for k in (*e.support, *e.query))

    @property
    def draws(self) -> int:
        """Supports drawn for each number of shots."""
        return len({e.draw for e in self.episodes})

    def text(self) -> str:
        """As a JSON document; the same episodes give the same bytes."""
        plain = {"format": FORMAT, **asdict(self)}
        for episode in plain["episodes"]:
            for side in ("support", "query"):
                episode[side] = [[k["image"], k["kind"]] for k in episode[side]]
        return (
            json.dumps(plain, indent=None, separators=(",", ":")).replace('{"tumours"', '\n{"tumours"') + "\n"
        )

    @property
    def digest(self) -> str:
        """SHA-256 of :meth:`text`."""
        return hashlib.sha256(self.text().encode()).hexdigest()

    def summary(self) -> dict[str, Any]:
        """What ``results.json`` says of it."""
        return {
            "sha256": self.digest,
            "episodes": len(self.episodes),
            "draws": self.draws,
            "cases": len(self.cases),
            "crops": self.crops,
        }


def joined(manifests: Sequence[Manifest]) -> Manifest | None:
    """All episodes in one, each once: of one name, two are the same. None where there is no manifest."""
    episodes = {e.name: e for one in manifests for e in one.episodes}
    return replace(manifests[0], episodes=tuple(episodes.values())) if manifests else None


def read(text: str) -> Manifest:
    """A manifest from its JSON document.

    Raises:
        EvaluationError: where it is none, has no episode, or one that cannot be: an image on both sides, a
            case or an episode twice, another number of labelled cases than it says.
    """
    try:
        plain = json.loads(text)
        if plain["format"] != FORMAT:
            raise KeyError(plain["format"])
        episodes = tuple(
            Episode(
                tuple(e["tumours"]),
                _whole(e["shot"], 1),
                _whole(e["draw"], 0),
                tuple(e["classes"]),
                *(tuple(Key(str(i), str(k)) for i, k in e[side]) for side in ("support", "query")),
            )
            for e in plain["episodes"]
        )
        made = Manifest(str(plain["task"]), _whole(plain["seed"]), _whole(plain["crops"], 0), episodes)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise EvaluationError(
            f"an episode manifest ({FORMAT})",
            found="another document",
            cure="Write one with medmeta manifest.",
        ) from error
    if not made.episodes:
        raise EvaluationError(
            "a manifest with at least 1 episode", found="none in it", cure="Write one with medmeta manifest."
        )
    for e in made.episodes:
        _check(e)
    twice = len(made.episodes) - len({e.name for e in made.episodes})
    if twice:
        raise _anew("every episode once", f"{twice} with the name of another")
    _check_task(made)
    return made


def _check_task(made: Manifest) -> None:
    """Refuse another task than the two, episodes of the other one, and to outline without a piece to learn.

    Raises:
        EvaluationError: in one line; it would be found after rates were chosen.
    """
    if made.task not in ("segmentation", "classification"):
        raise _anew("the task segmentation or classification", repr(made.task[:40]))
    outlines = [e.classes[0] == "background" for e in made.episodes]
    other = outlines.count(made.task == "classification")
    if other:
        raise _anew(f"episodes of {made.task}", f"{other} of the other task")
    if made.task == "segmentation" and not made.crops:
        raise _anew("at least 1 crop a support patient", "0")


def _whole(number: Any, least: float = -math.inf) -> int:
    """A whole number of at least ``least``."""
    if type(number) is not int or number < least:
        raise ValueError(number)
    return number


def _anew(wanted: str, found: str) -> EvaluationError:
    return EvaluationError(wanted, found=found, cure="Write the manifest anew.")


def _check(e: Episode) -> None:
    """Refuse an episode that cannot be: its figures would be of something else than it says.

    Raises:
        EvaluationError: naming the episode.
    """
    drawn = e.classes[1:] if e.classes[:1] == ("background",) else e.classes
    if not e.tumours or not set(e.tumours) <= set(drawn) or (drawn != e.classes and len(drawn) > 1):
        raise _anew(
            f"a type that is scored in episode {e.name}, one of its classes",
            "another" if e.tumours else "none",
        )
    both = {k.image for k in e.support} & {k.image for k in e.query}
    if both or not e.support or not e.query:
        raise _anew(
            f"other images in the query of episode {e.name} than in its support, and some in each",
            f"{len(both)} in both" if both else "an empty side",
        )
    for side in (e.support, e.query):
        if len(set(side)) < len(side):
            raise _anew(f"every case once in episode {e.name}", f"{len(side) - len(set(side))} again")
    if e.classes[0] not in ("background", "rest"):
        strange = {k.kind for k in (*e.support, *e.query)} - set(e.classes)
        if strange:
            raise _anew(f"cases of the classes of episode {e.name}", f"some of {', '.join(sorted(strange))}")
    there = [sum(e.classes[e.label(k)] == name for k in e.support) for name in drawn]
    if set(there) != {e.shot} or sum(there) < len(e.support):
        raise _anew(
            f"{e.shot} labelled of each class in the support of episode {e.name}",
            f"{', '.join(map(str, there))} of {len(e.support)}",
        )


def check_queries(manifest: Manifest) -> None:
    """Refuse episodes in which nobody judged has the type, or, to classify, nobody is without it.

    Raises:
        EvaluationError: naming the episode.
    """
    for episode in manifest.episodes:
        kinds = [k.kind for k in episode.query]
        for tumour in episode.tumours:
            if tumour not in kinds:
                raise EvaluationError(
                    f"a patient with {tumour!r} among those judged in episode {episode.name}",
                    found=f"{len(kinds)} without it",
                    cure="Ask for fewer shots, or add patients of the type.",
                )
            if manifest.task == "classification" and set(kinds) == {tumour}:
                raise EvaluationError(
                    f"a patient without {tumour!r} among those judged in episode {episode.name}",
                    found=f"{len(kinds)} with it",
                    cure="Ask for fewer shots, or add patients of other types.",
                )


def open_manifest(path: str | Path) -> Manifest:
    """Read a manifest's file.

    Raises:
        EvaluationError: where there is none, or it is another file.
    """
    file = Path(path)
    if not file.is_file():
        raise EvaluationError(
            "a manifest's file", found="none at the path given", cure="Write one with medmeta manifest."
        )
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise EvaluationError(
            f"an episode manifest ({FORMAT})",
            found="a file that is no text",
            cure="Write one with medmeta manifest.",
        ) from error
    return read(text)
