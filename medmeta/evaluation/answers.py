"""What another program answered to the episodes of a manifest, judged as our own methods are."""

from __future__ import annotations

import csv
import math
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medmeta.evaluation.manifest import Episode, Key, Manifest
from medmeta.evaluation.records import EvaluationError
from medmeta.volumes import VolumeError, load_mask

SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha")
GREY = 255
"""What many programs write for the target in a mask of bytes."""
COLUMNS = ("episode", "image", "type", "probability")


def check_programs(names: Sequence[str], ours: Collection[str]) -> None:
    """Refuse other programs' names that could be taken for each other or for a method of ours.

    Args:
        names: as they were given, each as often as it was.
        ours: names of our methods, and what the report calls them.

    Raises:
        EvaluationError: naming the one.

    Example:
        >>> check_programs(["nnunet", "sam"], ["maml"])
        >>> check_programs(["nnunet", "MAML"], ["maml"])
        Traceback (most recent call last):
            ...
        medmeta.evaluation.records.EvaluationError: wanted other programs' names that are no method's of \
medmeta, found 'MAML'. Give it another name.
    """
    taken = {name.casefold() for name in ours}
    given: set[str] = set()
    for name in names:
        if name.casefold() in taken:
            raise EvaluationError(
                "other programs' names that are no method's of medmeta",
                found=repr(name),
                cure="Give it another name.",
            )
        if name.casefold() in given:
            raise EvaluationError(
                "each other program once", found=f"{name!r} twice", cure="Give one of them another name."
            )
        given.add(name.casefold())


class Answers:
    """A folder of another program's predictions.

    To segment: ``FOLDER/<episode>/<image>.nii.gz``, a mask on the scan's own grid, any non-zero voxel being
    the target. To classify: ``FOLDER/predictions.csv`` with the columns ``episode``, ``image``, ``type`` and
    ``probability``, one row for each image of the type that is scored, or of each of the
    classes where they are three or more. Episodes and images are named as in the
    manifest (:attr:`Episode.name`, :attr:`Key.image`). What is missing counts as the worst there can be.

    Args:
        folder: of the predictions.
        manifest: whose episodes were answered.

    Raises:
        EvaluationError: where there is no folder, no prediction of any case that is asked of, or a row that
            cannot be: incomplete, given twice, no probability, or of nothing that the manifest has.
    """

    def __init__(self, folder: str | Path, manifest: Manifest) -> None:
        self.folder, self.manifest = Path(folder), manifest
        if not self.folder.is_dir():
            raise EvaluationError(
                "a folder of predictions", found="none at the path given", cure="Check --predictions."
            )
        if manifest.task == "classification":
            _ = self._rows
        else:
            self._check_masks()

    def _check_masks(self) -> None:
        """Refuse a folder without a single mask that is asked for, whatever else is in it."""
        episodes = self.manifest.episodes
        if any(self._file(e, key) is not None for e in episodes for key in e.query):
            return
        there = sum((self.folder / e.name).is_dir() for e in episodes)
        example = f"{episodes[0].name}/{episodes[0].query[0].image}{SUFFIXES[0]}"
        raise EvaluationError(
            f"masks named as in the manifest, such as {example}",
            found=f"folders of {there} of its episodes, none with such a mask"
            if there
            else "none of the manifest's episodes",
            cure="Write <episode>/<image>.nii.gz, as the manifest names them.",
        )

    def _file(self, episode: Episode, case: Key) -> Path | None:
        """Where the mask of a case is, if anywhere."""
        names = (self.folder / episode.name / f"{case.image}{suffix}" for suffix in SUFFIXES)
        return next((file for file in names if file.is_file()), None)

    def mask(self, episode: Episode, case: Key, image: Any) -> Tensor | None:
        """Boolean ``(x, y, z)`` on the grid of ``image``; None where there is none.

        Raises:
            VolumeError: where it cannot be read or is on another grid.
        """
        file = self._file(episode, case)
        return None if file is None else outlined(file, image)

    def probability(self, episode: Episode, case: Key, tumour: str) -> float | None:
        """Of the type; None where nothing was said."""
        return self._rows.get((episode.name, case.image, tumour))

    def answer(self, episode: Episode, case: Key) -> str | None:
        """The likeliest class of those that were given a probability; None where nothing was said."""
        said = {c: p for c in episode.classes if (p := self.probability(episode, case, c)) is not None}
        return max(said, key=lambda c: said[c]) if said else None

    @cached_property
    def _rows(self) -> dict[tuple[str, str, str], float]:
        found: dict[tuple[str, str, str], float] = {}
        episodes = {e.name: e for e in self.manifest.episodes}
        images = {name: {k.image for k in (*e.query, *e.support)} for name, e in episodes.items()}
        for line, row in _table(self.folder / "predictions.csv"):
            name, image, kind, text = (row[column].strip() for column in COLUMNS)
            value = _chance(text, line)
            _check_row(episodes, images, (name, image, kind), line)
            if (name, image, kind) in found:
                raise _refused("one row for each type of each image", f"one again in line {line}")
            found[name, image, kind] = value
        _complete(episodes, found)
        asked = {(name, k.image, t) for name, e in episodes.items() for k in e.query for t in e.tumours}
        if not asked & found.keys():
            scored = ", ".join(self.manifest.tumours)
            raise _refused(f"the probability of {scored} for an image that is asked of", "that of none")
        return found


def outlined(file: Path, image: Any) -> Tensor:
    """Boolean ``(x, y, z)``: where a program's mask, on the image's grid, is not zero.

    Raises:
        VolumeError: where it cannot be read, or is on another grid.
    """
    try:
        return load_mask(file, like=image).as_tensor()[0] > 0
    except VolumeError as error:  # as labels these two are mistakes, as answers they are what was meant
        if error.code == "empty-mask":
            return torch.zeros(tuple(image.shape[1:]), dtype=torch.bool)
        if error.code == "grey-mask":
            return load_mask(file, like=image, label=GREY).as_tensor()[0] > 0
        raise


def _refused(wanted: str, found: str, cure: str = "Correct predictions.csv.") -> EvaluationError:
    return EvaluationError(wanted, found=found, cure=cure)


def _table(file: Path) -> list[tuple[int, dict[str, str]]]:
    """The rows of ``predictions.csv``, each complete, with the line that it ends in."""
    try:
        with file.open(newline="", encoding="utf-8-sig") as text:  # Excel begins a file with a mark
            reader = csv.DictReader(text)
            rows = [(reader.line_num, row) for row in reader]
    except OSError as error:
        raise _refused("predictions.csv in the folder of predictions", "none", "Write one.") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise _refused(
            "predictions.csv as text in UTF-8", "another encoding or file", "Save it as CSV in UTF-8."
        ) from error
    if not rows or not set(COLUMNS) <= set(rows[0][1]):
        names = [str(name) for name in rows[0][1]] if rows else []
        raise _refused(
            f"rows with the columns {', '.join(COLUMNS)}",
            f"the columns {', '.join(names)}" if names else "no row",
        )
    for line, row in rows:
        if None in row or None in row.values():
            raise _refused(
                "a field a column in every row, those with a comma in quotes",
                f"{'more' if None in row else 'fewer'} in line {line}",
            )
    return rows


def _check_row(
    episodes: Mapping[str, Episode], images: Mapping[str, set[str]], of: tuple[str, str, str], line: int
) -> None:
    """Refuse a row of what the manifest does not have: its case would count as one that is missing.

    What the row has instead is not said: it may be a patient's name.
    """
    name, image, kind = of
    if name not in episodes:
        raise _refused(
            f"episodes of the manifest, such as {next(iter(episodes))}", f"another name in line {line}"
        )
    episode = episodes[name]
    if image not in images[name]:
        with_suffix = any(image.removesuffix(suffix) in images[name] for suffix in SUFFIXES)
        raise _refused(
            f"images of the episode as the manifest names them, such as {episode.query[0].image}",
            f"{'one with a suffix' if with_suffix else 'another name'} in line {line}",
        )
    if kind not in episode.classes:
        raise _refused(f"types of the episode ({', '.join(episode.classes)})", f"another name in line {line}")


def _complete(episodes: Mapping[str, Episode], found: Collection[tuple[str, str, str]]) -> None:
    """Refuse an image of which one type was said and another not, where several are told apart.

    Which is the likeliest is not known then: the one that was said would be taken, however unlikely.
    """
    for name, episode in episodes.items():
        said = [sum((name, k.image, c) in found for c in episode.classes) for k in episode.query]
        partly = sum(0 < n < len(episode.classes) for n in said)
        if partly and len(episode.classes) > 2:
            raise _refused(
                f"the probability of each of {', '.join(episode.classes)} for every image of episode {name} "
                "that is answered",
                f"{partly} image(s) with some of them",
            )


def _chance(text: str, line: int) -> float:
    """A probability; what is none, NaN among it, is refused."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise _refused("probabilities from 0 to 1", f"{text!r} in line {line}")
    return value
