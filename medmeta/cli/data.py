"""Commands that look at data, and the one that shows everything."""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from medmeta.cli.terminal import Bar, Json, Out, Seed, log, plain
from medmeta.errors import MedmetaError


def quickstart(
    out: Out = Path("quickstart"),
    seed: Seed = 0,
    data: Annotated[Path | None, typer.Option("--data", help="Another cohort than sample_data.")] = None,
) -> None:
    """Meta-train, adapt to two unseen tumour types, report, export a bundle and run it: under six minutes."""
    from medmeta.quickstart import quickstart as run

    written = run(out, seed=seed, data=data, track=Bar(), say=log.print)
    log.print(f"Report: {plain(str(written / 'report.html'))}", soft_wrap=True)
    ran = json.loads((written / "results.json").read_text(encoding="utf-8"))["bundle"]["ran"]
    raise typer.Exit(int(not ran))


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
    from medmeta.volumes import inspect as look

    if leaks:
        if series or modality or description:
            raise MedmetaError(
                "whole cohorts to look for leaks in",
                found="a choice among series",
                cure="Leave --series, --modality and --description out, or leave --leaks out.",
            )
        raise typer.Exit(_leaks(path, as_json))
    lists = [p.name for p in path if p.is_file() and p.suffix.lower() in (".csv", ".tsv", ".json")]
    if lists:
        raise MedmetaError(
            "a folder of images, an image or a zip",
            found=f"a list of them, {_printable(lists[0])}",
            cure="Give the folder that its images are in; train, evaluate and --leaks take the list itself.",
        )
    chosen: dict[str, Any] = {"series": series, "modality": modality, "description": description}
    salt = secrets.token_hex(16)  # one for all paths: a patient of two of them has one key
    entries = [entry for p in path for entry in look(p, **chosen, salt=salt, track=Bar())]
    if as_json:
        typer.echo(json.dumps(entries, indent=1))
    else:
        _show(entries)
    raise typer.Exit(int(not all(entry["ok"] for entry in entries)))


def _leaks(paths: list[Path], as_json: bool) -> int:
    """Say each pair of images that is one patient's; 1 where there is one, or where one could not be read."""
    from medmeta.volumes import find_leaks, open_cohort

    cohorts = [open_cohort(p) for p in paths]
    found = find_leaks(cohorts, track=Bar())
    rows: list[dict[str, Any]] = []
    for one in found:
        images = [_below(cohorts[c].volumes[v].image[0], cohorts[c].root) for c, v in (one.first, one.second)]
        rows.append({"leak": str(one), "images": [str(image) for image in images]})
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
    else:
        for row in rows:
            typer.echo(f"{row['leak']}: {' and '.join(map(_printable, row['images']))}")
    for problem in found.problems:
        log.print(plain(problem), soft_wrap=True, highlight=False)
    return int(bool(found) or bool(found.problems))


def _show(entries: list[dict[str, Any]]) -> None:
    """A table of what was found, and the problems below it; what no volume has takes no column."""
    from rich.table import Table

    columns: dict[str, list[str]] = {
        "": ["[green]ok[/]" if e["ok"] else f"[red]{e['code']}[/]" for e in entries],
        "volume": [plain(_printable(e["path"])) for e in entries],
        "series": ["\n".join(filter(None, (e["series"], f"{e['modality']} {e['unit']}"))) for e in entries],
        "patient": [e["patient"][:8] for e in entries],
        "voxels, mm": ["×".join(map(str, e["shape"])) + _sizes(e["spacing_mm"]) for e in entries],
        "labels": [plain(_labels(e)) for e in entries],
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
            log.print(f"{plain(_printable(e['path']))}: {plain(text)}", soft_wrap=True, highlight=False)


def _printable(path: str) -> str:
    """A path as a terminal can show it, whatever encoding its name was given in."""
    return path.encode(errors="surrogateescape").decode(errors="replace")


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


def _below(path: Path, root: Path) -> Path:
    """A path as seen from its cohort's folder, where it lies below it."""
    return path.relative_to(root) if path.is_relative_to(root) else Path(path.name)
