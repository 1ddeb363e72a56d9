"""From a run and a folder of labelled scans to a bundle."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from medmeta.clinical.bundle import BundleError
from medmeta.clinical.calibration import calibrate, false_alarms
from medmeta.clinical.choose import series_rules
from medmeta.clinical.confidence import Confidence, folded
from medmeta.clinical.export import export, home_form
from medmeta.episodes import Examples, generator_of, support_examples
from medmeta.errors import nearest, new_folder
from medmeta.learners import Safeguarded
from medmeta.training import Run, open_run
from medmeta.volumes import Cohort, Plan, Prepared, Store, Volume, open_cohort
from medmeta.volumes.progress import Track, silent


def adapt(
    run: Run | str | os.PathLike[str],
    support: Cohort | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    tumour: str | None = None,
    seed: int = 0,
    crops: int = 4,
    safeguard: bool = False,
    description: str | None = None,
    calibrated: bool = True,
    track: Track = silent,
) -> Path:
    """Learn a tumour type from a folder of labelled scans and write the result as a MONAI bundle.

    Args:
        run: what training left, or its folder.
        support: the cohort of labelled scans, or its folder; a few patients suffice.
        out: the bundle's folder to write; refused where it exists.
        tumour: the type to outline, where the support has several; when classifying, the type to tell from
            all others there. None takes the one there is, or tells all classes apart.
        seed: where crops are cut.
        crops: pieces a patient when segmenting, the first half of them around the tumour.
        safeguard: go on fine-tuning while support patients that are left out in turn gain
            (:class:`medmeta.learners.Safeguarded`): for a type unlike those that were trained on.
        description: regular expression of the SeriesDescription by which predicting chooses among the series
            of a study; it also goes by the support's modality and the plan's spacing.
        calibrated: leave support patients out in turn to find the temperature, the least volume that is no
            "no tumour", and how far a scan may be from the support (:mod:`medmeta.clinical.calibration`).
        track: shows progress.

    Returns:
        The bundle's folder; its metadata say shots, seconds, seed, hashed support keys, hashes of the weights
        before and after, versions, and ``confidence``: temperature, thresholds and how they were found. Where
        the support folder has patients known to be free of the tumour, ``false_alarms`` says how many of them
        something is outlined in.

    Raises:
        BundleError: where ``out`` exists or the support does not fit the run's task.
        RunError, CohortError, VolumeError, EpisodeError, LearnerError: where run, files or learner refuse.
    """
    began = time.monotonic()
    new_folder(out, BundleError)
    trained = run if isinstance(run, Run) else open_run(run)
    cohort = support if isinstance(support, Cohort) else open_cohort(Path(support), track=track)
    volumes, classes = _chosen(cohort, trained, tumour)
    series = series_rules(volumes, description)
    prepared = _read(volumes, trained.plan, track)
    if trained.task == "classification" and tumour is not None:
        examples = _against_rest(prepared, tumour, trained, seed)
    else:
        examples = support_examples(prepared, trained.plan, generator_of(seed), classes=classes, crops=crops)
    learner, before = trained.learner, fingerprint(trained.learner)
    careful = Safeguarded(learner) if safeguard else learner
    predictor = careful.adapt(examples)
    network, sure, alarms = home_form(predictor), Confidence(), {}
    if calibrated:
        sure = calibrate(lambda e: home_form(careful.adapt(e)), examples, prepared, trained.plan, network)
        alarms = _alarms(cohort, trained.plan, network, examples, sure.least_ml)
    about = {
        **_about(trained, prepared, examples, seed, crops),
        **alarms,
        "series": series,
        "weights_before": before,
        "weights_after": fingerprint(folded(network, sure.temperature)),
        "confidence": sure.about(),
        "seconds": round(time.monotonic() - began, 1),
    }
    return export(
        predictor,
        plan=trained.plan,
        network_spec=trained.network,
        classes=examples.classes,
        task=trained.task,
        about=about,
        confidence=sure,
        out=out,
    )


def _read(volumes: Sequence[Volume], plan: Plan, track: Track) -> list[Prepared]:
    store = Store(plan)
    return [store.read(v) for v in track(volumes, description="reading the support", total=len(volumes))]


def _alarms(cohort: Cohort, plan: Plan, network: Any, examples: Examples, least_ml: float) -> dict[str, Any]:
    """The rate of false alarms, where the support folder has patients free of the tumour."""
    free = [v for v in cohort.volumes if v.tumour is None] if examples.segments else []
    if not free:
        return {}
    scans = _read(free, plan, silent)
    return {"false_alarms": false_alarms(network, plan, scans, len(examples.classes), least_ml=least_ml)}


def _chosen(
    cohort: Cohort, run: Run, tumour: str | None
) -> tuple[tuple[Volume, ...], tuple[str, ...] | None]:
    """The volumes to learn from and the classes, where they do not follow from the volumes."""
    types = cohort.tumours
    if tumour is not None and tumour not in types:
        raise BundleError(
            f"the type {tumour!r} in the support",
            found="no such type",
            cure=nearest(tumour, types) if types else "Name the type in the cohort.",
        )
    if run.task == "classification":
        kept = tuple(v for v in cohort.volumes if run.plan.takes(v))
        if not kept:
            raise BundleError(
                "masks that outline the lesions", found="none", cure="Add masks to the support."
            )
        return kept, None
    if tumour is None and len(types) != 1:
        raise BundleError(
            "one tumour type in the support",
            found=", ".join(types) or "none",
            cure="Name the one to outline: --tumor NAME.",
        )
    name = tumour or types[0]
    chosen = tuple(v for v in cohort.of(name) if v.mask is not None)
    if not chosen:
        raise BundleError(f"masks of {name!r}", found="none", cure="Add masks to the support.")
    return chosen, ("background", name)


def _against_rest(prepared: Sequence[Prepared], tumour: str, run: Run, seed: int) -> Examples:
    named = [replace(p, tumour=tumour if p.tumour == tumour else "rest") for p in prepared]
    return support_examples(named, run.plan, generator_of(seed), classes=("rest", tumour))


def _about(
    run: Run, prepared: Sequence[Prepared], examples: Examples, seed: int, crops: int
) -> dict[str, Any]:
    packages = ("medmeta", "monai", "torch", "numpy")
    options = dict(run.learner.options)
    about = {
        "learner": run.learner.name,
        "shots": len({p.patient for p in prepared}),
        "examples": len(examples.image),
        "seed": seed,
        "support": sorted({p.patient for p in prepared}),
        "trained_on": list(run.types),
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }
    steps = options.get("adapt_steps", options.get("steps"))
    if steps is not None:
        about["steps"] = steps
    if run.task == "segmentation":
        about["crops"] = crops
    return about


def fingerprint(module: Any) -> str:
    """Hash of a network's weights, names and shapes included.

    Example:
        >>> import torch
        >>> layer = torch.nn.Linear(2, 1)
        >>> before = fingerprint(layer)
        >>> with torch.no_grad():
        ...     _ = layer.weight.add_(1)
        >>> before == fingerprint(layer)
        False
    """
    digest = hashlib.sha256()
    for name, weight in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}\n".encode())
        digest.update(weight.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
