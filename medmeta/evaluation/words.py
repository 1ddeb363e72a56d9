"""The answer in words, from the figures alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from medmeta.evaluation.intervals import Interval
from medmeta.evaluation.protocol import Judged

FIRST = {"segmentation": ("dice", "Dice"), "classification": ("auroc", "AUROC")}
"""The metric that decides, by task."""


def answer(judged: Judged, ours: str, names: Mapping[str, str]) -> list[str]:
    """Say who wins, by how much, how surely, and where the meta-trained learner loses.

    Args:
        judged: the evaluation.
        ours: name of the meta-trained learner among its methods.
        names: readable name of each method.
    """
    metric, label = FIRST[judged.task]
    table = judged.table()
    said = []
    for tumour, by_shot in table.items():
        parts = []
        for shot, by_method in by_shot.items():
            scores = {m: rows[metric] for m, rows in by_method.items() if rows[metric].mean is not None}
            if not scores:
                continue
            best = max(scores, key=lambda m: scores[m].mean or 0.0)
            parts.append(_one(shot, best, scores, ours, names, label))
        said.append(f"{tumour}. " + " ".join(parts))
    return said


def _one(
    shot: str, best: str, scores: Mapping[str, Interval], ours: str, names: Mapping[str, str], label: str
) -> str:
    won = scores[best]
    text = f"With {shot} labelled patient{'s' if shot != '1' else ''} the {names[best]} is best"
    text += f" ({label} {won.mean:.2f}, 95 % interval {_range(won)})"
    if best != ours and ours in scores:
        mine = scores[ours]
        sure = "clearly" if _apart(won, mine) else "not surely"
        text += f", {sure} ahead of the {names[ours]} ({mine.mean:.2f}, {_range(mine)})"
    else:
        rivals = {m: s for m, s in scores.items() if m != best}
        second = max(rivals, key=lambda m: rivals[m].mean or 0.0)
        sure = "clearly" if _apart(won, rivals[second]) else "not surely"
        text += f", {sure} ahead of the {names[second]} ({rivals[second].mean:.2f})"
    return text + "."


def _apart(one: Interval, other: Interval) -> bool:
    return (one.low or 0.0) > (other.high or 0.0)


def _range(interval: Interval) -> str:
    if interval.low is None or interval.high is None:
        return "n/a"
    return f"{interval.low:.2f} to {interval.high:.2f}"


def caution(judged: Sequence[Judged]) -> str:
    """The warning that few patients ask for."""
    patients = len({case.patient for one in judged for case in one.cases})
    if patients >= 50:
        return ""
    return f"Only {patients} patients were judged: intervals are wide, and nothing is said of subgroups."
