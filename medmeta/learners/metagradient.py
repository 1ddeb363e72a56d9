"""Derivatives through an inner loop of gradient steps, for any losses: the engine below every such learner.

A backend is a way to compute the same number: ``loop`` keeps the whole graph, ``recompute`` keeps the weights of
each step and rebuilds one step at a time in the backward pass (memory flat in the number of steps).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import torch
from torch import Tensor

Weights: TypeAlias = dict[str, Tensor]
Order: TypeAlias = Literal["first", "second"]


@dataclass(frozen=True)
class InnerLoop:
    """Gradient descent on a support set, seen as a function of the meta-parameters.

    Args:
        start: meta-parameters to the weights that will move.
        support: (moving weights, meta-parameters) to the loss that the steps go down.
        query: (moving weights, meta-parameters) to the loss that the meta-parameters go down.
        rate: (meta-parameters, step) to the learning rate of each moving weight.
        steps: how many.
        emphasis: weight of the query loss after 0, 1, … ``steps`` steps; only the last by default (Antoniou et
            al. 2019, equation 2, for others).

    Example:
        One step of MAML on ``(w - 1)^2``, worked by hand: the loss is ``(1 - 2a)^2 (w - 1)^2``.

        >>> loss = lambda moving, meta: (moving["w"] - 1) ** 2
        >>> loop = InnerLoop(lambda meta: {"w": meta["w"]}, loss, loss, lambda meta, step: {"w": 0.25}, steps=1)
        >>> value, gradient = meta_gradient(loop, {"w": torch.tensor(3.0)})
        >>> float(value), float(gradient["w"])
        (1.0, 1.0)
    """

    start: Callable[[Weights], Weights]
    support: Callable[[Weights, Weights], Tensor]
    query: Callable[[Weights, Weights], Tensor]
    rate: Callable[[Weights, int], dict[str, Tensor | float]]
    steps: int
    emphasis: Sequence[float] = field(default=())

    def counts(self, step: int) -> float:
        """Weight of the query loss after ``step`` steps."""
        if self.emphasis:
            return self.emphasis[step]
        return float(step == self.steps)


def step(loop: InnerLoop, moving: Weights, meta: Weights, index: int, *, graph: bool) -> Weights:
    """Take one gradient step; with ``graph``, one that can itself be differentiated."""
    names = list(moving)
    loss = loop.support(moving, meta)
    slopes = torch.autograd.grad(
        loss, [moving[n] for n in names], create_graph=graph, allow_unused=True, materialize_grads=True
    )
    rate = loop.rate(meta, index)
    return {n: moving[n] - rate[n] * slope for n, slope in zip(names, slopes, strict=True)}


def meta_gradient(
    loop: InnerLoop, meta: Weights, *, order: Order = "second", backend: str = "loop"
) -> tuple[Tensor, Weights]:
    """Give the query loss after the inner loop and its gradient by every meta-parameter.

    Args:
        loop: the inner loop.
        meta: the meta-parameters; their graph, if any, is not followed.
        order: ``second`` differentiates through the steps (Finn et al. 2017, equation 1); ``first`` takes their
            slopes as constants (section 5.2).
        backend: ``loop`` or ``recompute``.

    Returns:
        The loss and, by name, its gradients.
    """
    leaves = {n: w.detach().requires_grad_() for n, w in meta.items()}
    if backend == "recompute" and order == "second":
        return _recompute(loop, leaves)
    return _loop(loop, leaves, graph=order == "second")


def _gradients(outputs: Sequence[Tensor], inputs: Weights, seeds: Sequence[Tensor] | None = None) -> Weights:
    kept = [i for i, out in enumerate(outputs) if out.requires_grad]
    if not kept:
        return {n: torch.zeros_like(w) for n, w in inputs.items()}
    slopes = torch.autograd.grad(
        [outputs[i] for i in kept],
        list(inputs.values()),
        None if seeds is None else [seeds[i] for i in kept],
        allow_unused=True,
        materialize_grads=True,
    )
    return dict(zip(inputs, slopes, strict=True))


def _leaves(weights: Weights) -> Weights:
    return {n: w.detach().requires_grad_() for n, w in weights.items()}


def _loop(loop: InnerLoop, meta: Weights, *, graph: bool) -> tuple[Tensor, Weights]:
    with torch.enable_grad():
        # a view of its own for each: a step's slope by one moving weight must not run through another that was
        # computed from the same meta-parameter (a head made of prototypes); zeros must be differentiable too
        moving = {
            n: w.view_as(w) if w.requires_grad else w.requires_grad_() for n, w in loop.start(meta).items()
        }
        total = None
        for index in range(loop.steps + 1):
            if loop.counts(index):
                part = loop.counts(index) * loop.query(moving, meta)
                total = part if total is None else total + part
            if index < loop.steps:
                moving = step(loop, moving, meta, index, graph=graph)
        assert total is not None
        return total.detach(), _gradients([total], meta)


def _recompute(loop: InnerLoop, meta: Weights) -> tuple[Tensor, Weights]:
    """Reverse through the steps one at a time; between them only weights are kept, no activations."""
    with torch.enable_grad():
        path = [{n: w.detach() for n, w in loop.start(meta).items()}]
        for index in range(loop.steps):
            taken = step(loop, _leaves(path[-1]), meta, index, graph=False)
            path.append({n: w.detach() for n, w in taken.items()})
        total = torch.zeros((), dtype=path[0][next(iter(path[0]))].dtype)
        gradient = {n: torch.zeros_like(w) for n, w in meta.items()}
        pull = {n: torch.zeros_like(w) for n, w in path[0].items()}
        for index in range(loop.steps, -1, -1):
            moving = _leaves(path[index])
            both = {f"0{n}": w for n, w in moving.items()} | {f"1{n}": w for n, w in meta.items()}
            if index < loop.steps:
                taken = step(loop, moving, meta, index, graph=True)
                slopes = _gradients(list(taken.values()), both, list(pull.values()))
                pull = {n: slopes[f"0{n}"] for n in moving}
                gradient = {n: gradient[n] + slopes[f"1{n}"] for n in meta}
            if loop.counts(index):
                part = loop.counts(index) * loop.query(moving, meta)
                total = total.to(part.device) + part.detach()
                slopes = _gradients([part], both)
                pull = {n: pull[n] + slopes[f"0{n}"] for n in moving}
                gradient = {n: gradient[n] + slopes[f"1{n}"] for n in meta}
        first = loop.start(meta)
        slopes = _gradients(list(first.values()), meta, [pull[n] for n in first])
        return total, {n: gradient[n] + slopes[n] for n in meta}
