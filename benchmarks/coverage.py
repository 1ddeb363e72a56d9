"""Do 95 % intervals hold the truth 95 times in 100? Patients and supports drawn anew each time, known truth.

    python benchmarks/coverage.py --json coverage.json
    python benchmarks/coverage.py --quick

Scores of patients after learning from drawn supports are made up with three variances: the patient's (some
are hard for every support), the draw's (some supports are bad for every patient) and what is left. Beside
our interval stands the plain percentile bootstrap over patients and draws.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy import stats

from medmeta.evaluation.cells import pseudo_values
from medmeta.evaluation.differences import difference
from medmeta.evaluation.intervals import Interval, interval, resampled
from medmeta.evaluation.metrics import auroc

Array = NDArray[np.float64]
SIZES = ((10, 10), (20, 2), (20, 4), (20, 10), (50, 4), (50, 10), (100, 10))
"""Patients and draws."""
RARE = ((30, 4), (30, 10))
"""The same where few patients more have the type: those without it, and draws."""
SPREADS = {"patients differ": (1.0, 0.3, 0.5), "draws differ": (0.6, 0.6, 0.6), "noise": (0.3, 0.1, 1.0)}
"""Deviation by patient, by draw, and of what is left."""


def latent(size: tuple[int, int], spread: tuple[float, float, float], random: np.random.Generator) -> Array:
    """Standard deviations from the mean, ``(draw, patient)``."""
    patients, draws = size
    own = [d * random.standard_normal(n) for d, n in zip(spread[:2], (patients, draws), strict=True)]
    return own[0][None] + own[1][:, None] + spread[2] * random.standard_normal((draws, patients))


def middling(z: Array) -> Array:
    """Dice around 0.45."""
    return np.clip(0.45 + 0.22 * z, 0, 1)


def poor(z: Array) -> Array:
    """Dice of a method that misses more than half of the tumours altogether."""
    return np.clip(-0.05 + 0.25 * z, 0, 1)


def distance(z: Array) -> Array:
    """HD95 in mm, lopsided: log-normal."""
    return np.exp(2.5 + 0.6 * z)


@dataclass(frozen=True)
class Kind:
    """A score: values of latent ones, and its bounds."""

    name: str
    values: Callable[[Array], Array]
    bounds: tuple[float, float] = (-np.inf, np.inf)

    def one(
        self, size: tuple[int, int], spread: tuple[float, float, float], random: np.random.Generator
    ) -> tuple[Interval, tuple[float, float]]:
        """Our interval and that of the plain bootstrap."""
        cells = self.values(latent(size, spread, random))
        seed = int(random.integers(2**31))
        plain = np.percentile(resampled(cells, seed=seed, resamples=400), [2.5, 97.5])
        return interval(cells, bounds=self.bounds, seed=seed, resamples=400), (plain[0], plain[1])

    def truth(self, spread: tuple[float, float, float]) -> float:
        """The expectation, by quadrature over the latent normal."""
        fine = np.linspace(-9, 9, 20001)
        density = stats.norm.pdf(fine)
        return float((self.values(fine * float(np.linalg.norm(spread))) * density).sum() / density.sum())


@dataclass(frozen=True)
class Area:
    """AUROC averaged over draws, each of which has its own separation.

    Args:
        name: of the table.
        rare: patients who have the type, besides those without; None: half of all have it.
        sizes: the only ones of the table, where there are any.
    """

    name: str = "AUROC"
    rare: int | None = None
    sizes: tuple[tuple[int, int], ...] = ()
    separation: float = 1.4

    def one(
        self, size: tuple[int, int], spread: tuple[float, float, float], random: np.random.Generator
    ) -> tuple[Interval, tuple[float, float]]:
        """Our interval and that of the bootstrap of the pseudo-values."""
        patients, draws = size[0] + (self.rare or 0), size[1]
        truth = np.arange(patients) % 2 == 0 if self.rare is None else np.arange(patients) < self.rare
        own, by_draw = random.standard_normal(patients), random.standard_normal(draws)
        noise = random.standard_normal((draws, patients))
        scale = float(np.hypot(spread[0], spread[2]))
        score = spread[0] * own[None] + spread[2] * noise
        score += scale * truth[None] * (self.separation + spread[1] * by_draw[:, None])
        flat, rows = score.ravel(), np.repeat(np.arange(draws), patients)
        columns = np.tile(np.arange(patients), draws)
        area = lambda i: auroc(flat[i], truth[columns[i]])  # noqa: E731
        cells = pseudo_values(columns.tolist(), rows.tolist(), area, classes=truth[columns].tolist())
        plain = np.nanpercentile(resampled(cells, seed=1, resamples=400), [2.5, 97.5])
        return interval(cells, bounds=(0, 1), resamples=400), (plain[0], plain[1])

    def truth(self, spread: tuple[float, float, float]) -> float:
        """Closed form: P(N(separation, 2 + draw variance) > 0), the draw shifting all positives alike."""
        return float(stats.norm.cdf(self.separation / np.sqrt(2 + spread[1] ** 2)))


class Pair:
    """The difference of two methods on the same patients and draws; the truth is what was put in."""

    name = "paired difference"

    def one(
        self, size: tuple[int, int], spread: tuple[float, float, float], random: np.random.Generator
    ) -> tuple[Interval, tuple[float, float]]:
        """Two methods share the patients' ease; each has draws and noise of its own."""
        own = latent(size, (spread[0], 0, 0), random)
        cells = {
            name: level + 0.1 * (own + latent(size, (spread[0] / 3, *spread[1:]), random))
            for name, level in (("one", 0.55), ("other", 0.5))
        }
        apart = resampled(cells["one"] - cells["other"], seed=1, resamples=400)
        plain = np.percentile(apart, [2.5, 97.5])
        return difference("one", "other", cells).interval, (plain[0], plain[1])

    def truth(self, spread: tuple[float, float, float]) -> float:
        """Put in."""
        return 0.05


KINDS = (
    Kind("Dice", middling, (0.0, 1.0)),
    Kind("Dice, mostly 0", poor, (0.0, 1.0)),
    Kind("HD95", distance, (0.0, np.inf)),
    Area(),
    Pair(),
    Area("AUROC, 3 with the type", 3, RARE),
    Area("AUROC, 10 with the type", 10, RARE),
)


def coverage(
    kind: Kind | Area | Pair,
    size: tuple[int, int],
    spread: tuple[float, float, float],
    repeats: int,
    seed: int,
) -> dict[str, float]:
    """Per cent of ours that have ends, and of the plain bootstrap, that hold the truth; our mean width."""
    random = np.random.default_rng([seed, *size, KINDS.index(kind)])
    truth, ours, plain, width, told = kind.truth(spread), 0, 0, 0.0, 0
    for _ in range(repeats):
        found, (low, high) = kind.one(size, spread, random)
        plain += low <= truth <= high
        if found.low is None or found.high is None:
            continue
        told += 1
        ours += found.low <= truth <= found.high
        width += found.high - found.low
    each = max(1, told)
    return {"ours": 100 * ours / each, "plain": 100 * plain / repeats, "width": width / each, "told": told}


def main(arguments: list[str] | None = None) -> int:
    """Simulate, print one table a score."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="60 repeats of two sizes")
    parser.add_argument("--json", type=Path, default=None)
    given = parser.parse_args(arguments)
    repeats, sizes = (60, SIZES[2:4]) if given.quick else (given.repeats, SIZES)
    found = []
    for kind in KINDS:
        table = Table(
            title=f"{kind.name}: % of {repeats} intervals that hold the truth, ours (plain bootstrap)"
        )
        table.add_column("patients, draws")
        for name in SPREADS:
            table.add_column(name)
        for size in (isinstance(kind, Area) and kind.sizes) or sizes:
            cells = [coverage(kind, size, spread, repeats, given.seed) for spread in SPREADS.values()]
            table.add_row(f"{size[0]}, {size[1]}", *[f"{c['ours']:.1f} ({c['plain']:.1f})" for c in cells])
            for name, cell in zip(SPREADS, cells, strict=True):
                row = {"score": kind.name, "patients": size[0], "draws": size[1], "spread": name}
                found.append({**row, **cell, "repeats": repeats})
        Console().print(table)
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
