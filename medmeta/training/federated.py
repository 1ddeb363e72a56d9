"""Meta-training as one of several sites: what MONAI's engines and MonaiAlgo run, told by a bundle's JSON.

Each site draws episodes of its own tumour types; weights of the learner are all that leaves it. Averaging
them (McMahan et al. 2017) meta-trains on the types of all sites.
"""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medmeta.episodes import Augment, Episode, TaskSource
from medmeta.errors import new_folder
from medmeta.learners import load_weights
from medmeta.learners.tuning import score
from medmeta.training.checkpoint import RunError
from medmeta.training.run import FORMAT, Folder, Run, open_run
from medmeta.volumes import Cohort, Store


class Episodes:
    """Some episodes of a site's cohort at each pass: new ones to train on, the same ones to judge by.

    Args:
        cohort: the site's.
        store: prepared volumes; its plan is that of all sites.
        types: those to take; None takes all but ``leave_out``.
        leave_out: types to judge by at any site; a patient who has one is not trained on.
        length: episodes a pass.
        shot: fewest and most support patients a class.
        query: query patients a class.
        way: classes an episode when classifying.
        crops: pieces a patient when segmenting.
        augment: of the episodes.
        fixed: give the same episodes at each pass.
        seed: of the stream.

    Raises:
        EpisodeError: where too few types have enough patients.
    """

    def __init__(
        self,
        cohort: Cohort,
        store: Store,
        *,
        types: Sequence[str] | None = None,
        leave_out: Sequence[str] = (),
        length: int = 20,
        shot: Sequence[int] = (1, 3),
        query: int = 2,
        way: int = 2,
        crops: int = 2,
        augment: Augment | None = None,
        fixed: bool = False,
        seed: int = 0,
    ) -> None:
        out = {v.patient for v in cohort.volumes if v.tumour in leave_out}
        volumes = tuple(v for v in cohort.volumes if v.patient not in out)
        if types is not None:
            volumes = tuple(v for v in volumes if v.tumour in types)
        low, high = shot
        self.source = TaskSource(
            volumes, store, seed=seed, shot=(low, high), query=query, way=way, crops=crops, augment=augment
        )
        self.length, self.fixed, self.position = length, fixed, 0

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Episode]:
        first = self.position
        if not self.fixed:
            self.position += self.length
        for index in range(first, first + self.length):
            yield self.source[index]


def meta_update(engine: Any, episode: Episode) -> dict[str, float]:
    """One outer step on one episode; the ``iteration_update`` of MONAI's SupervisedTrainer.

    Args:
        engine: the trainer, whose ``network`` is a learner and whose ``optimizer`` moves it.
        episode: from :class:`Episodes`.

    Raises:
        RunError: where the loss or its gradient is not finite; the weights stay as they were.
    """
    learner = engine.network.train()
    engine.optimizer.zero_grad()
    loss = float(learner.backward([episode.to(engine.state.device)], scale=1.0).mean())
    if not torch.isfinite(torch.tensor(loss)):
        raise RunError("a finite loss", found=f"{loss}", cure="Lower the learning rate.")
    norm = torch.nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
    if not bool(torch.isfinite(norm)):  # a step would make every weight NaN, and the others' by averaging
        raise RunError(
            "a finite meta-gradient",
            found=f"a length of {float(norm)} at a loss of {loss:g}",
            cure="Lower the learning rate.",
        )
    engine.optimizer.step()
    return {"loss": loss}


def meta_score(engine: Any, episode: Episode) -> list[dict[str, float]]:
    """Learn from an episode's support and judge on its query; ``iteration_update`` of SupervisedEvaluator."""
    moved = episode.to(engine.state.device)
    return [{"score": score(engine.network.eval().adapt(moved.support), moved.query)}]


def finish(bundle: str | os.PathLike[str], weights: Mapping[str, Tensor], out: str | os.PathLike[str]) -> Run:
    """Make averaged weights a run, which ``medmeta adapt`` and ``medmeta evaluate`` take.

    Who was trained on is known to the sites alone: judge on types that every site left out.

    Args:
        bundle: the training bundle that the sites ran.
        weights: of the learner, as MonaiAlgo sends them.
        out: folder to write.

    Raises:
        RunError: where ``out`` exists.
        LearnerError: where the weights are of another learner.
    """
    from monai.bundle import ConfigParser

    folder = new_folder(out, RunError)
    parser = ConfigParser()
    parser.read_config(Path(bundle) / "configs" / "train.json")
    parser["bundle_root"] = str(bundle)
    learner, plan = (parser.get_parsed_content(part) for part in ("learner", "plan"))
    load_weights(learner, weights)
    packages = ("medmeta", "torch", "monai", "numpy")
    keeper = Folder(folder)
    folder.mkdir(parents=True)
    keeper.finish(_module(learner))
    keeper.start(
        {
            "format": FORMAT,
            "task": "classification" if plan.whole else "segmentation",
            "learner": {"name": learner.name, "options": dict(learner.options)},
            "network": parser["network_def"],
            "plan": plan.to_json(),
            "salt": "",
            "types": [],
            "held_out": list(parser["validate_on"]),
            "validated_on": [],
            "seen": [],
            "recipe": {"schedule": {"steps": 0}},
            "versions": {name: importlib.metadata.version(name) for name in packages},
        }
    )
    return open_run(folder)


def _module(learner: Any) -> nn.Module:
    assert isinstance(learner, nn.Module)
    return learner
