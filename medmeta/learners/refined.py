"""A ridge head to begin with, then safeguarded fine-tuning on augmented views, and trees on what both saw."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from sklearn.ensemble import ExtraTreesClassifier
from torch import Tensor, nn

from medmeta.episodes.augment import Augment, apply, draw
from medmeta.episodes.examples import Examples
from medmeta.learners.batch import Piece, check_support, parameter_like, pieces, still, whole
from medmeta.learners.head import Head, logits
from medmeta.learners.local_prototype import POOL, places
from medmeta.learners.loss import example_loss
from medmeta.learners.predictor import LinearPredictor
from medmeta.learners.protocol import LearnerError
from medmeta.learners.ridge import RidgeLearner
from medmeta.networks import features
from medmeta.shape import Image, Logits

VIEW = Augment(flip=True, gain=0.2, bias=0.2, rotate=20.0, scale=0.2)
"""How far a view of the support may be from it. One to five patients show little of how others differ."""
SCALES = (3, 7, 15)
VOXELS = 4000
"""Voxels of each example that trees are fitted to, half of them of the target where there are so many."""


def pixel_features(image: Image) -> Tensor:
    """Each channel, its means and deviations over windows of three sizes, and the voxel's place.

    Args:
        image: ``(n, channel, *voxel)``.

    Returns:
        ``(n, 7 * channel + axes, *voxel)``.

    Example:
        >>> pixel_features(torch.rand(1, 1, 16, 16)).shape
        torch.Size([1, 9, 16, 16])
    """
    pool = POOL[image.ndim - 3]
    maps = [image]
    for side in SCALES:
        sides = [min(side, s - 1 + s % 2) for s in image.shape[2:]]  # odd, and no larger than the image
        halves = [s // 2 for s in sides]
        mean = pool(image, sides, 1, halves, count_include_pad=False)
        square = pool(image.square(), sides, 1, halves, count_include_pad=False)
        maps += [mean, (square - mean.square()).clamp(min=0).sqrt()]
    return torch.cat([*maps, places(image)], 1)


class RefinedPredictor(nn.Module):
    """An adapted network, averaged over mirrored views, and trees; it needs medmeta to run.

    Args:
        plain: the adapted network with its head.
        mirrors: whether each voxel axis is mirrored in turn, too.
        trees: fitted to the support's voxels, or None.
        part: of the trees in the mean of the logarithms of probabilities.
    """

    def __init__(
        self, plain: LinearPredictor, mirrors: bool, trees: ExtraTreesClassifier | None, part: float
    ) -> None:
        super().__init__()
        self.plain, self.trees, self.part = plain, trees, part
        self.mirrors = mirrors and plain.dense
        self.eval()

    def forward(self, image: Image) -> Logits:
        """Images ``(n, channel, *voxel)`` to logits ``(n, way, *space)``."""
        axes = range(2, image.ndim) if self.mirrors else ()
        views = [self.plain(image), *(self.plain(image.flip(a)).flip(a) for a in axes)]
        found = torch.stack([torch.softmax(v, 1) for v in views]).mean(0).clamp(min=1e-6).log()
        if self.trees is None:
            return found
        grown = torch.stack([self._grown(one[None], found.shape[1]) for one in image])
        return (1 - self.part) * found + self.part * grown.to(found)

    def _grown(self, image: Image, way: int) -> Tensor:
        seen = tree_features(self.plain.network, image)
        probability = np.full((seen.shape[0], way), 1e-3)
        assert self.trees is not None
        probability[:, self.trees.classes_] += self.trees.predict_proba(seen.numpy())
        return torch.from_numpy(np.log(probability).T.reshape(way, *image.shape[2:]))


def tree_features(network: nn.Module, image: Image) -> Tensor:
    """What trees see of one image ``(1, channel, *voxel)``: ``(voxels, features)``, float32 on the CPU."""
    deep = features(network(image), tuple(image.shape[2:]), dense=True)
    both = torch.cat([pixel_features(image), deep], 1)
    return both[0].flatten(1).T.float().cpu()


class RefinedRidgeLearner(RidgeLearner):
    """Ridge head (Bertinetto et al. 2019), then a few safeguarded steps on augmented views of the support.

    Meta-training is that of ``ridge``: backbone features on which a closed-form head already segments.
    Adapting starts from that head and moves all weights by Adam on randomly moved views of the support. How
    many steps, if any, is chosen by leaving out support examples in turn: what does not help the ones left
    out is not done. With trees, extremely randomised trees (Geurts et al. 2006) on the adapted features,
    intensities and places have a part in the answer.

    Args:
        name: the name it goes by.
        network: the backbone.
        penalty, scale: of ``ridge``.
        steps: most fine-tuning steps.
        rate: of Adam.
        views: views of the support a step.
        folds: parts of the support that are left out in turn; 0 always takes all steps.
        mirrors: whether predictions are averaged over mirrored views.
        trees: number of trees, 0 for none. With neither mirrors nor trees a predictor leaves home as a plain
            network.
        part: of the trees in the answer.
        seed: of the views.
    """

    def __init__(
        self,
        name: str,
        network: nn.Module,
        *,
        penalty: float = 0.1,
        scale: float = 10.0,
        steps: int = 30,
        rate: float = 2e-3,
        views: int = 4,
        folds: int = 2,
        mirrors: bool = False,
        trees: int = 0,
        part: float = 0.5,
        seed: int = 0,
    ) -> None:
        super().__init__(name, network, penalty=penalty, scale=scale)
        good = steps >= 0 and rate > 0 and views >= 1 and folds >= 0 and trees >= 0 and 0 <= part <= 1
        if not good:
            raise LearnerError(
                "steps, folds and trees of 0 or more, 1 or more views, a positive rate, a part from 0 to 1",
                found=f"steps={steps}, folds={folds}, trees={trees}, views={views}, rate={rate}, part={part}",
                cure="Change that option.",
            )
        more = {"steps": steps, "rate": rate, "views": views, "folds": folds, "mirrors": mirrors}
        self.options = {**self.options, **more, "trees": trees, "part": part, "seed": seed}
        self.steps, self.rate, self.views, self.folds = steps, rate, views, folds
        self.mirrors, self.trees, self.part, self.seed = mirrors, trees, part, seed

    def adapt(self, support: Examples) -> LinearPredictor | RefinedPredictor:  # type: ignore[override]
        """Learn from the support; the learner stays bitwise the same."""
        check_support(support)
        support = in_order(support)
        *_, (_, network, head) = self._walk(support, [self._enough(support)])
        plain = LinearPredictor(network, head, support)
        trees = self._grow(network, support) if self.trees and support.segments else None
        if trees is None and not (self.mirrors and support.segments):
            return plain
        return RefinedPredictor(plain, self.mirrors, trees, self.part)

    def _enough(self, support: Examples) -> int:
        """Choose the number of steps by leaving parts of the support out in turn."""
        parts = left_out(support, self.folds)
        if not parts or not self.steps:
            return self.steps
        counts = sorted({0, self.steps // 3, self.steps})
        losses = dict.fromkeys(counts, 0.0)
        for rest, out in parts:
            for count, network, head in self._walk(rest, counts):
                losses[count] += self._judge(network, head, out)
        return min(counts, key=lambda count: (losses[count], count))

    def _judge(self, network: nn.Module, head: Head, out: Examples) -> float:
        piece = whole(out, parameter_like(network))
        with torch.no_grad():
            guess = self._guess(network, head, piece)
            return float(example_loss(guess, piece.target, piece.share).mean())

    def _guess(self, network: nn.Module, head: Head, piece: Piece) -> Tensor:
        return logits(features(network(piece.image), tuple(piece.image.shape[2:]), dense=piece.dense), head)

    def _walk(self, support: Examples, counts: Sequence[int]) -> Iterator[tuple[int, nn.Module, Head]]:
        """Give network and head after each of the numbers of steps; the same network, moving on."""
        like = parameter_like(self.network)
        with torch.no_grad(), still(self.network):
            start = self._head(pieces(support, like))
        network = copy.deepcopy(self.network).eval().requires_grad_(True)
        head = Head(*(w.clone().requires_grad_() for w in start))
        adam = torch.optim.Adam([*network.parameters(), *head], lr=self.rate)
        generator = torch.Generator().manual_seed(self.seed)
        if 0 in counts:
            yield 0, network, Head(*(w.detach() for w in head))
        for step in range(1, max(counts) + 1):
            piece = whole(self._views(support, generator), like)
            with torch.enable_grad():
                adam.zero_grad()
                example_loss(self._guess(network, head, piece), piece.target, piece.share).mean().backward()
            for group in adam.param_groups:
                group["lr"] = self.rate * min(1.0, 2 * (1 - (step - 1) / max(counts)))  # falls from half way
            adam.step()
            if step in counts:
                yield step, network, Head(*(w.detach().clone() for w in head))

    def _views(self, support: Examples, generator: torch.Generator) -> Examples:
        """Some examples, each moved in its own way; all as they are where there is no space to move in."""
        axes = support.image.ndim - 2
        if axes < 1:
            return support
        order = torch.randperm(len(support.image), generator=generator).repeat(self.views)
        made = []
        for i in order[: max(self.views, len(support.classes))].tolist():
            one = Examples(support.image[i : i + 1], support.label[i : i + 1], support.classes)
            made.append(apply(draw(VIEW, axes, generator), one))
        image, label = torch.cat([m.image for m in made]), torch.cat([m.label for m in made])
        return Examples(image, label, support.classes)

    def _grow(self, network: nn.Module, support: Examples) -> ExtraTreesClassifier:
        """Fit trees to voxels of the support."""
        generator = np.random.default_rng(self.seed)
        seen, labels = [], []
        like = parameter_like(network)
        for image, label in zip(support.image, support.label, strict=True):
            flat = label.flatten().cpu().numpy()
            rare = generator.permutation(np.flatnonzero(flat))[: VOXELS // 2]
            rest = generator.permutation(np.flatnonzero(flat == 0))[: VOXELS - len(rare)]
            chosen = np.concatenate([rare, rest])
            with torch.no_grad():
                seen.append(tree_features(network, image[None].to(like)).numpy()[chosen])
            labels.append(flat[chosen])
        trees = ExtraTreesClassifier(
            n_estimators=self.trees,
            min_samples_leaf=2,
            class_weight="balanced",
            random_state=self.seed,
            n_jobs=1,
        )
        return trees.fit(np.concatenate(seen), np.concatenate(labels))


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


__all__ = ["RefinedPredictor", "RefinedRidgeLearner", "pixel_features"]
