"""Which label values a mask file holds, read without its image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from medmeta.volumes.layouts.listing import CohortError, Listing
from medmeta.volumes.progress import Track, silent
from medmeta.volumes.record import Volume


def label_values(path: Path) -> tuple[int, ...]:
    """The non-zero whole numbers in a mask (NIfTI, NRRD, PNG, npz).

    Raises:
        ValueError: where the mask holds anything but whole numbers, or is of a kind not known here.
    """
    array = _array(path)
    if array.dtype.kind not in "biuf":
        raise ValueError("values that are not whole numbers")
    # a slab at a time: whole masks of a hospital's CT would take gigabytes as 64-bit numbers
    values: set[int] = set()
    for slab in np.array_split(array, max(1, array.size // 2**22)) if array.ndim else ():
        values.update(_whole(slab))
    return tuple(sorted(values - {0}))


def _whole(slab: np.ndarray) -> list[int]:
    """The different values of a slab, counted rather than sorted where they are few."""
    if slab.dtype.kind == "f" and not (np.isfinite(slab).all() and np.array_equal(slab, np.floor(slab))):
        raise ValueError("values that are not whole numbers")
    if not slab.size:
        return []
    low, high = int(slab.min()), int(slab.max())
    if high - low > 2**16:
        return np.unique(slab.astype(np.int64)).tolist()
    return (np.flatnonzero(np.bincount(slab.ravel().astype(np.int64) - low)) + low).tolist()


def _array(path: Path) -> np.ndarray:
    name = path.name.lower()
    if name.endswith((".nii", ".nii.gz")):
        import nibabel

        return np.asanyarray(nibabel.load(path).dataobj)
    if name.endswith((".nrrd", ".nhdr")):
        import nrrd

        return np.asarray(nrrd.read(str(path))[0])
    if name.endswith((".png", ".jpg", ".jpeg")):
        from PIL import Image

        with Image.open(path) as picture:
            return np.asarray(picture)
    raise ValueError("a kind of file that is not known")


def label_names(about: Mapping[str, Any], *, background: bool = False) -> dict[int, str]:
    """Label names of a dataset's JSON, value first; nnU-Net's regions and, unless asked for, 0 are left out.

    Example:
        >>> label_names({"labels": {"0": "background", "2": "edema"}})
        {2: 'edema'}
        >>> label_names({"labels": {"background": 0, "whole": [1, 2], "edema": 2}})
        {2: 'edema'}
    """
    labels = about.get("labels") or {}
    if isinstance(labels, list):
        labels = {str(value): name for value, name in enumerate(labels)}
    if not isinstance(labels, dict):
        raise CohortError("an object of labels", found=type(labels).__name__, cure="Repair the file.")
    names: dict[int, str] = {}
    for key, value in labels.items():
        if str(key).lstrip("-").isdecimal():
            number, name = int(key), str(value)
        elif isinstance(value, int) and not isinstance(value, bool):
            number, name = value, str(key)
        else:
            continue
        if background or (number != 0 and name.lower() not in {"background", "ignore"}):
            names[number] = name
    return names


def counted_names(cases: Sequence[Volume]) -> dict[int, str]:
    """``label_2`` for value 2, and so on, for all values that some mask holds."""
    values: set[int] = set()
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(_values, [case.mask for case in cases]):
            values.update(() if isinstance(found, str) else found)
    return {v: f"label_{v}" for v in sorted(values)}


def per_label(
    listing: Listing,
    cases: Sequence[Volume],
    names: Mapping[int, str],
    *,
    what: str = "case",
    track: Track = silent,
) -> None:
    """Add one volume for each case and each label its mask holds; None as tumour where it holds none.

    Args:
        listing: where volumes and problems go.
        cases: one volume a case, ``tumour`` unset.
        names: name of each label value; values without a name are left out, named as a problem.
        track: shows progress.
        what: how the layout calls a case, for the problems.
    """
    with ThreadPoolExecutor(4) as pool:
        values_of = pool.map(_values, [case.mask for case in cases])
        found = list(track(values_of, description="reading masks", total=len(cases)))
    unnamed: set[int] = set()
    for number, (case, values) in enumerate(zip(cases, found, strict=True), start=1):
        if isinstance(values, str):
            listing.problems.append(f"{what} {number}: the mask has {values}")
            continue
        unnamed.update(v for v in values if v not in names)
        held = [(v, names[v]) for v in values if v in names]
        listing.volumes.extend(_of(case, name, value) for value, name in held)
        if not held:
            listing.volumes.append(_of(case, None, None))
    if unnamed:
        listing.problems.append(f"label values without a name: {', '.join(map(str, sorted(unnamed)))}")


def _of(case: Volume, tumour: str | None, label: int | None) -> Volume:
    mask = case.mask if tumour else None
    return Volume(case.patient, case.image, mask, tumour, label, case.series, case.modality)


def _values(mask: Path | None) -> tuple[int, ...] | str:
    if mask is None:
        return ()
    try:
        return label_values(mask)
    except ValueError as error:
        return str(error) if "path" not in str(error).lower() else "contents that cannot be read"
    except Exception as error:  # noqa: BLE001 - a damaged file of any kind is this case's problem only
        return f"contents that cannot be read ({type(error).__name__})"
