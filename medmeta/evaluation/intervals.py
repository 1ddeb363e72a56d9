"""Intervals that know that voxels of one patient are not many patients, and that the support was drawn."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.special import expit, logit

from medmeta.evaluation.cells import Cells, pseudo_values

RESAMPLES = 1000
FLAT = 1e-12
"""Variance of a mean up to which all values are the same: what is left of rounding is no spread."""
FACTOR = 20
"""How many times the mean an end may be on the log scale. Beyond, which only a few patients or draws bring,
the plain scale holds the truth about as often (simulated), and its ends are numbers that can be."""


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval; None where a metric says nothing.

    Args:
        mean: over all cases.
        low, high: ends; None where fewer than two patients say anything, or all say the same and how sure
            that is cannot be told.
        by_patient, by_draw: standard error of the mean that comes from which patients were judged, and from
            which were learnt from; None where it cannot be told (one patient, one draw).
    """

    mean: float | None
    low: float | None
    high: float | None
    by_patient: float | None = None
    by_draw: float | None = None

    def to_json(self) -> dict[str, float | None]:
        """The three numbers by name."""
        return {"mean": self.mean, "low": self.low, "high": self.high}


@dataclass(frozen=True)
class Spread:
    """How sure a mean over patients and draws is.

    Args:
        mean: over all cells.
        variance: of the mean.
        freedom: degrees of freedom of the variance (Satterthwaite 1946).
        by_patient, by_draw: the two variances it is made of; the second is None for a single draw.
    """

    mean: float
    variance: float
    freedom: float
    by_patient: float
    by_draw: float | None

    @property
    def quantile(self) -> float:
        """Of Student's t: 97.5 %."""
        return float(stats.t.ppf(0.975, self.freedom))

    @property
    def flat(self) -> bool:
        """Whether all values are the same: how sure their mean is cannot be told from them."""
        return self.variance <= FLAT

    @property
    def p(self) -> float | None:
        """Two-sided, that the mean is 0; None where :attr:`flat`."""
        if self.flat:
            return None
        return float(2 * stats.t.sf(abs(self.mean) / self.variance**0.5, self.freedom))


def spread(cells: Cells) -> Spread | None:
    """Variance of the mean where patients and draws are both drawn and cross each other.

    Of the two-way random-effects analysis of variance (Searle, Casella & McCulloch 1992, section 4.5): the
    variance among patients' means, plus that among draws' means, minus what is left when both are taken out,
    which both contain.

    Args:
        cells: ``(draw, patient)``, nan where a patient was not judged.

    Returns:
        None where fewer than two patients say anything.

    Example:
        >>> found = spread(np.array([[0.0, 1.0, 2.0], [0.2, 1.2, 2.2]]))
        >>> round(found.mean, 6), round(found.by_patient, 6), round(found.by_draw, 6)
        (1.1, 0.333333, 0.01)
    """
    kept = _kept(cells)
    known = np.isfinite(kept)
    draws, patients = kept.shape
    if patients < 2:
        return None
    number = int(known.sum())
    mean = float(kept[known].mean())
    apart = np.where(known, kept - mean, 0.0)
    by_patient = patients / (patients - 1) * float(np.square(apart.sum(0) / number).sum())
    if draws < 2:
        return Spread(mean, by_patient, patients - 1, by_patient, None)
    by_draw = draws / (draws - 1) * float(np.square(apart.sum(1) / number).sum())
    both = _interaction(apart, known)
    total = max(by_patient + by_draw - both, by_patient, by_draw)
    parts = by_patient**2 / (patients - 1) + by_draw**2 / (draws - 1)
    if total > max(by_patient, by_draw):
        parts += both**2 / ((patients - 1) * (draws - 1))
    return Spread(mean, total, total**2 / parts if parts else patients - 1, by_patient, by_draw)


def _kept(cells: Cells) -> Cells:
    """Draws and patients that say anything."""
    known = np.isfinite(cells)
    return cells[known.any(1)][:, known.any(0)]


def _interaction(apart: Cells, known: NDArray[np.bool_]) -> float:
    """Variance of the mean that is neither the patient's nor the draw's."""
    number, (draws, patients) = int(known.sum()), known.shape
    freedom = number - draws - patients + 1
    if freedom < 1:
        return 0.0
    row = apart.sum(1, keepdims=True) / known.sum(1, keepdims=True)
    column = (apart - row * known).sum(0, keepdims=True) / known.sum(0, keepdims=True)
    return float(np.square((apart - row - column)[known]).sum()) / freedom / number


def resampled(cells: Cells, *, seed: int = 0, resamples: int = RESAMPLES) -> NDArray[np.float64]:
    """Means of bootstrap samples: patients and draws taken with replacement, a patient with all its cells.

    The pigeonhole bootstrap (Owen 2007); its own variance is not that of the mean, which :func:`interval`
    puts right.

    Args:
        cells: ``(draw, patient)``, nan where a patient was not judged.
        seed, resamples: of the bootstrap.

    Returns:
        ``(resamples,)``, nan where a sample says nothing.
    """
    generator = np.random.default_rng(seed)
    draws, patients = cells.shape
    by_draw = generator.multinomial(draws, np.full(draws, 1 / draws), resamples).astype(float)
    by_patient = generator.multinomial(patients, np.full(patients, 1 / patients), resamples).astype(float)
    known = np.isfinite(cells)
    total = ((by_draw @ np.where(known, cells, 0.0)) * by_patient).sum(1)
    count = ((by_draw @ known.astype(float)) * by_patient).sum(1)
    return np.divide(total, count, out=np.full(resamples, np.nan), where=count > 0)


def interval(
    cells: Cells,
    *,
    bounds: tuple[float, float] = (-np.inf, np.inf),
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Interval:
    """The mean of patients' values with its 95 % interval, clustered by patient, the draws a second source.

    The width is that of :func:`spread` with Student's t: with few patients or few draws the plain percentiles
    of a bootstrap are too narrow, and where most of the spread is neither the patient's nor the draw's they
    are too wide (``benchmarks/coverage.py`` shows both). A score between two bounds gets its interval on the
    logit scale, which keeps it within them, and one that is not below 0 on the log scale; of any other score
    the bootstrap over patients and draws says how lopsided it is. With one draw the interval is of that
    support alone. Where every value is the same of two bounds (no false alarm in 20 patients) the other end
    is the exact one of a rate over patients (Clopper & Pearson 1934); where all are the same otherwise, there
    are no ends.

    Args:
        cells: ``(draw, patient)``, nan where a patient was not judged.
        bounds: of what is measured.
        seed, resamples: of the bootstrap.

    Example:
        >>> found = interval(np.array([[0.5, 0.7, 0.9], [0.5, 0.7, 0.9]]), bounds=(0, 1))
        >>> found.mean, found.low, found.high
        (0.7, 0.1797, 0.9613)
        >>> interval(np.zeros((1, 20)), bounds=(0, 1)).high
        0.1684
    """
    found = spread(cells)
    if found is None:
        known = cells[np.isfinite(cells)]
        return Interval(_rounded(known.mean()) if len(known) else None, None, None)
    errors = [None if v is None else _rounded(v**0.5) for v in (found.by_patient, found.by_draw)]
    if found.flat:
        ends = _exact(_kept(cells).shape[1], found.mean, bounds)
    elif np.isfinite(bounds).all():
        ends = _between(found, bounds)
    elif bounds[0] == 0:
        ends = _above_zero(found)
    else:
        ends = _stretched(found, resampled(_kept(cells), seed=seed, resamples=resamples))
    if ends is None:
        return Interval(_rounded(found.mean), None, None, *errors)
    low, high = max(ends[0], bounds[0]), min(ends[1], bounds[1])
    return Interval(_rounded(found.mean), _rounded(low), _rounded(high), *errors)


def _exact(patients: int, mean: float, bounds: tuple[float, float]) -> tuple[float, float] | None:
    """Ends where all patients have the same value; None where that is not one of two bounds."""
    most = (bounds[1] - bounds[0]) * float(1 - 0.025 ** (1 / patients))
    if not np.isfinite(most):
        return None
    near = [abs(mean - bound) <= FLAT**0.5 for bound in bounds]
    if not any(near):
        return None
    return (mean, mean + most) if near[0] else (mean - most, mean)


def _above_zero(found: Spread) -> tuple[float, float]:
    """Ends on the log scale (delta method), on the plain one where those would be beyond all reason."""
    half = found.quantile * found.variance**0.5
    if half > math.log(FACTOR) * found.mean:
        return found.mean - half, found.mean + half
    times = math.exp(half / found.mean)
    return found.mean / times, found.mean * times


def _between(found: Spread, bounds: tuple[float, float]) -> tuple[float, float]:
    """Ends on the logit scale (delta method)."""
    width = bounds[1] - bounds[0]
    share = min(max((found.mean - bounds[0]) / width, 1e-9), 1 - 1e-9)
    half = found.quantile * found.variance**0.5 / width / (share * (1 - share))
    low, high = expit(logit(share) - half), expit(logit(share) + half)
    return bounds[0] + width * float(low), bounds[0] + width * float(high)


def _stretched(found: Spread, samples: NDArray[np.float64]) -> tuple[float, float]:
    """Percentiles of the bootstrap, drawn out from the mean to the width they should have."""
    apart = samples[np.isfinite(samples)] - found.mean
    usual = float(apart.std())
    stretch = found.quantile / float(stats.norm.ppf(0.975)) * found.variance**0.5 / usual if usual else 0.0
    low, high = np.percentile(apart, [2.5, 97.5])
    return found.mean + stretch * float(low), found.mean + stretch * float(high)


def clustered(
    patients: Sequence[str],
    draws: Sequence[int],
    statistic: Callable[[NDArray[np.int64]], float | None],
    *,
    bounds: tuple[float, float] = (-np.inf, np.inf),
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Interval:
    """Any statistic of the cases of a draw, averaged over draws, with the interval of :func:`interval`.

    Args:
        patients: key of each case.
        draws: number of the support draw of each case.
        statistic: of the case numbers that it is given; None where undefined.
        bounds: of the statistic.
        seed, resamples: of the bootstrap.

    Example:
        >>> values = np.array([0.5, 0.7, 0.6, 0.8])
        >>> clustered(["a", "b", "a", "b"], [0, 0, 1, 1], lambda i: float(values[i].mean())).mean
        0.65
    """
    cells = pseudo_values(patients, draws, statistic)
    return interval(cells, bounds=bounds, seed=seed, resamples=resamples)


def _rounded(value: float) -> float:
    return round(float(value), 4)
