"""From a run and a folder of labelled scans to a bundle."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from medmeta.clinical.bundle import BundleError
from medmeta.clinical.calibration import calibrate, false_alarms
from medmeta.clinical.choose import series_rules
from medmeta.clinical.confidence import Confidence, folded
from medmeta.clinical.export import export, home_form
from medmeta.episodes import Examples, generator_of, support_examples
from medmeta.errors import nearest, new_folder
from medmeta.learners import SAFEGUARD, Predictor, Safeguarded, stepping
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
    rate: float | None = None,
    steps: int | None = None,
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
        rate, steps: of the learner's gradient steps, where an evaluation chose others than training had.
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
    trained = replace(trained, learner=stepping(trained.learner, rate=rate, steps=steps))
    cohort = support if isinstance(support, Cohort) else open_cohort(Path(support), track=track)
    lesson = _Lesson.read(trained, cohort, tumour, seed=seed, crops=crops, track=track)
    series = series_rules(lesson.volumes, description)  # refuses before anything is learnt
    learnt = lesson.learnt(safeguard=safeguard, calibrated=calibrated)
    seconds = round(time.monotonic() - began, 1)
    return learnt.write({**lesson.about(), "series": series, **learnt.about(), "seconds": seconds}, out)


@dataclass(frozen=True)
class _Lesson:
    """A trained learner, and labelled scans as it gets them.

    Args:
        run: what training left.
        cohort: all of the support folder, patients free of the tumour too.
        volumes, prepared: whom it learns from.
        examples: what it learns from.
        seed, crops: how they were cut.
    """

    run: Run
    cohort: Cohort
    volumes: tuple[Volume, ...]
    prepared: tuple[Prepared, ...]
    examples: Examples
    seed: int
    crops: int

    @staticmethod
    def read(run: Run, cohort: Cohort, tumour: str | None, *, seed: int, crops: int, track: Track) -> _Lesson:
        volumes, classes = _chosen(cohort, run, tumour)
        prepared = _read(volumes, run.plan, track)
        if run.task == "classification" and tumour is not None:
            examples = _against_rest(prepared, tumour, run, seed)
        else:
            examples = support_examples(prepared, run.plan, generator_of(seed), classes=classes, crops=crops)
        return _Lesson(run, cohort, volumes, prepared, examples, seed, crops)

    def learnt(self, *, safeguard: bool, calibrated: bool) -> _Learnt:
        """Adapt; the run's learner stays as it is."""
        plan = self.run.plan
        tuning = replace(SAFEGUARD, outlined=plan.lesion is not None, spacing=plan.sides)
        learner = Safeguarded(self.run.learner, tuning) if safeguard else self.run.learner
        predictor = learner.adapt(self.examples)
        network = home_form(predictor)
        if not calibrated:
            return _Learnt(self, predictor, network)
        sure = calibrate(lambda e: home_form(learner.adapt(e)), self.examples, self.prepared, plan, network)
        return _Learnt(self, predictor, network, sure, self._alarms(network, sure))

    def _alarms(self, network: nn.Sequential, sure: Confidence) -> dict[str, Any]:
        """The rate of false alarms, where the support folder has patients free of the tumour; without those
        who were learnt from by another scan."""
        learnt = {v.patient for v in self.volumes}
        free = [v for v in self.cohort.volumes if v.tumour is None and v.patient not in learnt]
        if not free or not self.examples.segments:
            return {}
        scans, way = _read(free, self.run.plan, silent), len(self.examples.classes)
        return {"false_alarms": false_alarms(network, self.run.plan, scans, way, least_ml=sure.least_ml)}

    def about(self) -> dict[str, Any]:
        """How many were learnt from, and how; patients by their hashed keys."""
        learner, packages = self.run.learner, ("medmeta", "monai", "torch", "numpy")
        about = {
            "learner": learner.name,
            "shots": len({p.patient for p in self.prepared}),
            "examples": len(self.examples.image),
            "seed": self.seed,
            "support": sorted({p.patient for p in self.prepared}),
            "trained_on": list(self.run.drawn),
            "versions": {name: importlib.metadata.version(name) for name in packages},
        }
        steps = learner.options.get("adapt_steps")
        about["steps"] = learner.options.get("steps") if steps is None else steps
        about["rate"] = learner.options.get("rate")
        about = {name: value for name, value in about.items() if value is not None}
        if self.run.task == "segmentation":
            about["crops"] = self.crops
        return about


@dataclass(frozen=True)
class _Learnt:
    """What came of a lesson.

    Args:
        lesson: it.
        predictor: adapted.
        network: the same, as a bundle holds it.
        confidence: how sure it is.
        alarms: how often of tumour-free patients, where there were any.
    """

    lesson: _Lesson
    predictor: Predictor
    network: nn.Sequential
    confidence: Confidence = field(default_factory=Confidence)
    alarms: Mapping[str, Any] = field(default_factory=dict)

    def about(self) -> dict[str, Any]:
        """What adapting changed, and what is known of its certainty."""
        return {
            **self.alarms,
            "weights_before": fingerprint(self.lesson.run.learner),
            "weights_after": fingerprint(folded(self.network, self.confidence.temperature)),
            "confidence": self.confidence.about(),
        }

    def write(self, about: Mapping[str, Any], out: str | os.PathLike[str]) -> Path:
        """The bundle."""
        return export(
            self.predictor,
            plan=self.lesson.run.plan,
            network_spec=self.lesson.run.network,
            classes=self.lesson.examples.classes,
            task=self.lesson.run.task,
            about=about,
            confidence=self.confidence,
            out=out,
        )


def _read(volumes: Sequence[Volume], plan: Plan, track: Track) -> tuple[Prepared, ...]:
    store = Store(plan)
    read = track(volumes, description="reading the support", total=len(volumes))
    return tuple(store.read(v) for v in read)


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
