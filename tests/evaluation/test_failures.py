"""The worst cases, the worst first."""

from __future__ import annotations

import numpy as np
import torch

from medmeta.evaluation.failures import worst
from medmeta.evaluation.records import Case, Picture
from medmeta.evaluation.viewer import reel
from medmeta.volumes import Volume


def picture(patient: str, truth: int, found: int, dice: float | None) -> Picture:
    """A scan with so many voxels of tumour, and of outline elsewhere."""
    masks = [torch.arange(60).reshape(3, 4, 5) < truth, torch.arange(60).reshape(3, 4, 5) >= 60 - found]
    values = {"dice": dice} if truth else {"dice": None, "false_volume_ml": found / 1000}
    case = Case("cyst", 1, "m", 0, patient, values, truth=truth > 0)
    cut = [np.zeros((3, 4))] * 3
    return Picture(case, *cut, 1.0, reel(Volume(patient, ()), *masks, (1.0, 1.0, 1.0)))


def test_a_missed_tumour_is_worse_than_a_false_voxel() -> None:
    """With many scans free of it, a voxel in each was all that the page showed of failures."""
    some = [picture(f"f{n}", 0, n, None) for n in (1, 9, 3)]
    some += [picture("half", 8, 8, 0.5), picture("missed", 8, 0, 0.0)]
    assert [p.case.patient for p in worst(some, 5)] == ["missed", "f9", "f3", "f1", "half"]
    assert worst([picture("free", 0, 0, None)], 5) == []
