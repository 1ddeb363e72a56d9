"""What the commands share: the console, the progress bar, the options that several of them take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

log = Console(stderr=True)

Cohorts = Annotated[list[Path], typer.Argument(help="Cohort folders, JSON or CSV files; see the README.")]
Out = Annotated[Path, typer.Option("--out", help="Folder to write; refused where it exists.")]
Seed = Annotated[int, typer.Option("--seed", help="Everything random is derived from it.")]
Cache = Annotated[Path | None, typer.Option("--cache", help="Folder to keep prepared volumes in.")]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable output on stdout.")]


def plain(text: str) -> str:
    """Text with its square brackets taken literally by rich."""
    from rich.markup import escape

    return escape(text)


class Bar:
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
        with Progress(*columns, console=log) as progress:
            task = progress.add_task(description, total=total, said="")
            for item in items:
                yield item
                progress.update(task, advance=1, said=self.said)

    def note(self, record: dict[str, Any]) -> None:
        """Show the newest figures of training beside the bar."""
        if "score" in record:  # stays until the next validation
            self.score = f"validation {record['score']:.3f}  "
        self.said = f"loss {record['loss']:.3f}  {self.score}{record['tasks_per_second']:.1f} tasks/s"
