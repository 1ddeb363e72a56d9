"""Which cases to label next, and what choosing them gains over drawing them, on types with known labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medmeta.errors import nearest
from medmeta.evaluation.gain import Trial, gains, trials, verdict
from medmeta.evaluation.pixels import Trees
from medmeta.evaluation.records import EvaluationError
from medmeta.evaluation.selection import Embed, embedding, enough, one_a_patient, select, untrained
from medmeta.training import Run
from medmeta.volumes import Cohort, Plan, Store, Volume, make_plan
from medmeta.volumes.progress import Track, silent

TYPES = 6
"""Types that the gain is measured on at most, so that the answer comes within minutes."""
NOT_MEASURED = (
    "What choosing gains was not measured: that is done by outlining, and the run looks at whole volumes."
)


def propose(
    cohort: Cohort,
    shots: int,
    *,
    run: Run | None = None,
    tumour: str | None = None,
    labelled: Cohort | None = None,
    repeats: int = 5,
    seed: int = 0,
    cache: str | Path | None = None,
    track: Track = silent,
) -> dict[str, Any]:
    """Choose the patients to label, and measure on labelled types what that gains.

    Args:
        cohort: patients to choose among; no label of theirs is looked at to choose.
        shots: how many.
        run: its encoder gives the features, its learner the Dice; None takes an untrained encoder and
            pixel trees.
        tumour: choose among the patients of this type only.
        labelled: cohort with masks to measure the gain on; None takes ``cohort``. Types that the run was
            trained or validated on are left out.
        repeats: pools that the gain is measured on, a type.
        seed: of what is drawn, and of the untrained encoder.
        cache: folder to keep prepared volumes in.
        track: shows progress.

    Returns:
        ``chosen`` (hashed ``patient``, ``image`` below the cohort's folder, ``stands_for`` so many patients),
        ``patients``, ``gain`` by type and labels (None where nothing could be measured) and ``says``, the
        same in a sentence.

    Raises:
        EvaluationError: where there are too few patients, or the type is not in the cohort.
    """
    if tumour is not None and tumour not in cohort.tumours:
        cure = nearest(tumour, cohort.tumours) if cohort.tumours else "Leave --tumor out."
        raise EvaluationError(f"the tumour type {tumour!r} in the cohort", found="none", cure=cure)
    among = [v for v in cohort.volumes if tumour in (None, v.tumour)]
    enough(among, shots)  # before anything is read
    if run is not None and not all(map(run.plan.takes, among)):
        raise EvaluationError(
            "outlines of the patients to choose among: the run looks at outlined lesions",
            found=f"{sum(not run.plan.takes(v) for v in among)} of {len(among)} scans without",
            cure="Leave --run out; an untrained encoder looks at whole scans.",
        )
    plan = run.plan if run is not None else make_plan(among)
    store = Store(plan, cache, salt=run.config["salt"] if run is not None else None)
    network = run.learner.network if run is not None else untrained(plan, seed)
    embed = embedding(network, plan)
    chosen = select(among, shots, store, embed, track=track)
    some = _measured(labelled or cohort, run, plan, store, embed, shots, repeats, seed, track)
    gained = gains(some) if some else None
    return {
        "shots": shots,
        "patients": chosen.patients,
        "features": "the run's encoder" if run is not None else "an untrained encoder",
        "chosen": [
            {"patient": store.patient(v), "image": _below(v.image[0], cohort.root), "stands_for": n}
            for v, n in zip(chosen.volumes, chosen.stands_for, strict=True)
        ],
        "gain": gained,
        "says": NOT_MEASURED if plan.whole else _says(gained, some, shots),
    }


def _measured(
    cohort: Cohort,
    run: Run | None,
    plan: Plan,
    store: Store,
    embed: Embed,
    shots: int,
    repeats: int,
    seed: int,
    track: Track,
) -> list[Trial]:
    """Trials on the types that have patients enough and that the run has not seen; none to classify."""
    if plan.whole:
        return []
    volumes = run.unseen(cohort.volumes) if run is not None else cohort.volumes
    many = [t for t in cohort.tumours if len(_outlined(volumes, t)) // 2 > shots]
    method = run.learner if run is not None else Trees(seed)
    made: list[Trial] = []
    for name in sorted(many, key=lambda t: -len(_outlined(volumes, t)))[:TYPES]:
        made += trials(
            method, volumes, name, store, {"": embed},
            shots=(shots,), repeats=repeats, judged=8, seed=seed, track=track,
        )[""]  # fmt: skip
    return made


def _outlined(volumes: Sequence[Volume], tumour: str) -> list[Volume]:
    return one_a_patient([v for v in volumes if v.tumour == tumour and v.mask is not None])


def _says(gained: dict[str, Any] | None, some: Sequence[Trial], shots: int) -> str:
    if not gained:
        return (
            f"What choosing gains was not measured: no type with masks, unseen in training, has more than "
            f"{2 * shots + 1} patients."
        )
    rows = gained.get("all") or next(iter(gained.values()))
    types = len({t.tumour for t in some})
    return (
        f"Choosing {shots} patients instead of drawing them {verdict(rows[str(shots)])}, "
        f"on {types} labelled type{'s' if types > 1 else ''}, {len({t.patient for t in some})} patients."
    )


def _below(path: Path, root: Path) -> str:
    return str(path.relative_to(root) if path.is_relative_to(root) else Path(path.name))
