"""A bundle opened for use: checked first, then built."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medmeta.clinical import bundle as names
from medmeta.clinical.bundle import BundleError, read_json, sha256
from medmeta.clinical.confidence import Confidence
from medmeta.clinical.verify import verify
from medmeta.networks import build
from medmeta.volumes import Plan


class BundlePredictor(nn.Module):
    """The network of a bundle with all that its use needs; images to logits, in eval mode.

    Args:
        network: the whole network, backbone and head.
        plan: the preprocessing of its images.
        classes: names by label.
        task: ``"segmentation"`` or ``"classification"``.
        about: the bundle's metadata.
        manifest: SHA-256 of its manifest, ``""`` where it comes from no folder.
        confidence: what it knows of its own certainty.
    """

    def __init__(
        self,
        network: nn.Module,
        plan: Plan,
        classes: tuple[str, ...],
        task: str,
        about: Mapping[str, Any],
        manifest: str = "",
        confidence: Confidence | None = None,
    ) -> None:
        super().__init__()
        self.confidence = confidence or Confidence()
        self.network, self.plan, self.classes, self.task, self.about = network, plan, classes, task, about
        self.manifest = manifest
        self.requires_grad_(False)
        self.eval()

    @property
    def way(self) -> int:
        """How many classes."""
        return len(self.classes)

    def forward(self, image: Tensor) -> Tensor:
        """Images ``(n, channel, *voxel)`` to logits ``(n, way, *space)``."""
        return self.network(image)


def load_bundle(path: str | os.PathLike[str]) -> BundlePredictor:
    """Open a bundle that :func:`medmeta.clinical.export` wrote; refused before anything of it is run.

    Args:
        path: the folder.

    Returns:
        A predictor, images ``(n, channel, *voxel)`` to logits ``(n, way, *space)``, with ``plan``,
        ``classes`` and ``task``.

    Raises:
        BundleError: where :func:`medmeta.clinical.verify` finds a problem.

    Example:
        >>> load_bundle("no such folder")
        Traceback (most recent call last):
            ...
        medmeta.clinical.bundle.BundleError: wanted a bundle folder, found none. Give the folder of a bundle.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise BundleError("a bundle folder", found="none", cure="Give the folder of a bundle.")
    problems = verify(folder)
    if problems:
        more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
        raise BundleError(
            "a bundle as it was exported",
            found=f"{problems[0]}{more}",
            cure="Copy it again from where it was made; do not run it.",
        )
    about, config = read_json(folder / names.METADATA), read_json(folder / names.INFERENCE)
    network = nn.Sequential(*(build(layer, ours=True) for layer in config["layers"]))
    state = torch.load(folder / names.STATE, map_location="cpu", weights_only=True)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise BundleError(
            "weights of the configured network", found="those of another", cure="Export it again."
        ) from error
    own = about["medmeta"]
    manifest = sha256(folder / names.MANIFEST)
    confidence = Confidence.read(own["about"], _centre(folder / names.LIKENESS))
    plan, classes = read_plan(about), tuple(own["classes"])
    return BundlePredictor(network, plan, classes, own["task"], about, manifest, confidence)


def _centre(file: Path) -> Tensor | None:
    """Moments of the support's features, where the bundle has them."""
    from safetensors.torch import load_file

    return load_file(file)["centre"].double() if file.is_file() else None


def read_plan(about: Mapping[str, Any]) -> Plan:
    """The plan in a bundle's metadata.

    Raises:
        CohortError: where this version cannot read it.
    """
    return Plan.from_json(json.dumps(about["medmeta"]["plan"]))
