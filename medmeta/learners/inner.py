"""How a learner learns a task: the few parts that tell MAML from ANIL from Meta-SGD from fine-tuning."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from medmeta.errors import nearest
from medmeta.learners.protocol import LearnerError

WORDS: Mapping[str, tuple[str, ...]] = {
    "rates": ("fixed", "layer", "step", "weight"),
    "moves": ("all", "head"),
    "head": ("learned", "zeros", "prototypes"),
    "order": ("second", "first", "reptile", "implicit", "supervised", "none"),
    "optimiser": ("sgd", "adam"),
    "backend": ("auto", "loop", "recompute", "batched", "compiled"),
    "precision": ("full", "bf16"),
}
"""What an option of words may say."""


@dataclass(frozen=True)
class Inner:
    """How a learner learns a task.

    Args:
        steps: gradient steps while meta-training.
        adapt_steps: gradient steps of ``adapt``, the same by default; may be more.
        rate: learning rate of a step, of all steps where rates are learned to begin with.
        rates: what has a learned rate of its own: ``fixed`` nothing, ``layer`` each weight tensor, ``step``
            each tensor at each step (MAML++), ``weight`` each single weight (Meta-SGD).
        moves: ``all`` weights or the ``head`` alone (ANIL).
        head: where the head starts: ``learned`` (then ``way`` or ``classes`` must be given), ``zeros`` or
            ``prototypes``.
        order: how the outer loop looks back at the steps: derivatives of the ``second`` or ``first``
            order, the way gone (``reptile``), the ``implicit`` function theorem, ``supervised`` (ordinary
            training on all examples, no steps) or ``none`` (nothing is meta-learnt).
        optimiser: of ``adapt``: ``sgd`` or ``adam``.
        way: number of classes, for a learned head.
        feature: number of the network's features, for a learned head; found out by default.
        classes: names of the classes that a supervised head has a row for.
        anneal: outer steps over which MAML++ goes from first to second order and from the mean of the query
            losses after every step to the last one; 0 for neither.
        clip: longest slope of a step, over all moving weights together; 0 for no limit.
        proximity: pull back to the start in the inner loss (iMAML's lambda), of every order that takes steps
            and of ``adapt``.
        backend: how second derivatives are computed: ``auto``, ``loop``, ``recompute``, ``batched`` or
            ``compiled`` (batched, and compiled for each shape of tasks; graphs captured on a GPU).
        precision: of the network's activations: ``full``, that of its weights, or ``bf16`` by autocast, for
            GPUs; weights, head, losses and steps keep theirs.

    Raises:
        LearnerError: for a value that cannot be, naming those that can.
    """

    steps: int = 3
    adapt_steps: int | None = None
    rate: float = 0.1
    rates: str = "fixed"
    moves: str = "all"
    head: str = "zeros"
    order: str = "second"
    optimiser: str = "sgd"
    way: int | None = None
    feature: int | None = None
    classes: tuple[str, ...] = ()
    anneal: int = 0
    clip: float = 0.0
    proximity: float = 0.0
    backend: str = "auto"
    precision: str = "full"

    def __post_init__(self) -> None:
        for name, words in WORDS.items():
            found = getattr(self, name)
            if found not in words:
                raise LearnerError(f"a known {name}", found=repr(found), cure=nearest(found, words))
        _want(self.rate > 0 and math.isfinite(self.rate), "a positive learning rate", f"rate={self.rate}")
        _want(self.steps >= 0, "zero or more inner steps", f"steps={self.steps}")
        _want((self.adapt_steps or 0) >= 0, "zero or more steps", f"adapt_steps={self.adapt_steps}")
        _want(self.way is None or self.way >= 2, "two classes or more", f"way={self.way}")
        _want(self.feature is None or self.feature >= 1, "one feature or more", f"feature={self.feature}")
        _want(self.anneal >= 0, "zero or more outer steps of annealing", f"anneal={self.anneal}")
        _want(self.clip >= 0, "a limit of zero or more", f"clip={self.clip}")
        _want(0 <= self.proximity < math.inf, "a pull of zero or more", f"proximity={self.proximity}")
        _want(
            len(set(self.classes)) == len(self.classes), "names of classes once each", ", ".join(self.classes)
        )
        _want(
            self.order != "implicit" or self.proximity > 0,
            "a pull back to the start, which the implicit gradient is about",
            f"proximity={self.proximity}",
        )
        _want(
            self.head != "learned" or self.rows is not None,
            "the number of classes that a learned head has a row for each",
            "head='learned' without way or classes",
            "Give way=2 or more, or another head.",
        )
        _want(
            self.rates != "weight" or not self.classes,
            "rates of tensors, where each task has rows of the head of its own, by name",
            "rates='weight' with classes",
            "Give rates='layer', or way in place of classes.",
        )

    @property
    def rows(self) -> int | None:
        """Rows of a learned head, if there is to be one."""
        if self.head != "learned" and not self.classes:
            return None
        return len(self.classes) or self.way


def _want(so: bool, wanted: str, found: str, cure: str = "Change that option.") -> None:
    if not so:
        raise LearnerError(wanted, found=found, cure=cure)


def inner_from(options: Mapping[str, Any]) -> Inner:
    """Make the record from options as JSON and command lines give them: lists, and whole numbers as rates.

    Example:
        >>> inner_from({"rate": 1, "classes": ["cyst", "glioma"]}).classes
        ('cyst', 'glioma')
    """
    plain = dict(options)
    if "classes" in plain:
        plain["classes"] = tuple(plain["classes"])
    for name in ("rate", "clip", "proximity"):
        if isinstance(plain.get(name), int):
            plain[name] = float(plain[name])
    return Inner(**plain)


OPTIONS: Mapping[str, str] = {f.name: str(f.type) for f in fields(Inner)}
"""Names of the options and their types as written."""
