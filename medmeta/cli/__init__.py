"""The command line: one small function a command, no logic; torch is imported late, inside."""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from medmeta.cli import clinic, data, judging, learning
from medmeta.cli.terminal import log, plain
from medmeta.errors import MedmetaError

app = typer.Typer(
    help="A new tumour type, a handful of labels, a model a hospital pipeline can run today.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode="rich",
)
COMMANDS = (
    data.quickstart,
    data.inspect,
    learning.train,
    learning.learners,
    judging.evaluate,
    judging.manifest,
    judging.advise,
    judging.select,
    clinic.adapt,
    clinic.export,
    clinic.predict,
    clinic.verify,
)
for command in COMMANDS:
    app.command()(command)


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


_NAMES = {"--shots", "--hold-out", "--validate-on", "--predictions"}
_PATHS = {"--trained-on"}


def spread(arguments: list[str]) -> list[str]:
    """Let an option take several values: ``--shots 1 3 5`` becomes ``--shots 1 --shots 3 --shots 5``.

    The values end at the next option; names and numbers also at a cohort that is given after them, where it
    is plainly a path (``./cohort``, ``data/cohort``, ``cohort.csv``): a type may be called as a folder here
    is, and taken for a cohort it would be trained on.

    Example:
        >>> spread(["run", "--shots", "1", "3", "--seed", "0"])
        ['run', '--shots', '1', '--shots', '3', '--seed', '0']
    """
    spread_out: list[str] = []
    option, taken = "", 0
    for word in arguments:
        if word.startswith("--"):
            option, taken = (word if word in _NAMES | _PATHS else ""), 0
        elif option:
            if taken and option in _NAMES and _plainly_a_path(word):
                option = ""
            elif taken:
                spread_out.append(option)
            taken += 1
        spread_out.append(word)
    return spread_out


def _plainly_a_path(word: str) -> bool:
    path = Path(word)
    return path.exists() and (len(path.parts) > 1 or word.startswith(".") or bool(path.suffix))


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """Leave at the first SIGTERM with exit code 143, as after an error: what is half done is taken away.

    Those that follow are ignored, so that tidying up comes to its end. Commands that save first (train) or go
    on case by case (predict) listen themselves meanwhile.
    """
    if threading.current_thread() is not threading.main_thread():  # only that one may listen
        yield
        return

    def stop(*_: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        sys.exit(143)

    before: Any = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except SystemExit as leaving:
        if leaving.code == 143:
            before = signal.SIG_IGN  # one more while the process ends would change its exit code
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def main() -> NoReturn:
    """Run the command line; exit codes as in the README: 0 done, 1 with findings, 2 refused, 143 stopped."""
    arguments = spread(sys.argv[1:])
    debug = "--debug" in arguments
    if debug:  # of a case that fails without ending the run, too
        logging.basicConfig()
        logging.getLogger("medmeta").setLevel(logging.DEBUG)
    for category in (FutureWarning, DeprecationWarning):  # of MONAI and torch: nothing a user can act on
        warnings.filterwarnings("ignore", category=category)
    try:
        with _stoppable():
            app(args=[word for word in arguments if word != "--debug"], prog_name="medmeta")
    except MedmetaError as error:
        if debug:
            raise
        log.print(f"[bold red]medmeta:[/] {plain(str(error))}", soft_wrap=True, highlight=False)
        sys.exit(2)
    sys.exit(0)
