"""Contours beside rt-utils, a reader and writer of others.

Skipped where it is not installed; it needs OpenCV, so it is in no extra:
``pip install rt-utils opencv-python-headless``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from medmeta.volumes import load, load_mask

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


def dice(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


def test_contours_are_read_as_rt_utils_reads_them(sample_data: Path, tmp_path: Path) -> None:
    rt_utils = pytest.importorskip("rt_utils", reason="rt-utils is not installed (it needs OpenCV)")
    series = next(p / "image" for p in sorted((sample_data / "dicom").iterdir()))
    image = load(series)
    made = rt_utils.RTStructBuilder.create_new(dicom_series_path=str(series))
    # rows x columns x slices, in the order of rt-utils' own sorting
    rows, columns, slices = shape_of(made)
    mask = np.zeros((rows, columns, slices), bool)
    mask[8:24, 10:30, 5:15] = True
    mask[12:18, 15:22, 7:12] = False  # a hole
    mask[30:36, 30:40, 8:12] = True  # and a second part
    made.add_roi(mask=mask, name="lesion", use_pin_hole=False)
    file = tmp_path / "contours.dcm"
    made.save(str(file))
    ours = load_mask(file, like=image).as_tensor()[0] > 0
    read = rt_utils.RTStructBuilder.create_from(dicom_series_path=str(series), rt_struct_path=str(file))
    theirs = on_grid(read, image, read.get_roi_mask_by_name("lesion"))
    assert dice(ours, theirs) > 0.94
    # its contours run through the centres of the outermost voxels, which it counts as inside; by the even-odd
    # rule a centre on the line is inside on one side only: all that differs lies on the line
    assert not bool((ours & ~theirs).any())
    inner = torch.from_numpy(ndimage.binary_erosion(theirs.numpy()))
    assert not bool((theirs & ~ours & inner).any())


def shape_of(made) -> tuple[int, int, int]:  # type: ignore[no-untyped-def]
    first = made.series_data[0]
    return int(first.Rows), int(first.Columns), len(made.series_data)


def on_grid(read, image, mask: np.ndarray) -> torch.Tensor:  # type: ignore[no-untyped-def]
    """rt-utils' mask ``(row, column, slice)`` on the image's grid, voxel by voxel through patient space."""
    found = torch.zeros(image.shape[1:], dtype=torch.bool)
    inverse = np.linalg.inv(np.asarray(image.affine, dtype=float))
    for number, file in enumerate(read.series_data):
        along, down = np.array(file.ImageOrientationPatient, float).reshape(2, 3)
        between_rows, between_columns = map(float, file.PixelSpacing)
        for row, column in np.argwhere(mask[:, :, number]):
            lps = np.array(file.ImagePositionPatient, float)
            lps = lps + along * between_columns * column + down * between_rows * row
            voxel = inverse @ np.append(lps * [-1, -1, 1], 1.0)
            found[tuple(round(float(v)) for v in voxel[:3])] = True
    return found
