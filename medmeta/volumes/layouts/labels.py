"""Which label values a mask file holds, read without its image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from medmeta.volumes.errors import VolumeError
from medmeta.volumes.layouts.listing import CohortError, Listing
from medmeta.volumes.loading import READERS, suffix
from medmeta.volumes.mask_loading import named_labels, read_raw_mask
from medmeta.volumes.masks import different
from medmeta.volumes.progress import Track, silent
from medmeta.volumes.record import Volume


def label_values(path: Path) -> tuple[int, ...]:
    """The labels of a mask file: the values of its voxels but 0, or the numbers that a SEG or RTSTRUCT names.

    Raises:
        VolumeError: where ``load_mask`` would refuse the file whatever the image.
    """
    if suffix(path) not in READERS:
        return tuple(sorted(named_labels(path)))
    _, values = read_raw_mask(path)
    return tuple(int(value) for value in different(values) if value > 0)


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
        if not values:
            listing.volumes.append(_of(case, None, None))
        elif not held:  # something is there, so nobody can call the patient free of targets
            listing.problems.append(f"{what} {number}: the mask holds none of the labels that have a name")
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
    except VolumeError as error:  # by its code alone: the sentence names the file
        return f"contents that cannot be read ({error.code})"
