"""The main job once, end to end, on the synthetic cohort: train, adapt, judge, report, bundle, run."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from medmeta.clinical.trial import try_out
from medmeta.episodes import Augment, Episode, TaskSource, generator_of
from medmeta.errors import MedmetaError, new_folder, work_folder
from medmeta.evaluation import (
    NAMES,
    SCRATCH,
    Catalogue,
    Judged,
    Manifest,
    Part,
    Proof,
    Report,
    advise,
    baselines,
    cases_csv,
    draw_classification,
    draw_segmentation,
    judge_further,
    prove,
    render,
    replay,
    versions,
)
from medmeta.evaluation import results as figures
from medmeta.evaluation.manifest import joined
from medmeta.training import Recipe, Run, Schedule, plan_for, train
from medmeta.volumes import (
    Cohort,
    Store,
    make_plan,
    open_cohort,
    split_patients,
)
from medmeta.volumes.progress import Track, silent

SHOTS = (1, 3, 5)

SEGMENT = Recipe(
    task="segmentation",
    learner="maml",
    options={"rates": "step", "steps": 3},
    warm=Schedule(steps=350, rate=4e-3),
    schedule=Schedule(steps=50, rate=1e-3),
    shot=(1, 3),
    spacing=(3.0, 3.0, 3.0),
    patch=(32, 32, 32),
)
CLASSIFY = Recipe(
    task="classification",
    learner="prototypical",
    schedule=Schedule(steps=550, meta_batch=1, rate=1e-3),
    warm=Schedule(steps=500, meta_batch=1, rate=1e-3),
    way=8,
    shot=(1, 3),
    spacing=(2.0, 2.0, 2.0),
    patch=(24, 24, 24),
    lesion=4.0,
    augment=Augment(rotate=90.0, scale=0.15, apart=True),
)
ABSENT = 3
"""Tumour-free patients outlined beside those of each type: enough to see false alarms, few enough to wait."""
KEPT = 4 / 14
"""Share of the patients of the trained types whom the classifier never sees, to ask it of them too."""


class QuickstartError(MedmetaError):
    """A quickstart that cannot begin."""


def sample_data() -> Path:
    """The synthetic cohort beside the package.

    Raises:
        QuickstartError: where the package is installed without it.
    """
    folder = Path(__file__).resolve().parents[1] / "sample_data"
    if not (folder / "cohort.csv").is_file():
        raise QuickstartError(
            "the folder sample_data beside the package",
            found="none",
            cure="Install from a checkout with 'pip install -e .', or give --data COHORT.",
        )
    return folder


@dataclass(frozen=True)
class Half:
    """What one of both tasks leaves for the report and the bundle."""

    run: Run
    store: Store
    manifest: Manifest
    proof: Proof
    judged: Judged
    episode: Episode | None = None
    further: Judged | None = None
    further_manifest: Manifest | None = None


def quickstart(
    out: str | Path = "quickstart",
    *,
    seed: int = 0,
    data: str | Path | None = None,
    track: Track = silent,
    say: Callable[[str], None] = lambda _: None,
) -> Path:
    """Meta-train with two types held out, adapt to them, judge beside baselines, report, bundle, run it.

    Args:
        out: folder to write, refused where it exists: ``report.html``, ``results.json``, both runs, the
            bundle and what it predicts.
        seed: everything random is derived from it.
        data: a cohort with several tumour types, tumour-free patients and DICOM series; the synthetic
            cohort by default. The two types that sort last are held out.
        track: shows progress.
        say: is told what is done next.

    Returns:
        The folder.

    Raises:
        QuickstartError: where ``out`` exists or the cohort does not do. That the bundle cannot be run is said
            in the report, and all else kept.
    """
    folder = new_folder(out, QuickstartError)
    # networks this small gain a tenth from a second thread, and wait for it tenfold on a busy machine; and
    # on one thread the same seed gives the same figures on any number of cores
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    clock = Clock(say)
    cohort = open_cohort(Path(data) if data is not None else sample_data())
    held_out = _held_out(cohort)
    work = work_folder(folder, QuickstartError)
    try:
        segmented = _segment(cohort, held_out, work, seed, clock, track)
        classified = _classify(cohort, held_out, work, seed, clock, track)
        with clock.part("bundle", "Exporting the adapted segmenter and running it with monai.bundle"):
            bundle = _bundle_or_why(cohort, held_out[0], segmented, work, seed, say)
        facts = _facts(cohort, held_out, seed, clock, segmented.run, classified.run, bundle)
        _write(work, segmented, classified, held_out, seed, clock, facts)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    finally:
        torch.set_num_threads(threads)
    os.replace(work, folder)
    return folder


class Clock:
    """Says what is done and remembers how long each part took."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say, self.began, self.parts = say, time.monotonic(), dict[str, float]()

    @contextmanager
    def part(self, name: str, text: str) -> Iterator[None]:
        """Time one part."""
        self.say(text)
        began = time.monotonic()
        yield
        self.parts[name] = time.monotonic() - began

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self.began


def _held_out(cohort: Cohort) -> tuple[str, ...]:
    if len(cohort.tumours) < 4:
        raise QuickstartError(
            "a cohort of at least 4 tumour types, two of them to hold out",
            found=f"{len(cohort.tumours)}",
            cure="Use 'medmeta train' and 'medmeta evaluate' for smaller cohorts.",
        )
    return cohort.tumours[-2:]


def _segment(
    cohort: Cohort, held_out: tuple[str, ...], work: Path, seed: int, clock: Clock, track: Track
) -> Half:
    recipe = replace(SEGMENT, seed=seed)
    seen = [v for v in cohort.volumes if v.tumour not in held_out]
    with clock.part("prepare", f"Reading {len(cohort.volumes)} volumes; held out: {', '.join(held_out)}"):
        store = Store(make_plan(seen, spacing=recipe.spacing, patch=recipe.patch))
        store.fill(cohort.volumes, track=track)
    with clock.part("train segmenter", "Meta-training the segmenter (MAML)"):
        run = train(cohort, recipe, out=work / "segmenter", hold_out=held_out, store=store, track=track)
    with clock.part("judge segmenter", "Adapting to each held-out type, judging on all other patients"):
        judges = run.unseen(cohort.volumes)
        catalogue = Catalogue(judges)
        options: dict[str, Any] = {"shots": SHOTS, "seed": seed, "catalogue": catalogue}
        manifest = draw_segmentation(judges, held_out, store.plan, episodes=2, absent=ABSENT, **options)
        proof = prove(run, held_out, [catalogue[k] for k in sorted(manifest.cases)], store)
        methods = {"maml": run.learner, **baselines(run, seed)}
        judged = replay(methods, manifest, catalogue, store, track=track)
    shown = TaskSource(tuple(seen), store, seed=seed, shot=2, query=2, crops=1)[0]
    return Half(run, store, manifest, proof, judged, shown)


def _classify(
    cohort: Cohort, held_out: tuple[str, ...], work: Path, seed: int, clock: Clock, track: Track
) -> Half:
    recipe = replace(CLASSIFY, seed=seed)
    with clock.part("train classifier", "Meta-training the classifier of outlined lesions (prototypes)"):
        old = [v for v in cohort.volumes if v.tumour and v.mask and v.tumour not in held_out]
        known, _ = split_patients(old, (1 - KEPT, KEPT), generator_of(seed, 4))
        store = Store(plan_for(known, recipe))
        store.fill([v for v in cohort.volumes if store.plan.takes(v)], track=track)
        mine = (*known, *(v for v in cohort.volumes if v.tumour in held_out))
        seen = replace(cohort, volumes=mine)
        run = train(seen, recipe, out=work / "classifier", hold_out=held_out, store=store, track=track)
    with clock.part("judge classifier", "Telling each held-out type from all others"):
        judges = run.new_patients(cohort.volumes)
        catalogue = Catalogue(v for v in (*judges, *known) if store.plan.takes(v))
        options: dict[str, Any] = {"shots": SHOTS, "seed": seed, "catalogue": catalogue}
        manifest = draw_classification(judges, held_out, store.plan, known=known, episodes=4, **options)
        asked = sorted({k for e in manifest.episodes for k in e.query})
        proof = prove(run, held_out, [catalogue[k] for k in asked], store)
        methods = {"prototypical": run.learner, **baselines(run, seed)}
        judged = replay(methods, manifest, catalogue, store, track=track)

        drawn: list[Manifest] = []

        def more(method: str, labels: Sequence[int]) -> Judged:
            again = {**options, "shots": labels}
            drawn.append(draw_classification(judges, held_out, store.plan, known=known, episodes=4, **again))
            return replay({method: methods[method]}, drawn[-1], catalogue, store, track=track)

        fewest = min(Counter(v.tumour for v in known).values())
        further = judge_further(judged, {run.learner.name}, fewest, more)
    return Half(run, store, manifest, proof, judged, further=further, further_manifest=joined(drawn))


NOT_RUN = "not run: "


def _bundle_or_why(
    cohort: Cohort, tumour: str, segmented: Half, work: Path, seed: int, say: Callable[[str], None]
) -> str:
    """What the bundle gave, or why it was not run: no reason to lose what was trained and judged."""
    try:
        return str(try_out(segmented.run, cohort.volumes, tumour, work, store=segmented.store, seed=seed))
    except (MedmetaError, OSError) as error:
        why = str(error) if isinstance(error, MedmetaError) else type(error).__name__
        say(f"The bundle was not run: {why}")
        return f"{NOT_RUN}{why}"


NAMES_SEGMENT = {"maml": "meta-trained segmenter (MAML)", **NAMES}
NAMES_CLASSIFY = {"prototypical": "meta-trained classifier (prototypes)", **NAMES}


def _facts(
    cohort: Cohort,
    held_out: tuple[str, ...],
    seed: int,
    clock: Clock,
    run: Run,
    cls_run: Run,
    bundle: str,
) -> dict[str, str]:
    options = run.config["learner"]["options"]
    return {
        "Held out": f"{', '.join(held_out)}: no volume of theirs was in any training stage",
        "Trained on": f"{', '.join(run.drawn)} ({len(cohort.patients)} patients in the cohort)",
        "Segmenter": (
            f"second-order MAML: {SEGMENT.warm.steps if SEGMENT.warm else 0} supervised, then "
            f"{SEGMENT.schedule.steps} outer steps; {options['steps']} inner steps, "
            f"{options['adapt_steps'] or options['steps']} to adapt"
        ),
        "Classifier": (
            f"prototypes of outlined lesions: {CLASSIFY.warm.steps if CLASSIFY.warm else 0} supervised, then "
            f"{CLASSIFY.schedule.steps} outer steps of {CLASSIFY.way}-way episodes; asked which of all "
            f"{len(cohort.tumours)} types a lesion is, of patients it has not seen"
        ),
        "Pre-training baseline": "the segmenter's and classifier's own supervised stage, then fine-tuned",
        "Fine-tuning": f"{SCRATCH['steps']} steps of Adam on the support",
        "Preprocessing": str(run.plan).replace("\n", "; "),
        "Seed": str(seed),
        "Versions": ", ".join(f"{k} {v}" for k, v in versions().items()),
        "Times": ", ".join(f"{name} {seconds:.0f} s" for name, seconds in clock.parts.items()),
        "Bundle": bundle,
    }


def _write(
    work: Path,
    segmented: Half,
    classified: Half,
    held_out: tuple[str, ...],
    seed: int,
    clock: Clock,
    facts: dict[str, str],
) -> None:
    halves = {"segmenter": segmented, "classifier": classified}
    page = render(
        Report(
            "A tumour type never seen before, from a few labelled patients",
            "medmeta quickstart on synthetic patients: a test of the method, not a clinical result",
            [
                Part(segmented.judged, "maml", NAMES_SEGMENT),
                Part(classified.judged, "prototypical", NAMES_CLASSIFY, classified.further),
            ],
            facts,
            segmented.episode,
            proof=[f"The {name}. {line}" for name, half in halves.items() for line in half.proof.lines()],
        )
    )
    (work / "report.html").write_text(page, encoding="utf-8")
    both = [half.judged for half in halves.values()]
    further = [half.further for half in halves.values() if half.further is not None]
    content = figures(
        both,
        held_out=held_out,
        seed=seed,
        seconds=clock.seconds,
        manifests=[half.manifest for half in halves.values()],
        proofs=[half.proof for half in halves.values()],
        further=further,
    )
    content["answer"] = [
        one.to_json()
        for half in halves.values()
        for one in advise(half.judged, {half.run.learner.name}, further=half.further)
    ]
    content["bundle"] = {"ran": not facts["Bundle"].startswith(NOT_RUN), "says": facts["Bundle"]}
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    (work / "results.json").write_text(text, encoding="utf-8")
    rows = cases_csv([*both, *further])
    (work / "cases.csv").write_text(rows, encoding="utf-8")
    for half in halves.values():
        for name, manifest in (("manifest", half.manifest), ("manifest-further", half.further_manifest)):
            if manifest is not None:
                (work / f"{name}-{manifest.task}.json").write_text(manifest.text(), encoding="utf-8")
