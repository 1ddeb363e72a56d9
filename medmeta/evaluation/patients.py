"""Every judged patient by a hashed key: a table for the page, and all cases as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from medmeta.evaluation.records import Case, Judged
from medmeta.evaluation.scores import FIRST, SCORES


@dataclass(frozen=True)
class PatientTable:
    """One row a patient of one tumour type, at the most labels.

    Args:
        heading: what is shown.
        columns: names of the columns after the patient.
        rows: key, tumour there or not, then a text a column; ``n/a`` where nothing was judged.
    """

    heading: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def patient_tables(judged: Judged, names: Mapping[str, str]) -> list[PatientTable]:
    """A table for each tumour type: each method's score of each patient, averaged over supports.

    Args:
        judged: the evaluation.
        names: readable name of each method, in the order of the columns.
    """
    made = []
    label = SCORES[judged.task][FIRST[judged.task]].label
    score = "probability of the type" if judged.task == "classification" else label
    for tumour in dict.fromkeys(c.tumour for c in judged.cases):
        cases = [c for c in judged.cases if c.tumour == tumour]
        shot = max(c.shot for c in cases)
        at = [c for c in cases if c.shot == shot]
        methods = [m for m in names if any(c.method == m for c in at)]
        rows = [
            (key, *_row([c for c in at if c.patient == key], methods, judged.task))
            for key in sorted({c.patient for c in at})
        ]
        many = "" if shot == 1 else "s"
        heading = f"{tumour}: {score} after {shot} labelled patient{many}, mean over supports"
        made.append(PatientTable(heading, ("tumour", *(names[m] for m in methods), "supports"), tuple(rows)))
    return made


def _row(cases: Sequence[Case], methods: Sequence[str], task: str) -> list[str]:
    means = []
    for method in methods:
        mine = [_score(c, task) for c in cases if c.method == method]
        known = [v for v in mine if v is not None]
        means.append(f"{np.mean(known):.2f}" if known else "n/a")
    supports = len({c.draw for c in cases})
    there = any(c.truth for c in cases)  # of several scans one may be free
    return ["yes" if there else "no", *means, str(supports)]


def _score(case: Case, task: str) -> float | None:
    return case.probability if task == "classification" else case.values.get(FIRST[task])


def _nine(value: float) -> float:
    """Nine digits of a number, which tell all numbers of single precision apart."""
    return float(f"{value:.9g}")


def cases_csv(judged: Sequence[Judged]) -> str:
    """All cases as CSV: type, labels, method, support, hashed patient, every figure; empty where undefined.

    Numbers have nine digits, so that ranks made of the file are ours. The last column says of a missing
    prediction (1) that its figures are the worst there can be, not its own.

    Example:
        >>> case = Case("a", 1, "m", 0, "f00d", {"dice": 0.5})
        >>> print(cases_csv([Judged("segmentation", (case,), (), {})]).splitlines()[1])
        segmentation,a,1,m,0,f00d,1,,,,0.5,0
    """
    metrics = sorted({name for one in judged for case in one.cases for name in case.values})
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    head = [
        "task",
        "tumor",
        "shots",
        "method",
        "support",
        "patient",
        "truth",
        "probability",
        "kind",
        "answer",
    ]
    table.writerow([*head, *metrics, "missing"])
    for one in judged:
        for c in one.cases:
            fixed = [one.task, c.tumour, c.shot, c.method, c.draw, c.patient, int(c.truth)]
            said = ["" if c.probability is None else _nine(c.probability), c.kind or "", c.answer or ""]
            values = ["" if (v := c.values.get(name)) is None else _nine(v) for name in metrics]
            table.writerow([*fixed, *said, *values, int(c.missing)])
    return text.getvalue()
