"""Learning rates of the inner loop: fixed, or learned and always positive."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from medmeta.learners.metagradient import Weights

SPEED = 10.0
"""A learned rate is ``rate * exp(SPEED * parameter)``: never negative, and an outer optimiser that moves
weights by a thousandth a step moves a rate by a hundredth of itself, so that a short meta-training finds
good rates, too."""


def rate_name(weight: str) -> str:
    """Name the parameter that holds the rate of a weight (parameter dictionaries allow no dots)."""
    return weight.replace(".", "/")


def first_rates(weights: Mapping[str, Tensor], kind: str, steps: int) -> Weights:
    """Make the parameters of learned rates, zero to begin with.

    Args:
        weights: the weights that move, by name.
        kind: ``layer`` one rate a tensor (Antoniou et al. 2019, section 4), ``step`` one a tensor and
            step (the same), ``weight`` one a single weight (Li et al. 2017, equation 1), ``fixed`` none.
        steps: inner steps.

    Example:
        >>> first_rates({"a.weight": torch.zeros(3, 2)}, "step", 5)["a/weight"].shape
        torch.Size([5])
    """
    if kind == "fixed":
        return {}
    shapes = {
        n: {"layer": (1,), "step": (max(1, steps),)}.get(kind, (1, *w.shape)) for n, w in weights.items()
    }
    return {rate_name(n): torch.zeros(shapes[n]).to(w) for n, w in weights.items()}


def rates_at(meta: Weights, names: list[str], step: int, rate: float) -> dict[str, Tensor | float]:
    """Give the rate of each moving weight at a step; beyond the steps trained for, the last one's.

    Args:
        meta: the meta-parameters, learned rates under ``rate.<name>``.
        names: the moving weights.
        step: which step.
        rate: the rate where none is learned, and where learning started.
    """
    rates: dict[str, Tensor | float] = {}
    for name in names:
        learned = meta.get(f"rate.{rate_name(name)}")
        rates[name] = rate
        if learned is not None:
            rates[name] = rate * torch.exp(SPEED * learned[min(step, len(learned) - 1)])
    return rates
