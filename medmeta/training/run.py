"""What training leaves: a folder with weights, the resolved configuration, the log, what resuming needs."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from medmeta.learners import Learner, create_learner
from medmeta.networks import build
from medmeta.training.checkpoint import (
    RunError,
    cannot_write,
    read_tensors,
    write_bytes,
    write_json,
    write_tensors,
)
from medmeta.training.outer import Progress
from medmeta.volumes import Plan, Volume, patient_key

FORMAT = 2
"""Of the folder; another one is refused."""


@dataclass(frozen=True)
class Run:
    """A trained learner with all that its use needs.

    Args:
        learner: with the weights that training left (the best validated ones where there were any).
        plan: the preprocessing that its images need.
        task: ``"segmentation"`` or ``"classification"``.
        types: tumour types it was trained on, each for itself.
        held_out: types that no stage of training saw.
        network: the backbone's specification, for :func:`medmeta.networks.build`.
        config: the whole resolved configuration.
        path: the folder.
        warm: weights of the ordinary supervised pre-training on the same types, where there was one.
    """

    learner: Learner
    plan: Plan
    task: str
    types: tuple[str, ...]
    held_out: tuple[str, ...]
    network: Mapping[str, Any]
    config: Mapping[str, Any]
    path: Path
    warm: Learner | None = None

    @property
    def drawn(self) -> tuple[str, ...]:
        """The types of all volumes that training drew: those of ``types``, and the others of its ``"rest"``.

        Runs that were trained before this was kept know of the former alone.
        """
        return tuple(self.config.get("drawn", self.types))

    def unseen(self, volumes: Sequence[Volume]) -> tuple[Volume, ...]:
        """The volumes that may be judged: no patient and no type of theirs was trained or validated on."""
        types = {*self.types, *self.drawn, *self.config["validated_on"]}
        return tuple(v for v in self.new_patients(volumes) if v.tumour not in types)

    def new_patients(self, volumes: Sequence[Volume]) -> tuple[Volume, ...]:
        """The volumes of patients whom no stage saw, of any type."""
        seen, salt = set(self.config["seen"]), self.config["salt"]
        return tuple(v for v in volumes if patient_key(v.patient, salt) not in seen)


class Folder:
    """The folder of a run while it trains: saves at once or not at all, logs line by line.

    Args:
        path: the folder.
        writes: whether this process is the one that writes.
        stage: name of a training that comes before the outer loop; its files and figures are kept apart.
    """

    def __init__(self, path: Path, *, writes: bool = True, stage: str = "") -> None:
        self.path, self.writes, self.stage = path, writes, stage
        self.log = path / f"{stage or 'log'}.jsonl"
        self.state = path / (f"{stage}-last.safetensors" if stage else "last.safetensors")
        self._board: Any = None
        self._again: int | None = None  # first step that is taken once more

    def start(self, config: Mapping[str, Any]) -> None:
        """Write the configuration."""
        if self.writes:
            write_json(self.path / "config.json", config)

    def save(self, learner: nn.Module, optimiser: torch.optim.Optimizer, progress: Progress) -> None:
        """Save weights and optimiser in one file, so that a kill between two files cannot part them."""
        if not self.writes:
            return
        tensors = {f"learner.{name}": value for name, value in learner.state_dict().items()}
        state = optimiser.state_dict()
        for number, slots in state["state"].items():
            tensors |= {f"optimiser.{number}.{slot}": torch.as_tensor(v) for slot, v in slots.items()}
        about = {"progress": asdict(progress), "groups": state["param_groups"]}
        write_tensors(self.state, tensors, about)

    def save_best(self, learner: nn.Module) -> None:
        """Save the weights alone."""
        if self.writes:
            write_tensors(self.path / "weights.safetensors", learner.state_dict())

    def finish(self, learner: nn.Module) -> None:
        """Leave the weights to use: the best, or the last where none was validated."""
        if self.writes and not (self.path / "weights.safetensors").is_file():
            self.save_best(learner)
        self.close()

    def close(self) -> None:
        """Write out what TensorBoard has not yet."""
        if self._board is not None:
            self._board.close()
            self._board = None

    def restore(self, learner: nn.Module, optimiser: torch.optim.Optimizer) -> Progress:
        """Put learner and optimiser back to where :meth:`save` left them."""
        tensors, about = read_tensors(self.state)
        learner.load_state_dict({n[8:]: t for n, t in tensors.items() if n.startswith("learner.")})
        slots: dict[int, dict[str, torch.Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("optimiser."):
                _, number, slot = name.split(".", 2)
                slots.setdefault(int(number), {})[slot] = value
        optimiser.load_state_dict({"state": slots, "param_groups": about["groups"]})
        progress = Progress(**about["progress"])
        self._forget_after(progress.step - (progress.pending is not None))
        return progress

    def start_over(self) -> Progress:
        """Begin once more where an earlier process was killed before it saved."""
        self._forget_after(0)
        return Progress()

    def _forget_after(self, step: int) -> None:
        """Drop the figures of steps that were lost with a kill and will be taken again."""
        self._again = step + 1
        if self.writes and self.log.is_file():
            kept = [
                line for line in self.log.read_bytes().splitlines(keepends=True) if _step_of(line) <= step
            ]
            write_bytes(self.log, b"".join(kept))

    def note(self, record: dict[str, Any]) -> None:
        """Append one line of JSON, and the same to TensorBoard.

        Raises:
            RunError: where the disk refuses.
        """
        if not self.writes:
            return
        try:
            with self.log.open("a", encoding="utf-8") as log:
                log.write(json.dumps(record) + "\n")
        except OSError as error:
            raise cannot_write(self.log, error, "what was saved is intact, go on with --resume") from error
        if self._board is None:
            from torch.utils.tensorboard import SummaryWriter

            # a folder a stage, for what is forgotten from a step on is forgotten of all that lies beside it
            board = self.path / "tensorboard" / self.stage
            self._board = SummaryWriter(str(board), purge_step=self._again)
        for name in record.keys() - {"step"}:
            self._board.add_scalar(f"{self.stage}/{name}".lstrip("/"), record[name], record["step"])


def _step_of(line: bytes) -> float:
    """The step of a line of the log; infinite where a kill cut the line."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def open_run(path: str | os.PathLike[str]) -> Run:
    """Open what training left.

    Raises:
        RunError: where the folder is no run, is damaged, or was made by an incompatible version.
    """
    folder = Path(path)
    config = read_config(folder)
    learner = create_learner(
        config["learner"]["name"], build(config["network"]), **config["learner"]["options"]
    )
    _load(learner, folder / "weights.safetensors")
    warm = None
    if (folder / "pretrained.safetensors").is_file():
        warm = create_learner("pretrain-finetune", build(config["network"]), **config["warm"])
        _load(warm, folder / "pretrained.safetensors")
    return Run(
        learner,
        Plan.from_json(config["plan"]),
        config["task"],
        tuple(config["types"]),
        tuple(config["held_out"]),
        config["network"],
        config,
        folder,
        warm,
    )


def load_run(path: str | os.PathLike[str]) -> Learner:
    """The learner of a run; :func:`open_run` gives its plan and types besides.

    Raises:
        RunError: as :func:`open_run`.
    """
    return open_run(path).learner


def read_config(folder: Path) -> dict[str, Any]:
    """The resolved configuration of a run.

    Raises:
        RunError: where there is none that this version can read.
    """
    file = folder / "config.json"
    if not file.is_file():
        raise RunError(
            "a run folder with a config.json",
            found=f"none in {folder.name}",
            cure="Give what 'medmeta train' wrote.",
        )
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        version = config["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise RunError("a run's config.json", found="another file", cure="Train again.") from error
    if version != FORMAT:
        raise RunError(
            f"a run of format {FORMAT}",
            found=f"format {version}, made by medmeta {config.get('versions', {}).get('medmeta', 'unknown')}",
            cure="Train again with this version, or install the one that made it.",
        )
    return dict(config)


def _load(learner: Learner, file: Path) -> None:
    from medmeta.learners import load_weights

    tensors, _ = read_tensors(file)
    load_weights(learner, tensors)
