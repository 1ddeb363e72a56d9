"""Learners that adapt by gradient steps: MAML and its kin, and fine-tuning. They differ in arguments."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from medmeta.episodes.examples import Episode, Examples
from medmeta.learners.batch import (
    Piece,
    check_episode,
    check_network,
    check_support,
    fixed_weights,
    own_copy,
    parameter_like,
    pieces,
    still,
    whole,
)
from medmeta.learners.compiled import Compiled
from medmeta.learners.descent import Descent, added_slopes
from medmeta.learners.episodic import BOTH
from medmeta.learners.functional import Functional, fitting
from medmeta.learners.head import Head, class_means, prototype_head
from medmeta.learners.inner import Inner
from medmeta.learners.loss import example_loss
from medmeta.learners.metagradient import (
    InnerLoop,
    Weights,
    batched,
    implicit,
    meta_gradient,
    reptile,
)
from medmeta.learners.predictor import LinearPredictor
from medmeta.learners.protocol import LearnerError
from medmeta.learners.quick import QuickLayers
from medmeta.learners.rates import SPEED, first_rates, rates_at
from medmeta.learners.stacking import stacked, task_of, unbatchable
from medmeta.networks import feature_size
from medmeta.shape import Feature

log = logging.getLogger(__name__)


class GradientLearner(nn.Module):
    """A learner that adapts by gradient steps from a start it has learnt.

    Weights of the network that require no gradient when the learner is made stay as they are, in a task and
    in meta-training.

    Args:
        name: the name it goes by.
        network: the backbone.
        inner: how it learns a task.
    """

    def __init__(self, name: str, network: nn.Module, inner: Inner) -> None:
        super().__init__()
        check_network(network)
        like = parameter_like(network)
        if inner.rows and inner.feature is None:
            inner = replace(inner, feature=feature_size(network))
        self.name, self.network, self.inner, self.tasks = name, network, inner, BOTH
        self.options: Mapping[str, Any] = asdict(inner)
        self.functional = Functional(network, half=inner.precision == "bf16")
        fixed = fixed_weights(network)
        body = [f"network.{n}" for n, _ in network.named_parameters() if n not in fixed]
        body = body if inner.moves == "all" else []
        self.moving_names = ["head.weight", "head.bias", *body]
        self.compiled = Compiled()
        self.head = nn.ParameterDict()
        if inner.rows and inner.feature:
            first = nn.Linear(inner.feature, inner.rows).to(like)
            self.head = nn.ParameterDict({"weight": first.weight.detach(), "bias": first.bias.detach()})
        if inner.head == "prototypes" and inner.order not in ("supervised", "none"):
            self.scale = nn.Parameter(torch.zeros_like(like[..., :0].sum()))
        moving = dict(self.named_parameters())
        self.rate = nn.ParameterDict(
            first_rates(
                {n: moving.get(n, torch.zeros((), dtype=like.dtype)) for n in self.moving_names},
                inner.rates,
                inner.steps,
            )
        )
        self.outer_steps: Tensor
        self.register_buffer("outer_steps", torch.zeros((), dtype=torch.int64))

    def meta(self) -> Weights:
        """Give the meta-parameters by name: what the outer loop learns."""
        return dict(self.named_parameters())

    # --- the inner loop, as functions of the meta-parameters ---

    def _rates(self, meta: Weights, step: int) -> dict[str, Tensor | float]:
        return rates_at(meta, self.moving_names, step, self.inner.rate)

    def _look(self, examples: Examples) -> None:
        """Find, once, the layer that a head can be multiplied into."""
        if examples.segments:
            self.functional.look(whole(examples, parameter_like(self.network)).image)

    def _loss(self, moving: Weights, meta: Weights, parts: Sequence[Piece]) -> Tensor:
        losses = []
        for part in parts:
            head = Head(moving["head.weight"], moving["head.bias"])
            guess = self.functional.logits(meta | moving, head, part.image, dense=part.dense)
            losses.append(part.part * example_loss(guess, part.target, part.share).mean())
        return sum(losses[1:], losses[0])

    def _head_loss(self, part: Piece) -> Callable[[Weights, Weights], Tensor]:
        """The loss where the head alone moves: the features of the same meta-parameters stay the same."""
        known: list[tuple[Weights, Feature]] = []

        def loss(moving: Weights, meta: Weights) -> Tensor:
            if not known or known[0][0] is not meta:
                known[:] = [(meta, self.functional.feature(meta, part.image, dense=part.dense))]
            guess = fitting(known[0][1], Head(moving["head.weight"], moving["head.bias"]))
            return part.part * example_loss(guess, part.target, part.share).mean()

        return loss

    def _start(self, meta: Weights, parts: Sequence[Piece], classes: Sequence[str]) -> Weights:
        head = self._head(meta, parts, classes)
        body = {n: meta[n] for n in self.moving_names if n.startswith("network.")}
        return body | {"head.weight": head.weight, "head.bias": head.bias}

    def _head(self, meta: Weights, parts: Sequence[Piece], classes: Sequence[str]) -> Head:
        if self.inner.head == "prototypes":
            return self._prototypes(meta, parts)
        if self.inner.head == "learned" and (known := self._rows(meta, classes)) is not None:
            return known
        with torch.no_grad():
            feature = self.functional.feature(meta, parts[0].image[:1], dense=parts[0].dense)
        return Head(feature.new_zeros(len(classes), feature.shape[1]), feature.new_zeros(len(classes)))

    def _rows(self, meta: Weights, classes: Sequence[str]) -> Head | None:
        """Rows of the learned head for these classes: by name where it has names, else by position."""
        head = Head(meta["head.weight"], meta["head.bias"])
        if self.inner.classes:
            if not set(classes) <= set(self.inner.classes):
                return None
            rows = [self.inner.classes.index(c) for c in classes]
            return Head(head.weight[rows], head.bias[rows])
        if len(classes) != len(head.bias):
            own = f"way={len(classes)}, or " if len(classes) > 1 else ""
            raise LearnerError(
                f"tasks of {len(head.bias)} classes, which this {self.name} has a head for",
                found=f"{len(classes)}: {', '.join(classes)}",
                cure=f"Create it with {own}head='prototypes' for any number of classes.",
            )
        return head

    def _prototypes(self, meta: Weights, parts: Sequence[Piece]) -> Head:
        mean = class_means((self.functional.feature(meta, p.image, dense=p.dense), p.target) for p in parts)
        scale = mean.shape[1] ** -0.5
        return prototype_head(mean, scale * torch.exp(SPEED * meta["scale"]) if "scale" in meta else scale)

    def inner_loop(
        self,
        support: Piece,
        query: Piece,
        classes: Sequence[str],
        emphasis: tuple[float, ...] | None = None,
    ) -> InnerLoop:
        """See a task as a function of the meta-parameters, for the engine."""
        # recomputing lets go of each step's graph, and of the features' with it
        still_body = self.inner.moves == "head" and self.inner.backend != "recompute"
        return InnerLoop(
            start=lambda meta: self._start(meta, [support], classes),
            support=self._head_loss(support)
            if still_body
            else lambda moving, meta: self._loss(moving, meta, [support]),
            query=lambda moving, meta: self._loss(moving, meta, [query]),
            rate=self._rates,
            steps=self.inner.steps,
            emphasis=self._emphasis() if emphasis is None else emphasis,
            clip=self.inner.clip,
            proximity=self.inner.proximity,
        )

    # --- the outer loop ---

    @property
    def _annealed(self) -> float:
        return min(1.0, int(self.outer_steps) / self.inner.anneal) if self.inner.anneal else 1.0

    def _emphasis(self) -> tuple[float, ...]:
        """Weights of the query losses after each step (Antoniou et al. 2019, section 4: multi-step loss)."""
        if not self.inner.anneal or not self.inner.steps:
            return ()
        early = (1 - self._annealed) / self.inner.steps
        return (0.0, *[early] * (self.inner.steps - 1), 1 - early * (self.inner.steps - 1))

    def _order(self) -> Any:
        """First order while annealing has not come half the way (the same: derivative-order annealing)."""
        if self.inner.order == "second" and self._annealed < 0.5:
            return "first"
        return self.inner.order

    def task_gradient(self, episode: Episode) -> tuple[Tensor, Weights]:
        """Give the query loss of one episode and its gradient by each meta-parameter."""
        check_episode(episode)
        meta = self.meta()
        like = parameter_like(self.network)
        support, query = whole(episode.support, like), whole(episode.query, like)
        order = self._order()
        if order == "supervised":
            return self._supervised(meta, support, query, episode.support.classes)
        if order == "none":
            raise LearnerError(
                "a learner that has something to meta-learn",
                found=self.name,
                cure="Call adapt: it starts from the network as it is.",
            )
        if order == "reptile":
            together = _together(episode)
            return reptile(self.inner_loop(whole(together, like), query, together.classes), meta)
        loop = self.inner_loop(support, query, episode.support.classes)
        if order == "implicit":
            return implicit(loop, meta)
        backend = "loop" if self.inner.backend == "auto" else self.inner.backend
        with QuickLayers():
            return meta_gradient(loop, meta, order=order, backend=backend)

    def _supervised(
        self, meta: Weights, support: Piece, query: Piece, classes: Sequence[str]
    ) -> tuple[Tensor, Weights]:
        """Train on all examples alike, the head's rows told by the classes' names."""
        if not self.inner.rows or (not support.dense and not self.inner.classes):
            raise LearnerError(
                "the names of all training classes, which an ordinary classifier has a row for each",
                found="none",
                cure=f"Create {self.name} with classes=[...].",
            )
        leaves = {n: w.detach().requires_grad_() for n, w in meta.items()}
        head = self._rows(leaves, classes)
        if head is None:
            raise LearnerError(
                f"classes among {', '.join(self.inner.classes)}",
                found=", ".join(classes),
                cure="Name all training classes when creating the learner.",
            )
        moving = {"head.weight": head.weight, "head.bias": head.bias}
        loss = (self._loss(moving, leaves, [support]) + self._loss(moving, leaves, [query])) / 2
        slopes = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
        return loss.detach(), dict(zip(leaves, slopes, strict=True))

    def backward(self, episodes: Sequence[Episode], *, scale: float) -> Tensor:
        """Add ``scale`` x the summed meta-gradient to ``.grad``; give the ``(t,)`` query losses."""
        # flash attention has no second derivative; the plain formula has
        with still(self.network), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            self._look(episodes[0].support)
            if self._batches(episodes):
                losses = self._batched(episodes, scale)
            else:
                losses = torch.stack([self._one(episode, scale) for episode in episodes])
        self.outer_steps += 1
        return losses

    def _one(self, episode: Episode, scale: float) -> Tensor:
        loss, gradient = self.task_gradient(episode)
        self._add(gradient, scale)
        return loss

    def _add(self, gradient: Weights, scale: float) -> None:
        for name, weight in self.named_parameters():
            if weight.requires_grad:
                slope = scale * gradient[name]
                weight.grad = slope if weight.grad is None else weight.grad + slope

    def _batches(self, episodes: Sequence[Episode]) -> bool:
        """Whether to run all tasks at once: asked for, or on a GPU, where small kernels wait for launches."""
        backend, order = self.inner.backend, self._order()
        if backend == "auto":
            backend = "batched" if parameter_like(self.network).is_cuda and len(episodes) > 1 else "loop"
        if backend not in ("batched", "compiled") or order not in ("first", "second"):
            return False
        named = self.inner.head == "learned" and bool(self.inner.classes)
        reason = unbatchable(self.network, episodes, named=named)
        if reason and self.inner.backend != "auto":
            log.warning("tasks are taken one after the other, not batched: %s", reason)
        return not reason

    def _batched(self, episodes: Sequence[Episode], scale: float) -> Tensor:
        like, classes = parameter_like(self.network), episodes[0].support.classes
        order, emphasis = self._order(), self._emphasis()
        for episode in episodes:
            check_episode(episode)
        sets = [(whole(e.support, like), whole(e.query, like)) for e in episodes]
        data = stacked(sets)

        def loop(tensors: Weights) -> InnerLoop:
            return self.inner_loop(*task_of(tensors), classes, emphasis)

        def together(tensors: Weights, meta: Weights) -> tuple[Tensor, Weights]:
            return batched(loop, tensors, meta, order=order)

        if self.inner.backend == "compiled" and self._annealed == 1.0:  # before, each step is of its own kind
            kind = (order, classes, self.functional.last)
            losses, gradient = self.compiled(kind, together, data, self.meta())
        else:
            losses, gradient = together(data, self.meta())
        self._add(gradient, scale)
        return losses

    # --- adapting ---

    def path(self, support: Examples, steps: int) -> Iterator[Weights]:
        """Give the moving weights after 0, 1, … ``steps`` steps on a support set."""
        check_support(support)
        with still(self.network), torch.no_grad(), QuickLayers():
            parts = pieces(support, parameter_like(self.network))
            meta = {n: w.detach() for n, w in self.named_parameters()}
            self._look(support)
            moving = {n: w.detach().clone() for n, w in self._start(meta, parts, support.classes).items()}
        descent, loops = Descent(self.inner, moving), self._loops(parts)
        yield moving
        for index in range(steps):
            if parts[0].dense:  # whose features of a whole set would be too large to keep
                loops = self._loops(parts)
            with still(self.network):
                slopes = added_slopes(loops, moving, meta)
            direction, rate = descent(moving, slopes), self._rates(meta, index)
            moving = {n: moving[n] - rate[n] * direction[n] for n in moving}
            yield moving

    def _loops(self, parts: Sequence[Piece]) -> list[InnerLoop]:
        return [self.inner_loop(part, part, ()) for part in parts]

    @torch.inference_mode(False)
    def adapt(self, support: Examples) -> LinearPredictor:
        """Learn from the support; the learner stays bitwise the same.

        Raises:
            LearnerError: where a class has no example, or the steps ran away to infinity.
        """
        steps = self.inner.steps if self.inner.adapt_steps is None else self.inner.adapt_steps
        *_, moving = self.path(support, steps)
        return self.predictor(moving, support)

    def predictor(self, moving: Weights, support: Examples) -> LinearPredictor:
        """Put moved weights into a network of their own."""
        if not all(bool(torch.isfinite(w).all()) for w in moving.values()):
            raise LearnerError(
                "finite weights after adapting",
                found=f"NaN or infinity at learning rate {self.inner.rate:g}",
                cure="Lower rate or adapt_steps, or look at the scale of the images.",
            )
        network = own_copy(self.network)
        body = {n[8:]: w for n, w in moving.items() if n.startswith("network.")}
        network.load_state_dict(body, strict=False)
        return LinearPredictor(network, Head(moving["head.weight"], moving["head.bias"]), support)


def _together(episode: Episode) -> Examples:
    """Support and query as one set, for learners that do not tell them apart."""
    return Examples(
        torch.cat([episode.support.image, episode.query.image]),
        torch.cat([episode.support.label, episode.query.label]),
        episode.support.classes,
    )
