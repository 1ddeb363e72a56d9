"""``results.json``: the figures as other programs read them."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping, Sequence
from typing import Any

from medmeta.evaluation.protocol import Judged


def results(
    judged: Sequence[Judged], *, held_out: Sequence[str], seed: int, seconds: float
) -> dict[str, Any]:
    """The figures of some evaluations of the same held-out types, by tumour, shots, method and metric.

    Args:
        judged: of different tasks; a method that was judged in both has the metrics of both.
        held_out: types that no stage of training saw.
        seed: of the whole.
        seconds: it took.
    """
    merged: dict[str, dict[str, dict[str, dict[str, Any]]]] = {}
    for one in judged:
        for tumour, by_shot in one.table(seed).items():
            for shot, by_method in by_shot.items():
                for method, by_metric in by_method.items():
                    cell = merged.setdefault(tumour, {}).setdefault(shot, {}).setdefault(method, {})
                    cell.update({metric: interval.to_json() for metric, interval in by_metric.items()})
    return {
        "results": merged,
        "patients": len({case.patient for one in judged for case in one.cases}),
        "episodes": {one.task: _episodes(one) for one in judged},
        "held_out": list(held_out),
        "seed": seed,
        "versions": versions(),
        "seconds": round(seconds, 1),
    }


def versions() -> Mapping[str, str]:
    """What was used."""
    return {name: importlib.metadata.version(name) for name in ("medmeta", "torch", "monai", "numpy")}


def _episodes(judged: Judged) -> int:
    return len({(case.tumour, case.shot, case.draw) for case in judged.cases})
