"""``results.json``: the figures as other programs read them."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping, Sequence
from typing import Any

from medmeta.evaluation.cells import Cells
from medmeta.evaluation.differences import against
from medmeta.evaluation.manifest import Manifest
from medmeta.evaluation.proof import Proof
from medmeta.evaluation.records import Case, Judged
from medmeta.evaluation.scores import FIRST, SCORES, calibration
from medmeta.evaluation.words import cautions

COMPARED = {"segmentation": ("dice", "dice_target_slices", "nsd"), "classification": ("auroc", "accuracy")}
"""Scores that methods are compared by, paired."""


def results(
    judged: Sequence[Judged],
    *,
    held_out: Sequence[str],
    seed: int,
    seconds: float,
    manifests: Sequence[Manifest] = (),
    proofs: Sequence[Proof] = (),
    further: Sequence[Judged] = (),
    tuning: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The figures of some evaluations of the same held-out types, by tumour, shots, method and metric.

    Args:
        judged: of different tasks; a method that was judged in both has the metrics of both.
        held_out: types that no stage of training saw.
        seed: of the draws; the bootstrap of the intervals has its own, the same as the page's.
        seconds: it took.
        manifests, proofs: of each of ``judged``, where there are any.
        further: plain methods judged at more labels, from which it is read how many they need.
        tuning: how rates were chosen, by task.
    """
    figures, errors = _figures(judged)
    return {
        "results": figures,
        "further": _figures(further)[0],
        "patients": len({case.patient for one in judged for case in one.cases}),
        "episodes": {one.task: _episodes(one) for one in judged},
        "held_out": list(held_out),
        "seed": seed,
        "versions": versions(),
        "seconds": round(seconds, 1),
        "scores": {one.task: _scores(one) for one in judged},
        "standard_errors": errors,
        "differences": differences(judged),
        "target_absent": absent(judged),
        "reliability": _merged(calibration(one) for one in judged),
        "manifest": {one.task: one.summary() for one in manifests},
        "proof": [proof.to_json() for proof in proofs],
        "tuning": dict(tuning or {}),
        "warnings": cautions(judged),
    }


def _figures(judged: Sequence[Judged]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Every score with its ends, and both standard errors of the first one, by tumour, shots, method."""
    made: dict[str, Any] = {}
    errors: dict[str, Any] = {}
    for one in judged:
        for tumour, by_shot in one.table().items():
            for shot, by_method in by_shot.items():
                for method, by_metric in by_method.items():
                    cell = _at(made, tumour, shot, method)
                    cell.update({metric: interval.to_json() for metric, interval in by_metric.items()})
                    first = by_metric[FIRST[one.task]]
                    sources = {"patients": first.by_patient, "draws": first.by_draw}
                    _at(errors, tumour, shot, method)[FIRST[one.task]] = sources
    return made, errors


def differences(judged: Sequence[Judged]) -> dict[str, Any]:
    """The first method's paired difference to each other, by tumour, shots and score."""
    made: dict[str, Any] = {}
    for one in judged:
        groups = one.groups()
        for tumour, shot in dict.fromkeys((t, k) for t, k, _ in groups):
            by_method = {m: cases for (t, k, m), cases in groups.items() if (t, k) == (tumour, shot)}
            ours = next(iter(by_method))
            for name in COMPARED[one.task]:
                cells: dict[str, Cells] = {
                    m: SCORES[one.task][name].make(cases) for m, cases in by_method.items()
                }
                rows = [d.to_json() for d in against(ours, cells)]
                made.setdefault(tumour, {}).setdefault(str(shot), {})[name] = rows
    return made


def absent(judged: Sequence[Judged]) -> dict[str, Any]:
    """Scans without the target, apart from all means: how many, and in how many nothing was rightly found."""
    made: dict[str, Any] = {}
    for one in judged:
        if one.task != "segmentation":
            continue
        for (tumour, shot, method), cases in one.groups().items():
            free = [c for c in cases if not c.truth]
            alarms = sum(bool(c.values.get("false_alarm")) for c in free)
            _at(made, tumour, str(shot), method).update(
                {
                    "judged": len(free),
                    "patients": len({c.patient for c in free}),
                    "rightly_nothing": len(free) - alarms,
                    "false_alarms": alarms,
                    "predictions_missing": _missing(cases),
                }
            )
    return made


def versions() -> Mapping[str, str]:
    """What was used."""
    return {name: importlib.metadata.version(name) for name in ("medmeta", "torch", "monai", "numpy")}


def _at(tree: dict[str, Any], *path: str) -> dict[str, Any]:
    for name in path:
        tree = tree.setdefault(name, {})
    return tree


def _merged(parts: Any) -> dict[str, Any]:
    return {tumour: rows for part in parts for tumour, rows in part.items()}


def _missing(cases: Sequence[Case]) -> int:
    return sum(c.missing for c in cases)


def _scores(judged: Judged) -> dict[str, Any]:
    made = {
        name: {"label": score.label, "better": score.better, "about": score.about}
        for name, score in SCORES[judged.task].items()
    }
    if judged.task == "segmentation":
        made["nsd"]["about"] += f" ({judged.tolerance:g} mm)"
    return made


def _episodes(judged: Judged) -> int:
    return len({(case.tumour, case.shot, case.draw) for case in judged.cases})
