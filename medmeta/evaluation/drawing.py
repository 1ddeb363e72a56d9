"""Which episodes a run is judged on: nobody whom it saw, and the types that it knows beside the new one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medmeta.errors import nearest
from medmeta.evaluation.catalogue import Catalogue
from medmeta.evaluation.manifest import Manifest
from medmeta.evaluation.proof import check_names
from medmeta.evaluation.protocol import check_plan
from medmeta.evaluation.records import EvaluationError
from medmeta.evaluation.supports import draw_classification, draw_segmentation
from medmeta.training import Run
from medmeta.training.checkpoint import write_bytes
from medmeta.volumes import Cohort, Volume


def manifest_of(
    run: Run,
    cohort: Cohort,
    tumour: str | None,
    *,
    shots: Sequence[int] = (1, 3, 5),
    episodes: int = 10,
    seed: int = 0,
    catalogue: Catalogue | None = None,
) -> Manifest:
    """Draw the episodes of one tumour type for a run: nobody whom it saw is judged.

    Args:
        run, cohort, tumour, shots, episodes, seed: as for :func:`medmeta.evaluation.evaluate`.
        catalogue: of the cohort's volumes, where there is one.

    Raises:
        EvaluationError, EpisodeError: as there.
    """
    if tumour is None:
        raise EvaluationError("a tumour type", found="none", cure="Give --tumor TYPE, or a manifest.")
    if tumour not in cohort.tumours:
        raise EvaluationError(
            f"the tumour type {tumour!r} in the cohort", found="none", cure=nearest(tumour, cohort.tumours)
        )
    check_names(run, [tumour])
    return drawn(run, cohort, [tumour], shots=shots, episodes=episodes, seed=seed, catalogue=catalogue)


def drawn(
    run: Run,
    cohort: Cohort,
    tumours: Sequence[str],
    *,
    shots: Sequence[int],
    episodes: int,
    seed: int,
    catalogue: Catalogue | None,
) -> Manifest:
    """Draw the episodes of some types: of all of them at once where they are told apart from known ones.

    Args:
        run, cohort, shots, episodes, seed, catalogue: as :func:`manifest_of`.
        tumours: the types.
    """
    asked, known = who(run, cohort, max(shots))
    options: dict[str, Any] = {"shots": shots, "episodes": episodes, "seed": seed, "catalogue": catalogue}
    if run.task == "segmentation":
        return draw_segmentation(asked, tumours, run.plan, **options)
    return draw_classification(asked, tumours, run.plan, known=known, **options)


def who(run: Run, cohort: Cohort, shots: int) -> tuple[Sequence[Volume], tuple[Volume, ...]]:
    """Volumes that are new to a run, and those of the types it knows that are classes beside the new one."""
    known = known_volumes(run, cohort, shots) if run.plan.lesion is not None else ()
    return run.new_patients(cohort.volumes) if known else run.unseen(cohort.volumes), known


def write_manifest(
    run: Run,
    cohort: Cohort,
    tumour: str,
    out: str | Path,
    *,
    shots: Sequence[int] = (1, 3, 5),
    episodes: int = 10,
    seed: int = 0,
    paths: str | Path | None = None,
) -> Manifest:
    """Write the episodes that :func:`medmeta.evaluation.evaluate` would judge, without judging.

    Args:
        run, cohort, tumour, shots, episodes, seed: as for :func:`medmeta.evaluation.evaluate`.
        out: file to write, refused where it exists.
        paths: file to write besides, which image file each case is: for other programs that replay the
            episodes, and to be kept where the data is.

    Raises:
        EvaluationError, EpisodeError: as there.
    """
    catalogue = Catalogue(v for v in cohort.volumes if run.plan.takes(v))
    _can_be_written([Path(file) for file in (out, paths) if file is not None])
    at_least_one(shots, episodes)
    made = manifest_of(run, cohort, tumour, shots=shots, episodes=episodes, seed=seed, catalogue=catalogue)
    catalogue.check(made)  # what would be refused when it is replayed is not written
    table = catalogue.table(made)
    write_bytes(Path(out), made.text().encode())
    if paths is not None:
        write_bytes(Path(paths), table.encode())
    return made


def _can_be_written(files: Sequence[Path]) -> None:
    """Refuse before anything is drawn: what can be known of the files to write."""
    for file in files:
        if file.exists():
            raise EvaluationError(
                f"a file that does not exist: {file.name}", found="one that does", cure="Name another."
            )
        if not file.resolve().parent.is_dir():
            raise EvaluationError(
                f"a folder to write {file.name} into", found="none of that name", cure="Make it first."
            )
    if len({file.resolve() for file in files}) < len(files):
        raise EvaluationError(
            "two files, one for the episodes and one for the paths", found="one", cure="Name another."
        )


def tumours_of(run: Run, manifest: Manifest, tumour: str | None) -> tuple[str, ...]:
    """The types that a manifest is of, where it fits the run and what was asked."""
    check_plan(run.plan, manifest.task)
    if tumour is not None and manifest.tumours != (tumour,):
        raise EvaluationError(
            f"a manifest of {tumour!r}",
            found=f"one of {', '.join(manifest.tumours)}",
            cure="Leave --tumor out, or give the manifest of that type.",
        )
    check_names(run, manifest.tumours)
    return manifest.tumours


def new_volumes(run: Run, manifest: Manifest, catalogue: Catalogue) -> list[Volume]:
    """Everyone learnt from as new, or judged; known types' supports are those that training saw."""
    judged = {k for e in manifest.episodes for k in e.query}
    learnt = {k for e in manifest.episodes for k in e.support if k.kind not in run.types}
    return [catalogue[k] for k in sorted(judged | learnt)]


def known_volumes(run: Run, cohort: Cohort, shots: int) -> tuple[Volume, ...]:
    """Patients whom training saw, of the types that have enough of them: classes beside the new one."""
    new = set(run.new_patients(cohort.volumes))
    if not any(v.tumour in run.types for v in new):  # nobody of the known types is left to be asked of
        return ()
    seen = [v for v in cohort.volumes if v not in new and v.tumour in run.types and run.plan.takes(v)]
    patients: dict[str, set[str]] = {}
    for v in seen:
        patients.setdefault(v.tumour or "", set()).add(v.patient)
    return tuple(v for v in seen if len(patients[v.tumour or ""]) > shots)


def at_least_one(shots: Sequence[int], episodes: int) -> None:
    """Refuse to draw nothing.

    Raises:
        EvaluationError: for no episode, no number of labels, or one below 1.
    """
    if episodes < 1 or not shots or min(shots) < 1:
        raise EvaluationError(
            "at least 1 episode and 1 shot",
            found=f"{episodes} episodes, shots {', '.join(map(str, shots)) or 'none'}",
            cure="Give --episodes and --shots of 1 or more.",
        )
