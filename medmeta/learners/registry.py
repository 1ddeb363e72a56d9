"""Every learner by name: a preset is a composition of few parts, not a class of its own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor, nn

from medmeta.errors import nearest
from medmeta.learners.body_trees import BodyTreesLearner
from medmeta.learners.comparing import matching, relation, siamese
from medmeta.learners.episodic import BOTH, CLASSIFY
from medmeta.learners.gradient import GradientLearner
from medmeta.learners.in_context import InContextLearner
from medmeta.learners.inner import OPTIONS, inner_from
from medmeta.learners.local_prototype import LocalPrototypeLearner
from medmeta.learners.protocol import Learner, LearnerError
from medmeta.learners.prototype import PrototypeLearner
from medmeta.learners.ranked_regions import RankedRegionsLearner
from medmeta.learners.refined import RefinedRidgeLearner
from medmeta.learners.remembering import MemoryLearner
from medmeta.learners.ridge import RidgeLearner


@dataclass(frozen=True)
class Preset:
    """What makes a learner of a name: a function, its own options, those it knows with their types, the tasks
    it can do."""

    make: Callable[..., Learner]
    options: Mapping[str, Any]
    known: Mapping[str, str]
    tasks: frozenset[str] = BOTH


def _gradient(**options: Any) -> Preset:
    def make(name: str, network: nn.Module, **chosen: Any) -> Learner:
        return GradientLearner(name, network, inner_from(chosen))

    return Preset(make, options, OPTIONS)


def _other(make: Callable[..., Learner], tasks: frozenset[str] = BOTH, **options: Any) -> Preset:
    asked = inspect.signature(make).parameters.values()
    known = {p.name: str(p.annotation) for p in asked if p.name not in ("name", "network", "self")}
    return Preset(make, options, known, tasks)


_TUNED: Mapping[str, Any] = {"optimiser": "adam", "rate": 1e-3, "steps": 100}
"""Ordinary fine-tuning; ``tune_rates`` chooses rate and steps on meta-validation tasks."""

PRESETS: Mapping[str, Preset] = {
    "proto-maml": _gradient(head="prototypes", rates="step", adapt_steps=10),
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
    "refined-ridge": _other(RefinedRidgeLearner),
    "local-prototype": _other(LocalPrototypeLearner),
    "body-trees": _other(BodyTreesLearner),
    "ranked-regions": _other(RankedRegionsLearner),
    "in-context": _other(InContextLearner),
    "mann": _other(MemoryLearner, CLASSIFY),
    "finetune-scratch": _gradient(head="zeros", order="none", **_TUNED),
    "pretrain-linear": _gradient(head="learned", way=2, order="supervised", moves="head", **_TUNED),
    "pretrain-finetune": _gradient(head="learned", way=2, order="supervised", **_TUNED),
}


def load_weights(learner: Learner, weights: Mapping[str, Tensor]) -> None:
    """Give a learner weights learnt before, all of them or none.

    Args:
        learner: made from the same network and options as the one that learnt them.
        weights: its ``state_dict``.

    Raises:
        LearnerError: where names or shapes are those of another network, or a weight is not finite.

    Example:
        >>> from medmeta.networks import build, encoder
        >>> one, other = (create_learner("prototypical", build(encoder(2, 1))) for _ in range(2))
        >>> load_weights(one, other.state_dict())
    """
    own = learner.state_dict()
    wrong = [f"{n} missing" for n in own if n not in weights]
    wrong += [f"{n} unknown" for n in weights if n not in own]
    wrong += [
        f"{n} of shape {tuple(weights[n].shape)} for {tuple(w.shape)}"
        for n, w in own.items()
        if n in weights and weights[n].shape != w.shape
    ]
    if wrong:
        raise LearnerError(
            f"the weights of this {learner.name} on this network",
            found=f"{len(wrong)} that do not fit, first {wrong[0]}",
            cure="Create the learner with the same network and options that the weights were learnt with.",
        )
    broken = [n for n, w in weights.items() if w.is_floating_point() and not bool(torch.isfinite(w).all())]
    if broken:
        raise LearnerError(
            "finite weights", found=f"NaN or infinity in {broken[0]}", cure="Take an earlier checkpoint."
        )
    with torch.no_grad():
        for name, weight in own.items():
            weight.copy_(weights[name])


def learner_names(task: str | None = None) -> tuple[str, ...]:
    """List the learners, those that can do a task or all.

    Example:
        >>> "proto-maml" in learner_names("segmentation")
        True
    """
    return tuple(name for name, preset in PRESETS.items() if task is None or task in preset.tasks)


_KINDS: Mapping[str, tuple[str, type]] = {
    "bool": ("true or false", bool),
    "int": ("a whole number", Integral),
    "float": ("a number", Real),
    "str": ("a word", str),
    "None": ("None", type(None)),
}


def _check_kind(option: str, value: object, written: str) -> None:
    """Refuse a value of another kind than an option's type as it is written, where that is a plain one."""
    kinds = [_KINDS.get(kind) for kind in written.split(" | ")]
    known = [kind for kind in kinds if kind is not None]
    fits = any(isinstance(value, type_) and isinstance(value, bool) <= (type_ is bool) for _, type_ in known)
    if len(known) == len(kinds) and not fits:
        raise LearnerError(
            f"{' or '.join(words for words, _ in known)} for {option}",
            found=repr(value),
            cure="Change that option.",
        )


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
        _check_kind(option, options[option], preset.known[option])
    return preset.make(name, network, **{**preset.options, **options})
