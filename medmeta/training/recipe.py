"""What to train and how, and what of a cohort it is about: split, plan, network, options."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from medmeta.episodes import Augment, TaskSource, generator_of
from medmeta.errors import nearest
from medmeta.learners import Learner, create_learner, learner_names
from medmeta.networks import encoder, lesion_encoder, unet
from medmeta.training.checkpoint import RunError
from medmeta.training.outer import Schedule
from medmeta.volumes import Cohort, Plan, Volume, make_plan
from medmeta.volumes import hold_out as hold_out_types
from medmeta.volumes.cohort import spellings

_LOG = logging.getLogger(__name__)
TASKS = ("segmentation", "classification")


@dataclass(frozen=True)
class Recipe:
    """What to train, and how; the defaults suit a few minutes on two cores.

    Args:
        task: ``"segmentation"`` or ``"classification"``.
        learner: a name of :func:`medmeta.learner_names`.
        options: of the learner.
        network: specification of the backbone; None takes a small UNet or encoder.
        schedule: of the outer loop.
        warm: of ordinary supervised pre-training before it, None for none.
        shot: fewest and most support patients a class.
        query: query patients a class.
        way: classes an episode when classifying.
        against: ``"rest"`` tells one type from all others, ``"none"`` from the tumour-free, None types apart.
        crops: pieces a patient when segmenting.
        spacing: mm to work at, the cohort's median by default.
        patch: voxels of a crop, or of a whole volume or lesion when classifying.
        lesion: classify outlined lesions with so many mm around them; None classifies whole scans.
        validate_on: types for early stopping, neither trained on nor held out.
        augment: of training episodes; none for a learner of whole scans, into which it would move their
            surroundings.
        seed: everything random is derived from it.
    """

    task: str = "segmentation"
    learner: str = "proto-maml"
    options: Mapping[str, Any] = field(default_factory=dict)
    network: Mapping[str, Any] | None = None
    schedule: Schedule = field(default_factory=Schedule)
    warm: Schedule | None = None
    shot: tuple[int, int] = (1, 5)
    query: int = 2
    way: int = 2
    against: str | None = None
    crops: int = 2
    spacing: tuple[float, float, float] | None = None
    patch: tuple[int, ...] | None = None
    lesion: float | None = None
    validate_on: tuple[str, ...] = ()
    augment: Augment | None = field(default_factory=Augment)
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("shot", "spacing", "patch", "validate_on"):
            if isinstance(getattr(self, name), list):  # as JSON has them
                object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.task not in TASKS:
            raise RunError("a task", found=repr(self.task), cure=nearest(self.task, TASKS))
        able = learner_names(self.task)
        if self.learner in learner_names() and self.learner not in able:  # create_learner knows the unknown
            raise RunError(
                f"a learner of {self.task}", found=self.learner, cure=f"Take one of {', '.join(able)}."
            )
        asked = {"lesions": self.lesion, f"one type against {self.against!r}": self.against}
        for what, given in asked.items():
            if given is not None and self.task != "classification":
                raise RunError(
                    f"{what} to classify",
                    found=f"the task {self.task}",
                    cure="Train for classification, or leave that option out.",
                )


def split(
    cohorts: Cohort | Sequence[Cohort], recipe: Recipe, held: Sequence[str]
) -> tuple[tuple[Volume, ...], tuple[Volume, ...]]:
    """Part the volumes to train on and those to validate on; who is left is for judging.

    Raises:
        CohortError: where a type is not there, or a side would be empty.
    """
    many = [cohorts] if isinstance(cohorts, Cohort) else list(cohorts)
    volumes = tuple(v for cohort in many for v in cohort.volumes)
    if len(many) > 1:  # of each alone it was said when it was opened
        alone = {said for cohort in many for said in spellings(v.patient for v in cohort.volumes)}
        for said in set(spellings(v.patient for v in volumes)) - alone:
            _LOG.warning("in these %d cohorts together, %s", len(many), said)
    if held:
        volumes, _ = hold_out_types(volumes, held, generator_of(recipe.seed, 2))
    if not recipe.validate_on:
        return volumes, ()
    return hold_out_types(volumes, recipe.validate_on, generator_of(recipe.seed, 3), share=0.3)


def plan_for(volumes: Sequence[Volume], recipe: Recipe) -> Plan:
    """The plan that the recipe asks for, from the volumes to train on.

    Raises:
        CohortError: where lesions are to be classified and no volume outlines one.
    """
    if recipe.lesion is not None:
        volumes = [v for v in volumes if v.mask is not None and v.tumour is not None]
    return make_plan(
        volumes,
        spacing=recipe.spacing,
        patch=recipe.patch,
        whole=recipe.task == "classification",
        lesion=recipe.lesion,
        cover=whole_scans(recipe),
    )


def whole_scans(recipe: Recipe) -> bool:
    """Whether the learner looks at scans as a whole: then what lies around a scan must stay as it is."""
    return recipe.task == "segmentation" and getattr(_probe(recipe), "whole_scans", False)


def _probe(recipe: Recipe) -> Learner:
    """A learner of the recipe's kind on a network of no account, to ask what it is like."""
    with torch.random.fork_rng(devices=()):  # asking must not change what is drawn next
        return create_learner(recipe.learner, torch.nn.Linear(1, 1))


def network_of(recipe: Recipe, plan: Plan) -> dict[str, Any]:
    """A small backbone for the task and the plan, where the recipe names none."""
    if plan.lesion is not None:
        return lesion_encoder(plan.inputs, plan.patch)
    make = unet if recipe.task == "segmentation" else encoder
    return make(plan.spatial_dims, plan.inputs)


def options_of(recipe: Recipe, plan: Plan) -> dict[str, Any]:
    """The learner's options: a learned head has the task's number of classes, lesions have outlines, and
    what is turned has the plan's voxels."""
    options, known = dict(recipe.options), _probe(recipe).options
    apart = recipe.task == "classification" and recipe.against is None  # else there are two classes
    asked = apart and recipe.way != 2 and "way" not in options
    if asked and known.get("way") is not None:
        options["way"] = recipe.way
    if recipe.lesion is not None and "outlined" in known:
        options.setdefault("outlined", True)  # the last channel is the outline, the rest of the box is blank
    if "spacing" in known:
        options.setdefault("spacing", list(plan.sides))  # a list, as JSON has it
    return options


def warm_options(recipe: Recipe, source: TaskSource) -> dict[str, Any]:
    """Options of the supervised pre-training; to classify, of all the source's types at once."""
    tuned = {"steps": 10}  # better than 30 or 100 on types held out of the synthetic cohort, at 1 and 5 shots
    return (
        tuned
        if recipe.task == "segmentation"
        else {**tuned, "classes": (*((recipe.against,) if recipe.against else ()), *source.types)}
    )


__all__ = ["Recipe", "network_of", "options_of", "plan_for", "split", "warm_options", "whole_scans"]
