"""The worst cases, each with what went wrong."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medmeta.evaluation.records import Picture

WRONG_SIZE = 1.5
"""Times too large or too small from which a failure is one of size."""


def reason(truth_ml: float, found_ml: float, shared_ml: float) -> str:
    """Say what went wrong with an outline, from three volumes.

    Args:
        truth_ml, found_ml, shared_ml: of the truth, of the prediction, of both at once.

    Example:
        >>> reason(2.0, 0.0, 0.0)
        'missed: nothing outlined of 2.0 mL'
        >>> reason(2.0, 8.0, 1.9)
        'over-segmented: 8.0 mL outlined where 2.0 mL are'
    """
    truth, found = _ml(truth_ml), _ml(found_ml)
    if not truth_ml:
        return f"false alarm: {found} outlined where nothing is" if found_ml else "right: nothing there"
    if not found_ml:
        return f"missed: nothing outlined of {truth}"
    if not shared_ml:
        return f"elsewhere: {found} outlined, none of it on the {truth} there are"
    if found_ml > WRONG_SIZE * truth_ml:
        return f"over-segmented: {found} outlined where {truth} are"
    if found_ml * WRONG_SIZE < truth_ml:
        return f"under-segmented: {found} outlined where {truth} are"
    return f"displaced or ragged: {found} outlined where {truth} are, {_ml(shared_ml)} of it right"


def _ml(volume: float) -> str:
    return f"{volume:.0f} mL" if volume >= 20 else f"{volume:.1f} mL" if volume >= 0.1 else f"{volume:.2g} mL"


def reason_of(picture: Picture) -> str:
    """What went wrong with a judged scan."""
    if picture.reel is None:
        return ""
    truth, found = picture.reel.masks()
    voxel = float(np.prod(picture.reel.spacing)) / 1000
    return reason(*(int(m.sum()) * voxel for m in (truth, found, truth & found)))


def badness(picture: Picture) -> float:
    """1 minus Dice; where that says nothing, 1 for a false alarm and 0 for rightly nothing."""
    dice = picture.case.values.get("dice")
    if dice is not None:
        return 1 - dice
    return float(picture.reel is not None and bool(picture.reel.masks()[1].any()))


def worst(pictures: Sequence[Picture], number: int) -> list[Picture]:
    """The cases that went worst, the worst first; a scan that went well is none.

    Of those that could not be worse, the missed before false alarms, and these by their volume: else the
    first few scans with a false voxel would be all that is shown.
    """
    wrong = [p for p in pictures if badness(p) > 0]
    return sorted(wrong, key=_rank, reverse=True)[:number]


def _rank(picture: Picture) -> tuple[float, bool, float]:
    alarm = picture.case.values.get("false_volume_ml")
    return badness(picture), picture.case.truth, alarm or 0.0
