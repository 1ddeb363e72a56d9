"""Every learner by name: a preset is a composition of few parts, not a class of its own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from medmeta.errors import nearest
from medmeta.learners.comparing import matching, relation, siamese
from medmeta.learners.episodic import BOTH, CLASSIFY
from medmeta.learners.gradient import GradientLearner
from medmeta.learners.inner import OPTIONS, inner_from
from medmeta.learners.memory import MemoryLearner
from medmeta.learners.protocol import Learner, LearnerError
from medmeta.learners.prototype import PrototypeLearner
from medmeta.learners.ridge import RidgeLearner


@dataclass(frozen=True)
class Preset:
    """What makes a learner of a name: a function, its own options, those it knows, the tasks it can do."""

    make: Callable[..., Learner]
    options: Mapping[str, Any]
    known: frozenset[str]
    tasks: frozenset[str] = BOTH


def _gradient(**options: Any) -> Preset:
    def make(name: str, network: nn.Module, **chosen: Any) -> Learner:
        return GradientLearner(name, network, inner_from(chosen))

    return Preset(make, options, OPTIONS)


def _other(make: Callable[..., Learner], tasks: frozenset[str] = BOTH, **options: Any) -> Preset:
    known = frozenset(inspect.signature(make).parameters) - {"name", "network", "self"}
    return Preset(make, options, known, tasks)


_TUNED: Mapping[str, Any] = {"optimiser": "adam", "rate": 1e-3, "steps": 100}
"""Ordinary fine-tuning; ``tune_rates`` chooses rate and steps on meta-validation tasks."""

PRESETS: Mapping[str, Preset] = {
    "proto-maml": _gradient(head="prototypes", rates="step"),
    "maml": _gradient(head="learned", way=2),
    "fomaml": _gradient(head="learned", way=2, order="first"),
    "anil": _gradient(head="learned", way=2, moves="head"),
    "meta-sgd": _gradient(head="learned", way=2, rates="weight"),
    "maml++": _gradient(head="learned", way=2, rates="step", steps=5, anneal=50),
    "reptile": _gradient(head="learned", way=2, order="reptile", steps=5),
    "imaml": _gradient(head="learned", way=2, order="implicit", steps=10, proximity=1.0),
    "prototypical": _other(PrototypeLearner),
    "matching": _other(matching, CLASSIFY),
    "relation": _other(relation, CLASSIFY),
    "siamese": _other(siamese, CLASSIFY),
    "ridge": _other(RidgeLearner),
    "mann": _other(MemoryLearner, CLASSIFY),
    "finetune-scratch": _gradient(head="zeros", order="none", **_TUNED),
    "pretrain-linear": _gradient(head="learned", way=2, order="supervised", moves="head", **_TUNED),
    "pretrain-finetune": _gradient(head="learned", way=2, order="supervised", **_TUNED),
}


def learner_names(task: str | None = None) -> tuple[str, ...]:
    """List the learners, those that can do a task or all.

    Example:
        >>> "proto-maml" in learner_names("segmentation")
        True
    """
    return tuple(name for name, preset in PRESETS.items() if task is None or task in preset.tasks)


def create_learner(name: str, network: nn.Module, **options: Any) -> Learner:
    """Make a learner by name on any backbone.

    Args:
        name: one of :func:`learner_names`.
        network: image ``(n, channel, *voxel)`` to feature ``(n, feature, *space)``; MONAI's or your own.
        options: what to change in the preset.

    Raises:
        LearnerError: for an unknown name or option (with the nearest one), or a network it cannot use.

    Example:
        >>> from medmeta.networks import build, encoder
        >>> create_learner("proto-maml", build(encoder(2, 1)), steps=5).options["steps"]
        5
    """
    if name not in PRESETS:
        raise LearnerError("a learner's name", found=repr(name), cure=nearest(name, PRESETS))
    preset = PRESETS[name]
    for option in options:
        if option not in preset.known:
            raise LearnerError(
                f"an option that {name} has", found=repr(option), cure=nearest(option, preset.known)
            )
    return preset.make(name, network, **{**preset.options, **options})
