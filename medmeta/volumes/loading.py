"""``load``: a file, folder or zip to a MetaTensor in patient space."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medmeta.volumes.archive import unpacked
from medmeta.volumes.dicom_header import is_dicom, read_header
from medmeta.volumes.dicom_read import read_stack
from medmeta.volumes.dicom_series import Choice, Series, choose, files_below, find_series, listed
from medmeta.volumes.errors import VolumeError, own_name
from medmeta.volumes.metaimage import read_metaimage
from medmeta.volumes.nifti import read_nifti
from medmeta.volumes.nrrd_file import read_nrrd
from medmeta.volumes.picture import read_npz, read_picture
from medmeta.volumes.preflight import preflight
from medmeta.volumes.scan import MAX_VOXELS, Scan, spacing

if TYPE_CHECKING:
    from monai.data import MetaTensor

_LOG = logging.getLogger("medmeta.volumes")

READERS: dict[str, Callable[..., Scan]] = {
    ".nii": read_nifti,
    ".nii.gz": read_nifti,
    ".nrrd": read_nrrd,
    ".nhdr": read_nrrd,
    ".mha": read_metaimage,
    ".mhd": read_metaimage,
    ".png": read_picture,
    ".jpg": read_picture,
    ".jpeg": read_picture,
    ".npz": read_npz,
}
PICTURES = (".png", ".jpg", ".jpeg", ".npz")
UNREAD = {
    ".hdr": "an Analyze or NIfTI pair (.hdr and .img)",
    ".img": "an Analyze or NIfTI pair (.hdr and .img)",
    ".mgh": "a volume of FreeSurfer's",
    ".mgz": "a volume of FreeSurfer's",
}
"""Volumes of formats that are known and not read."""


class WithoutSeriesError(VolumeError):
    """A series was asked for where there is no DICOM to have one.

    Args:
        where: the file.
    """

    def __init__(self, where: Path) -> None:
        cure = "Leave out series=, modality= and description=: they choose among DICOM series."
        super().__init__("no-such-series", found="a file without series", where=where, cure=cure)


def load(
    path: str | Path,
    *,
    series: str | None = None,
    modality: str | None = None,
    description: str | None = None,
    channels: int = 1,
    max_voxels: int = MAX_VOXELS,
) -> MetaTensor:
    """Read one volume: right, or not at all.

    Args:
        path: a NIfTI, NRRD, MetaImage, PNG, JPEG or npz file; a DICOM file; a folder or zip of DICOM.
        series: SeriesInstanceUID, or the short key that ``inspect`` shows, where there are several.
        modality: ``"CT"``, ``"MR"`` …: choose the series of it.
        description: regular expression looked for in SeriesDescription. All three are checked on a single
            DICOM file, too, and refused for files of other kinds, which say nothing of a series.
        channels: volumes that a NIfTI of four axes holds as the channels of one image (MR sequences, say).
        max_voxels: refuse a volume larger than this.

    Returns:
        MetaTensor ``(channel, x, y, z)`` float32 in stored orientation; ``.affine`` voxel index to RAS mm;
        ``.meta["unit"]`` (``"HU"``, ``"SUV"``, ``"stored"`` …, ``""`` where unknown), ``.meta["spacing"]``
        (mm),
        and keys of the frame of reference and of the series that mean nothing outside this process.

    Raises:
        VolumeError: with a stable ``.code``, one for each reason not to read.

    Example:
        >>> import tempfile, nibabel
        >>> file = Path(tempfile.mkdtemp()) / "scan.nii.gz"
        >>> nibabel.Nifti1Image(np.ones((4, 5, 6), np.float32), np.diag([1, 1, 3, 1])).to_filename(file)
        >>> image = load(file)
        >>> tuple(image.shape), image.meta["spacing"]
        ((1, 4, 5, 6), (1.0, 1.0, 3.0))
    """
    options: dict[str, Any] = {"series": series, "modality": modality, "description": description}
    scan = read(path, **options, channels=channels, max_voxels=max_voxels)
    for warning in scan.warnings:
        _LOG.warning("%s: %s", own_name(path) or "a series", warning)
    return tensor(scan)


def read(
    path: str | Path,
    *,
    series: str | None = None,
    modality: str | None = None,
    description: str | None = None,
    channels: int = 1,
    max_voxels: int = MAX_VOXELS,
) -> Scan:
    """As ``load``, giving a ``Scan`` of NumPy arrays with its warnings; see there."""
    path = Path(path)
    choice = Choice(series, modality, description)
    if not path.exists():
        raise VolumeError("not-found", found="nothing", where=path)
    if suffix(path) in READERS and not path.is_dir():
        _no_series(path, choice)
        return read_file(path, channels=channels, max_voxels=max_voxels)
    if channels != 1:
        raise VolumeError("other-channels", found="one", where=path)
    if path.is_dir():
        return _folder(path, path, choice, max_voxels)
    if path.name.lower().endswith(".zip"):
        with unpacked(path) as folder:
            return _folder(folder, path, choice, max_voxels)
    if not is_dicom(path):
        raise another_kind(path)
    one = _one(path)
    if not choice.fits(one):
        raise VolumeError("no-such-series", found=f"the series {listed([one])}", where=path)
    return read_stack(preflight(one.headers), max_voxels=max_voxels)


def _no_series(path: Path, choice: Choice) -> None:
    """Refuse a choice among series for a file that knows none: it would be taken for granted."""
    if choice:
        raise WithoutSeriesError(path)


def another_kind(path: Path) -> VolumeError:
    """What to say of a file that is of no kind that is read."""
    if suffix(path) not in UNREAD:
        return VolumeError("not-a-volume", found="another kind of file", where=path)
    cure = "Convert it to a NIfTI of one file (.nii.gz)."
    return VolumeError("not-a-volume", found=UNREAD[suffix(path)], where=path, cure=cure)


def read_file(path: Path, *, channels: int = 1, max_voxels: int = MAX_VOXELS) -> Scan:
    """Read a file of one of the kinds in ``READERS``; only NIfTI holds several channels.

    Raises:
        VolumeError: whatever is wrong with it.
    """
    reader = READERS[suffix(path)]
    if channels != 1 and reader is not read_nifti:
        raise VolumeError("other-channels", found="one", where=path)
    try:
        options = {"channels": channels} if channels != 1 else {}
        return reader(path, max_voxels=max_voxels, **options)
    except (VolumeError, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001 - the readers name what they foresee; damage is inventive
        raise VolumeError("damaged-file", found=type(error).__name__, where=path) from None


def suffix(path: Path) -> str:
    """The suffix that says the kind of file, both parts of ``.nii.gz``.

    Example:
        >>> suffix(Path("a.b/scan.1.NII.gz"))
        '.nii.gz'
    """
    low = path.name.lower()
    if low.endswith(".nii.gz"):
        return ".nii.gz"
    ending = os.path.splitext(low)[1]  # a path of its own for each of 100,000 names takes its time
    return "" if ending == "." else ending


def _one(path: Path) -> Series:
    header = read_header(path)
    if header is None:
        raise VolumeError("not-an-image", found="a DICOM object without an image", where=path)
    return Series(header.series, (header,))


def _folder(folder: Path, named: Path, choice: Choice, max_voxels: int) -> Scan:
    """A folder of DICOM, or of one file of another kind."""
    found = find_series(folder)
    if not found:
        others = [file for file in files_below(folder) if suffix(file) in READERS]
        if len(others) == 1:
            _no_series(others[0], choice)
            return read_file(others[0], max_voxels=max_voxels)
        if others:
            raise VolumeError(
                "several-volumes", found=f"{len(others)} files", where=named, cure="Name one of the files."
            )
        raise VolumeError("not-a-volume", found="no image", where=named)
    chosen = choose(found, named, choice)
    return read_stack(preflight(chosen.headers), max_voxels=max_voxels)


def tensor(scan: Scan) -> MetaTensor:
    """A scan as MONAI's MetaTensor, with nothing in ``meta`` that tells of the patient."""
    import torch
    from monai.data import MetaTensor

    array = scan.array
    native = array.dtype.newbyteorder("=")
    values = torch.from_numpy(np.array(array, dtype=native) if array.dtype != np.float32 else _own(array))
    meta = {"unit": scan.unit, "frame": scan.frame, "series": scan.series}
    affine = torch.from_numpy(scan.affine.copy())
    return MetaTensor(values.float(), affine=affine, meta={**meta, **native_grid(affine, array.shape[1:])})


def native_grid(affine: Any, shape: tuple[int, ...]) -> dict[str, Any]:
    """What MONAI's inverse transforms and writers need to come back to the stored grid."""
    return {
        "spacing": spacing(np.asarray(affine)),
        "original_affine": affine.clone(),
        "spatial_shape": np.array(shape),
        # MONAI's word for "the file had no channel axis"; with a number its writers take a single channel
        # for one spatial axis less
        "original_channel_dim": float("nan"),
    }


def _own(array: NDArray) -> NDArray:
    """The array in native byte order and writable (a view into a file's bytes is not)."""
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    return array if array.flags.writeable else array.copy()
