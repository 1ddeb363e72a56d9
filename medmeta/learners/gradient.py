"""Learners that adapt by gradient steps: MAML and its kin, and plain fine-tuning. They differ in arguments."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from medmeta.episodes.examples import Episode, Examples
from medmeta.learners.head import Head, class_sums, logits, prototype_head
from medmeta.learners.loss import Balance, balance, example_loss, one_hot
from medmeta.learners.metagradient import InnerLoop, Weights, meta_gradient, step
from medmeta.learners.predictor import LinearPredictor
from medmeta.learners.protocol import LearnerError
from medmeta.networks import NetworkError, feature_size, features, running_statistics
from medmeta.shape import Feature, Image, Logits

BOTH = frozenset({"classification", "segmentation"})
PIECE = 2**21
"""Voxels (times channels) of support that go through the network at once when adapting: 2 volumes of 96^3."""
RATE_SPEED = 10.0
"""A learned rate is ``rate * exp(RATE_SPEED * parameter)``: positive always, and an outer optimiser that moves
weights by a thousandth moves a rate by a hundredth of itself."""


@dataclass(frozen=True)
class Inner:
    """How a learner learns a task: the parts that tell MAML from ANIL from Meta-SGD from fine-tuning.

    Args:
        steps: gradient steps while meta-training.
        adapt_steps: gradient steps of ``adapt``, the same by default; may be more.
        rate: learning rate of a step, of all steps where rates are learned to begin with.
        rates: what has a learned rate of its own: ``fixed`` nothing, ``layer`` each weight tensor, ``step`` each
            tensor at each step (MAML++), ``weight`` each single weight (Meta-SGD).
        moves: ``all`` weights or the ``head`` alone (ANIL).
        head: where the head starts: ``learned`` (then `way` is fixed), ``zeros`` or ``prototypes``.
        order: how the outer loop sees the steps: ``second`` and ``first`` derivative order, ``supervised`` (the
            outer loop is ordinary training, no steps), ``none`` (nothing is meta-learnt).
        optimiser: of ``adapt``: ``sgd`` or ``adam``.
        way: number of classes, for a learned head.
        feature: number of the network's features, for a learned head; found out by default.
        backend: how second derivatives are computed: ``auto``, ``loop`` or ``recompute``.
    """

    steps: int = 3
    adapt_steps: int | None = None
    rate: float = 0.1
    rates: Literal["fixed", "layer", "step", "weight"] = "fixed"
    moves: Literal["all", "head"] = "all"
    head: Literal["learned", "zeros", "prototypes"] = "zeros"
    order: Literal["second", "first", "supervised", "none"] = "second"
    optimiser: Literal["sgd", "adam"] = "sgd"
    way: int | None = None
    feature: int | None = None
    backend: str = "auto"


@dataclass(frozen=True)
class Piece:
    """Part of a set: images, one-hot labels, the whole set's balance, and the part's share of it."""

    image: Image
    target: Tensor
    share: Balance
    part: float


def pieces(examples: Examples, like: Tensor, *, most: float = float("inf")) -> list[Piece]:
    """Cut a set into parts of at most ``most`` numbers; the losses of the parts add up to that of the set."""
    image = examples.image.to(like)
    if image.ndim == 5:
        image = image.contiguous(memory_format=torch.channels_last_3d)
    target = one_hot(examples.label.to(like.device), len(examples.classes), like.dtype)
    share = balance(target)
    size = max(1, int(min(most / max(1, image[:1].numel()), len(image))))
    return [
        Piece(image[i : i + size], target[i : i + size], share, min(size, len(image) - i) / len(image))
        for i in range(0, len(image), size)
    ]


@contextmanager
def still(network: nn.Module) -> Iterator[None]:
    """Hold a network in eval mode: a task is a function of its support, so dropout is off in the inner loop."""
    training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(training)


class GradientLearner(nn.Module):
    """A learner that adapts by gradient steps from a start it has learnt.

    Args:
        name: the name it goes by.
        network: the backbone.
        inner: how it learns a task.
    """

    def __init__(self, name: str, network: nn.Module, inner: Inner) -> None:
        super().__init__()
        self.name, self.network, self.tasks = name, network, BOTH
        refuse_running_statistics(network)
        if inner.head == "learned" and inner.way is not None and inner.feature is None:
            inner = Inner(**{**asdict(inner), "feature": feature_size(network)})
        self.inner = inner
        self.head = nn.ParameterDict()
        if inner.way is not None and inner.feature is not None:
            like = next(network.parameters())
            first = nn.Linear(inner.feature, inner.way, device=like.device, dtype=like.dtype)
            self.head = nn.ParameterDict({"weight": first.weight.detach(), "bias": first.bias.detach()})
        if inner.head == "prototypes":
            self.scale = nn.Parameter(torch.zeros((), dtype=next(network.parameters()).dtype))
        self.rate = nn.ParameterDict(self._rates())

    @property
    def options(self) -> Mapping[str, Any]:
        """Keyword arguments that make this learner again."""
        return asdict(self.inner)

    # --- the inner loop, as functions of the meta-parameters ---

    def _rates(self) -> Iterator[tuple[str, Tensor]]:
        kind = self.inner.rates
        if kind == "fixed":
            return
        sizes = {n: w for n, w in self.named_parameters() if n.startswith(("network.", "head."))}
        if self.inner.moves == "head":
            sizes = {n: w for n, w in sizes.items() if n.startswith("head.")}
        like = next(self.network.parameters())
        sizes.setdefault("head.weight", like.new_zeros(()))  # a head that is made anew has a rate, too
        sizes.setdefault("head.bias", like.new_zeros(()))
        for name, weight in sizes.items():
            shape = {"layer": (1,), "step": (self.inner.steps,), "weight": (1, *weight.shape)}[kind]
            yield name.replace(".", "/"), torch.zeros(shape, dtype=weight.dtype, device=weight.device)

    def _rate(self, meta: Weights, index: int) -> dict[str, Tensor | float]:
        if self.inner.rates == "fixed":
            return {n: self.inner.rate for n in self._moving_names()}
        rates: dict[str, Tensor | float] = {}
        for name in self._moving_names():
            learned = meta[f"rate.{name.replace('.', '/')}"]
            rates[name] = self.inner.rate * torch.exp(RATE_SPEED * learned[min(index, len(learned) - 1)])
        return rates

    def _moving_names(self) -> list[str]:
        body = [f"network.{n}" for n, _ in self.network.named_parameters()]
        return ["head.weight", "head.bias"] + (body if self.inner.moves == "all" else [])

    def _feature(self, weights: Weights, image: Image, *, dense: bool) -> Feature:
        body = {n[8:]: w for n, w in weights.items() if n.startswith("network.")}
        output = functional_call(self.network, body, (image,))
        return features(output, tuple(image.shape[2:]), dense=dense)

    def _logits(self, moving: Weights, meta: Weights, image: Image, *, dense: bool) -> Logits:
        feature = self._feature(meta | moving, image, dense=dense)
        head = Head(moving["head.weight"], moving["head.bias"])
        if head.weight.shape[1] != feature.shape[1]:
            raise LearnerError(
                f"a network of {head.weight.shape[1]} features for this head",
                found=f"{feature.shape[1]}",
                cure=f"Create the learner with feature={feature.shape[1]}.",
            )
        return logits(feature, head)

    def _loss(self, moving: Weights, meta: Weights, parts: Iterable[Piece]) -> Tensor:
        losses = []
        for part in parts:
            guess = self._logits(moving, meta, part.image, dense=part.target.ndim > 2)
            losses.append(part.part * example_loss(guess, part.target, part.share).mean())
        return torch.stack(losses).sum()

    def _head(self, meta: Weights, parts: Sequence[Piece]) -> Head:
        way = parts[0].target.shape[1]
        kind = self.inner.head
        if kind == "learned" and "head.weight" in meta:
            if way != len(meta["head.bias"]):
                raise LearnerError(
                    f"tasks of {len(meta['head.bias'])} classes, which is what this {self.name} has a head for",
                    found=f"{way} classes",
                    cure="Create it with head='prototypes' or head='zeros' to serve any number of classes.",
                )
            return Head(meta["head.weight"], meta["head.bias"])
        sums, counts = [], []
        for part in parts[: None if kind == "prototypes" else 1]:
            feature = self._feature(
                meta, part.image[: None if kind == "prototypes" else 1], dense=part.target.ndim > 2
            )
            if kind != "prototypes":
                return Head(feature.new_zeros(way, feature.shape[1]), feature.new_zeros(way))
            one, many = class_sums(feature, part.target)
            sums.append(one)
            counts.append(many)
        mean = torch.stack(sums).sum(0) / torch.stack(counts).sum(0)
        return prototype_head(mean, torch.exp(RATE_SPEED * meta["scale"]) / mean.shape[1] ** 0.5)

    def _start(self, meta: Weights, parts: Sequence[Piece]) -> Weights:
        head = self._head(meta, parts)
        return {n: meta[n] for n in self._moving_names() if n.startswith("network.")} | {
            "head.weight": head.weight,
            "head.bias": head.bias,
        }

    def inner_loop(self, episode: Episode) -> InnerLoop:
        """See an episode as a function of the meta-parameters, for the engine."""
        like = next(self.network.parameters())
        support, query = pieces(episode.support, like), pieces(episode.query, like)
        return InnerLoop(
            start=lambda meta: self._start(meta, support),
            support=lambda moving, meta: self._loss(moving, meta, support),
            query=lambda moving, meta: self._loss(moving, meta, query),
            rate=self._rate,
            steps=self.inner.steps,
        )

    # --- the learner protocol ---

    def meta_parameters(self) -> Weights:
        """By name, what the outer loop learns."""
        return dict(self.named_parameters())

    def task_gradient(self, episode: Episode) -> tuple[Tensor, Weights]:
        """Give the query loss of one episode and its gradient by each meta-parameter."""
        check_support(episode.support)
        with still(self.network):
            if self.inner.order == "supervised":
                return self._supervised(episode)
            loop = self.inner_loop(episode)
            if self.inner.order == "none":
                raise LearnerError(
                    "a learner that has something to meta-learn",
                    found=self.name,
                    cure="Call adapt: it starts from the network as it is.",
                )
            backend = "loop" if self.inner.backend == "auto" else self.inner.backend
            return meta_gradient(loop, self.meta_parameters(), order=self.inner.order, backend=backend)

    def _supervised(self, episode: Episode) -> tuple[Tensor, Weights]:
        like = next(self.network.parameters())
        meta = {n: w.detach().requires_grad_() for n, w in self.named_parameters()}
        sets = [pieces(examples, like) for examples in (episode.support, episode.query)]
        head = self._head(meta, sets[0])
        start = {"head.weight": head.weight, "head.bias": head.bias}
        loss = torch.stack([self._loss(start, meta, parts) for parts in sets]).mean()
        slopes = torch.autograd.grad(loss, list(meta.values()), allow_unused=True, materialize_grads=True)
        return loss.detach(), dict(zip(meta, slopes, strict=True))

    def backward(self, episodes: Sequence[Episode], *, scale: float) -> Tensor:
        """Add ``scale`` x the summed meta-gradient to ``.grad``; give the ``(t,)`` query losses."""
        losses = []
        for episode in episodes:
            loss, gradient = self.task_gradient(episode)
            losses.append(loss)
            for name, weight in self.named_parameters():
                slope = scale * gradient[name]
                weight.grad = slope if weight.grad is None else weight.grad + slope
        return torch.stack(losses)

    def path(self, support: Examples, steps: int) -> Iterator[Weights]:
        """Give the moving weights after 0, 1, … ``steps`` steps on a support set."""
        check_support(support)
        like = next(self.network.parameters())
        parts = pieces(support, like, most=PIECE)
        meta = {n: w.detach() for n, w in self.named_parameters()}
        with still(self.network):
            with torch.no_grad():
                moving = {n: w.detach().clone() for n, w in self._start(meta, parts).items()}
            optimiser = Adam() if self.inner.optimiser == "adam" else None
            yield moving
            for index in range(steps):
                slopes = self._slopes(moving, meta, parts)
                rate = self._rate(meta, index)
                if optimiser is not None:
                    slopes = optimiser.direction(slopes)
                moving = {n: moving[n] - rate[n] * slopes[n] for n in moving}
                yield moving

    def _slopes(self, moving: Weights, meta: Weights, parts: Sequence[Piece]) -> Weights:
        total = {n: torch.zeros_like(w) for n, w in moving.items()}
        for part in parts:
            leaves = {n: w.detach().requires_grad_() for n, w in moving.items()}
            with torch.enable_grad():
                loss = self._loss(leaves, meta, [part])
            slopes = torch.autograd.grad(
                loss, list(leaves.values()), allow_unused=True, materialize_grads=True
            )
            total = {n: total[n] + slope for n, slope in zip(total, slopes, strict=True)}
        return total

    def adapt(self, support: Examples) -> LinearPredictor:
        """Learn from the support; the learner stays bitwise the same.

        Raises:
            LearnerError: where a class has no example, or the steps ran away to infinity.
        """
        steps = self.inner.steps if self.inner.adapt_steps is None else self.inner.adapt_steps
        moving: Weights = {}
        for moving in self.path(support, steps):
            pass
        return self.predictor(moving, support)

    def predictor(self, moving: Weights, support: Examples) -> LinearPredictor:
        """Put moved weights into a network of their own."""
        if not all(bool(torch.isfinite(w).all()) for w in moving.values()):
            raise LearnerError(
                "finite weights after adapting",
                found=f"NaN or infinity at learning rate {self.inner.rate:g}",
                cure="Lower rate or adapt_steps, or look at the scale of the images.",
            )
        network = copy.deepcopy(self.network)
        body = {n[8:]: w for n, w in moving.items() if n.startswith("network.")}
        network.load_state_dict(body, strict=False)
        head = Head(moving["head.weight"], moving["head.bias"])
        return LinearPredictor(network, head, dense=support.segments, spatial_dims=support.image.ndim - 2)


class Adam:
    """Direction of Adam (Kingma & Ba 2015, algorithm 1), as a function of the slopes seen so far."""

    def __init__(self, decay: tuple[float, float] = (0.9, 0.999), tiny: float = 1e-8) -> None:
        self.decay, self.tiny, self.time = decay, tiny, 0
        self.mean: Weights = {}
        self.square: Weights = {}

    def direction(self, slopes: Weights) -> Weights:
        """Take in the slopes of one more step."""
        self.time += 1
        first, second = self.decay
        for name, slope in slopes.items():
            zero = torch.zeros_like(slope)
            self.mean[name] = first * self.mean.get(name, zero) + (1 - first) * slope
            self.square[name] = second * self.square.get(name, zero) + (1 - second) * slope.square()
        fresh = (1 - first**self.time, 1 - second**self.time)
        return {n: self.mean[n] / fresh[0] / ((self.square[n] / fresh[1]).sqrt() + self.tiny) for n in slopes}


def refuse_running_statistics(network: nn.Module) -> None:
    """Refuse batch norm that remembers earlier tasks.

    Raises:
        LearnerError: naming the first such layer and what to put in its place.
    """
    layers = running_statistics(network)
    if layers:
        raise LearnerError(
            "a network without running batch statistics, which leak one task into the next",
            found=f"{len(layers)} layer(s) that keep them, first {layers[0]!r}",
            cure="Build it with norm='instance' or norm=('group', {'num_groups': 4}), "
            "or pass it through medmeta.networks.group_norm.",
        )


def check_support(support: Examples) -> None:
    """Refuse a support set in which a class has no example.

    Raises:
        LearnerError: naming the classes.
    """
    missing = [c for c, shot in zip(support.classes, support.shot, strict=True) if not shot]
    if missing:
        raise LearnerError(
            f"at least one labelled example of each class ({', '.join(support.classes)})",
            found=f"none of {', '.join(missing)}",
            cure="Add an example or leave the class out.",
        )


__all__ = ["GradientLearner", "Inner", "NetworkError"]
