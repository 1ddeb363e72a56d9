"""How sure an answer is: calibrated by a temperature, and withheld where the case is unlike the support."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

FLAT = 1e-6
"""Deviation of a feature that does not vary within a scan, as where the backbone gives one vector."""
OWN = 2
"""Features of a channel of the image itself, as :func:`texture` gives them."""
_SPREAD, _WEIGHT = 0.6, 8
"""Spread of the logarithms of support distances that is expected beforehand (of a distance by two independent
features it is 0.64), and how many patients that counts as: of three alone, a spread says next to nothing.
Chosen on hippocampi and abdominal MR (benchmarks/abstain.py), so that 1 in 20 like the support is flagged."""


class Moments:
    """Mean and deviation of features over the voxels of one scan, as they come.

    Example:
        >>> seen = Moments()
        >>> seen.add(torch.tensor([[1.0, 3.0]]))
        >>> [t.tolist() for t in seen.described()]
        [[2.0], [1.0]]
    """

    def __init__(self) -> None:
        self._count, self._sum, self._squares = 0, torch.zeros(0), torch.zeros(0)
        self._more: list[Moments] = []

    def add(self, values: Tensor) -> None:
        """Take in ``(feature, n)``."""
        wide = values.double()
        self._count += wide.shape[1]
        if not self._sum.numel():
            self._sum = self._squares = torch.zeros(len(wide), dtype=torch.float64)
        self._sum, self._squares = self._sum + wide.sum(1), self._squares + wide.square().sum(1)

    def join(self, other: Moments) -> None:
        """Take in features of another kind beside these."""
        self._more.append(other)

    def described(self) -> Tensor:
        """``(2, feature)``: means, and deviations of at least :data:`FLAT`."""
        mean = self._sum / max(self._count, 1)
        variance = self._squares / max(self._count, 1) - mean.square()
        own = torch.stack([mean, variance.clamp(FLAT**2).sqrt()])
        return torch.cat([own, *(m.described() for m in self._more)], 1)


def texture(image: Tensor, inside: Tensor) -> Tensor:
    """Values of the image, and steps to the next voxel along the first axis, as features.

    Args:
        image: ``(channel, x, y, z)`` on the plan's grid.
        inside: ``(x, y, z)``, the body.

    Returns:
        ``(OWN channel, n)``.
    """
    both = inside[1:] & inside[:-1]
    return torch.cat([image[:, 1:][:, both], (image[:, 1:] - image[:, :-1]).abs()[:, both]])


@dataclass(frozen=True)
class Likeness:
    """What the scans of the support look like to the network, and by themselves.

    Args:
        centre: ``(2, feature)``, mean and deviation of each feature, averaged over the support.
        own: how many of the features, the last ones, are the image's own (:func:`texture`).
        thresholds: of the distance by the network's features and by the image's own; a scan beyond either is
            unlike the support. None where the support is too small to say.
    """

    centre: Tensor
    own: int
    thresholds: tuple[float, float] | None = None

    def distances(self, described: Tensor) -> tuple[float, float]:
        """How far a scan lies from the support, in deviations of its voxels; 0 is alike.

        Each feature's mean is compared in units of its deviation within a scan, and its deviation by its
        logarithm; the root mean square of all is the distance.

        Args:
            described: ``(2, feature)`` of the scan.

        Returns:
            By the network's features, and by the image's own.

        Example:
            >>> like = Likeness(torch.tensor([[0.0, 0.0], [1.0, 2.0]]), own=1)
            >>> [round(d, 6) for d in like.distances(torch.tensor([[1.0, 4.0], [1.0, 2.0]]))]
            [0.707107, 1.414214]
        """
        shift = (described[0] - self.centre[0]) / self.centre[1]
        varies = described[1] > 2 * FLAT
        spread = torch.where(varies, (described[1] / self.centre[1]).log(), torch.zeros_like(shift))
        square = torch.stack([shift, spread]).double().square().mean(0)
        cut = len(square) - self.own
        parts = [float(part.mean().sqrt()) if len(part) else 0.0 for part in (square[:cut], square[cut:])]
        return parts[0], parts[1]

    def furthest(self, described: Tensor) -> tuple[float, float] | None:
        """Distance and threshold of the side by which a scan lies further off; None without thresholds."""
        if self.thresholds is None:
            return None
        both = zip(self.distances(described), self.thresholds, strict=True)
        return max(both, key=lambda pair: pair[0] / pair[1])


def likeness(patients: Sequence[Sequence[Tensor]], own: int) -> Likeness:
    """Describe a support and set the thresholds from its own leave-one-out distances.

    A threshold is the upper end of a one-sided 97.5 % prediction interval for the distance of one more
    patient's scan (Student's t, of the logarithms, with what is expected of their spread beforehand): 95 %
    for the two together. Scans of one patient are alike: a patient is left out with all of them, and counts
    once, whatever their number.

    Args:
        patients: of each, the scans, ``(2, feature)`` each.
        own: how many of the features, the last ones, are the image's own.
    """
    each = [_averaged(scans) for scans in patients]
    n = len(patients)
    if n < 2:
        return Likeness(_centre(each), own)
    apart = []
    for i, scans in enumerate(patients):
        rest = Likeness(_centre([one for j, one in enumerate(each) if j != i]), own)
        logs = torch.tensor([rest.distances(scan) for scan in scans], dtype=torch.float64).clamp(1e-9).log()
        apart.append(logs.mean(0))
    first, second = (_upper(side) for side in torch.stack(apart, 1))
    return Likeness(_centre(each), own, (first, second))


def _upper(logs: Tensor) -> float:
    """Of the logarithms of distances, one a patient."""
    from scipy.stats import t

    n = len(logs)
    freedom = _WEIGHT + n - 1
    spread = math.sqrt((_WEIGHT * _SPREAD**2 + float((logs - logs.mean()).square().sum())) / freedom)
    return math.exp(float(logs.mean()) + float(t.ppf(0.975, freedom)) * spread * (1 + 1 / n) ** 0.5)


def _averaged(scans: Sequence[Tensor]) -> Tensor:
    """The mean of the means, and the geometric mean of the deviations."""
    both = torch.stack(list(scans))
    return torch.stack([both[:, 0].mean(0), both[:, 1].log().mean(0).exp()])


def _centre(patients: Sequence[Tensor]) -> Tensor:
    """The average of all; for a feature that does not vary within a scan, its deviation between patients,
    half of it that of all such features."""
    middle, within = _averaged(patients)
    flat = within <= 2 * FLAT
    if bool(flat.any()):
        between = torch.stack([p[0] for p in patients]).var(0, unbiased=False)
        between = (0.5 * between + 0.5 * between[flat].mean()).sqrt().clamp(FLAT)
        within = torch.where(flat, between, within)
    return torch.stack([middle, within])


@dataclass(frozen=True)
class Confidence:
    """What a bundle knows of its own certainty.

    Args:
        temperature: already divided into the last layer, so that softmax is calibrated as it is.
        least_ml: less than that outlined in a whole scan is answered by "no tumour".
        likeness: of the support; None where the network's features are out of reach.
        why: how each was found, or why it could not be.
    """

    temperature: float = 1.0
    least_ml: float = 0.0
    likeness: Likeness | None = None
    why: str = "not fitted"

    @property
    def centre(self) -> Tensor | None:
        """Moments of the support's features, where they are known."""
        return None if self.likeness is None else self.likeness.centre

    def about(self) -> dict[str, Any]:
        """As the bundle's metadata have it."""
        like = self.likeness
        return {
            "temperature": round(self.temperature, 6),
            "least_ml": round(self.least_ml, 6),
            "distance_thresholds": None if like is None or like.thresholds is None else list(like.thresholds),
            "own_features": 0 if like is None else like.own,
            "why": self.why,
        }

    @staticmethod
    def read(about: Mapping[str, Any], centre: Tensor | None) -> Confidence:
        """What :meth:`about` wrote; nothing known where it is absent."""
        found = dict(about.get("confidence", {}))
        limits = found.get("distance_thresholds")
        like = None
        if centre is not None:
            both = None if limits is None else (float(limits[0]), float(limits[1]))
            like = Likeness(centre, int(found.get("own_features", 0)), both)
        return Confidence(
            float(found.get("temperature", 1.0)),
            float(found.get("least_ml", 0.0)),
            like,
            str(found.get("why", "not fitted")),
        )

    def judged(self, confidence: float, described: Tensor | None) -> dict[str, Any]:
        """The certainty of one answer, for its JSON.

        Args:
            confidence: calibrated probability of the answer.
            described: ``(2, feature)`` of the scan.
        """
        like = self.likeness
        off = None if like is None or described is None else like.furthest(described)
        return {
            "confidence": round(confidence, 6),
            "temperature": round(self.temperature, 6),
            "distance": None if off is None else round(off[0], 6),
            "threshold": None if off is None else round(off[1], 6),
            "abstain": None if off is None else off[0] > off[1],
        }


def through(network: nn.Module, images: Tensor, seen: Moments, there: Tensor | None = None) -> Tensor:
    """Logits of a network, its backbone's features taken in on the way.

    Args:
        network: of a bundle; backbone, what follows, head.
        images: ``(n, channel, *voxel)``.
        seen: takes the features in.
        there: ``(n, *voxel)``, where to look; None looks everywhere.
    """
    if not isinstance(network, nn.Sequential) or len(network) < 2:
        return network(images)
    feature = network[0](images)
    if isinstance(feature, Tensor):
        thin = (
            slice(None),
            slice(None),
            *[slice(None, None, 2)] * (feature.ndim - 2),
        )  # neighbours are alike
        some = feature[thin].transpose(0, 1)
        kept = there is not None and there.shape[1:] == feature.shape[2:]
        seen.add(some[:, there[thin[1:]]] if kept and there is not None else some.flatten(1))
    return network[1:](feature)


def foldable(network: nn.Sequential) -> bool:
    """Whether a temperature can go into the last layer: a linear map, or a convolution."""
    return isinstance(network[-1], (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d))


def folded(network: nn.Sequential, temperature: float) -> nn.Sequential:
    """The network with its logits divided by a temperature, in the weights of a copy of the last layer.

    Example:
        >>> network = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
        >>> image = torch.ones(1, 2)
        >>> torch.allclose(folded(network, 4.0)(image), network(image) / 4)
        True
    """
    if temperature == 1.0:
        return network
    last = copy.deepcopy(network[-1])
    for parameter in last.parameters():
        parameter.data /= temperature
    return nn.Sequential(*list(network)[:-1], last).eval()
