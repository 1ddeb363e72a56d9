"""The report: the answer in words first, then the figures; one file that needs no network."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jinja2

from medmeta.episodes import Episode
from medmeta.evaluation import figures
from medmeta.evaluation.advice import advise
from medmeta.evaluation.checklist import CLAIM, TRIPOD, items
from medmeta.evaluation.failures import badness, reason_of, worst
from medmeta.evaluation.intervals import Interval
from medmeta.evaluation.patients import patient_tables
from medmeta.evaluation.records import Judged, Picture
from medmeta.evaluation.scores import FIRST, SCORES, Score
from medmeta.evaluation.viewer import film_of
from medmeta.evaluation.words import answer, cautions

SHOWN = {"segmentation": ("dice", "dice_target_slices"), "classification": ("auroc", "accuracy")}
"""Scores with a table at every number of labels; all others stand below at the most labels."""
HEADINGS = {
    "segmentation": "Outlining a tumour type never seen before",
    "classification": "Telling a tumour type never seen before from everything else",
}
FILMS = 9
"""Scans in the page at most, so that the file stays below a few MB."""


@dataclass(frozen=True)
class Part:
    """One evaluation in the report.

    Args:
        judged: what was measured.
        ours: the meta-trained learner's method name.
        names: readable name of each method, ours first.
        further: plain methods judged at more labels, or None.
        learnt: names of all methods that were meta-trained; ours alone where empty.
    """

    judged: Judged
    ours: str
    names: Mapping[str, str]
    further: Judged | None = None
    learnt: Collection[str] = ()

    @cached_property
    def table(self) -> figures.Table:
        """Every figure with its interval, to the bit as in ``results.json``."""
        return self.judged.table()

    @cached_property
    def missing(self) -> Mapping[tuple[str, int, str], int]:
        """Predictions that were missing, by tumour type, number of labels and method."""
        return {key: sum(c.missing for c in cases) for key, cases in self.judged.groups().items()}

    @property
    def meta_trained(self) -> frozenset[str]:
        """Names of the methods that are not plain."""
        return frozenset({self.ours, *self.learnt})


@dataclass(frozen=True)
class Report:
    """All that the page shows.

    Args:
        title, subtitle: at the top.
        parts: evaluations in order.
        facts: what was held out, seed, versions, times: name and value.
        episode: a training episode to show, segmentation, or None.
        proof: why what was held out was held out, a line each.
        cases: failures shown at most.
    """

    title: str
    subtitle: str
    parts: Sequence[Part]
    facts: Mapping[str, str]
    episode: Episode | None = None
    proof: Sequence[str] = ()
    cases: int = field(default=6)


def render(report: Report) -> str:
    """The page as HTML."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("medmeta.evaluation"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    films = [film for part in report.parts for film in _films(part)][:FILMS]
    shown: dict[str, Any] = {
        "films": json.dumps(films).replace("<", "\\u003c") if films else "",
        "failures": [case for part in report.parts for case in _failures(part, report.cases)],
        "proof": list(report.proof),
        "calibration": [c for part in report.parts for c in _calibration(part)],
    }
    said = cautions([p.judged for p in report.parts])
    sections = {"answer", "figures", "patients", "made", *(name for name, found in shown.items() if found)}
    sections |= {f"made/{name}" for name in report.facts} | ({"answer/warnings"} if said else set())
    return environment.get_template("report.html.j2").render(
        title=report.title,
        subtitle=report.subtitle,
        answers=[(HEADINGS[part.judged.task], _answers(part)) for part in report.parts if part.judged.cases],
        cautions=said,
        parts=[_part(part) for part in report.parts],
        patients=[t for part in report.parts for t in patient_tables(part.judged, part.names)],
        sheet=_sheet(report.episode) if report.episode else "",
        sheet_caption=_sheet_caption(report.episode) if report.episode else "",
        facts=report.facts,
        tasks={part.judged.task for part in report.parts},
        checklists=[("TRIPOD+AI", items(TRIPOD, sections)), ("CLAIM 2024", items(CLAIM, sections))],
        truth=figures.TRUTH,
        found=figures.FOUND,
        **shown,
    )


def _answers(part: Part) -> list[tuple[str, str]]:
    """What to do, and why, for each tumour type."""
    found = {a.tumour: a for a in advise(part.judged, part.meta_trained, further=part.further)}
    tumours = dict.fromkeys(c.tumour for c in part.judged.cases)
    nothing = "which method to use cannot be told: nobody who was judged can be scored."
    return [answer(found[t], part.names) if t in found else (f"{t}: {nothing}", "") for t in tumours]


def _part(part: Part) -> dict[str, Any]:
    metric = FIRST[part.judged.task]
    label = SCORES[part.judged.task][metric].label
    return {
        "heading": HEADINGS[part.judged.task],
        "curves": figures.curves(
            part.table, metric, label, part.names, part.further.table() if part.further else {}
        ),
        "alt": f"{label} against the number of labelled patients, a line a method; figures are in the table",
        "further": _further(part),
        "tables": [
            _table(part, tumour, metric) for tumour in part.table for metric in SHOWN[part.judged.task]
        ],
        "others": [_others(part, tumour) for tumour in part.table],
    }


def _further(part: Part) -> str:
    if part.further is None or not part.further.cases:
        return ""
    methods = {part.names.get(c.method, c.method) for c in part.further.cases}
    shots = sorted({c.shot for c in part.further.cases})
    return (
        f"To see how many labels the ordinary way needs, the {' and '.join(sorted(methods))} was judged with "
        f"{' and '.join(map(str, shots))} labelled patients besides (dashed)."
    )


def _table(part: Part, tumour: str, metric: str) -> dict[str, Any]:
    """One score at every number of labels."""
    by_shot, score = part.table[tumour], SCORES[part.judged.task][metric]
    shots = sorted(by_shot, key=int)
    columns = [_column([by_shot[s].get(m, {}).get(metric) for m in _rows(part)], score) for s in shots]
    rows = [
        {
            "name": part.names[method],
            "cells": [column[i] for column in columns],
            "seconds": "n/a" if (seconds := part.judged.seconds[method]) is None else f"{seconds:.1f}",
        }
        for i, method in enumerate(_rows(part))
    ]
    return {"heading": f"{tumour}: {score.label}", "about": score.about, "shots": shots, "rows": rows}


def _others(part: Part, tumour: str) -> dict[str, Any]:
    """Every other score at the most labels: a row a method, a column a score."""
    by_shot, task = part.table[tumour], part.judged.task
    shot = max(by_shot, key=int)
    there = {m: rows for m in _rows(part) if (rows := by_shot[shot].get(m))}
    names = [n for n in SCORES[task] if n not in SHOWN[task] and any(n in rows for rows in there.values())]
    missing = [part.missing[tumour, int(shot), m] for m in there]
    columns = [_column([rows.get(n) for rows in there.values()], SCORES[task][n], missing) for n in names]
    return {
        "heading": f"{tumour}: every other score with {shot} labelled",
        "columns": [_head(SCORES[task][n], part.judged.tolerance if n == "nsd" else None) for n in names],
        "rows": [
            {"name": part.names[m], "cells": [column[i] for column in columns]} for i, m in enumerate(there)
        ],
    }


def _rows(part: Part) -> list[str]:
    """Methods that were judged, in the order of the page."""
    return [m for m in part.names if m in part.judged.seconds]


def _head(score: Score, tolerance: float | None) -> dict[str, str]:
    about = score.about + (f" ({tolerance:g} mm)" if tolerance is not None else "")
    return {"label": score.label, "about": about}


def _column(
    intervals: Sequence[Interval | None], score: Score, missing: Sequence[int] = ()
) -> list[dict[str, Any]]:
    """Cells with text; the best is marked.

    Args:
        intervals: of each method.
        score: what they are of.
        missing: predictions of each method that were missing. A score that can be ever so bad says nothing
            of them, so it is never the best of who left some out, and how many stands beside it.
    """
    bounded = all(math.isfinite(end) for end in score.bounds)
    out = [0] * len(intervals) if bounded or not missing else missing

    def weigh(mean: float) -> float:
        return {"high": -mean, "low": mean}.get(score.better, abs(mean))

    weights = [
        None if n or one is None or one.mean is None else weigh(one.mean)
        for one, n in zip(intervals, out, strict=True)
    ]
    known = [w for w in weights if w is not None]
    best = min(known) if len(known) > 1 else None
    return [
        _cell(one, n, best=w is not None and w == best)
        for one, n, w in zip(intervals, out, weights, strict=True)
    ]


def _cell(one: Interval | None, missing: int, *, best: bool) -> dict[str, Any]:
    """Mean, ends, and how many predictions they leave out."""
    if one is None or one.mean is None:
        mean, ends = "n/a", ""
    else:
        mean = f"{one.mean:.2f}"
        ends = "" if one.low is None or one.high is None else f"{one.low:.2f}–{one.high:.2f}"
    left_out = f"{missing} missing" if missing else ""
    return {"mean": mean, "range": "; ".join(filter(None, (ends, left_out))), "best": best}


def _calibration(part: Part) -> list[dict[str, str]]:
    """A reliability diagram for each tumour type that was told from others."""
    if part.judged.task != "classification":
        return []
    made = []
    for tumour in dict.fromkeys(c.tumour for c in part.judged.cases):
        cases = [c for c in part.judged.cases if c.tumour == tumour]
        shot = max(c.shot for c in cases)
        svg = figures.reliability([c for c in cases if c.shot == shot], part.names)
        alt = (
            f"{tumour}: how often the type was there against the probability that was given, a line a method"
        )
        made.append({"heading": f"{tumour}, {shot} labelled", "svg": svg, "alt": alt})
    return made


def _films(part: Part) -> list[dict[str, Any]]:
    """The best, the median and the worst case of the meta-trained learner, with what every method found."""
    films = []
    for tumour in dict.fromkeys(p.case.tumour for p in part.judged.pictures):
        there = [p for p in part.judged.pictures if p.case.tumour == tumour and p.reel is not None]
        mine = sorted((p for p in there if p.case.method == part.ours), key=badness)
        chosen = {"best": 0, "median": len(mine) // 2, "worst": len(mine) - 1} if mine else {}
        taken: set[int] = set()
        for word, place in chosen.items():
            if place in taken:
                continue
            taken.add(place)
            picture = mine[place]
            beside = {p.case.method: p for p in there if p.reel.volume == picture.reel.volume}  # type: ignore[union-attr]
            ordered = {m: beside[m] for m in part.names if m in beside}
            film = film_of({m: p.reel for m, p in ordered.items() if p.reel is not None}).to_json()
            film["title"] = f"{tumour}, {word}: {picture.case.patient[:8]}"
            film["methods"] = {m: f"{part.names[m]} ({_dice(p)})" for m, p in ordered.items()}
            films.append(film)
    return films


def _dice(picture: Picture) -> str:
    value = picture.case.values.get("dice")
    return "Dice n/a" if value is None else f"Dice {value:.2f}"


def _failures(part: Part, number: int) -> list[dict[str, str]]:
    """The worst cases of the meta-trained learner, each in the slice that shows most of the truth."""
    mine = [p for p in part.judged.pictures if p.case.method == part.ours]
    return [_case(p, part) for p in worst(mine, number)]


def _case(picture: Picture, part: Part) -> dict[str, str]:
    values = picture.case.values
    text = f"{picture.case.tumour}, {picture.case.patient[:8]}: {_dice(picture)}"
    if values.get("hd95_mm") is not None:
        text += f", HD95 {values['hd95_mm']:.0f} mm"
    why = reason_of(picture)
    after = f"the {part.names[part.ours]} after {picture.case.shot} labelled"
    return {
        "src": figures.outlined(picture),
        "text": text,
        "why": why,
        "alt": f"slice of {text}; {why}; {after}",
    }


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
