"""The report: the answer in words first, then the figures; one file that needs no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jinja2

from medmeta.episodes import Episode
from medmeta.evaluation import figures
from medmeta.evaluation.protocol import Judged, Picture
from medmeta.evaluation.words import FIRST, answer, caution

LABELS = {
    "dice": "Dice",
    "hd95_mm": "95 % Hausdorff distance (mm)",
    "volume_error_ml": "volume error (mL)",
    "accuracy": "balanced accuracy",
    "auroc": "AUROC",
}
LOWER_IS_BETTER = {"hd95_mm"}
SHOWN = {"segmentation": ("dice", "hd95_mm"), "classification": ("auroc", "accuracy")}
HEADINGS = {
    "segmentation": "Outlining a tumour type never seen before",
    "classification": "Telling a tumour type never seen before from everything else",
}


@dataclass(frozen=True)
class Part:
    """One evaluation in the report.

    Args:
        judged: what was measured.
        ours: the meta-trained learner's method name.
        names: readable name of each method, ours first.
    """

    judged: Judged
    ours: str
    names: Mapping[str, str]


@dataclass(frozen=True)
class Report:
    """All that the page shows.

    Args:
        title, subtitle: at the top.
        parts: evaluations in order.
        facts: what was held out, seed, versions, times: name and value.
        episode: a training episode to show, segmentation, or None.
    """

    title: str
    subtitle: str
    parts: Sequence[Part]
    facts: Mapping[str, str]
    episode: Episode | None = None
    cases: int = field(default=6)


def render(report: Report) -> str:
    """The page as HTML."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("medmeta.evaluation"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template("report.html.j2").render(
        title=report.title,
        subtitle=report.subtitle,
        caution=caution([p.judged for p in report.parts]),
        parts=[_part(part) for part in report.parts],
        sheet=_sheet(report.episode) if report.episode else "",
        sheet_caption=_sheet_caption(report.episode) if report.episode else "",
        galleries=[g for part in report.parts for g in _galleries(part, report.cases)],
        facts=report.facts,
        truth=figures.TRUTH,
        found=figures.FOUND,
    )


def _part(part: Part) -> dict[str, Any]:
    metric, label = FIRST[part.judged.task]
    return {
        "heading": HEADINGS[part.judged.task],
        "answer": answer(part.judged, part.ours, part.names),
        "curves": [figures.curves(part.judged, metric, label, part.names)],
        "tables": [
            _table(part, tumour, metric)
            for tumour in part.judged.table()
            for metric in SHOWN[part.judged.task]
        ],
    }


def _table(part: Part, tumour: str, metric: str) -> dict[str, Any]:
    by_shot = part.judged.table()[tumour]
    shots = sorted(by_shot, key=int)
    sign = -1 if metric in LOWER_IS_BETTER else 1
    best = {
        shot: max(
            (mean for rows in by_shot[shot].values() if (mean := rows[metric].mean) is not None),
            key=lambda mean: sign * mean,
            default=None,
        )
        for shot in shots
    }
    rows = []
    for method, name in part.names.items():
        cells = []
        for shot in shots:
            interval = by_shot[shot][method][metric]
            known = interval.mean is not None and interval.low is not None
            cells.append(
                {
                    "mean": f"{interval.mean:.2f}" if known else "n/a",
                    "range": f"{interval.low:.2f}–{interval.high:.2f}" if known else "",
                    "best": known and interval.mean == best[shot],
                }
            )
        rows.append({"name": name, "cells": cells, "seconds": f"{part.judged.seconds[method]:.1f}"})
    return {"heading": f"{tumour}: {LABELS[metric]}", "shots": shots, "rows": rows}


def _galleries(part: Part, cases: int) -> list[dict[str, Any]]:
    """Best and worst cases of the meta-trained learner, each in the slice that shows most of the truth."""
    mine = [
        p for p in part.judged.pictures if p.case.method == part.ours and p.case.values["dice"] is not None
    ]
    ranked = sorted(mine, key=lambda p: p.case.values["dice"] or 0.0, reverse=True)
    if not ranked:
        return []
    half = min(cases, len(ranked) // 2 or 1)
    groups = (("Best cases", ranked[:half]), ("Worst cases", ranked[-half:][::-1]))
    shot = ranked[0].case.shot
    text = f"The {part.names[part.ours]} after {shot} labelled patient{'s' if shot > 1 else ''}."
    return [
        {"heading": heading, "text": text, "cases": [_case(p) for p in chosen]} for heading, chosen in groups
    ]


def _case(picture: Picture) -> dict[str, str]:
    values = picture.case.values
    text = f"{picture.case.tumour}, {picture.case.patient[:8]}: Dice {values['dice']:.2f}"
    if values.get("hd95_mm") is not None:
        text += f", HD95 {values['hd95_mm']:.0f} mm"
    return {"src": figures.outlined(picture), "text": text}


def _sheet(episode: Episode) -> str:
    shown = []
    for title, examples in (("support", episode.support), ("query", episode.query)):
        flat = episode.support.label.ndim == 3
        with_target = [i for i in range(len(examples.image)) if bool(examples.label[i].any())][:4]
        for i in with_target:
            image, mask = examples.image[i, 0], examples.label[i] > 0
            if not flat:
                depth = int(mask.sum((0, 1)).argmax())
                image, mask = image[..., depth], mask[..., depth]
            shown.append((image.T.numpy(), mask.T.numpy(), title))
    return figures.support_sheet(shown)


def _sheet_caption(episode: Episode) -> str:
    patients = len(set(episode.support.patients)), len(set(episode.query.patients))
    return (
        f"A training episode: learn {episode.support.classes[-1]!r} from {patients[0]} patient(s) (support), "
        f"be judged on {patients[1]} other(s) (query); the outline is the label. Meta-training repeats this "
        "with another type each time."
    )
