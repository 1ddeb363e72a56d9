"""Pictures of the report, each a string that stands in the page itself."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from medmeta.evaluation.protocol import Judged, Picture

COLOURS = ("#0b6e4f", "#c8553d", "#3d5a80", "#8d6a9f", "#b08900", "#5c6770")
TRUTH, FOUND = "#ffd23f", "#35d0ba"


def curves(judged: Judged, metric: str, label: str, names: Mapping[str, str]) -> str:
    """Score against shots with intervals, one panel a tumour type, as SVG."""
    table = judged.table()
    with matplotlib.rc_context({"font.size": 10, "svg.fonttype": "none", "svg.hashsalt": "medmeta"}):
        # as wide for one type as for two, so that text and legend keep their size on the page
        figure = Figure(figsize=(4.1 * max(2, len(table)), 3.3), layout="constrained")
        axes = figure.subplots(1, len(table), squeeze=False, sharey=True)[0]
        for axis, (tumour, by_shot) in zip(axes, table.items(), strict=True):
            shots = sorted(by_shot, key=int)
            for number, (method, name) in enumerate(names.items()):
                rows = [by_shot[s].get(method, {}).get(metric) for s in shots]
                known = [(int(s), r) for s, r in zip(shots, rows, strict=True) if r and r.mean is not None]
                if not known:
                    continue
                x = np.array([s for s, _ in known]) + 0.06 * (number - len(names) / 2)
                mean = np.array([r.mean for _, r in known])
                low = np.array([r.mean if r.low is None else r.low for _, r in known])
                high = np.array([r.mean if r.high is None else r.high for _, r in known])
                colour = COLOURS[number % len(COLOURS)]
                axis.errorbar(
                    x, mean, np.clip([mean - low, high - mean], 0, None), color=colour, marker="o", ms=4,
                    capsize=3, lw=2 if number == 0 else 1.3, label=name,
                )  # fmt: skip
            axis.set_title(tumour)
            axis.set_xlabel("labelled patients")
            axis.set_xticks([int(s) for s in shots])
            axis.grid(alpha=0.25)
            axis.spines[["top", "right"]].set_visible(False)
        axes[0].set_ylabel(label)
        figure.legend(
            *axes[0].get_legend_handles_labels(),
            loc="outside lower center",
            ncols=2,
            frameon=False,
            fontsize=9,
        )
        return _svg(figure)


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
