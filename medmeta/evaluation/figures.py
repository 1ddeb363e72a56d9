"""Pictures of the report, each a string that stands in the page itself."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from medmeta.evaluation.intervals import Interval, clustered
from medmeta.evaluation.records import Case, Picture

Table: TypeAlias = Mapping[str, Mapping[str, Mapping[str, Mapping[str, Interval]]]]
"""Metric with its interval, by tumour, shots and method."""

_STYLE = {"font.size": 10, "svg.fonttype": "none", "svg.hashsalt": "medmeta", "text.parse_math": False}
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
COLOURS = ("#0b6e4f", "#c8553d", "#3d5a80", "#8d6a9f", "#8a6d00", "#5c6770", "#a3476b", "#1f6f8b")
TRUTH, FOUND = "#ffd23f", "#35d0ba"


def _look(number: int) -> dict[str, Any]:
    """Colour and marker of a method; the second round of colours has other markers."""
    marker = (number + number // len(COLOURS)) % len(MARKERS)
    return {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[marker]}


def curves(table: Table, metric: str, label: str, names: Mapping[str, str], further: Table) -> str:
    """Score against labels with intervals, one panel a tumour type, as SVG; ``further`` is drawn dashed."""
    with matplotlib.rc_context(_STYLE):
        # as wide for one type as for two, so that text and legend keep their size on the page
        figure = Figure(figsize=(4.1 * max(2, len(table)), 3.3), layout="constrained")
        axes = figure.subplots(1, len(table), squeeze=False, sharey=True)[0]
        for axis, (tumour, by_shot) in zip(axes, table.items(), strict=True):
            more = further.get(tumour, {})
            for number, (method, name) in enumerate(names.items()):
                place = _look(number)
                nudge = 2 ** (0.06 * (number - len(names) / 2))
                known = _points(by_shot, method, metric)
                _line(axis, known, nudge, label=name, lw=2 if number == 0 else 1.3, **place)
                if extra := _points(more, method, metric):
                    _line(axis, [*known[-1:], *extra], nudge, lw=1.3, ls=(0, (3, 2)), **place)
            shots = sorted({int(s) for s in (*by_shot, *more)})
            axis.set_title(tumour)
            axis.set_xlabel("labelled patients")
            axis.set_xscale("log", base=2)
            axis.set_xticks(shots, [str(s) for s in shots])
            axis.minorticks_off()
            axis.grid(alpha=0.25)
            axis.spines[["top", "right"]].set_visible(False)
        axes[0].set_ylabel(label)
        _legend(figure, axes[0])
        return _svg(figure)


def _points(by_shot: Mapping[str, Any], method: str, metric: str) -> list[tuple[int, Interval]]:
    rows = {int(s): by_method[method][metric] for s, by_method in by_shot.items() if method in by_method}
    return [(s, rows[s]) for s in sorted(rows) if rows[s].mean is not None]


def _line(axis: Any, points: Sequence[tuple[int, Interval]], nudge: float, **style: Any) -> None:
    if not points:
        return
    mean = np.array([r.mean for _, r in points])
    low = np.array([r.mean if r.low is None else r.low for _, r in points])
    high = np.array([r.mean if r.high is None else r.high for _, r in points])
    ends = np.clip([mean - low, high - mean], 0, None)
    axis.errorbar(np.array([s for s, _ in points]) * nudge, mean, ends, ms=4, capsize=3, **style)


def reliability(cases: Sequence[Case], names: Mapping[str, str], bins: int = 5) -> str:
    """How often the type was there against the probability given, with 95 % intervals by patient, as SVG.

    Args:
        cases: of one tumour type and number of labels, with probabilities.
        names: readable name of each method.
        bins: of equal width.
    """
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(5.4, 4.2), layout="constrained")
        axis = figure.subplots()
        axis.plot([0, 1], [0, 1], color="#8a9399", lw=1, ls=":", label="perfectly calibrated")
        for number, (method, name) in enumerate(names.items()):
            mine = [c for c in cases if c.method == method]
            points = [p for p in (_bin(mine, b, bins) for b in range(bins)) if p is not None]
            if points:
                x, mean, low, high = np.array(points).T
                axis.errorbar(
                    x, mean, np.clip([mean - low, high - mean], 0, None), ms=4, capsize=3, lw=1.3, label=name,
                    **_look(number),
                )  # fmt: skip
        axis.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        axis.set(xlabel="probability that was given", ylabel="share with the type")
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        _legend(figure, axis, columns=1)
        return _svg(figure)


def _bin(cases: Sequence[Case], number: int, bins: int) -> tuple[float, float, float, float] | None:
    """Mean probability, share with the type, and its interval; None where the bin is empty."""
    inside = [c for c in cases if min(int((c.probability or 0.0) * bins), bins - 1) == number]
    if not inside:
        return None
    truth = np.array([c.truth for c in inside], dtype=float)
    share = clustered(
        [c.patient for c in inside],
        [c.draw for c in inside],
        lambda i: float(truth[i].mean()),
        bounds=(0.0, 1.0),
        resamples=300,
    )
    mean = float(truth.mean())
    low, high = (mean if end is None else end for end in (share.low, share.high))
    return float(np.mean([c.probability for c in inside])), mean, low, high


def _legend(figure: Figure, axis: Any, columns: int = 2) -> None:
    figure.legend(
        *axis.get_legend_handles_labels(),
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        fontsize=9,
    )


def outlined(picture: Picture) -> str:
    """A slice with truth and prediction outlined, as a PNG data URI."""
    figure = Figure(figsize=(2.6, 2.6), dpi=110)
    axis = figure.add_axes((0, 0, 1, 1))
    show(axis, picture.image, picture.aspect)
    for mask, colour, style in ((picture.truth, TRUTH, "solid"), (picture.found, FOUND, "dashed")):
        if mask.any() and not mask.all():
            axis.contour(mask, [0.5], colors=[colour], linewidths=1.4, linestyles=style)
    return _png(figure)


def support_sheet(images: Sequence[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], str]]) -> str:
    """Support and query of one episode side by side, as a PNG data URI."""
    figure = Figure(figsize=(1.9 * len(images), 2.15), dpi=110, layout="constrained")
    for axis, (image, mask, title) in zip(
        figure.subplots(1, len(images), squeeze=False)[0], images, strict=True
    ):
        show(axis, image, 1.0)
        if mask.any():
            axis.contour(mask, [0.5], colors=[TRUTH], linewidths=1.2)
        axis.set_title(title, fontsize=9)
    return _png(figure)


def show(axis: Any, image: np.ndarray[Any, Any], aspect: float) -> None:
    """A grey slice without axes."""
    low, high = np.percentile(image, [1, 99.5])
    axis.imshow(image, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), aspect=aspect, origin="lower")
    axis.set_axis_off()


def _svg(figure: Figure) -> str:
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    text = file.getvalue()
    return text[text.index("<svg") :]


def _png(figure: Figure) -> str:
    file = io.BytesIO()
    figure.savefig(file, format="png", facecolor="#000000" if not figure.texts else "white")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
