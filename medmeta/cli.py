"""The command line: one small function a command, no logic; torch is imported late, inside."""

from __future__ import annotations

import sys
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
Json = Annotated[bool, typer.Option("--json", help="Machine-readable output on stdout.")]


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


_MANY = {"--shots", "--hold-out", "--validate-on"}


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
    try:
        app(args=[word for word in arguments if word != "--debug"], prog_name="medmeta", standalone_mode=True)
    except MedmetaError as error:
        if debug:
            raise
        _log.print(f"[bold red]medmeta:[/] {_plain(str(error))}", soft_wrap=True, highlight=False)
        sys.exit(2)
    sys.exit(0)


def _plain(text: str) -> str:
    """Text with its square brackets taken literally by rich."""
    from rich.markup import escape

    return escape(text)


def _track() -> Any:
    """A progress bar that fits every ``track(iterable, description=, total=)`` argument."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=_log,
    )

    def track(iterable: Any, description: str = "", total: int | None = None) -> Any:
        with bar:
            yield from bar.track(iterable, description=description, total=total)

    return track


@app.command()
def quickstart(
    out: Out = Path("quickstart"),
    seed: Seed = 0,
    data: Annotated[Path | None, typer.Option("--data", help="Another cohort than sample_data.")] = None,
) -> None:
    """Meta-train, adapt to two unseen tumour types, report, export a bundle and run it: under six minutes."""
    from medmeta.quickstart import quickstart as run

    written = run(out, seed=seed, data=data, track=_track(), say=_log.print)
    _log.print(f"Report: {_plain(str(written / 'report.html'))}", soft_wrap=True)
