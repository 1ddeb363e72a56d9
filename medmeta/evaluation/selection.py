"""Which patients to label: those that all others lie nearest to in the feature space of an encoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from monai.inferers import SlidingWindowInferer
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from torch import Tensor, nn

from medmeta.evaluation.medoids import k_medoids
from medmeta.evaluation.records import EvaluationError
from medmeta.networks import build, encoded, unet
from medmeta.volumes import Plan, Prepared, Store, Volume
from medmeta.volumes.progress import Track, silent

Embed: TypeAlias = Callable[[Prepared], NDArray[np.float64]]
"""A volume on the plan's grid to one vector; masks are not looked at."""


@dataclass(frozen=True)
class Selection:
    """The patients to label.

    Args:
        volumes: one a patient, the one that stands for most others first.
        stands_for: how many patients lie nearest to each, itself included.
        patients: that were chosen among.
    """

    volumes: tuple[Volume, ...]
    stands_for: tuple[int, ...]
    patients: int


def select(
    volumes: Sequence[Volume], shots: int, store: Store, embed: Embed, *, track: Track = silent
) -> Selection:
    """Choose the patients to label, without looking at any label.

    Args:
        volumes: of the patients to choose among; of several volumes of a patient the first one counts.
        shots: patients to choose.
        store: prepared volumes.
        embed: gives a volume's vector, such as :func:`embedding`.
        track: shows progress.

    Raises:
        EvaluationError: where there are not more patients than are to be chosen.
    """
    first = enough(volumes, shots)
    rows = [embed(store.read(v)) for v in track(first, description="looking at scans", total=len(first))]
    chosen, sizes = medoids_of(np.stack(rows), shots)
    return Selection(tuple(first[i] for i in chosen), tuple(sizes), len(first))


def enough(volumes: Sequence[Volume], shots: int) -> list[Volume]:
    """The first volume of each patient, where there are more patients than are to be chosen.

    Raises:
        EvaluationError: where there are not.
    """
    first = one_a_patient(volumes)
    if not 0 < shots < len(first):
        raise EvaluationError(
            f"more than {shots} patients to choose {shots} from"
            if shots > 0
            else "1 patient or more to choose",
            found=f"{len(first)} patients" if shots > 0 else str(shots),
            cure="Add patients, or ask for fewer --shots." if shots > 0 else "Give --shots of 1 or more.",
        )
    return first


def one_a_patient(volumes: Sequence[Volume]) -> list[Volume]:
    """The first volume of each patient, patients sorted, so that the order of ``volumes`` does not matter."""
    found: dict[str, Volume] = {}
    for volume in sorted(volumes, key=lambda v: v.place):
        found.setdefault(volume.patient, volume)
    return list(found.values())


def medoids_of(rows: NDArray[np.float64], shots: int) -> tuple[list[int], list[int]]:
    """Medoids of standardised vectors by Euclidean distance, and how many lie nearest to each.

    Args:
        rows: ``(patients, features)``.
        shots: how many.
    """
    spread = rows.std(0)
    scaled = (rows - rows.mean(0)) / np.where(spread > 1e-9, spread, 1.0)
    distance = cdist(scaled, scaled)
    chosen = k_medoids(distance, shots)
    return chosen, np.bincount(distance[:, chosen].argmin(1), minlength=shots).tolist()


def embedding(network: nn.Module, plan: Plan) -> Embed:
    """Mean and deviation of a backbone's features over a whole scan.

    Args:
        network: image ``(n, channel, *voxel)`` to features, dense or one vector; a run's or an untrained one.
        plan: its patch is the window that dense features are taken in.

    Example:
        >>> plan = Plan(2, (1.0, 1.0, 1.0), (16, 16), 1)
        >>> scan = Prepared(torch.rand(1, 20, 24), None, torch.eye(4), "p", None)
        >>> embedding(build(unet(2, 1, base=4)), plan)(scan).shape
        (16,)
    """
    network = network.eval()
    window = SlidingWindowInferer(plan.patch, sw_batch_size=4, overlap=0.0)

    def dense(image: Tensor) -> Any:
        return encoded(network, image, dense=True)

    def embed(scan: Prepared) -> NDArray[np.float64]:
        with torch.no_grad():
            image = scan.image[None]
            if plan.whole:
                return encoded(network, image, dense=False)[0].double().numpy()
            flat = torch.as_tensor(window(image, dense))[0].flatten(1).double()
        return torch.cat([flat.mean(1), flat.std(1)]).numpy()

    return embed


def untrained(plan: Plan, seed: int = 0) -> nn.Module:
    """A small UNet with random weights: what is looked at where there is no run."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(unet(plan.spatial_dims, plan.inputs))
