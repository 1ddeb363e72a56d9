"""Fine-tuning on augmented views of the support, only as far as it helps the part of the support left out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from medmeta.episodes.augment import Augment, Change
from medmeta.episodes.examples import Examples
from medmeta.learners.batch import Piece, check_support, fixed_weights, parameter_like, whole
from medmeta.learners.head import Head, logits
from medmeta.learners.loss import example_loss
from medmeta.learners.predictor import LinearPredictor
from medmeta.learners.protocol import Learner, LearnerError, Predictor
from medmeta.networks import encoded
from medmeta.shape import Image

VIEW = Augment(flip=True, gain=0.2, bias=0.2, rotate=20.0, scale=0.2)
"""How far a view of the support may be from it. One to five patients show little of how others differ."""


@dataclass(frozen=True)
class FineTuning:
    """How a network and its head go on learning from the support.

    Args:
        steps: most steps.
        rate: of Adam.
        views: views of the support a step.
        folds: parts of the support that are left out in turn; 0 always takes all steps.
        seed: of the views.
        outlined: whether the last channel is the outline of a lesion in an image that is 0 around it, as a
            plan with ``lesion`` cuts it out: a view moves both and changes neither.
        spacing: mm along each voxel axis, as a plan's ``sides``, so that what a view turns keeps its form;
            None takes all as equal.

    Raises:
        LearnerError: for numbers that cannot be.
    """

    steps: int = 30
    rate: float = 2e-3
    views: int = 4
    folds: int = 2
    seed: int = 0
    outlined: bool = False
    spacing: Sequence[float] | None = None

    def __post_init__(self) -> None:
        rate = self.rate > 0 and math.isfinite(self.rate)
        if self.steps < 0 or not rate or self.views < 1 or self.folds < 0:
            raise LearnerError(
                "steps and folds of 0 or more, 1 or more views, a positive rate",
                found=f"steps={self.steps}, folds={self.folds}, views={self.views}, rate={self.rate}",
                cure="Change that option.",
            )
        if self.spacing is not None and not all(side > 0 for side in self.spacing):
            raise LearnerError(
                "mm above 0 along each voxel axis",
                found=f"spacing={self.spacing}",
                cure="Change that option.",
            )

    @property
    def counts(self) -> tuple[int, ...]:
        """Numbers of steps that are tried on what is left out."""
        return tuple(sorted({0, self.steps // 3, self.steps}))


SAFEGUARD = FineTuning(steps=60, rate=3e-3)
"""How :class:`Safeguarded` goes on. Chosen on a real structure held out (posterior hippocampus, one other
structure trained on; Dice with 5 labels 0.18 without, 0.53 after 30 steps at 2e-3, 0.69 after 60 at 3e-3)."""

Start = Callable[[Examples], tuple[nn.Module, Head]]
"""A support to the network that fine-tuning moves, one of its own, and the head that it starts from."""


def guess(network: nn.Module, head: Head, image: Image, *, dense: bool) -> Tensor:
    """Logits ``(n, way, *space)`` of a network and a head beside it."""
    return logits(encoded(network, image, dense=dense), head)


def walk(
    start: Start,
    support: Examples,
    counts: Sequence[int],
    tuning: FineTuning,
    fixed: frozenset[str] = frozenset(),
) -> Iterator[tuple[int, nn.Module, Head]]:
    """Give network and head after each of the numbers of steps; the same network, moving on.

    ``fixed`` weights of it stay as they are. The rate falls over the second half of the most steps there may
    be, however many are taken: a number of steps is judged and then taken at the same rates.
    """
    network, first = start(support)
    network.eval()
    for name, weight in network.named_parameters():
        weight.requires_grad_(name not in fixed)
    head = Head(*(w.detach().clone().requires_grad_() for w in first))
    adam = torch.optim.Adam([*network.parameters(), *head], lr=tuning.rate)
    generator = torch.Generator().manual_seed(tuning.seed)
    like = parameter_like(network)
    if 0 in counts:
        yield 0, network, Head(*(w.detach() for w in head))
    for step in range(1, max(counts) + 1):
        piece = whole(_views(support, tuning, generator), like)
        with torch.enable_grad():
            adam.zero_grad()
            _losses(network, head, piece).mean().backward()
        for group in adam.param_groups:
            group["lr"] = tuning.rate * min(1.0, 2 * (1 - (step - 1) / tuning.steps))
        adam.step()
        if step in counts:
            yield step, network, Head(*(w.detach().clone() for w in head))


def taken(
    start: Start, support: Examples, count: int, tuning: FineTuning, fixed: frozenset[str] = frozenset()
) -> tuple[nn.Module, Head]:
    """Network and head after a number of steps of :func:`walk`.

    Raises:
        LearnerError: where the steps ran away to infinity.
    """
    *_, (_, network, head) = walk(start, support, [count], tuning, fixed)
    if not all(bool(torch.isfinite(w).all()) for w in (*network.parameters(), *head)):
        raise LearnerError(
            "finite weights after fine-tuning",
            found=f"NaN or infinity at learning rate {tuning.rate:g}",
            cure="Lower rate or steps, or look at the scale of the images.",
        )
    return network, head


def _losses(network: nn.Module, head: Head, piece: Piece) -> Tensor:
    return example_loss(guess(network, head, piece.image, dense=piece.dense), piece.target, piece.share)


def enough(
    start: Start, support: Examples, tuning: FineTuning, fixed: frozenset[str] = frozenset()
) -> int | None:
    """Choose the number of steps by leaving parts of the support out in turn.

    Returns:
        The one with the least loss on what was left out, of equal ones the fewest; None where nothing can
        be left out, as with a single patient.
    """
    parts = left_out(support, tuning.folds)
    if not parts or not tuning.steps:
        return None
    losses = dict.fromkeys(tuning.counts, 0.0)
    for rest, out in parts:
        for count, network, head in walk(start, rest, tuning.counts, tuning, fixed):
            with torch.no_grad():
                losses[count] += float(_losses(network, head, whole(out, parameter_like(network))).mean())
    return min(tuning.counts, key=lambda count: (losses[count], count))


def _views(support: Examples, tuning: FineTuning, generator: torch.Generator) -> Examples:
    """Some examples, each moved in its own way; all as they are where there is no space to move in."""
    axes = support.image.ndim - 2
    if axes < 1:
        return support
    if tuning.spacing is not None and len(tuning.spacing) != axes:
        raise LearnerError(
            f"mm along each of {axes} voxel axes",
            found=f"spacing={tuning.spacing}",
            cure="Change that option.",
        )
    order = torch.randperm(len(support.image), generator=generator).repeat(tuning.views)
    made, change = [], Change(VIEW, generator, tuning.outlined, tuning.spacing)
    for i in order[: max(tuning.views, len(support.classes))].tolist():
        one = Examples(support.image[i : i + 1], support.label[i : i + 1], support.classes)
        made.append(change.draw(one)[1])
    image, label = torch.cat([m.image for m in made]), torch.cat([m.label for m in made])
    return Examples(image, label, support.classes)


def in_order(support: Examples) -> Examples:
    """The support in an order that does not depend on how it was given: by label and sum of image."""
    flat = support.label.reshape(len(support.label), -1).sum(1).tolist()
    sums = support.image.double().flatten(1).square().sum(1).tolist()
    order = sorted(range(len(sums)), key=lambda i: (sums[i], flat[i]))
    patients = tuple(support.patients[i] for i in order) if support.patients else ()
    return Examples(support.image[order], support.label[order], support.classes, patients)


def left_out(support: Examples, folds: int) -> list[tuple[Examples, Examples]]:
    """Cut the support into (rest, left out) by patient; those in which both show every class.

    Example:
        >>> support = Examples(torch.zeros(4, 3), torch.tensor([0, 1, 0, 1]), ("a", "b"))
        >>> [(len(rest.image), len(out.image)) for rest, out in left_out(support, 2)]
        []
        >>> dense = Examples(torch.zeros(3, 1, 2, 1), torch.tensor([[[0], [1]]] * 3), ("a", "b"))
        >>> [(len(rest.image), len(out.image)) for rest, out in left_out(dense, 3)]
        [(2, 1), (2, 1), (2, 1)]
    """
    names = support.patients or tuple(map(str, range(len(support.image))))
    known = sorted(set(names), key=names.index)
    made = []
    folds = min(folds, len(known))
    for fold in range(folds if folds > 1 else 0):
        out = [i for i, n in enumerate(names) if known.index(n) % folds == fold]
        rest = [i for i in range(len(names)) if i not in out]
        pair = tuple(Examples(support.image[w], support.label[w], support.classes) for w in (rest, out))
        if all(all(side.shot) for side in pair):
            made.append((pair[0], pair[1]))
    return made


def can_go_on(learner: Learner) -> bool:
    """Whether :class:`Safeguarded` can give another outline than the learner itself."""
    return getattr(learner, "linear_head", True)


class Safeguarded(nn.Module):
    """Any learner whose predictor has a linear head, and then fine-tuning as far as it helps those left out.

    What a meta-trained start knows of a tumour type may be little, and then plain fine-tuning on a few
    patients does better; it may be much, and then fine-tuning forgets it. Who is right is asked of the
    support: its patients are left out in turn. A single patient cannot be left out, and the learner's own
    answer stays.

    Args:
        learner: any learner; what it gives without a linear head is given as it is.
        tuning: how to go on; :data:`SAFEGUARD` by default. For lesions cut out with their outline, it must
            say ``outlined=True``, and where voxels are longer one way than another their ``spacing``:
            ``replace(SAFEGUARD, outlined=True, spacing=plan.sides)``.

    Example:
        >>> from medmeta.learners import create_learner
        >>> support = Examples(torch.randn(4, 6), torch.tensor([0, 1, 0, 1]), ("a", "b"), tuple("pqrs"))
        >>> learner = Safeguarded(create_learner("prototypical", nn.Linear(6, 3)))
        >>> learner.adapt(support)(torch.randn(2, 6)).shape
        torch.Size([2, 2])
    """

    def __init__(self, learner: Learner, tuning: FineTuning | None = None) -> None:
        super().__init__()
        self.learner, self.tuning = learner, tuning or SAFEGUARD
        self.fixed = fixed_weights(learner.network)

    @torch.inference_mode(False)
    def adapt(self, support: Examples) -> Predictor:
        """Learn from the support; the learner stays bitwise the same."""
        check_support(support)
        own = self.learner.adapt(support)
        if not isinstance(own, LinearPredictor) or not isinstance(own.between, nn.Identity):
            return own
        ordered = in_order(support)
        count = enough(self._start, ordered, self.tuning, self.fixed)
        if not count:
            return own
        network, head = taken(self._start, ordered, count, self.tuning, self.fixed)
        return LinearPredictor(network, head, support)

    def _start(self, support: Examples) -> tuple[nn.Module, Head]:
        own = self.learner.adapt(support)
        assert isinstance(own, LinearPredictor)
        weight, bias = own.head.weight, own.head.bias
        assert isinstance(weight, Tensor)
        assert isinstance(bias, Tensor)
        return own.network, Head(weight.flatten(1), bias)
