"""The honest baselines of every evaluation, on the very same episodes and the same tuning budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medmeta.episodes import Episode, Examples, generator_of
from medmeta.episodes.task import Task, classification_task, segmentation_task
from medmeta.evaluation.pixels import Trees, WholeScan
from medmeta.evaluation.records import Method, ScanMethod
from medmeta.learners import SAFEGUARD, Learner, Safeguarded, create_learner
from medmeta.learners.gradient import GradientLearner
from medmeta.learners.registry import load_weights
from medmeta.learners.safeguard import can_go_on
from medmeta.learners.tuning import RATES, STEPS, tune_rates
from medmeta.networks import build
from medmeta.training import Run
from medmeta.volumes import Prepared, Store, Volume
from medmeta.volumes.progress import Track, silent

SCRATCH: dict[str, Any] = {"steps": 40, "rate": 3e-3}
"""Fine-tuning on the support in the baselines that do, where no meta-validation types choose it."""

NAMES = {
    "pretrain-finetune": "pre-trained and fine-tuned network",
    "pretrain-linear": "pre-trained network with a new head",
    "finetune-scratch": "network from scratch",
    "pixel-trees": "pixel classifier (ExtraTrees)",
    "copied-mask": "copied support mask",
    "ridge-untrained": "ridge regression on an untrained encoder",
    "nearest-pixels": "nearest neighbour of raw voxels",
    "majority": "commonest class of the support",
}
"""Readable names, in the order of the report."""


class _Copied(WholeScan):
    """Where most of the support's masks are, each stretched to the scan."""

    def __init__(self, masks: Sequence[Tensor]) -> None:
        super().__init__()
        self.masks = list(masks)

    def forward(self, image: Tensor) -> Tensor:
        """``(n, channel, *voxel)`` to logits ``(n, 2, *voxel)``."""
        size = tuple(image.shape[2:])
        mode = "bilinear" if len(size) == 2 else "trilinear"
        share = torch.stack(
            [
                F.interpolate(m.float()[None, None], size, mode=mode, align_corners=False)[0, 0]
                for m in self.masks
            ]
        ).mean(0)
        vote = torch.stack([0.5 - share, share - 0.5 + 1e-6])
        return vote.expand(len(image), *vote.shape)


class CopiedMask:
    """The floor of segmentation: the support's masks at the same relative place, where most of them agree.

    Example:
        >>> mask = torch.zeros(4, 4); mask[1:3, 1:3] = 1
        >>> scan = Prepared(torch.rand(1, 4, 4), mask, torch.eye(4), "p", "cyst")
        >>> int(CopiedMask().learn([scan])(torch.rand(1, 1, 8, 8)).argmax(1).sum())
        16
    """

    name = "copied-mask"

    def learn(self, support: Sequence[Prepared]) -> WholeScan:
        """Keep the masks."""
        return _Copied([p.mask for p in support if p.mask is not None])


class _Constant(nn.Module):
    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, image: Tensor) -> Tensor:
        return self.logits.expand(len(image), -1)


class Majority:
    """The floor of classification: the commonest class of the support, of equally common ones the first."""

    name = "majority"

    def adapt(self, support: Examples) -> nn.Module:
        """Count the classes."""
        counts = torch.bincount(support.label, minlength=len(support.classes)).float()
        return _Constant(torch.log(counts / counts.sum()))


class _Nearest(nn.Module):
    def __init__(self, support: Examples) -> None:
        super().__init__()
        self.support = support

    def forward(self, image: Tensor) -> Tensor:
        known = self.support.image.flatten(1).double()
        apart = torch.cdist(image.flatten(1).double(), known).square() / known.shape[1]
        classes = range(len(self.support.classes))
        near = torch.stack([apart[:, self.support.label == c].amin(1) for c in classes], 1)
        return (-near / near.mean().clamp(min=1e-12)).float()


class NearestPixels:
    """The class of the support image that is nearest, voxel by voxel (squared Euclidean distance)."""

    name = "nearest-pixels"

    def adapt(self, support: Examples) -> nn.Module:
        """Keep the support."""
        return _Nearest(support)


def baselines(run: Run, seed: int = 0) -> dict[str, Method | ScanMethod]:
    """Every baseline that is due beside a run, of its task, network and pre-training.

    Args:
        run: gives the task, the network and, where there was one, its supervised pre-training.
        seed: of random weights and trees.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network, encoder = build(run.network), build(run.network)
    made: dict[str, Method | ScanMethod] = {}
    if run.warm is not None:
        made["pretrain-finetune"] = run.warm
        if run.task == "classification":
            made["pretrain-linear"] = linear_probe(run.warm, run.network)
    made["finetune-scratch"] = create_learner("finetune-scratch", network, **SCRATCH)
    made["pixel-trees"] = Trees(seed)
    if run.task == "segmentation":
        return {**made, "copied-mask": CopiedMask()}
    made["ridge-untrained"] = create_learner("ridge", encoder)
    return {**made, "nearest-pixels": NearestPixels(), "majority": Majority()}


def methods_of(run: Run, seed: int = 0) -> dict[str, Method | ScanMethod]:
    """The run's learner, to segment fine-tuned with a safeguard where that can go on, and every baseline."""
    mine: dict[str, Method | ScanMethod] = {run.learner.name: run.learner}
    if run.task == "segmentation" and can_go_on(run.learner):
        mine["safeguarded"] = Safeguarded(run.learner, replace(SAFEGUARD, spacing=run.plan.sides))
    plain = {name: method for name, method in baselines(run, seed).items() if name not in mine}
    return {**mine, **plain}  # a run may be a baseline trained longer: it is the run that is judged


def names_of(run: Run) -> dict[str, str]:
    """What people read instead of the names of :func:`methods_of`."""
    return {
        run.learner.name: f"meta-trained ({run.learner.name})",
        "safeguarded": "meta-trained, then fine-tuned while those left out gain",
        **NAMES,
    }


def linear_probe(warm: Learner, network: Mapping[str, Any]) -> Learner:
    """The pre-trained network with only its head learning from the support."""
    probe = create_learner("pretrain-linear", build(network), **{**warm.options, "moves": "head"})
    load_weights(probe, warm.state_dict())
    return probe


# -- rates ----------------------------------------------------------------------------------------


def validation_episodes(
    run: Run, volumes: Sequence[Volume], store: Store, shots: Sequence[int], *, each: int = 4, seed: int = 0
) -> list[Episode]:
    """Tasks of the types that the run was validated on: neither trained on nor ever judged.

    Args:
        run: whose validation types are meant.
        volumes: a cohort that may hold patients of them; none gives no task.
        store: prepared volumes.
        shots: labelled patients that will be asked for; the middle one, or as many as there are.
        each: tasks a type.
        seed: of the draws.
    """
    if run.task == "segmentation":
        volumes = [v for v in volumes if v.mask is not None]
    types = [t for t in run.config.get("validated_on", ()) if any(v.tumour == t for v in volumes)]
    tasks: list[Task] = []
    if run.task == "segmentation":
        tasks = [segmentation_task(volumes, name, store) for name in types]
    elif len(types) > 1:
        tasks = [classification_task(volumes, types, store)]
    made = []
    for number, task in enumerate(tasks):
        shot = min(sorted(shots)[len(shots) // 2], task.patients - 1)
        query = min(4, task.patients - shot)
        if shot < 1 or query < 1:
            continue
        made += [
            task.episode(shot=shot, query=query, generator=generator_of(seed, 7, number, i))
            for i in range(each)
        ]
    return made


def tuned(
    methods: Mapping[str, Method | ScanMethod], episodes: Sequence[Episode], *, track: Track = silent
) -> tuple[dict[str, Method | ScanMethod], dict[str, Any]]:
    """Choose rate and steps of every method that takes steps, from one grid on the same tasks.

    One that stops by itself (``safeguarded``, ``refined-ridge``) keeps its own rate; the former starts from
    its learner with the rate and steps chosen for that.

    Args:
        methods: by name.
        episodes: meta-validation tasks; without one every method stays as it is.
        track: shows progress.

    Returns:
        The methods, and what ``results.json`` says of the choice.
    """
    done: dict[str, Method | ScanMethod] = dict(methods)
    about: dict[str, Any] = {"tasks": len(episodes), "chosen": {}}
    if not episodes:
        return done, about
    walked: dict[str, Learner] = {}
    for name, method in methods.items():
        if isinstance(method, GradientLearner):
            found = tune_rates(method, episodes, track=lambda items, **said: iter(track(items, **said)))
            done[name] = walked[name] = found
            options = found.options
            about["chosen"][name] = {"rate": options["rate"], "steps": options["adapt_steps"]}
        elif isinstance(method, Safeguarded):
            done[name] = Safeguarded(walked.get(method.learner.name, method.learner), method.tuning)
    return done, {
        **about,
        "types": sorted({c for e in episodes for c in e.support.classes if c != "background"}),
        "steps_tried": list(STEPS),
        "rates_tried": {"adam": list(RATES), "sgd": "0.3, 1 and 3 times the rate it was trained with"},
    }
