"""medmeta's reading as MONAI parts."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from monai.config import KeysCollection
from monai.data import ImageReader
from monai.transforms import MapTransform
from monai.utils import MetaKeys, SpaceKeys
from numpy.typing import NDArray

from medmeta.volumes.dicom_header import is_dicom
from medmeta.volumes.errors import VolumeError
from medmeta.volumes.loading import READERS, load, read, suffix
from medmeta.volumes.mask_loading import load_mask
from medmeta.volumes.scan import spacing


@dataclass(frozen=True)
class _Named:
    """A file that is read when its data are asked for."""

    path: Path


class MedmetaReader(ImageReader):
    """A MONAI image reader that reads right or raises ``VolumeError``.

    MONAI's ``LoadImage`` swallows what ``read`` raises and tries the next reader installed; so ``read`` only
    notes the name, and ``get_data``, whose errors reach the caller, reads.

    Args:
        series, modality, description: choose among several series, as in ``load``.
        channels: volumes on the fourth axis of a NIfTI, as in ``load``.

    Example:
        >>> import tempfile, nibabel
        >>> from monai.transforms import LoadImage
        >>> file = Path(tempfile.mkdtemp()) / "scan.nii.gz"
        >>> nibabel.Nifti1Image(np.ones((4, 5, 6), np.float32), np.diag([1, 1, 3, 1])).to_filename(file)
        >>> tuple(LoadImage(reader=MedmetaReader(), ensure_channel_first=True)(file).shape)
        (1, 4, 5, 6)
    """

    def __init__(
        self,
        *,
        series: str | None = None,
        modality: str | None = None,
        description: str | None = None,
        channels: int = 1,
    ) -> None:
        super().__init__()
        self._options: dict[str, Any] = {"series": series, "modality": modality, "description": description}
        self._options["channels"] = channels

    def verify_suffix(self, filename: Any) -> bool:
        """Whether this reader knows the kind of file; a folder or a zip counts as DICOM."""
        names = filename if isinstance(filename, (list, tuple)) else [filename]
        return all(_known(Path(name)) for name in names)

    def read(self, data: Any, **_: Any) -> _Named | list[_Named]:
        """Note the file or files; nothing is read and nothing raised yet."""
        if isinstance(data, (list, tuple)):
            return [_Named(Path(name)) for name in data]
        return _Named(Path(data))

    def get_data(self, img: _Named | Sequence[_Named]) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Read what ``read`` named; several files become channels of one volume.

        Returns:
            As MONAI's readers do, ``(x, y, z)`` for one channel and ``(channel, x, y, z)`` for several; and
            MONAI's metadata: RAS affine (mm), unit, spacing; no path or name.

        Raises:
            VolumeError: where one cannot be read right, or the files are not on one grid.
        """
        named = [img] if isinstance(img, _Named) else list(img)
        scans = [read(one.path, **self._options) for one in named]
        first = scans[0]
        for scan, one in zip(scans[1:], named[1:], strict=True):
            same = scan.array.shape == first.array.shape and np.allclose(scan.affine, first.affine, atol=1e-3)
            if not same:
                found = f"{scan.array.shape[1:]} voxels beside {first.array.shape[1:]}, or another affine"
                raise VolumeError("other-grid", found=found, where=one.path)
        array = np.concatenate([scan.array for scan in scans]).astype(np.float32, copy=False)
        single = len(scans) == 1 and len(array) == 1
        array = array[0] if single else array
        about = {
            "unit": first.unit,
            "spacing": spacing(first.affine),
            MetaKeys.AFFINE: first.affine.copy(),
            MetaKeys.ORIGINAL_AFFINE: first.affine.copy(),
            MetaKeys.SPACE: SpaceKeys.RAS,
            MetaKeys.SPATIAL_SHAPE: np.array(first.array.shape[1:]),
            MetaKeys.ORIGINAL_CHANNEL_DIM: float("nan") if single else 0,
        }
        return array, about


def _known(path: Path) -> bool:
    return path.is_dir() or suffix(path) in (*READERS, ".zip", ".dcm") or is_dicom(path)


class LoadVolumed(MapTransform):
    """A MONAI dictionary transform: paths to MetaTensors ``(channel, x, y, z)``, RAS affine in mm.

    Masks land on the grid of the first image key.

    Args:
        keys: of images; the value is a path, or several for the channels of one volume.
        mask_keys: of masks.
        series: SeriesInstanceUID or short key, as in ``load``.
        channels: volumes on the fourth axis of a NIfTI, as in ``load``.
        label: of the masks, as in ``load_mask``.
        allow_missing_keys: pass over keys that are not there.

    Raises:
        VolumeError: as ``load`` and ``load_mask``; no other reader is tried.

    Example:
        >>> import tempfile, nibabel
        >>> file = Path(tempfile.mkdtemp()) / "scan.nii.gz"
        >>> nibabel.Nifti1Image(np.ones((4, 5, 6), np.float32), np.diag([1, 1, 3, 1])).to_filename(file)
        >>> LoadVolumed("image")({"image": file})["image"].meta["spacing"]
        (1.0, 1.0, 3.0)
    """

    def __init__(
        self,
        keys: KeysCollection = (),
        mask_keys: KeysCollection = (),
        *,
        series: str | None = None,
        channels: int = 1,
        label: int | str | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        images = (keys,) if isinstance(keys, str) else tuple(keys)
        super().__init__(images, allow_missing_keys)
        self.mask_keys = (mask_keys,) if isinstance(mask_keys, str) else tuple(mask_keys)
        self.series, self.channels, self.label = series, channels, label

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Read every key; see the class."""
        out = dict(data)
        for key in self.key_iterator(out):
            out[key] = _channels(out[key], self.series, self.channels)
        for key in self.mask_keys:
            if key in out:
                out[key] = load_mask(out[key], like=out[self.keys[0]], label=self.label)
            elif not self.allow_missing_keys:
                raise KeyError(key)
        return out


def _channels(paths: Any, series: str | None, channels: int) -> Any:
    if not isinstance(paths, (list, tuple)):
        return load(paths, series=series, channels=channels)
    import torch

    images = [load(path, series=series) for path in paths]
    for image, path in zip(images[1:], paths[1:], strict=True):
        same = image.shape == images[0].shape and torch.allclose(image.affine, images[0].affine, atol=1e-3)
        if not same:
            found = f"{tuple(image.shape[1:])} voxels beside {tuple(images[0].shape[1:])}, or another affine"
            raise VolumeError("other-grid", found=found, where=path)
    joined = images[0].clone()
    joined.set_array(torch.cat([image.as_tensor() for image in images]))
    return joined
