"""What choosing the patients to label gains over drawing them, on types whose labels are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medmeta.episodes import EpisodeError, generator_of, support_examples
from medmeta.evaluation import metrics
from medmeta.evaluation.intervals import Interval, clustered
from medmeta.evaluation.outlines import logits_of
from medmeta.evaluation.records import Method
from medmeta.evaluation.selection import Embed, medoids_of, one_a_patient
from medmeta.learners import Predictor
from medmeta.volumes import Plan, Prepared, Store, Volume
from medmeta.volumes.progress import Track, silent


@dataclass(frozen=True)
class Trial:
    """One patient judged after learning from chosen and from drawn patients of the same pool.

    Args:
        tumour, shot, repeat: which type, how many labels, which pool.
        patient: hashed key of the judged patient, who is not in the pool.
        chosen, drawn: Dice; the latter averaged over draws.
    """

    tumour: str
    shot: int
    repeat: int
    patient: str
    chosen: float
    drawn: float


def trials(
    method: Method,
    volumes: Sequence[Volume],
    tumour: str,
    store: Store,
    spaces: Mapping[str, Embed],
    *,
    shots: Sequence[int] = (1, 3, 5),
    repeats: int = 10,
    draws: int = 3,
    judged: int = 12,
    seed: int = 0,
    track: Track = silent,
) -> dict[str, list[Trial]]:
    """Learn one type from chosen and from drawn patients, and judge both on the same other patients.

    Half of the patients (drawn anew in every repeat) are the pool to choose and draw from, and up to
    ``judged`` of the others are judged, on the plan's grid. Choosing looks at no label.

    Args:
        method: learns from the support.
        volumes: of any types; those of ``tumour`` with a mask are taken.
        tumour: the type.
        store: prepared volumes, of a plan that cuts crops.
        spaces: ways to give a scan the vector to choose by; all are compared with the same draws.
        shots: labels to learn from; those the pool has not more patients than are left out.
        repeats: pools.
        draws: random supports a pool.
        judged: patients judged a pool at most.
        seed: of pools, draws and crops.
        track: shows progress.

    Returns:
        The trials of each space.

    Raises:
        EpisodeError: where no number of labels is possible.
    """
    patients = one_a_patient([v for v in volumes if v.tumour == tumour and v.mask is not None])
    half = len(patients) // 2
    possible = [k for k in shots if k < half]
    if not possible:
        raise EpisodeError(
            f"more than {2 * min(shots) + 1} labelled patients with {tumour!r}, half of them to choose from",
            found=f"{len(patients)}",
            cure="Name a type with more patients, or ask for fewer --shots.",
        )
    scans = [store.read(v) for v in patients]
    rows = {name: np.stack([embed(scan) for scan in scans]) for name, embed in spaces.items()}
    made: dict[str, list[Trial]] = {name: [] for name in spaces}
    for repeat in track(range(repeats), description=f"choosing and drawing: {tumour}", total=repeats):
        generator = np.random.default_rng([seed, repeat, *tumour.encode()])
        order = generator.permutation(len(patients))
        pool, others = order[:half], order[half : half + judged]
        for shot in possible:
            supports = [pool[medoids_of(table[pool], shot)[0]] for table in rows.values()]
            supports += [generator.choice(pool, shot, replace=False) for _ in range(draws)]
            found = np.array(
                [
                    _dice(method, [scans[i] for i in s], [scans[i] for i in others], store, seed)
                    for s in supports
                ]
            )
            drawn = found[len(spaces) :].mean(0)
            for name, chosen in zip(spaces, found, strict=False):
                made[name] += [
                    Trial(tumour, shot, repeat, scans[i].patient, float(chosen[n]), float(drawn[n]))
                    for n, i in enumerate(others)
                ]
    return made


def _dice(
    method: Method, support: Sequence[Prepared], others: Sequence[Prepared], store: Store, seed: int
) -> list[float]:
    predictor = method.adapt(support_examples(support, store.plan, generator_of(seed, 6)))
    return [_one(predictor, scan, store.plan) for scan in others]


def _one(predictor: Predictor, scan: Prepared, plan: Plan) -> float:
    found = logits_of(predictor, scan.image, plan).argmax(0) > 0
    assert scan.mask is not None
    return metrics.dice(found, scan.mask > 0) or 0.0  # the truth is never empty


def gain(some: Sequence[Trial], seed: int = 0) -> Interval:
    """Dice that choosing gains over drawing: of one type by patient and pool, of several by type.

    Args:
        some: of one number of labels.
        seed: of the bootstrap.

    Example:
        >>> gain([Trial("a", 1, r, p, 0.5, 0.4) for r in (0, 1) for p in "xy"]).mean
        0.1
    """
    value = np.array([t.chosen - t.drawn for t in some])
    types = sorted({t.tumour for t in some})
    if len(types) == 1:
        return clustered(
            [t.patient for t in some], [t.repeat for t in some], lambda i: float(value[i].mean()), seed=seed
        )
    means = np.array([value[[t.tumour == name for t in some]].mean() for name in types])
    return clustered(types, [0] * len(types), lambda i: float(means[i].mean()), seed=seed)


def gains(some: Sequence[Trial]) -> dict[str, dict[str, Mapping[str, float | None]]]:
    """The gain by type and number of labels, and over all types under ``"all"``, as JSON has it."""
    made: dict[str, dict[str, Mapping[str, float | None]]] = {}
    types = sorted({t.tumour for t in some})
    for name, there in [*(("all", types),) * (len(types) > 1), *((t, [t]) for t in types)]:
        for shot in sorted({t.shot for t in some if t.tumour in there}):
            mine = [t for t in some if t.shot == shot and t.tumour in there]
            both: NDArray[np.float64] = np.array([[t.chosen, t.drawn] for t in mine])
            about = {
                "chosen": round(float(both[:, 0].mean()), 4),
                "drawn": round(float(both[:, 1].mean()), 4),
            }
            made.setdefault(name, {})[str(shot)] = {**gain(mine).to_json(), **about}
    return made


def verdict(gained: Mapping[str, float | None]) -> str:
    """Say in a sentence what choosing gained.

    Example:
        >>> verdict({"mean": 0.01, "low": -0.02, "high": 0.04})
        'gains nothing that is sure: Dice +0.01 (95 % interval -0.02 to +0.04)'
    """
    mean, low, high = gained["mean"], gained["low"], gained["high"]
    if mean is None or low is None or high is None:
        return "not known: too few cases"
    said = f"Dice {mean:+.2f} (95 % interval {low:+.2f} to {high:+.2f})"
    if low > 0:
        return f"gains {said}"
    return f"loses {said}" if high < 0 else f"gains nothing that is sure: {said}"
