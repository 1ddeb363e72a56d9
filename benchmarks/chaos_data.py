"""The cases of CHAOS T2 and the support of the one-shot protocol, for ``chaos.py``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from medmeta.episodes import Examples

SIDE = 128
ORGANS = {"liver": 1, "right kidney": 2, "left kidney": 3, "spleen": 4}
PAIRS = (("liver", "spleen"), ("right kidney", "left kidney"))
CLASSES = ("background", "organ")
AIR = 0.06
"""Share of the 99th percentile below which a voxel is air when a scan is normalised."""


@dataclass(frozen=True)
class Scan:
    """One case: ``image (slices, 1, side, side)``, logarithmic; ``label (slices, 256, 256)`` native."""

    number: str
    image: Tensor
    label: Tensor

    def range(self, organ: str) -> tuple[int, int]:
        """First slice that shows the organ, and the one after the last."""
        shown = (self.label == ORGANS[organ]).flatten(1).any(1).nonzero()[:, 0]
        return int(shown[0]), int(shown[-1]) + 1

    def support(self, organ: str) -> Examples:
        """The slices at 1/6, 1/2 and 5/6 of the organ's range, labelled."""
        first, after = self.range(organ)
        where = [first + int(part * (after - first)) for part in (1 / 6, 1 / 2, 5 / 6)]
        mask = (self.label[where] == ORGANS[organ]).float()[:, None]
        step = mask.shape[-1] // SIDE
        label = (F.avg_pool2d(mask, step)[:, 0] >= 0.5).long()
        return Examples(self.image[where], label, CLASSES, (f"case {self.number}",) * 3)


def read(folder: Path) -> list[Scan]:
    scans = []
    for file in sorted((folder / "imagesTr").glob("*.nii.gz")):
        image = torch.from_numpy(np.asarray(nibabel.load(file).dataobj, dtype=np.float32)).movedim(2, 0)
        label = np.asarray(nibabel.load(folder / "labelsTr" / file.name).dataobj).astype(np.int64)
        small = F.avg_pool2d(image[:, None], image.shape[-1] // SIDE)
        body = small[small > AIR * float(np.percentile(small.numpy(), 99))]
        small = torch.log1p((small / body.median()).clamp(max=8))
        scans.append(Scan(file.name.split("_")[1][:2], small, torch.from_numpy(label).movedim(2, 0)))
    return scans


def training_slices(scans: Sequence[Scan], setting: int, pair: Sequence[str]) -> list[Tensor]:
    """Slices to make superpixels of; in setting 2 none that shows an organ of the pair."""
    values = torch.tensor([ORGANS[o] for o in pair])
    return [
        image
        for scan in scans
        for image, label in zip(scan.image, scan.label, strict=True)
        if setting == 1 or not bool(torch.isin(label, values).any())
    ]
