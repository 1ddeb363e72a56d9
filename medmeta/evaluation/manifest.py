"""The episodes of an evaluation, written before anything is judged, that anyone with the data can replay.

A manifest names cases by keys made of their images' bytes: whoever has the data finds them again, whoever has
not learns nothing, and no identifier of a patient is in it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from medmeta.episodes import Task, classification_task, generator_of, segmentation_task
from medmeta.errors import nearest
from medmeta.evaluation.records import EvaluationError
from medmeta.volumes import Plan, Store, Volume
from medmeta.volumes.entry import content_hash

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


def read(text: str) -> Manifest:
    """A manifest from its JSON document.

    Raises:
        EvaluationError: where it is none, or a patient's image is on both sides of an episode.
    """
    try:
        plain = json.loads(text)
        if plain["format"] != FORMAT:
            raise KeyError(plain["format"])
        episodes = tuple(
            Episode(
                tuple(e["tumours"]),
                int(e["shot"]),
                int(e["draw"]),
                tuple(e["classes"]),
                *(tuple(Key(str(i), str(k)) for i, k in e[side]) for side in ("support", "query")),
            )
            for e in plain["episodes"]
        )
        made = Manifest(str(plain["task"]), int(plain["seed"]), int(plain["crops"]), episodes)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise EvaluationError(
            f"an episode manifest ({FORMAT})",
            found="another document",
            cure="Write one with medmeta manifest.",
        ) from error
    for e in made.episodes:
        both = {k.image for k in e.support} & {k.image for k in e.query}
        if both or not e.support or not e.query:
            raise EvaluationError(
                f"other images in the query of episode {e.name} than in its support, and some in each",
                found=f"{len(both)} in both" if both else "an empty side",
                cure="Write the manifest anew.",
            )
    return made


def open_manifest(path: str | Path) -> Manifest:
    """Read a manifest's file.

    Raises:
        EvaluationError: where there is none.
    """
    file = Path(path)
    if not file.is_file():
        raise EvaluationError(
            "a manifest's file", found="none at the path given", cure="Write one with medmeta manifest."
        )
    return read(file.read_text())


class Catalogue:
    """Some volumes by the keys a manifest knows them by; each file is read once.

    Args:
        volumes: of any types.

    Raises:
        VolumeError, CohortError: where a file cannot be read.
    """

    def __init__(self, volumes: Iterable[Volume]) -> None:
        self.volumes = tuple(volumes)

    @cached_property
    def _hashes(self) -> dict[tuple[Any, ...], str]:
        images = dict.fromkeys((v.image, v.series) for v in self.volumes)
        return {key: _image_key(*key) for key in images}

    @cached_property
    def _by_key(self) -> dict[Key, Volume]:
        found: dict[Key, Volume] = {}
        for volume in self.volumes:
            found.setdefault(self.key(volume), volume)
        return found

    def key(self, volume: Volume) -> Key:
        """The key of one of the volumes."""
        return Key(self._hashes[volume.image, volume.series], volume.tumour or FREE)

    def keys(self, volumes: Iterable[Volume]) -> tuple[Key, ...]:
        """The keys of some of the volumes; copies of an image under one type count once."""
        return tuple(dict.fromkeys(self.key(v) for v in volumes))

    def __getitem__(self, key: Key) -> Volume:
        return self._by_key[key]

    def check(self, manifest: Manifest) -> None:
        """Refuse a manifest whose cases are not all there, or that puts a patient on both sides.

        Raises:
            EvaluationError: with the numbers.
        """
        missing = sorted(k for k in manifest.cases if k not in self._by_key)
        if missing:
            kinds = sorted({k.kind for k in missing})
            known = {k.kind for k in self._by_key}
            unknown = [k for k in kinds if k not in known]
            cure = nearest(unknown[0], known) if unknown and known else "Give the cohort it was written for."
            raise EvaluationError(
                f"the {len(manifest.cases)} cases of the manifest in the cohort",
                found=f"{len(missing)} missing ({', '.join(kinds)}), first {missing[0].image}",
                cure=f"{cure} An image counts as there when its bytes are the same.",
            )
        for e in manifest.episodes:
            sides = [{self[k].patient for k in side} for side in (e.support, e.query)]
            if sides[0] & sides[1]:
                raise EvaluationError(
                    f"support and query of episode {e.name} of different patients",
                    found=f"{len(sides[0] & sides[1])} patient(s) on both sides in this cohort",
                    cure="Write the manifest anew, or correct the cohort's patient keys.",
                )

    def table(self, manifest: Manifest) -> str:
        """Which file each case is, as CSV: for other programs, to be kept where the data is."""
        rows = ["image,kind,path"]
        for key in sorted(manifest.cases):
            paths = ";".join(str(p) for p in self[key].image)
            rows.append(f'{key.image},{key.kind},"{paths}"')
        return "\n".join(rows) + "\n"


def _image_key(image: tuple[Path, ...], series: str | None) -> str:
    try:
        bytes_of = content_hash(image)
    except OSError as error:
        raise EvaluationError(
            "images that can be read",
            found=f"one that cannot ({type(error).__name__})",
            cure="Open the cohort again; it may have changed since.",
        ) from error
    return hashlib.blake2b(f"{bytes_of} {series or ''}".encode(), digest_size=8).hexdigest()


# -- drawing --------------------------------------------------------------------------------------


def draw_segmentation(
    volumes: Sequence[Volume],
    tumours: Sequence[str],
    plan: Plan,
    *,
    shots: Sequence[int] = (1, 3, 5),
    episodes: int = 10,
    absent: int | None = None,
    crops: int = 2,
    seed: int = 0,
    catalogue: Catalogue | None = None,
) -> Manifest:
    """Draw supports of every held-out type; all other patients of it, and free ones, are judged.

    A support of fewer shots is part of that of more.

    Args:
        volumes: whom nobody trained on: of the held-out types, and free of every target.
        tumours: the held-out types.
        plan: the preprocessing, of crops.
        shots: labelled patients to learn from.
        episodes: supports drawn for each number of shots.
        absent: target-free patients judged besides at most, the same ones always; None for all.
        crops: pieces a support patient.
        seed: of the draws.
        catalogue: of the volumes, where there is one.

    Raises:
        EpisodeError: where patients do not suffice for the shots.
    """
    catalogue = catalogue or Catalogue(volumes)
    store = Store(plan, salt="")  # nothing is read from it
    free = sorted((v for v in volumes if v.tumour is None), key=lambda v: (v.patient, v.image))
    order = torch.randperm(len(free), generator=generator_of(seed, 6)).tolist()[:absent]
    free = [free[i] for i in sorted(order)]
    made = []
    for tumour in tumours:
        task = segmentation_task(volumes, tumour, store, crops=crops)
        for shot, draw, drawn in _supports(task, shots, episodes, seed):
            gone = {v.patient for v in drawn}
            judged = (*task.without(drawn).volumes, *(v for v in free if v.patient not in gone))
            made.append(
                Episode(
                    (tumour,),
                    shot,
                    draw,
                    task.classes,
                    catalogue.keys(drawn),
                    _others(catalogue, judged, drawn),
                )
            )
    return Manifest("segmentation", seed, crops, tuple(made))


def draw_classification(
    volumes: Sequence[Volume],
    tumours: Sequence[str],
    plan: Plan,
    *,
    known: Sequence[Volume] = (),
    shots: Sequence[int] = (1, 3, 5),
    episodes: int = 10,
    seed: int = 0,
    catalogue: Catalogue | None = None,
) -> Manifest:
    """Draw supports to tell every held-out type from the rest, or from all types that are known.

    Args:
        volumes, tumours, plan, shots, episodes, seed, catalogue: as :func:`draw_segmentation`.
        known: patients trained on, of the known types: they are learnt from, never judged.

    Raises:
        EpisodeError: as there.
    """
    catalogue = catalogue or Catalogue((*volumes, *known))
    store = Store(plan, salt="")
    made = []
    for names, support, query in _questions(volumes, tumours, store, known):
        for shot, draw, drawn in _supports(support, shots, episodes, seed):
            judged = query.without(drawn).volumes
            keys = catalogue.keys(drawn), _others(catalogue, judged, drawn)
            made.append(Episode(names, shot, draw, support.classes, *keys))
    return Manifest("classification", seed, 0, tuple(made))


def _others(catalogue: Catalogue, judged: Sequence[Volume], drawn: Sequence[Volume]) -> tuple[Key, ...]:
    """Keys of those who are judged, sorted, without copies of images that were learnt from."""
    learnt = {k.image for k in catalogue.keys(drawn)}
    return tuple(k for k in sorted(catalogue.keys(judged)) if k.image not in learnt)


def _supports(
    task: Task, shots: Sequence[int], episodes: int, seed: int
) -> Iterable[tuple[int, int, tuple[Volume, ...]]]:
    for shot in shots:
        for draw in range(episodes):
            yield shot, draw, task.draw(shot, generator_of(seed, draw, *task.name.encode()))


def _questions(
    volumes: Sequence[Volume], tumours: Sequence[str], store: Store, known: Sequence[Volume]
) -> list[tuple[tuple[str, ...], Task, Task]]:
    """Types that are scored, who may be learnt from, who is asked of."""
    if not known:
        tasks = [classification_task(volumes, [name], store, against="rest") for name in tumours]
        return [((name,), task, task) for name, task in zip(tumours, tasks, strict=True)]
    classes = [*tumours, *sorted({v.tumour for v in known if v.tumour and v.tumour not in tumours})]
    new = [v for v in volumes if v.tumour in tumours]
    learnt = [v for v in known if v.tumour not in tumours]
    support = classification_task([*new, *learnt], classes, store)
    asked = tuple(v for v in volumes if v.tumour in classes and store.plan.takes(v))
    query = replace(support, volumes=asked, labels=tuple(classes.index(str(v.tumour)) for v in asked))
    return [(tuple(tumours), support, query)]
