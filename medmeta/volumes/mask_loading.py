"""``load_mask``: a mask of any kind onto the grid of its image."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medmeta.volumes import masks, seg
from medmeta.volumes.archive import unpacked
from medmeta.volumes.dicom_header import RTSTRUCT, Header, is_dicom, read_header
from medmeta.volumes.dicom_series import files_below, find_series
from medmeta.volumes.errors import VolumeError, own_name
from medmeta.volumes.keys import process_key
from medmeta.volumes.loading import PICTURES, READERS, another_kind, native_grid, read_file, suffix
from medmeta.volumes.scan import Scan

if TYPE_CHECKING:
    from monai.data import MetaTensor

_LOG = logging.getLogger("medmeta.volumes")


@dataclass(frozen=True)
class ImageGrid:
    """Where the image lies that a mask is read for.

    Args:
        affine: ``(4, 4)`` voxel index to RAS mm.
        shape: ``(x, y, z)``.
        frame: key of its frame of reference, ``""`` where unknown.
        series: key of its series, ``""`` where there is none.
    """

    affine: NDArray[np.float64]
    shape: tuple[int, int, int]
    frame: str = ""
    series: str = ""


def load_mask(
    path: str | Path,
    *,
    like: Any,
    label: int | str | None = None,
    resample: bool = False,
) -> MetaTensor:
    """Read a mask onto the grid of its image.

    Args:
        path: NIfTI, NRRD, MetaImage, PNG or npz; DICOM SEG or RTSTRUCT, or a folder or zip with one of them.
        like: the image, a MetaTensor ``(channel, x, y, z)`` that ``load`` gave, or another with an affine.
        label: value, segment number, or name of the segment or contour to take: 1 there and 0 elsewhere.
        resample: accept a mask of another grid and take its nearest label at each voxel (a note is logged).

    Returns:
        MetaTensor ``(1, x, y, z)`` float32 of whole numbers, with the affine of ``like``.

    Raises:
        VolumeError: where the mask is of another grid or frame of reference, not of whole numbers, empty, or
            without the label.

    Example:
        >>> import tempfile, nibabel
        >>> from medmeta.volumes import load
        >>> folder = Path(tempfile.mkdtemp())
        >>> for name in ("image", "mask"):
        ...     image = nibabel.Nifti1Image(np.ones((4, 5, 6), np.uint8), np.eye(4))
        ...     image.to_filename(folder / f"{name}.nii")
        >>> mask = load_mask(folder / "mask.nii", like=load(folder / "image.nii"), label=1)
        >>> int(mask.sum())
        120
    """
    import torch
    from monai.data import MetaTensor

    affine = np.asarray(like.affine, dtype=np.float64)
    shape = tuple(int(n) for n in like.shape[1:])
    if affine.shape != (4, 4) or len(shape) != 3:
        raise VolumeError("other-grid", found=f"an image of {len(shape)} axes", where=path)
    about = {key: getattr(like, "meta", {}).get(key, "") for key in ("frame", "series")}
    found, _ = read_mask(Path(path), ImageGrid(affine, shape, **about), label, resample=resample)
    meta = {**about, "unit": "", **native_grid(like.affine, shape)}
    return MetaTensor(torch.from_numpy(found[None].astype(np.float32)), affine=like.affine.clone(), meta=meta)


def read_mask(
    path: Path, like: ImageGrid, label: int | str | None = None, *, resample: bool = False
) -> tuple[NDArray[np.int32], dict[int, str]]:
    """A mask on the grid ``like`` and the names of its values, where the file gives some.

    Args:
        path: see ``load_mask``.
        like: the image.
        label: see ``load_mask``.
        resample: see ``load_mask``.
    """
    if not path.exists():
        raise VolumeError("not-found", found="nothing", where=path)
    if path.is_dir():
        return _from_folder(path, path, like, label, resample)
    if path.name.lower().endswith(".zip"):
        with unpacked(path) as folder:
            return _from_folder(folder, path, like, label, resample)
    if suffix(path) not in READERS:
        return _from_dicom(path, like, label, resample)
    scan, values = read_raw_mask(path)
    if isinstance(label, str):
        raise VolumeError("missing-label", found="values without names", where=path, cure="Give a number.")
    placed = masks.on_grid(values, scan, like.affine, like.shape, path, resample=resample)
    if resample and placed is not values:
        _LOG.info("%s: nearest labels on the image's grid", own_name(path) or "a mask")
    # only now: the mask of another image is that, whether or not there is anything in it
    placed = masks.choose_label(placed, label, path)
    return placed, {}


def read_raw_mask(path: Path) -> tuple[Scan, NDArray[np.int32]]:
    """A mask file that is not DICOM, on its own grid: the scan and its whole numbers ``(x, y, z)``."""
    scan = read_file(path)
    return scan, masks.whole_numbers(scan.array[0], path, picture=suffix(path) in PICTURES)


def named_labels(path: Path) -> dict[int, str]:
    """The names of a DICOM mask's segments, or of its regions with closed contours, by number.

    Raises:
        VolumeError: where the file is no DICOM mask.
    """
    return targets(path)[0]


def targets(path: Path) -> tuple[dict[int, str], int]:
    """As ``named_labels``, and how many regions there are of points, open contours or nothing."""
    header = read_header(path) if is_dicom(path) else None
    if header is None or not header.is_mask:
        raise VolumeError("not-a-volume", found="no DICOM mask", where=path)
    if header.sop_class == RTSTRUCT:
        from medmeta.volumes.rtstruct import read_contours

        regions = read_contours(path)
        closed = {region.number: region.name for region in regions if region.closed}
        return closed, len(regions) - len(closed)
    return {segment.number: segment.name for segment in seg.read_segments(path)}, 0


def _from_folder(
    folder: Path, named: Path, like: ImageGrid, label: int | str | None, resample: bool
) -> tuple[NDArray[np.int32], dict[int, str]]:
    found = [header.path for series in find_series(folder) for header in series.headers if header.is_mask]
    found += [file for file in files_below(folder) if suffix(file) in READERS]
    if len(found) != 1:
        raise VolumeError("several-masks", found=f"{len(found)} masks", where=named)
    return read_mask(found[0], like, label, resample=resample)


def _from_dicom(
    path: Path, like: ImageGrid, label: int | str | None, resample: bool
) -> tuple[NDArray[np.int32], dict[int, str]]:
    header = read_header(path) if is_dicom(path) else None
    if header is None:
        raise another_kind(path)
    if not header.is_mask:
        raise VolumeError("not-a-volume", found="an image", where=path, cure="Name a mask.")
    _of_this_patient(header, like)
    if header.sop_class == RTSTRUCT:
        from medmeta.volumes.rtstruct import draw, read_contours

        regions = read_contours(path)
        names = {region.number: region.name for region in regions}
        number = _numbered(label, names, path)
        mask = draw([r for r in regions if number in (None, r.number)], like.affine, like.shape, path)
    else:
        read_in = seg.read_seg(path, header)
        names = {segment.number: segment.name for segment in read_in.segments}
        every = {s.number: (s.name, s.label, s.kind) for s in read_in.segments}
        number = _numbered(label, every, path)
        chosen = None if number is None else [number]
        mask = seg.land(read_in, like.affine, like.shape, chosen, resample=resample)
    return masks.choose_label(mask, number, path), names


def _numbered(label: int | str | None, names: dict[int, Any], path: Path) -> int | None:
    if isinstance(label, int) and label not in names:
        raise VolumeError("missing-label", found=f"{sorted(names) or 'none'}, not {label}", where=path)
    if label is None or isinstance(label, int):
        return label
    fitting = [
        number
        for number, called in names.items()
        if label.lower() in [name.lower() for name in ([called] if isinstance(called, str) else called)]
    ]
    if len(fitting) != 1:
        raise VolumeError("missing-label", found=f"{len(fitting)} segments called {label!r}", where=path)
    return fitting[0]


def _of_this_patient(header: Header, like: ImageGrid) -> None:
    """The mask lives in the image's frame of reference; drawn on another series of it, it may still fit."""
    frame = process_key(header.frame_of_reference)
    if like.frame and frame and frame != like.frame:
        raise VolumeError("other-frame", found="another one", where=header.path)
    drawn_on = [process_key(uid) for uid in header.segmented]
    if like.series and drawn_on and like.series not in drawn_on:
        if not frame or not like.frame:
            raise VolumeError(
                "other-frame", found="another series, and no frame of reference", where=header.path
            )
        _LOG.warning("%s: drawn on another series of the same frame of reference", header.path.name)
