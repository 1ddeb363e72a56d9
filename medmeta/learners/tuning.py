"""Choosing an honest baseline's rate and steps, on meta-validation tasks and never on the test tasks."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any, TypeVar

import torch

from medmeta.episodes.examples import Episode, Examples
from medmeta.learners.batch import copied
from medmeta.learners.gradient import GradientLearner
from medmeta.learners.protocol import Learner, LearnerError, Predictor
from medmeta.learners.turns import held

log = logging.getLogger(__name__)
T = TypeVar("T")

RATES = (3e-4, 1e-3, 3e-3)
STEPS = (10, 30, 100)


def score(predictor: Predictor, query: Examples) -> float:
    """Judge a predictor on a query set, 0 to 1.

    Returns:
        The mean over classes of the share classified rightly; when segmenting the mean Dice of the
        examples that show a lesion, over all classes but the background.

    Example:
        >>> query = Examples(torch.zeros(3, 1), torch.tensor([0, 0, 1]), ("a", "b"))
        >>> score(lambda image: torch.tensor([[1.0, 0.0]]).expand(3, 2), query)
        0.5
    """
    like = next(predictor.parameters(), None) if isinstance(predictor, torch.nn.Module) else None
    with torch.no_grad():
        image = query.image if like is None else query.image.to(like)
        guess = predictor(image).argmax(1).to(query.label.device)
    if not query.segments:
        shares = [float((guess[query.label == c] == c).float().mean()) for c in query.label.unique()]
        return sum(shares) / len(shares)
    dices = []
    for found, truth in zip(guess, query.label, strict=True):
        for c in truth.unique().tolist():
            if c:
                both = int(((found == c) & (truth == c)).sum())
                dices.append(2 * both / (int((found == c).sum()) + int((truth == c).sum())))
    return sum(dices) / max(1, len(dices))


def silent(items: Iterable[T], **_: Any) -> Iterator[T]:
    """Go through items without showing progress."""
    return iter(items)


@torch.inference_mode(False)
def tune_rates(
    learner: Learner,
    episodes: Sequence[Episode],
    *,
    rates: Sequence[float] | None = None,
    steps: Sequence[int] | None = None,
    track: Callable[..., Iterator[Any]] = silent,
) -> Learner:
    """Choose the learning rate and the number of steps of ``adapt`` that do best on meta-validation tasks.

    One walk of the longest length a rate and task; shorter ones are read off on the way.

    Args:
        learner: any learner; those that take no steps, or take them at a rate of their own until the support
            has enough of them (``refined-ridge``, :class:`Safeguarded`), are given back as they are.
        episodes: meta-validation tasks, of types neither trained on nor held out for the test.
        rates: learning rates to try; by default three around 1e-3 for Adam, and 0.3 to 3 times its own else.
        steps: numbers of steps to try.
        track: shows progress: an iterable, ``description`` and ``total`` to an iterator.

    Returns:
        A copy of the learner with the best pair; of equal ones the fewest steps.

    Raises:
        LearnerError: where there is no task, or every pair ran away to infinity.

    Example:
        >>> from medmeta.learners import create_learner
        >>> examples = Examples(torch.randn(4, 6), torch.tensor([0, 0, 1, 1]), ("a", "b"))
        >>> learner = create_learner("finetune-scratch", torch.nn.Linear(6, 3))
        >>> tune_rates(learner, [Episode(examples, examples)], steps=[1, 2]).options["adapt_steps"] in (1, 2)
        True
    """
    if not isinstance(learner, GradientLearner):
        return learner
    if not episodes:
        raise LearnerError(
            "one meta-validation task or more", found="none", cure="Keep a type for validation."
        )
    own = learner.inner.rate
    rates = rates or (RATES if learner.inner.optimiser == "adam" else (0.3 * own, own, 3 * own))
    steps = sorted(steps or STEPS)
    scores: dict[tuple[int, float], list[float]] = {(s, r): [] for s in steps for r in rates}
    for rate, episode in track(
        [(r, e) for r in rates for e in episodes],
        description="choosing rates",
        total=len(rates) * len(episodes),
    ):
        for count, value in _walk(_changed(learner, rate=rate), episode, steps):
            scores[count, rate].append(value)
    means = {pair: sum(v) / len(episodes) for pair, v in scores.items() if len(v) == len(episodes)}
    if not means:
        raise LearnerError(
            "a rate that stays finite", found=f"none of {', '.join(map(str, rates))}", cure="Try lower rates."
        )
    count, rate = max(means, key=lambda pair: (round(means[pair], 4), -pair[0]))
    log.info("%s: rate %g and %d steps chosen on %d tasks", learner.name, rate, count, len(episodes))
    return _changed(learner, rate=rate, adapt_steps=count)


def stepping(learner: Learner, *, rate: float | None = None, steps: int | None = None) -> Learner:
    """Give a copy of a learner that adapts at another rate or with another number of steps.

    Args:
        learner: one that takes gradient steps.
        rate: of its steps; None leaves it.
        steps: that ``adapt`` takes; None leaves them.

    Raises:
        LearnerError: where it takes no steps, or for numbers that cannot be.

    Example:
        >>> from medmeta.learners import create_learner
        >>> learner = create_learner("maml", torch.nn.Linear(6, 3), way=2)
        >>> stepping(learner, steps=20).options["adapt_steps"]
        20
    """
    changes = {n: v for n, v in {"rate": rate, "adapt_steps": steps}.items() if v is not None}
    if not changes:
        return learner
    if not isinstance(learner, GradientLearner):
        raise LearnerError(
            "a learner that takes gradient steps, for a rate or a number of them",
            found=repr(learner.name),
            cure="Leave out the rate and the steps.",
        )
    return _changed(learner, **changes)


def _walk(learner: GradientLearner, episode: Episode, steps: Sequence[int]) -> Iterator[tuple[int, float]]:
    for count, moving in enumerate(learner.path(episode.support, max(steps))):
        if not all(math.isfinite(float(w.sum())) for w in moving.values()):
            return
        if count in steps:
            yield count, score(learner.predictor(moving, episode.support), episode.query)


def _changed(learner: GradientLearner, **changes: Any) -> GradientLearner:
    with held(learner.network):
        changed = copied(learner)
    changed.inner = replace(learner.inner, **changes)
    changed.options = asdict(changed.inner)
    return changed
