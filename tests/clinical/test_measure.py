"""Volumes, counts and diameters against closed forms and scikit-image."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.spatial.distance import pdist
from skimage.measure import find_contours, regionprops

from medmeta.clinical.measure import LISTED, feret, measure, slice_axis


def ellipsoid(
    shape: tuple[int, ...], affine: Any, centre: tuple[float, ...], radii: tuple[float, ...]
) -> np.ndarray:
    """Voxels whose centres lie in the ellipsoid, given in mm along R, A, S."""
    index = np.indices(shape).reshape(len(shape), -1)
    place = (affine[:3, :3] @ index + affine[:3, 3:]).T
    return (((place - centre) / radii) ** 2).sum(1).reshape(shape) <= 1


def turned(angle: float, spacing: tuple[float, float, float]) -> np.ndarray:
    """An affine turned about two axes."""
    c, s = np.cos(angle), np.sin(angle)
    about = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]]) @ np.array([[1.0, 0, 0], [0, c, -s], [0, s, c]])
    affine = np.eye(4)
    affine[:3, :3] = about * np.array(spacing)
    return affine


def middle(shape: tuple[int, ...], affine: np.ndarray) -> tuple[float, ...]:
    return tuple(affine[:3, :3] @ ((np.array(shape) - 1) / 2) + affine[:3, 3])


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.7, 0.7, 3.0), (1.0, 2.5, 1.0)])
@pytest.mark.parametrize("angle", [0.0, 0.4])
@pytest.mark.parametrize("flip", [False, True])
def test_a_ball(spacing: tuple[float, float, float], angle: float, flip: bool) -> None:
    affine = turned(angle, spacing) @ np.diag([-1.0 if flip else 1.0, 1.0, 1.0, 1.0])
    shape = tuple(int(34 / s) | 1 for s in spacing)  # an odd number: a slice goes through the centre
    found = measure(ellipsoid(shape, affine, middle(shape, affine), (15.0,) * 3), affine)
    assert found.lesion_count == 1
    assert found.volume_ml == pytest.approx(4 / 3 * np.pi * 15**3 / 1000, rel=0.02)
    fine = sorted(spacing)[1]
    assert found.longest_diameter_mm == pytest.approx(30, abs=fine)
    assert found.longest_diameter_3d_mm == pytest.approx(30, abs=max(spacing))  # a pole ends at a slice
    assert slice_axis(affine) == (int(np.argmax(spacing)) if max(spacing) > 1 else 2)


def test_an_ellipsoid_is_longer_in_space_than_in_a_slice() -> None:
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    shape = (41, 41, 41)
    mask = ellipsoid(shape, affine, middle(shape, affine), (6.0, 12.0, 36.0))
    found = measure(mask, affine)
    assert found.longest_diameter_mm == pytest.approx(24, abs=1)
    assert found.longest_diameter_3d_mm == pytest.approx(72, abs=2)
    assert found.lesions[0].slice == 20
    assert found.volume_ml == pytest.approx(4 / 3 * np.pi * 6 * 12 * 36 / 1000, rel=0.02)


def test_two_lesions_and_parts_of_one_slice() -> None:
    affine = np.diag([0.5, 0.5, 4.0, 1.0])
    mask = np.zeros((80, 80, 12), bool)
    mask[4:24, 10, 2] = True  # 20 voxels of 0.5 mm
    mask[60:64, 60:70, 6:9] = True
    mask[30, 10, 2] = True  # of the same slice, apart: a lesion of its own
    found = measure(mask, affine)
    assert found.lesion_count == 3
    assert found.longest_diameter_mm == 10.0
    assert [lesion.volume_ml for lesion in found.lesions] == [0.12, 0.02, 0.001]
    # a horseshoe, one lesion in space: its two arms are not bridged within one slice
    arms = np.zeros((30, 9, 3), bool)
    arms[2:6, 4, 1] = arms[22:26, 4, 1] = True
    arms[2:26, 4, 2] = True
    thick = np.diag([1.0, 1.0, 5.0, 1.0])
    assert measure(arms, thick).lesion_count == 1
    arms[6:22, 4, 2] = False
    assert measure(arms, thick).longest_diameter_mm == 4.0


def test_nothing_and_a_dust_of_lesions() -> None:
    nothing = measure(np.zeros((5, 5, 5), bool), np.eye(4))
    assert (nothing.volume_ml, nothing.lesion_count, nothing.longest_diameter_mm) == (0, 0, 0)
    dust = np.zeros((60, 60, 20), bool)
    dust[::4, ::4, ::4] = True
    dust[20:22, 20, 10] = dust[41:44, 41, 6] = True
    found = measure(dust, np.eye(4))
    assert len(found.lesions) == LISTED
    assert found.lesion_count > 1000
    assert found.longest_diameter_mm == 3.0
    assert found.json()["lesions"][0]["longest_diameter_mm"] == 3.0


def test_a_long_thin_lesion_below_the_listed_ones_is_still_the_longest() -> None:
    mask = np.zeros((100, 100, 9), bool)
    for n in range(LISTED):
        mask[4 * n : 4 * n + 3, 4:7, 2:5] = True  # 27 voxels each
    mask[10:30, 60, 3] = True  # 20 voxels
    assert measure(mask, np.eye(4)).longest_diameter_mm == 20.0


def test_feret_beside_scikit_image() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        mask = np.zeros((40, 40), bool)
        a, b = rng.uniform(2, 14, 2)
        mask |= ellipsoid((40, 40, 1), np.eye(4), (19.5, 19.5, 0), (a, b, 1))[..., 0]
        mask[tuple(rng.integers(12, 28, 2))] = True
        outline = np.concatenate(find_contours(mask.astype(float), 0.5)) * (0.8, 1.0)
        assert feret(mask, (0.8, 1.0)) == pytest.approx(pdist(outline).max(), abs=1e-9)
        (region,) = regionprops(mask.astype(np.uint8))  # of the hull, filled up to whole voxels
        assert feret(mask, (1.0, 1.0)) == pytest.approx(region.feret_diameter_max, abs=1)
