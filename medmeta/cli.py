"""The command line: one small function a command, no logic; torch is imported late, inside."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

from medmeta.errors import MedmetaError

app = typer.Typer(
    help="A new tumour type, a handful of labels, a model a hospital pipeline can run today.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode="rich",
)
_log = Console(stderr=True)

Cohorts = Annotated[list[Path], typer.Argument(help="Cohort folders, JSON or CSV files; see the README.")]
Out = Annotated[Path, typer.Option("--out", help="Folder to write; refused where it exists.")]
Seed = Annotated[int, typer.Option("--seed", help="Everything random is derived from it.")]
Cache = Annotated[Path | None, typer.Option("--cache", help="Folder to keep prepared volumes in.")]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable output on stdout.")]


def _plain(text: str) -> str:
    """Text with its square brackets taken literally by rich."""
    from rich.markup import escape

    return escape(text)


def _below(path: Path, root: Path) -> Path:
    """A path as seen from its cohort's folder, where it lies below it."""
    return path.relative_to(root) if path.is_relative_to(root) else Path(path.name)


def _version(show: bool) -> None:
    if show:
        from medmeta import __version__

        typer.echo(f"medmeta {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Options that every command takes."""


_MANY = {"--shots", "--hold-out", "--validate-on", "--predictions", "--trained-on"}


def spread(arguments: list[str]) -> list[str]:
    """Let an option take several values: ``--shots 1 3 5`` becomes ``--shots 1 --shots 3 --shots 5``.

    A value ends at the next option, and at a path that exists (a cohort given after the option).

    Example:
        >>> spread(["run", "--shots", "1", "3", "--seed", "0"])
        ['run', '--shots', '1', '--shots', '3', '--seed', '0']
    """
    spread_out: list[str] = []
    option, taken = "", 0
    for word in arguments:
        if word.startswith("--"):
            option, taken = (word if word in _MANY else ""), 0
        elif option:
            if taken and Path(word).exists():
                option = ""
            elif taken:
                spread_out.append(option)
            taken += 1
        spread_out.append(word)
    return spread_out


def main() -> NoReturn:
    """Run the command line; exit codes as in the README: 0 done, 1 with findings, 2 refused, 143 stopped."""
    arguments = spread(sys.argv[1:])
    debug = "--debug" in arguments
    for category in (FutureWarning, DeprecationWarning):  # of MONAI and torch: nothing a user can act on
        warnings.filterwarnings("ignore", category=category)
    try:
        app(args=[word for word in arguments if word != "--debug"], prog_name="medmeta", standalone_mode=True)
    except MedmetaError as error:
        if debug:
            raise
        _log.print(f"[bold red]medmeta:[/] {_plain(str(error))}", soft_wrap=True, highlight=False)
        sys.exit(2)
    sys.exit(0)


class _Bar:
    """A progress bar on stderr that fits every ``track(items, description=, total=)`` argument."""

    def __init__(self) -> None:
        self.said = self.score = ""

    def __call__(self, items: Any, description: str = "", total: int | None = None) -> Any:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.said = self.score = ""
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[said]}"),
        )
        with Progress(*columns, console=_log) as progress:
            task = progress.add_task(description, total=total, said="")
            for item in items:
                yield item
                progress.update(task, advance=1, said=self.said)

    def note(self, record: dict[str, Any]) -> None:
        """Show the newest figures of training beside the bar."""
        if "score" in record:  # stays until the next validation
            self.score = f"validation {record['score']:.3f}  "
        self.said = f"loss {record['loss']:.3f}  {self.score}{record['tasks_per_second']:.1f} tasks/s"


@app.command()
def quickstart(
    out: Out = Path("quickstart"),
    seed: Seed = 0,
    data: Annotated[Path | None, typer.Option("--data", help="Another cohort than sample_data.")] = None,
) -> None:
    """Meta-train, adapt to two unseen tumour types, report, export a bundle and run it: under six minutes."""
    from medmeta.quickstart import quickstart as run

    written = run(out, seed=seed, data=data, track=_Bar(), say=_log.print)
    _log.print(f"Report: {_plain(str(written / 'report.html'))}", soft_wrap=True)


@app.command()
def inspect(
    path: Annotated[list[Path], typer.Argument(help="A folder, file or zip; with --leaks, cohorts.")],
    as_json: Json = False,
    series: Annotated[
        str | None, typer.Option("--series", help="Only this SeriesInstanceUID or key of the table.")
    ] = None,
    modality: Annotated[
        str | None, typer.Option("--modality", help="Only the DICOM series of it: CT, MR, PT …")
    ] = None,
    description: Annotated[
        str | None, typer.Option("--description", help="Only where it is found in SeriesDescription (regex).")
    ] = None,
    leaks: Annotated[
        bool, typer.Option("--leaks", help="Look for one patient under two keys or in two cohorts.")
    ] = False,
) -> None:
    """List every volume under a folder: geometry, labels, and every problem."""
    from medmeta.volumes import find_leaks, open_cohort
    from medmeta.volumes import inspect as look

    if leaks:
        cohorts = [open_cohort(p) for p in path]
        found = find_leaks(cohorts, track=_Bar())
        for leak in found:
            files = [
                _below(cohorts[c].volumes[v].image[0], cohorts[c].root) for c, v in (leak.first, leak.second)
            ]
            typer.echo(f"{leak}: {files[0]} and {files[1]}")
        for problem in found.problems:
            _log.print(_plain(problem), soft_wrap=True, highlight=False)
        raise typer.Exit(int(bool(found) or bool(found.problems)))
    chosen: dict[str, Any] = {"series": series, "modality": modality, "description": description}
    entries = [entry for p in path for entry in look(p, **chosen, track=_Bar())]
    if as_json:
        typer.echo(json.dumps(entries, indent=1))
    else:
        _show(entries)
    raise typer.Exit(int(not all(entry["ok"] for entry in entries)))


def _show(entries: list[dict[str, Any]]) -> None:
    """A table of what was found, and the problems below it; what no volume has takes no column."""
    from rich.table import Table

    columns: dict[str, list[str]] = {
        "": ["[green]ok[/]" if e["ok"] else f"[red]{e['code']}[/]" for e in entries],
        "volume": [_plain(e["path"]) for e in entries],
        "series": ["\n".join(filter(None, (e["series"], f"{e['modality']} {e['unit']}"))) for e in entries],
        "patient": [e["patient"][:8] for e in entries],
        "voxels, mm": ["×".join(map(str, e["shape"])) + _sizes(e["spacing_mm"]) for e in entries],
        "labels": [_plain(_labels(e)) for e in entries],
    }
    shown = {heading: cells for heading, cells in columns.items() if any(map(str.strip, cells))}
    console = Console()
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading, width in _widths(shown, console.width).items():
        table.add_column(heading, width=width, overflow="fold")
    for row in zip(*shown.values(), strict=True):
        table.add_row(*row)
    console.print(table)
    for e in entries:
        for text in ([] if e["ok"] else [e["message"]]) + list(e["warnings"]):
            _log.print(f"{_plain(e['path'])}: {_plain(text)}", soft_wrap=True, highlight=False)


def _widths(columns: dict[str, list[str]], total: int) -> dict[str, int]:
    """Each column as wide as it is, but paths and labels, which share what is left and are folded."""
    from rich.text import Text

    widths = {
        heading: max(
            len(line) for cell in (heading, *cells) for line in Text.from_markup(cell).plain.split("\n")
        )
        for heading, cells in columns.items()
    }
    left = total - sum(width + 2 for heading, width in widths.items() if heading not in ("volume", "labels"))
    labels = min(widths.get("labels", -2), max(12, left // 2))
    widths["volume"] = min(widths["volume"], max(16, left - labels - 4))
    return widths | ({"labels": labels} if "labels" in widths else {})


def _sizes(millimetres: list[float]) -> str:
    """Voxel sizes on a line of their own."""
    return "\n" + "×".join(f"{size:.3g}" for size in millimetres) if millimetres else ""


def _labels(entry: dict[str, Any]) -> str:
    """Each label with its size, in millilitres where a voxel's is known."""
    sizes = entry["labels_ml"]
    return ", ".join(
        f"{name}: {sizes[name]:.3g} mL" if name in sizes else f"{name}: {count} voxels"
        for name, count in entry["labels"].items()
    )


@app.command()
def train(
    cohort: Cohorts,
    out: Out,
    task: Annotated[str, typer.Option(help="segmentation or classification.")] = "segmentation",
    learner: Annotated[str, typer.Option(help="See 'medmeta learners'.")] = "proto-maml",
    hold_out: Annotated[list[str] | None, typer.Option(help="Types that no stage may see.")] = None,
    validate_on: Annotated[list[str] | None, typer.Option(help="Types for early stopping.")] = None,
    steps: Annotated[int, typer.Option(help="Outer steps.")] = 300,
    pretrain: Annotated[int, typer.Option(help="Steps of ordinary supervised training before.")] = 300,
    meta_batch: Annotated[int, typer.Option(help="Episodes an outer step.")] = 2,
    way: Annotated[int, typer.Option(help="Classes an episode, to classify.")] = 2,
    against: Annotated[
        str | None, typer.Option(help="To classify: tell one type from the 'rest' or from 'none'.")
    ] = None,
    lesion: Annotated[
        float | None,
        typer.Option(help="To classify outlined lesions (masks needed), so many mm around them kept."),
    ] = None,
    seed: Seed = 0,
    cache: Cache = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
) -> None:
    """Meta-train a learner on cohorts; some types may be held out from every stage."""
    from medmeta.episodes import Augment
    from medmeta.training import Recipe, Schedule, Stopped
    from medmeta.training import train as run
    from medmeta.volumes import open_cohort

    recipe = Recipe(
        task=task,
        learner=learner,
        schedule=Schedule(steps=steps, meta_batch=meta_batch, patience=5 if validate_on else 0),
        warm=Schedule(steps=pretrain, meta_batch=meta_batch) if pretrain else None,
        way=way,
        against=against,
        lesion=lesion,
        augment=Augment(rotate=90.0, scale=0.15, apart=True) if lesion is not None else Augment(),
        validate_on=tuple(validate_on or ()),
        seed=seed,
    )
    cohorts = [open_cohort(p) for p in cohort]
    try:
        run(
            cohorts, recipe, out=out, hold_out=tuple(hold_out or ()), resume=resume, cache=cache, track=_Bar()
        )
    except Stopped:
        _log.print("Stopped; go on with --resume.")
        raise typer.Exit(143) from None
    _log.print(f"Run: {_plain(str(out))}", soft_wrap=True)


@app.command()
def learners() -> None:
    """List the learners and the tasks they can do."""
    from medmeta.learners import learner_names

    segmenting = set(learner_names("segmentation"))
    for name in learner_names():
        typer.echo(f"{name:20}{'classify, segment' if name in segmenting else 'classify'}")


Tumor = Annotated[
    str | None, typer.Option(help="The tumour type; none that the run was trained on, under any name.")
]
Shots = Annotated[list[int], typer.Option(help="Labelled patients to learn from.")]
Draws = Annotated[int, typer.Option(help="Supports drawn for each number of shots.")]


@app.command()
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
    from medmeta.training import open_run
    from medmeta.volumes import open_cohort

    options: dict[str, Any] = {"shots": tuple(shots), "episodes": episodes, "seed": seed, "cache": cache}
    options["manifest"] = open_manifest(manifest) if manifest else None
    options["beside"] = Beside(
        _named(predictions or []), [open_cohort(p) for p in trained_on or ()], tolerance
    )
    judge(open_run(run), open_cohort(cohort), out, tumour=tumor, track=_Bar(), **options)
    _log.print(f"Report: {_plain(str(out / 'report.html'))}", soft_wrap=True)


def _named(pairs: list[str]) -> dict[str, Path]:
    """``NAME=FOLDER`` by name."""
    split = [pair.partition("=") for pair in pairs]
    for name, sign, folder in split:
        if not (name and sign and folder):
            raise MedmetaError(
                "NAME=FOLDER", found=name or "nothing", cure="Write --predictions NAME=FOLDER."
            )
    return {name: Path(folder) for name, _, folder in split}


@app.command()
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
    _log.print(f"{len(made.episodes)} episodes: {_plain(str(out))}, sha256 {made.digest}", soft_wrap=True)


@app.command()
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

    options: dict[str, Any] = {"episodes": episodes, "seed": seed, "cache": cache, "track": _Bar()}
    found = advise_on(open_cohort(cohort), tumor, run=open_run(run) if run else None, **options)
    typer.echo(json.dumps(found.to_json(), indent=1) if as_json else found.paragraph)


@app.command()
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
        track=_Bar(),
    )
    if as_json:
        typer.echo(json.dumps(found, indent=1))
        return
    for one in found["chosen"]:
        typer.echo(f"{one['image']}  (stands for {one['stands_for']} of {found['patients']} patients)")
    _log.print(_plain(found["says"]), soft_wrap=True, highlight=False)


@app.command()
def adapt(
    run: Annotated[Path, typer.Argument(help="What 'medmeta train' wrote.")],
    support: Annotated[Path, typer.Argument(help="A cohort of k labelled patients.")],
    out: Out,
    tumor: Annotated[str | None, typer.Option(help="The type, where the support has several.")] = None,
    safeguard: Annotated[
        bool, typer.Option("--safeguard", help="Fine-tune while support patients left out gain; slower.")
    ] = False,
    description: Annotated[
        str | None,
        typer.Option("--description", help="Regex: the SeriesDescription that predict shall look for."),
    ] = None,
    seed: Seed = 0,
) -> None:
    """Turn k labelled patients into a MONAI bundle for their tumour type."""
    from medmeta.clinical import adapt as run_adapt

    options: dict[str, Any] = {"tumour": tumor, "seed": seed, "safeguard": safeguard}
    options["description"] = description
    bundle = run_adapt(run, support, out, track=_Bar(), **options)
    _log.print(f"Bundle: {_plain(str(bundle))}", soft_wrap=True)


@app.command()
def export(
    bundle: Annotated[Path, typer.Argument(help="What 'medmeta adapt' wrote.")],
    out: Out,
    onnx: Annotated[bool, typer.Option("--onnx", help="Add models/model.onnx.")] = False,
    results: Annotated[
        Path | None, typer.Option(help="results.json of 'medmeta evaluate', for the card.")
    ] = None,
    authors: Annotated[str | None, typer.Option(help="Who made it.")] = None,
    copyright: Annotated[str | None, typer.Option(help="Who holds the rights.")] = None,
    data_licence: Annotated[
        Path | None, typer.Option(help="Text: the licence of the data learnt from.")
    ] = None,
) -> None:
    """Make an adapted bundle ready for others: verified, with ONNX, held-out results, authors and licence."""
    from medmeta.clinical import hand_on

    options: dict[str, Any] = {"onnx": onnx, "results": results, "authors": authors, "copyright": copyright}
    made = hand_on(bundle, out, data_licence=data_licence, **options)
    _log.print(f"Bundle: {_plain(str(made))}", soft_wrap=True)


@app.command()
def predict(
    bundle: Annotated[Path, typer.Argument(help="What 'medmeta adapt' wrote.")],
    out: Out,
    scan: Annotated[
        list[Path] | None, typer.Argument(help="NIfTI files, folders or zips of DICOM studies.")
    ] = None,
    mask: Annotated[
        list[Path] | None, typer.Option(help="Outlines of the lesions to classify, one a scan.")
    ] = None,
    formats: Annotated[str, typer.Option(help="Of a segmentation: nifti,seg,sr,json,png,html.")] = "nifti",
    series: Annotated[
        str | None, typer.Option("--series", help="This series, by UID or key of 'medmeta inspect'.")
    ] = None,
    modality: Annotated[
        str | None, typer.Option("--modality", help="A series of it instead of the bundle's rule.")
    ] = None,
    description: Annotated[
        str | None, typer.Option("--description", help="Found in SeriesDescription (regex), likewise.")
    ] = None,
    dicomweb: Annotated[str | None, typer.Option(help="Address of an archive to take studies from.")] = None,
    study: Annotated[list[str] | None, typer.Option(help="StudyInstanceUID in the archive.")] = None,
    store: Annotated[bool, typer.Option("--store", help="Store SEG and SR in the archive.")] = False,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for an answer of the archive.")] = 60.0,
    resume: Annotated[bool, typer.Option("--resume", help="Pass over the cases that are there.")] = False,
    as_json: Json = False,
) -> None:
    """Outline or classify scans with a bundle: DIR/<case>/<case>_seg.nii.gz, or a class as JSON.

    Studies of an archive: --dicomweb URL --study UID. Its credentials come from MEDMETA_DICOMWEB_USER and
    MEDMETA_DICOMWEB_PASSWORD, from MEDMETA_DICOMWEB_TOKEN, or from a netrc file.
    """
    from medmeta.clinical import predict as run_predict
    from medmeta.clinical import studies
    from medmeta.clinical.stopping import Terminated, terminable
    from medmeta.volumes.dicom_series import Choice

    try:
        with terminable():
            scans = [*(scan or ()), *studies(dicomweb, study or (), store=store, timeout=timeout)]
            done = run_predict(
                bundle,
                scans,
                out,
                masks=mask,
                formats=[word.strip() for word in formats.split(",")],
                series=Choice(series, modality, description),
                resume=resume,
                tell=lambda one: _tell(one, as_json),
                track=_Bar(),
            )
    except Terminated:
        _log.print("Stopped; go on with --resume.")
        raise typer.Exit(143) from None
    raise typer.Exit(int(not all(one["ok"] for one in done)))


def _tell(one: dict[str, Any], as_json: bool) -> None:
    """A case that is done: a line of JSON on stdout, what people should know on stderr."""
    if as_json:
        typer.echo(json.dumps(one))
        sys.stdout.flush()
    case = _plain(one["case"])
    if "series" in one:
        _log.print(f"{case}: {_plain(one['series']['said'])}", soft_wrap=True, highlight=False)
    if not one["ok"]:
        _log.print(f"[red]{case}[/]: {_plain(one['message'])}", soft_wrap=True, highlight=False)


@app.command()
def verify(bundle: Annotated[Path, typer.Argument(help="A MONAI bundle folder.")]) -> None:
    """Check a bundle before anything of it is run: manifest, schema, finite weights, no code of its own."""
    from medmeta.clinical import verify as check

    problems = check(bundle)
    for problem in problems:
        typer.echo(problem)
    raise typer.Exit(int(bool(problems)))
