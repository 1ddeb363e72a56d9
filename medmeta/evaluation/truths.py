"""The grids and truths of judged scans, small enough that those of a whole evaluation can be kept."""

from __future__ import annotations

import math
import zlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medmeta.evaluation.records import EvaluationError
from medmeta.volumes import Volume
from medmeta.volumes.reading import read_image, read_mask


class Truths:
    """Grid and truth of each judged scan; a few kB each.

    The voxels are not kept: those of one CT are half a GB, and an evaluation asks of the same scans again
    for every method and support. Predictions need no more than the grid; who shows a scan reads it again.

    Example:
        >>> import tempfile, nibabel
        >>> from pathlib import Path
        >>> files = [Path(tempfile.mkdtemp()) / f"{name}.nii" for name in ("image", "mask")]
        >>> for file in files:
        ...     nibabel.save(nibabel.Nifti1Image(np.eye(4, dtype="u1")[..., None], np.eye(4)), file)
        >>> volume, kept = Volume("someone", (files[0],), files[1], "cyst"), Truths()
        >>> [int(kept.truth(volume, present=there).sum()) for there in (True, False)]
        [4, 0]
    """

    def __init__(self) -> None:
        self._grids: dict[tuple[Any, ...], Any] = {}
        self._packed: dict[Volume, bytes] = {}

    def grid(self, volume: Volume) -> Any:
        """Shape ``(channel, x, y, z)``, affine and frame of the scan as a MetaTensor; its voxels are all 0.

        Raises:
            VolumeError, CohortError: where the scan cannot be read.
        """
        key = (volume.image, volume.series)  # several targets in one image are on one grid
        if key not in self._grids:
            self._grids[key] = _grid_of(read_image(volume))
        return self._grids[key]

    def truth(self, volume: Volume, *, present: bool) -> Tensor:
        """Boolean ``(x, y, z)``: where the target is; nowhere where what is asked for is another target.

        Args:
            volume: the scan.
            present: whether its own target is the one that is asked for. The same scan may have the target
                of one episode, and be free of that of another.

        Raises:
            EvaluationError: where the scan has no mask.
            VolumeError: where its mask cannot be read.
        """
        shape = tuple(self.grid(volume).shape[1:])
        if not present:
            return torch.zeros(shape, dtype=torch.bool)
        if volume not in self._packed:
            self._packed[volume] = self._read(volume)
        bits = np.frombuffer(zlib.decompress(self._packed[volume]), np.uint8)
        return torch.from_numpy(np.unpackbits(bits, count=math.prod(shape)).reshape(shape)) > 0

    def _read(self, volume: Volume) -> bytes:
        mask = read_mask(volume, self.grid(volume))
        if mask is None:
            raise EvaluationError(
                f"a mask of every judged patient with {volume.tumour!r}",
                found="one without",
                cure="Add the mask, or write the manifest anew for this cohort.",
            )
        return zlib.compress(np.packbits(mask.as_tensor()[0].numpy() > 0).tobytes(), 1)


def _grid_of(image: Any) -> Any:
    from monai.data import MetaTensor

    nothing = torch.zeros(()).expand(tuple(image.shape))  # one voxel in memory, whatever the shape
    about = {key: value for key, value in image.meta.items() if key != "affine"}
    return MetaTensor(nothing, affine=image.affine.clone(), meta=about)
