"""What another program answered to the episodes of a manifest, judged as our own methods are."""

from __future__ import annotations

import csv
import math
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medmeta.evaluation.manifest import Episode, Key, Manifest
from medmeta.evaluation.records import EvaluationError
from medmeta.volumes import VolumeError, load_mask

SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha")


class Answers:
    """A folder of another program's predictions.

    To segment: ``FOLDER/<episode>/<image>.nii.gz``, a mask on the scan's own grid, any non-zero voxel being
    the target. To classify: ``FOLDER/predictions.csv`` with the columns ``episode``, ``image``, ``type`` and
    ``probability``, one row for each type asked of each image. Episodes and images are named as in the
    manifest (:attr:`Episode.name`, :attr:`Key.image`). What is missing counts as the worst there can be.

    Args:
        folder: of the predictions.
        manifest: whose episodes were answered.

    Raises:
        EvaluationError: where there is no folder, no prediction of any episode, or a row that cannot be.
    """

    def __init__(self, folder: str | Path, manifest: Manifest) -> None:
        self.folder, self.manifest = Path(folder), manifest
        if not self.folder.is_dir():
            raise EvaluationError(
                "a folder of predictions", found="none at the path given", cure="Check --predictions."
            )
        if manifest.task == "classification":
            _ = self._rows
        elif not any((self.folder / e.name).is_dir() for e in manifest.episodes):
            raise EvaluationError(
                f"a folder of masks for an episode, such as {manifest.episodes[0].name}",
                found="none of the manifest's episodes",
                cure="Write <episode>/<image>.nii.gz, as the manifest names them.",
            )

    def mask(self, episode: Episode, case: Key, image: Any) -> Tensor | None:
        """Boolean ``(x, y, z)`` on the grid of ``image``; None where there is none.

        Raises:
            VolumeError: where it cannot be read or is on another grid.
        """
        for suffix in SUFFIXES:
            file = self.folder / episode.name / f"{case.image}{suffix}"
            if file.is_file():
                try:
                    return load_mask(file, like=image).as_tensor()[0] > 0
                except VolumeError as error:
                    if error.code != "empty-mask":  # as a label that is a mistake, as an answer it is one
                        raise
                    return torch.zeros(tuple(image.shape[1:]), dtype=torch.bool)
        return None

    def probability(self, episode: Episode, case: Key, tumour: str) -> float | None:
        """Of the type; None where nothing was said."""
        return self._rows.get((episode.name, case.image, tumour))

    def answer(self, episode: Episode, case: Key) -> str | None:
        """The likeliest class of those that were given a probability; None where nothing was said."""
        said = {c: p for c in episode.classes if (p := self.probability(episode, case, c)) is not None}
        return max(said, key=lambda c: said[c]) if said else None

    @cached_property
    def _rows(self) -> dict[tuple[str, str, str], float]:
        file = self.folder / "predictions.csv"
        columns = {"episode", "image", "type", "probability"}
        try:
            with file.open(newline="") as text:
                rows = list(csv.DictReader(text))
        except OSError as error:
            raise EvaluationError(
                "predictions.csv in the folder of predictions", found="none", cure="Write one."
            ) from error
        if not rows or not columns <= set(rows[0]):
            raise EvaluationError(
                f"rows with the columns {', '.join(sorted(columns))}",
                found=f"the columns {', '.join(rows[0])}" if rows else "no row",
                cure="Correct predictions.csv.",
            )
        return {
            (r["episode"], r["image"], r["type"]): _chance(r["probability"], n) for n, r in enumerate(rows, 2)
        }


def _chance(text: str, line: int) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise EvaluationError(
            "probabilities from 0 to 1", found=f"{text!r} in line {line}", cure="Correct predictions.csv."
        )
    return value
