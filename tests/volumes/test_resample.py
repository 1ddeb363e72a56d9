"""Resampling a box at a time, beside scipy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation

from medmeta.volumes.resample import axes_along, boxes, sample

SHAPE = (7, 9, 6)
FLIPPED = np.array([[0, -0.7, 0, 6.5], [0, 0, 1.3, -1.0], [0.5, 0, 0, 0.25], [0, 0, 0, 1.0]])
TURNED = np.eye(4)
TURNED[:3, :3] = Rotation.from_euler("xyz", [10, 20, 30], degrees=True).as_matrix() * [0.8, 1.1, 0.9]
TURNED[:3, 3] = [0.5, -1, 2]


@pytest.mark.parametrize("matrix", [FLIPPED, TURNED], ids=["parallel", "turned"])
def test_as_scipy_does_whatever_the_box(matrix: np.ndarray) -> None:
    array = torch.randn(2, 8, 6, 10, generator=torch.Generator().manual_seed(0))
    assert (axes_along(torch.from_numpy(matrix), SHAPE) is None) == (matrix is TURNED)
    there = np.einsum("st,t...->s...", matrix[:3, :3], np.indices(SHAPE)) + matrix[:3, 3, None, None, None]
    wanted = np.stack([map_coordinates(c, there, order=1, mode="nearest") for c in array.numpy()])
    for axis in range(3):
        made = torch.zeros(2, *SHAPE, dtype=torch.float64)
        for box in boxes(SHAPE, axis, 100):
            made[(slice(None), *(slice(*b) for b in box))] = sample(
                array, torch.from_numpy(matrix), SHAPE, box
            )
        assert np.allclose(made.numpy(), wanted, atol=1e-6)
