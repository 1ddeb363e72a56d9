"""Who is learnt from and who is judged: supports drawn, everybody else asked of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch

from medmeta.episodes import Task, classification_task, generator_of, segmentation_task
from medmeta.evaluation.catalogue import Catalogue
from medmeta.evaluation.manifest import Episode, Key, Manifest
from medmeta.volumes import Plan, Store, Volume


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
        absent: target-free scans judged besides at most, the same ones always; None for all.
        crops: pieces a support patient.
        seed: of the draws.
        catalogue: of the volumes, where there is one.

    Raises:
        EpisodeError: where patients do not suffice for the shots.
    """
    catalogue = catalogue or Catalogue(volumes)
    store = Store(plan, salt="")  # nothing is read from it
    free = sorted((v for v in volumes if v.tumour is None), key=lambda v: v.place)
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


def available(volumes: Sequence[Volume], *tumours: str, plan: Plan, known: Sequence[Volume] = ()) -> int:
    """Patients that a support can be drawn of, of the class that has fewest.

    Args:
        volumes, tumours, plan: as for :func:`draw_segmentation`.
        known: as for :func:`draw_classification`, where the plan keeps whole volumes.

    Raises:
        EpisodeError: where no volume has a type.
    """
    store = Store(plan, salt="")
    if not plan.whole:
        return min(segmentation_task(volumes, tumour, store).patients for tumour in tumours)
    return min(support.patients for _, support, _ in _questions(volumes, tumours, store, known))


def _others(catalogue: Catalogue, judged: Sequence[Volume], drawn: Sequence[Volume]) -> tuple[Key, ...]:
    """Keys of those who are judged, sorted, without copies of images that were learnt from."""
    learnt = {k.image for k in catalogue.keys(drawn)}
    return tuple(k for k in sorted(catalogue.keys(judged)) if k.image not in learnt)


def _supports(
    task: Task, shots: Sequence[int], episodes: int, seed: int
) -> Iterable[tuple[int, int, tuple[Volume, ...]]]:
    for shot in dict.fromkeys(shots):  # asked for twice it is judged once
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
