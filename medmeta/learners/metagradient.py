"""Derivatives through an inner loop of gradient steps, for any losses: the engine of every such learner.

Ways to the same number: ``loop`` keeps the whole graph; ``recompute`` keeps the weights of each step and
rebuilds one step at a time in the backward pass, so that memory does not grow with the steps;
:func:`batched` runs many tasks of one shape at once, each with its own gradient (``vmap(grad)``). The
fourth that comes to mind, ``grad(vmap)``, gives wrong second derivatives through affine norms without
saying so, and is not here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

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
        emphasis: weight of the query loss after 0, 1, … ``steps`` steps; only the last by default (Antoniou
            et al. 2019, equation 2, for others).
        clip: longest slope of a step over all moving weights together; 0 for no limit.
        proximity: lambda of the pull back to the start, ``lambda / 2 |w - start|^2`` added to the support
            loss (Rajeswaran et al. 2019, equation 3). To a step's slope the start is a constant; derivatives
            of the second order follow it, too, for where it lies depends on the meta-parameters.
        slope: takes the slope of the support loss, by autograd unless inside ``vmap``.

    Example:
        One step of MAML on ``(w - 1)^2``, worked by hand: the loss is ``(1 - 2a)^2 (w - 1)^2``.

        >>> loss = lambda moving, meta: (moving["w"] - 1) ** 2
        >>> start, rate = lambda meta: {"w": meta["w"]}, lambda meta, step: {"w": 0.25}
        >>> value, gradient = meta_gradient(InnerLoop(start, loss, loss, rate, 1), {"w": torch.tensor(3.0)})
        >>> float(value), float(gradient["w"])
        (1.0, 1.0)
    """

    start: Callable[[Weights], Weights]
    support: Callable[[Weights, Weights], Tensor]
    query: Callable[[Weights, Weights], Tensor]
    rate: Callable[[Weights, int], dict[str, Tensor | float]]
    steps: int
    emphasis: Sequence[float] = ()
    clip: float = 0.0
    proximity: float = 0.0
    slope: Callable[[InnerLoop, Weights, Weights, bool], Weights] = field(
        default=lambda *given: autograd_slope(*given)
    )

    def counts(self, step: int) -> float:
        """Weight of the query loss after ``step`` steps."""
        return self.emphasis[step] if self.emphasis else float(step == self.steps)


def autograd_slope(loop: InnerLoop, moving: Weights, meta: Weights, graph: bool) -> Weights:
    """Take the slope of the support loss by autograd; with ``graph``, one that has a slope itself."""
    loss = loop.support(moving, meta)
    slopes = torch.autograd.grad(
        loss, list(moving.values()), create_graph=graph, allow_unused=True, materialize_grads=True
    )
    return dict(zip(moving, slopes, strict=True))


def functional_slope(loop: InnerLoop, moving: Weights, meta: Weights, graph: bool) -> Weights:
    """Take the slope by ``torch.func``, inside ``vmap``."""
    slopes: Weights = torch.func.grad(loop.support)(moving, meta)
    return slopes if graph else {n: s.detach() for n, s in slopes.items()}


def step(
    loop: InnerLoop,
    moving: Weights,
    meta: Weights,
    index: int,
    *,
    graph: bool,
    start: Weights,
) -> Weights:
    """Take one gradient step; with ``graph``, one that can itself be differentiated, by the start as well."""
    slopes = loop.slope(loop, moving, meta, graph)
    if loop.proximity:
        slopes = pulled(slopes, moving, start, loop.proximity)
        slopes = slopes if graph else {n: s.detach() for n, s in slopes.items()}
    if loop.clip:
        slopes = clipped(slopes, loop.clip)
    rate = loop.rate(meta, index)
    return {n: _less(w, slopes[n], rate[n]) for n, w in moving.items()}


def pulled(slopes: Weights, moving: Weights, start: Weights, proximity: float) -> Weights:
    """Add the slopes of ``proximity / 2 |moving - start|^2``."""
    return {n: s + proximity * (moving[n] - start[n]) for n, s in slopes.items()}


def clipped(slopes: Weights, limit: float) -> Weights:
    """Shorten slopes to a length of ``limit``, all weights together; where they are zero it has a slope, too.

    Example:
        >>> clipped({"a": torch.tensor([3.0]), "b": torch.tensor([4.0])}, 1.0)
        {'a': tensor([0.6000]), 'b': tensor([0.8000])}
    """
    length = torch.stack([s.square().sum() for s in slopes.values()]).sum().clamp(min=1e-24).sqrt()
    return {n: s * (limit / length).clamp(max=1.0) for n, s in slopes.items()}


def _less(weight: Tensor, slope: Tensor, rate: Tensor | float) -> Tensor:
    """A weight less rate times slope, in one operation where the rate is a number."""
    return weight - rate * slope if isinstance(rate, Tensor) else torch.sub(weight, slope, alpha=rate)


def meta_gradient(
    loop: InnerLoop, meta: Weights, *, order: Order = "second", backend: str = "loop"
) -> tuple[Tensor, Weights]:
    """Give the query loss after the inner loop and its gradient by every meta-parameter.

    Args:
        loop: the inner loop.
        meta: the meta-parameters; their graph, if any, is not followed.
        order: ``second`` differentiates through the steps (Finn et al. 2017, equation 1); ``first`` takes
            their slopes as constants (section 5.2).
        backend: ``loop`` or ``recompute``.

    Returns:
        The loss and, by name, its gradients.
    """
    with torch.enable_grad():
        if backend == "recompute" and order == "second":
            return _recompute(loop, _leaves(meta))
        leaves = _leaves(meta)
        total = run(loop, leaves, graph=order == "second")
        return total.detach(), _gradients([total], leaves)


def run(loop: InnerLoop, meta: Weights, *, graph: bool) -> Tensor:
    """Give the query loss of an inner loop as a function of the meta-parameters, with its graph."""
    # a view of its own for each: a step's slope by one moving weight must not run through another that was
    # computed from the same meta-parameter (a head made of prototypes); zeros must be differentiable, too
    moving = {
        n: w.view_as(w) if w.requires_grad or loop.slope is functional_slope else w.detach().requires_grad_()
        for n, w in loop.start(meta).items()
    }
    first, parts = moving, []
    for index in range(loop.steps + 1):
        if loop.counts(index):
            parts.append(loop.counts(index) * loop.query(moving, meta))
        if index < loop.steps:
            moving = step(loop, moving, meta, index, graph=graph, start=first)
    return sum(parts[1:], parts[0])


def batched(
    loop: Callable[[Any], InnerLoop], data: Any, meta: Weights, *, order: Order = "second"
) -> tuple[Tensor, Weights]:
    """Do the same for many tasks at once: ``vmap(grad(task))``, the sum after.

    Args:
        loop: one task's tensors to its inner loop.
        data: the tensors of all tasks, stacked along a first axis.
        meta: the meta-parameters.
        order: as in :func:`meta_gradient`.

    Returns:
        ``(t,)`` losses and, by name, the gradients' sum over tasks. Memory: each task's gradient at once.
    """

    def task(weights: Weights, tensors: Any) -> Tensor:
        return run(replace(loop(tensors), slope=functional_slope), weights, graph=order == "second")

    plain = {n: w.detach() for n, w in meta.items()}
    each = torch.func.vmap(torch.func.grad_and_value(task), in_dims=(None, 0))
    gradients, losses = each(plain, data)
    return losses, {n: g.sum(0) for n, g in gradients.items()}


def reptile(loop: InnerLoop, meta: Weights) -> tuple[Tensor, Weights]:
    """Give the query loss and, as gradient, the way from where the steps ended back to the start.

    Nichol et al. 2018, algorithm 1: ``start <- start + epsilon (end - start)``.
    """
    start, end = descend(loop, meta)
    with torch.no_grad():
        loss = loop.query(end, meta)
    return loss, {
        n: start[n] - end[n] if n in start and start[n].shape == w.shape else torch.zeros_like(w)
        for n, w in meta.items()
    }


def implicit(loop: InnerLoop, meta: Weights, *, solve_steps: int = 10) -> tuple[Tensor, Weights]:
    """Give the query loss and its gradient by the implicit function theorem; the steps taken do not matter.

    Rajeswaran et al. 2019, equation 6: ``(I + H / lambda)^-1`` times the query's slope at the end, ``H`` the
    Hessian of the support loss there, solved by conjugate gradients (algorithm 2); and, where meta-parameters
    take part in the support loss without moving (a body under a head that moves alone), the same pulled
    through its mixed derivative. Exact where the steps reached the bottom of the support loss with its pull
    back to the start.

    Args:
        loop: the inner loop, its ``proximity`` above zero.
        meta: the meta-parameters.
        solve_steps: conjugate-gradient steps.
    """
    _, end = descend(loop, meta)
    with torch.enable_grad():
        meta_leaves, moving = _leaves(meta), _leaves(end)
        loss = loop.query(moving, meta_leaves)
        both = _gradients([loss], _join(moving, meta_leaves))
        wanted = {n: both[f"0{n}"] for n in moving}
        slopes = autograd_slope(loop, moving, meta_leaves, True)

        def curve(vector: Weights) -> Weights:
            live = [n for n in slopes if slopes[n].requires_grad]
            turned = torch.autograd.grad(
                [slopes[n] for n in live],
                list(moving.values()),
                [vector[n] for n in live],
                retain_graph=True,
                allow_unused=True,
                materialize_grads=True,
            )
            return {n: vector[n] + t / loop.proximity for n, t in zip(moving, turned, strict=True)}

        pull = conjugate_gradient(curve, wanted, solve_steps)
        # meta-parameters that stay where they are while the others move bend the support loss, too
        turn = _gradients(list(slopes.values()), meta_leaves, [-pull[n] / loop.proximity for n in slopes])
        first = loop.start(meta_leaves)
        back = _gradients(list(first.values()), meta_leaves, [pull[n] for n in first])
    return loss.detach(), {n: back[n] + turn[n] + both[f"1{n}"] for n in meta}


def conjugate_gradient(curve: Callable[[Weights], Weights], wanted: Weights, steps: int) -> Weights:
    """Solve ``curve(x) = wanted`` for a symmetric positive linear map (Hestenes & Stiefel 1952).

    Example:
        >>> x = conjugate_gradient(lambda v: {"a": 4 * v["a"]}, {"a": torch.tensor([8.0])}, 3)
        >>> x["a"]
        tensor([2.])
    """
    solution = {n: torch.zeros_like(w) for n, w in wanted.items()}
    residual, direction = dict(wanted), dict(wanted)
    size = first = _dot(residual, residual)
    for _ in range(steps):
        if float(size) <= 1e-20 * float(first):
            break
        turned = curve(direction)
        bend = _dot(direction, turned)
        if float(bend) <= 0:  # not convex here: what has been found so far is the best there is
            break
        solution = {n: solution[n] + size / bend * direction[n] for n in wanted}
        residual = {n: residual[n] - size / bend * turned[n] for n in wanted}
        size, last = _dot(residual, residual), size
        direction = {n: residual[n] + size / last * direction[n] for n in wanted}
    return solution if float(first) == 0 or any(bool(w.any()) for w in solution.values()) else wanted


def descend(loop: InnerLoop, meta: Weights) -> tuple[Weights, Weights]:
    """Walk the inner loop without keeping its graph; give start and end."""
    plain = {n: w.detach() for n, w in meta.items()}
    with torch.no_grad():
        start = {n: w.detach() for n, w in loop.start(plain).items()}
    moving = start
    for index in range(loop.steps):
        with torch.enable_grad():
            taken = step(loop, _leaves(moving), plain, index, graph=False, start=start)
        moving = {n: w.detach() for n, w in taken.items()}
    return start, moving


def _dot(one: Weights, other: Weights) -> Tensor:
    return torch.stack([(one[n] * other[n]).sum() for n in one]).sum()


def _leaves(weights: Weights) -> Weights:
    return {n: w.detach().requires_grad_() for n, w in weights.items()}


def _join(moving: Weights, meta: Weights) -> Weights:
    return {f"0{n}": w for n, w in moving.items()} | {f"1{n}": w for n, w in meta.items()}


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


def _recompute(loop: InnerLoop, meta: Weights) -> tuple[Tensor, Weights]:
    """Reverse through the steps one at a time; between them only weights are kept, no activations."""
    path = [{n: w.detach() for n, w in loop.start(meta).items()}]
    home = _leaves(path[0]) if loop.proximity else {}  # what every step is pulled to
    for index in range(loop.steps):
        taken = step(loop, _leaves(path[-1]), meta, index, graph=False, start=home)
        path.append({n: w.detach() for n, w in taken.items()})
    losses: list[Tensor] = []
    gradient = {n: torch.zeros_like(w) for n, w in meta.items()}
    pull = {n: torch.zeros_like(w) for n, w in path[0].items()}
    of_home = {n: torch.zeros_like(w) for n, w in home.items()}
    for index in range(loop.steps, -1, -1):
        moving = _leaves(path.pop())
        both = _join(moving, meta)
        if index < loop.steps:
            taken = step(loop, moving, meta, index, graph=True, start=home)
            inputs = both | {f"2{n}": w for n, w in home.items()}
            slopes = _gradients([taken[n] for n in moving], inputs, [pull[n] for n in moving])
            del taken
            pull = {n: slopes[f"0{n}"] for n in moving}
            of_home = {n: of_home[n] + slopes[f"2{n}"] for n in home}
            gradient = {n: gradient[n] + slopes[f"1{n}"] for n in meta}
        if loop.counts(index):
            losses.append(loop.counts(index) * loop.query(moving, meta))
            slopes = _gradients(losses[-1:], both)
            losses[-1] = losses[-1].detach()
            pull = {n: pull[n] + slopes[f"0{n}"] for n in moving}
            gradient = {n: gradient[n] + slopes[f"1{n}"] for n in meta}
    first = loop.start(meta)
    seeds = [pull[n] + of_home[n] if home else pull[n] for n in first]
    slopes = _gradients(list(first.values()), meta, seeds)
    return torch.stack(losses).sum(), {n: gradient[n] + slopes[n] for n in meta}
