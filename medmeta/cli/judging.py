"""Commands that judge: evaluate, the episodes for it, advice, and whom to label."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from medmeta.cli.terminal import Bar, Cache, Json, Out, Seed, log, plain
from medmeta.errors import MedmetaError

Tumor = Annotated[
    str | None, typer.Option(help="The tumour type; none that the run was trained on, under any name.")
]
Shots = Annotated[list[int], typer.Option(help="Labelled patients to learn from.")]
Draws = Annotated[int, typer.Option(help="Supports drawn for each number of shots.")]


def evaluate(
    run: Annotated[Path, typer.Argument(help="What 'medmeta train' wrote.")],
    cohort: Annotated[Path, typer.Argument(help="A cohort with patients of the type.")],
    out: Out,
    tumor: Tumor = None,
    shots: Shots = [1, 3, 5],  # noqa: B006
    episodes: Draws = 10,
    manifest: Annotated[
        Path | None, typer.Option(help="Episodes to replay, in place of --shots, --episodes and --seed.")
    ] = None,
    predictions: Annotated[
        list[str] | None,
        typer.Option(help="NAME=FOLDER: another program's predictions of the manifest's episodes."),
    ] = None,
    trained_on: Annotated[
        list[Path] | None,
        typer.Option(help="The cohorts of training, to look for altered copies of judged images in."),
    ] = None,
    tolerance: Annotated[float, typer.Option(help="mm within which a surface counts as right.")] = 2.0,
    seed: Seed = 0,
    cache: Cache = None,
) -> None:
    """Adapt to a new tumour type with few labels and judge on the other patients, beside baselines."""
    from medmeta.evaluation import Beside, open_manifest
    from medmeta.evaluation import evaluate as judge
    from medmeta.evaluation.answers import check_programs
    from medmeta.training import open_run
    from medmeta.volumes import open_cohort

    options: dict[str, Any] = {"shots": tuple(shots), "episodes": episodes, "seed": seed, "cache": cache}
    options["manifest"] = open_manifest(manifest) if manifest else None
    programs = _named(predictions or [])
    check_programs([name for name, _ in programs], ())  # as a dict it would keep the last of one name
    options["beside"] = Beside(dict(programs), [open_cohort(p) for p in trained_on or ()], tolerance)
    judge(open_run(run), open_cohort(cohort), out, tumour=tumor, track=Bar(), **options)
    log.print(f"Report: {plain(str(out / 'report.html'))}", soft_wrap=True)


def _named(pairs: list[str]) -> list[tuple[str, Path]]:
    """Name and folder of each ``NAME=FOLDER``."""
    split = [pair.partition("=") for pair in pairs]
    for name, sign, folder in split:
        if not (name and sign and folder):
            raise MedmetaError(
                "NAME=FOLDER", found=name or "nothing", cure="Write --predictions NAME=FOLDER."
            )
    return [(name, Path(folder)) for name, _, folder in split]


def manifest(
    run: Annotated[Path, typer.Argument(help="What 'medmeta train' wrote: whom it saw is not judged.")],
    cohort: Annotated[Path, typer.Argument(help="A cohort with patients of the type.")],
    tumor: Annotated[str, typer.Option(help="The tumour type; none that the run was trained on.")],
    out: Annotated[Path, typer.Option("--out", help="File to write; refused where it exists.")],
    shots: Shots = [1, 3, 5],  # noqa: B006
    episodes: Draws = 10,
    paths: Annotated[
        Path | None, typer.Option(help="CSV to write, which file each case is; keep it where the data is.")
    ] = None,
    seed: Seed = 0,
) -> None:
    """Write the episodes of an evaluation before anything is judged, for anyone with the data to replay."""
    from medmeta.evaluation import write_manifest
    from medmeta.training import open_run
    from medmeta.volumes import open_cohort

    made = write_manifest(
        open_run(run),
        open_cohort(cohort),
        tumor,
        out,
        shots=tuple(shots),
        episodes=episodes,
        seed=seed,
        paths=paths,
    )
    log.print(f"{len(made.episodes)} episodes: {plain(str(out))}, sha256 {made.digest}", soft_wrap=True)


def advise(
    cohort: Annotated[Path, typer.Argument(help="A cohort with the patients labelled so far.")],
    tumor: Annotated[str, typer.Option(help="The tumour type.")],
    run: Annotated[
        Path | None, typer.Option("--run", help="Try the learner of what 'medmeta train' wrote, too.")
    ] = None,
    episodes: Annotated[int, typer.Option(help="Supports drawn for each number of labels.")] = 5,
    seed: Seed = 0,
    cache: Cache = None,
    as_json: Json = False,
) -> None:
    """Say which method to use on your own labelled cases, how sure that is, and whether to label more."""
    from medmeta.evaluation import advise_on
    from medmeta.training import open_run
    from medmeta.volumes import open_cohort

    options: dict[str, Any] = {"episodes": episodes, "seed": seed, "cache": cache, "track": Bar()}
    found = advise_on(open_cohort(cohort), tumor, run=open_run(run) if run else None, **options)
    typer.echo(json.dumps(found.to_json(), indent=1) if as_json else found.paragraph)


def select(
    cohort: Annotated[Path, typer.Argument(help="Patients to choose among, labelled or not.")],
    shots: Annotated[int, typer.Option("--shots", help="Patients to label.")],
    run: Annotated[
        Path | None, typer.Option("--run", help="Choose by the encoder of what 'medmeta train' wrote.")
    ] = None,
    tumor: Annotated[str | None, typer.Option(help="Choose among the patients of this type only.")] = None,
    labelled: Annotated[
        Path | None, typer.Option(help="Measure what choosing gains on this cohort's masks instead.")
    ] = None,
    seed: Seed = 0,
    cache: Cache = None,
    as_json: Json = False,
) -> None:
    """Propose which patients to label, and say what that gains over drawing them."""
    from medmeta.evaluation import propose
    from medmeta.training import open_run
    from medmeta.volumes import open_cohort

    found = propose(
        open_cohort(cohort),
        shots,
        run=open_run(run) if run else None,
        tumour=tumor,
        labelled=open_cohort(labelled) if labelled else None,
        seed=seed,
        cache=cache,
        track=Bar(),
    )
    if as_json:
        typer.echo(json.dumps(found, indent=1))
        return
    for one in found["chosen"]:
        typer.echo(f"{one['image']}  (stands for {one['stands_for']} of {found['patients']} patients)")
    log.print(plain(found["says"]), soft_wrap=True, highlight=False)
