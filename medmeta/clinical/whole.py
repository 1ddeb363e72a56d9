"""One whole scan through a bundle's network: probabilities and labels on the scan's own grid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medmeta.clinical.bundle import BundleError
from medmeta.clinical.config import inferer, solid_transforms
from medmeta.clinical.loading import BundlePredictor
from medmeta.volumes import Plan, prepare, restore
from medmeta.volumes.prepared import cut_lesion


def probabilities(predictor: BundlePredictor, image: Any, mask: Any = None) -> Tensor:
    """Probabilities of every class: ``(way, x, y, z)`` on the grid of ``image``, or ``(way)``.

    Args:
        predictor: of a bundle.
        image: native MetaTensor ``(channel, x, y, z)``, as :func:`medmeta.volumes.load` gives it.
        mask: MetaTensor ``(1, x, y, z)`` on the same grid, where lesions are classified.

    Raises:
        CohortError: where the channels are not as planned or voxels are not finite.
    """
    plan = predictor.plan
    if plan.lesion is not None:
        cut = cut_lesion(plan, prepare(plan, image, mask=(mask > 0).to(torch.uint8)))
        voxels, affine = cut.image, cut.affine
    else:
        voxels, affine = _prepared(plan, image)
    with torch.no_grad():
        logits = _build(inferer(plan))(voxels[None], predictor)[0]
    if not bool(torch.isfinite(logits).all()):
        raise BundleError("finite logits", found="NaN or infinity", cure="Do not use this bundle.")
    soft = torch.softmax(logits, 0)
    if plan.whole:
        return soft
    return restore(soft, affine, image)


def _prepared(plan: Plan, image: Any) -> tuple[Tensor, Tensor]:
    """The image on the plan's grid with all three axes, slices of a plan in 2D too."""
    from medmeta.volumes import CohortError
    from medmeta.volumes.prepared import prepare_image

    if plan.whole or plan.spatial_dims == 3:
        return prepare_image(plan, image)
    if image.shape[0] != plan.channels:
        raise CohortError(
            f"{plan.channels} channel(s), as planned",
            found=f"{image.shape[0]}",
            cure="Give the channels that the bundle was made for.",
        )
    data = {"image": image}
    for step in solid_transforms(plan):
        data = _build(step)(data)
    return data["image"].as_tensor().float().contiguous(), torch.as_tensor(data["image"].affine).double()


def _build(spec: dict[str, Any]) -> Callable[..., Any]:
    from monai.bundle import ConfigComponent

    return ConfigComponent(config=spec).instantiate()


@dataclass(frozen=True)
class Segmented:
    """What was found in one scan.

    Args:
        labels: ``(x, y, z)`` on the scan's own grid.
        affine: of that grid, RAS mm.
        facts: ``voxels`` and ``volume_ml`` of each class but the background.
    """

    labels: NDArray[np.uint8]
    affine: NDArray[np.float64]
    facts: dict[str, dict[str, Any]]


def segment(predictor: BundlePredictor, image: Any) -> Segmented:
    """Outline every class in a whole scan.

    Args:
        predictor: of a bundle that segments.
        image: native MetaTensor ``(channel, x, y, z)``, as :func:`medmeta.volumes.load` gives it.

    Raises:
        CohortError: where the channels are not as planned or voxels are not finite.
    """
    labels = probabilities(predictor, image).argmax(0).to(torch.uint8).numpy()
    affine = np.asarray(image.affine, dtype=np.float64)
    millilitres = abs(float(np.linalg.det(affine[:3, :3]))) / 1000
    voxels = {c: int((labels == n).sum()) for n, c in enumerate(predictor.classes) if n}
    volumes = {c: round(count * millilitres, 4) for c, count in voxels.items()}
    return Segmented(labels, affine, {"voxels": voxels, "volume_ml": volumes})
