"""Which piece of the evidence is the tumour: plain classifiers propose, a meta-trained ranker chooses."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from medmeta.episodes.examples import Episode, Examples
from medmeta.learners.batch import check_support, seeded
from medmeta.learners.body import Maps, Mask
from medmeta.learners.describing import SIZE, Known, describe, stretched
from medmeta.learners.evidence import Evidence, learn
from medmeta.learners.extent import extent, scans
from medmeta.learners.predictor import LinearPredictor
from medmeta.learners.protocol import LearnerError
from medmeta.learners.regions import KINDS, Region, regions, sources
from medmeta.learners.ridge import RidgeLearner
from medmeta.learners.safeguard import in_order
from medmeta.shape import Image, Logits

FURTHEST = 10.0
"""Numbers that describe a region are kept within this."""
REMEMBERED = 2000
"""Most episodes whose description is kept: about a quarter of a megabyte each."""
LEAST = 1e-4
"""Least vote of a voxel, so that its logarithm is finite."""
FIT = 3.0
"""What it counts in training that scores are Dice themselves, beside that the best are chosen."""


class Ranker(nn.Module):
    """Several small networks that score regions, each by itself.

    Args:
        width: hidden units of each.
        members: how many.
        drop: share of numbers dropped in training (Srivastava et al. 2014).
    """

    def __init__(self, width: int, members: int, drop: float) -> None:
        super().__init__()
        self.width = width
        self.members = nn.ModuleList(
            nn.Sequential(
                nn.Dropout(drop),
                nn.Linear(2 * SIZE, width),
                nn.ReLU(),
                nn.Dropout(drop),
                nn.Linear(width, 1),
            )
            for _ in range(members)
        )

    def forward(self, told: Tensor) -> Tensor:
        """Descriptions ``(regions, SIZE)`` of one image to scores ``(members, regions)``.

        Every number is seen as it is and beside those of the image's other regions.
        """
        kept = told.clamp(-FURTHEST, FURTHEST)
        apart = (kept - kept.mean(0)) / (kept.std(0, correction=0) + 0.05)
        seen = torch.cat([kept.asinh(), apart], 1)
        return torch.stack([m(seen)[:, 0] for m in self.members])


@dataclass(frozen=True)
class Told:
    """The regions of one image as a ranker sees them, and how good each is.

    Args:
        told: ``(regions, SIZE)``, the last that there is none.
        dice: ``(regions)`` with the truth; 1 for none where there is none.
    """

    told: Tensor
    dice: Tensor


def ranking_loss(scores: Tensor, dice: Tensor) -> Tensor:
    """What choosing by softmax of the scores loses of Dice, and how far scores are from it, as a scalar.

    Args:
        scores: ``(members, regions)``.
        dice: ``(regions)``.

    Example:
        >>> dice = torch.tensor([0.9, 0.1])
        >>> good, bad = torch.tensor([[2.2, -2.2]]), torch.tensor([[-2.2, 2.2]])
        >>> bool(ranking_loss(good, dice) < ranking_loss(bad, dice))
        True
    """
    chosen = (torch.softmax(scores, 1) * dice).sum(1)
    apart = (torch.sigmoid(scores) - dice).square().mean(1)
    return (1 - chosen + FIT * apart).mean()


def vote(scores: Tensor, masks: Mask) -> Maps:
    """Let regions vote for their voxels by the softmax of their scores; logits ``(*voxel)`` of the tumour.

    The tumour is where Dice is highest if votes are taken for probabilities: the threshold depends on how
    sure they are (Lipton et al. 2014); nowhere, where more votes say that there is none.

    Args:
        scores: ``(members, regions + 1)``, the last that there is none.
        masks: ``(regions, *voxel)``.

    Returns:
        Positive where the tumour is.
    """
    weight = torch.softmax(scores, 1).mean(0).double().numpy()
    share = (
        np.tensordot(weight[:-1], masks.astype(np.float64), 1) if len(masks) else np.zeros(masks.shape[1:])
    )
    ordered = np.sort(share.ravel())[::-1]
    said = np.cumsum(ordered)
    dice = 2 * said / (np.arange(1, len(said) + 1) + said[-1] + 1e-12)
    best = int(dice.argmax())
    level = ordered[best] if dice[best] > weight[-1] else 1.0
    level = min(max(level, LEAST), 1 - LEAST) * (1 - 1e-6)
    share = share.clip(LEAST / 2, 1 - LEAST / 2)
    return np.asarray(np.log(share / (1 - share)) - np.log(level / (1 - level)), np.float32)


class Proposing(nn.Module):
    """What is learnt from a support of one tumour without any training.

    Args:
        evidence: fitted classifiers.
        known: the support's tumours.
    """

    shapes: Tensor
    places: Tensor
    likely: Tensor

    def __init__(self, evidence: Evidence, known: Known) -> None:
        super().__init__()
        self.evidence, self.shot = evidence, known.shot
        for name in ("shapes", "places", "likely"):
            self.register_buffer(name, torch.from_numpy(getattr(known, name)))

    @staticmethod
    def of(support: Sequence[tuple[Tensor, Tensor]], c: int, seed: int) -> Proposing | None:
        """Learn class ``c`` of :func:`scans` against all else; None where they show none, or nothing else."""
        images, labels = zip(*support, strict=True)
        targets = [(label == c).numpy() for label in labels]
        evidence = learn(images, targets, seed)
        if evidence is None:
            return None
        return Proposing(evidence, Known.of([image.mean(0).numpy() for image in images], targets))

    def forward(self, image: Tensor) -> tuple[list[Region], Tensor]:
        """Regions of one image ``(channel, *voxel)`` and their descriptions ``(regions + 1, SIZE)``."""
        maps = sources(self.evidence(image[None])[0])
        found = regions(maps)
        likely = stretched(self.likely.numpy(), tuple(image.shape[1:]))
        known = Known(self.shapes.numpy(), self.places.numpy(), likely, self.shot)
        return found, torch.from_numpy(describe(found, maps, image.mean(0).numpy(), known))

    def sizes(self) -> dict[str, Any]:
        """Arguments that make one these weights fit."""
        shown = {"places": list(self.places.shape), "likely": list(self.likely.shape), "shot": self.shot}
        return {**self.evidence.sizes(), **shown}


def _proposing(
    *, looks: int, nodes: Sequence[int], places: Sequence[int], likely: Sequence[int], shot: int
) -> Proposing:
    """Make one that knows nothing yet, for its weights to be loaded."""
    shapes, where = np.zeros((places[0], len(KINDS))), np.zeros(tuple(places))
    return Proposing(Evidence(looks, nodes), Known(shapes, where, np.zeros(tuple(likely), np.float32), shot))


class RankedRegionsPredictor(nn.Module):
    """Classifiers that propose regions and the ranker that chooses; it needs medmeta to run.

    Args:
        proposing: of every class but the first; None where the support shows none.
        ranker: trained on other tumour types.
    """

    def __init__(self, proposing: Sequence[Proposing | None], ranker: Ranker) -> None:
        super().__init__()
        self.shown = [p is not None for p in proposing]
        self.proposing = nn.ModuleList(p for p in proposing if p is not None)
        self.ranker = ranker
        self.requires_grad_(False)
        self.eval()

    def forward(self, image: Image) -> Logits:
        """Images ``(n, channel, *voxel)`` to logits ``(n, way, *space)``; the first class is at 0."""
        with torch.autocast("cpu", enabled=False):  # numpy knows no bfloat16
            made = torch.stack([self._one(one) for one in image.detach().cpu().float()])
        return made.to(image.device)

    def _one(self, image: Tensor) -> Tensor:
        own, where = iter(self.proposing), extent(image)
        made = torch.full((len(self.shown) + 1, *image.shape[1:]), float(np.log(LEAST)))
        made[0] = 0
        for c, shown in enumerate(self.shown, 1):
            if shown:
                made[c][where] = self._class(image[(slice(None), *where)], next(own))
        return made

    def _class(self, image: Tensor, proposing: nn.Module) -> Tensor:
        found, told = proposing(image)
        masks = np.stack([r.mask for r in found]) if found else np.zeros((0, *image.shape[1:]), bool)
        return torch.from_numpy(vote(self.ranker(told), masks))

    def spec(self, network: Mapping[str, Any]) -> dict[str, Any]:
        """How to make a predictor that these weights fit; the backbone has no part in it."""
        own = iter(self.proposing)
        sizes = [cast(Proposing, next(own)).sizes() if shown else None for shown in self.shown]
        return {
            "_target_": "medmeta.learners.ranked_regions.ranked_regions_predictor",
            "proposing": sizes,
            "width": self.ranker.width,
            "members": len(self.ranker.members),
        }


def ranked_regions_predictor(
    proposing: Sequence[Mapping[str, Any] | None], *, width: int, members: int
) -> RankedRegionsPredictor:
    """Make a predictor that knows nothing yet, for its weights to be loaded.

    Args:
        proposing: sizes of what is learnt of every class but the first.
        width, members: of the :class:`Ranker`.
    """
    made = [None if p is None else _proposing(**p) for p in proposing]
    return RankedRegionsPredictor(made, Ranker(width, members, 0.0))


class RankedRegionsLearner(RidgeLearner):
    """Propose regions by what the support says of voxels, choose by what other tumour types taught.

    Trees and a linear discriminant, fitted to voxels of the support alone, say of each voxel of a new image
    how much speaks for the tumour. Their maps are cut at several levels into regions (as component trees
    propose objects: Jones 1999; Matas et al. 2002). What carries over from one tumour type to another is not
    what tumours look like but what a right region is like: how it compares with the support's in size, shape,
    brightness and contrast, and how clearly the evidence speaks for it. That is what a small ranker is
    meta-trained on; it chooses by expected Dice. The backbone is not used to segment; to classify, or where
    there is no extent, it is ``ridge``.

    It looks at whole scans: training plans a patch that holds them, what lies around a smaller scan is cut
    away, and crops of one patient that are the same count once. Training on the same few hundred episodes
    again and again is right here: describing one takes seconds, learning from it a millisecond.

    Args:
        name: the name it goes by.
        network: the backbone.
        penalty, scale: of ``ridge``.
        width, members, drop: of the :class:`Ranker`.
        pool: different training episodes, which come again and again.
        seed: of the trees and the ranker's first weights.
    """

    linear_head = False
    whole_scans = True

    def __init__(
        self,
        name: str,
        network: nn.Module,
        *,
        penalty: float = 0.1,
        scale: float = 10.0,
        width: int = 32,
        members: int = 4,
        drop: float = 0.3,
        pool: int = 64,
        seed: int = 0,
    ) -> None:
        super().__init__(name, network, penalty=penalty, scale=scale)
        if min(width, members, pool) < 1 or not 0 <= drop < 1:
            raise LearnerError(
                "1 or more of width, members and pool, a drop from 0 to below 1",
                found=f"width={width}, members={members}, pool={pool}, drop={drop}",
                cure="Change that option.",
            )
        more = {"width": width, "members": members, "drop": drop, "pool": pool, "seed": seed}
        self.options = {**self.options, **more}
        self.seed, self.recurring = seed, pool
        with seeded(seed):
            self.ranker = Ranker(width, members, drop)
        self.described: dict[bytes, list[Told]] = {}

    def adapt(self, support: Examples) -> LinearPredictor | RankedRegionsPredictor:  # type: ignore[override]
        """Fit the classifiers; the learner stays bitwise the same."""
        check_support(support)
        if not support.has_extent:
            return super().adapt(support)
        shown = list(scans(in_order(support)))
        proposing = [Proposing.of(shown, c, self.seed) for c in range(1, len(support.classes))]
        ranker = Ranker(*(self.options[o] for o in ("width", "members", "drop")))
        ranker.load_state_dict({k: v.detach().cpu().float() for k, v in self.ranker.state_dict().items()})
        return RankedRegionsPredictor(proposing, ranker)

    def episode_loss(self, episode: Episode) -> Tensor:
        """Give the ranking loss, mean over queries and classes; to classify, that of ``ridge``."""
        if not episode.support.has_extent:
            return super().episode_loss(episode)
        like = next(self.ranker.parameters())
        told = self.describe(episode)
        losses = [ranking_loss(self.ranker(t.told.to(like)), t.dice.to(like)) for t in told]
        return torch.stack(losses).mean()

    def describe(self, episode: Episode) -> list[Told]:
        """Describe the regions of every query, class by class; an episode seen before is remembered."""
        key = _key(episode)
        if key not in self.described:
            if len(self.described) >= REMEMBERED:
                self.described.pop(next(iter(self.described)))
            self.described[key] = _described(episode, self.seed)
        return self.described[key]


def _key(episode: Episode) -> bytes:
    made = hashlib.sha256()
    for part in (episode.support, episode.query):
        for tensor in (part.image, part.label):
            made.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return made.digest()


def _described(episode: Episode, seed: int) -> list[Told]:
    support, query = list(scans(in_order(episode.support))), list(scans(episode.query))
    told = []
    for c in range(1, len(episode.support.classes)):
        proposing = Proposing.of(support, c, seed)
        if proposing is None:
            continue
        for image, label in query:
            found, rows = proposing(image)
            truth = (label == c).numpy()
            told.append(Told(rows, torch.from_numpy(_dice(found, truth))))
    return told


def _dice(found: Sequence[Region], truth: Mask) -> Maps:
    """Dice of each region, and last 1 for none where there is no tumour."""
    size = int(truth.sum())
    own = [2 * int((r.mask & truth).sum()) / (int(r.mask.sum()) + size) for r in found]
    return np.array([*own, float(size == 0)], np.float32)


__all__ = ["RankedRegionsLearner", "RankedRegionsPredictor", "Ranker", "ranking_loss", "vote"]
