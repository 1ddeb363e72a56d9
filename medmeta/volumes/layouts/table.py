"""A CSV or TSV with the columns patient, image, mask, tumor."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

from medmeta.errors import nearest
from medmeta.volumes.layouts.listing import CohortError, Listing, free_or, name_patients, read_text, there
from medmeta.volumes.progress import Track, silent
from medmeta.volumes.record import Volume

_NAMES = {
    "patient": ("patient", "patient_id", "subject", "subject_id", "case"),
    "image": ("image", "images", "image_path", "path"),
    "mask": ("mask", "mask_path", "segmentation", "seg"),
    "tumor": ("tumor", "tumour", "tumor_type", "tumour_type", "class", "diagnosis"),
    "label": ("label", "label_value"),
    "series": ("series", "series_uid", "seriesinstanceuid"),
    "modality": ("modality",),
}
_NEEDED = ("image", "tumor")


def find(path: Path) -> Path | None:
    """The table of a folder: ``cohort.csv`` or the only CSV/TSV in it; the path itself where it is one."""
    if path.is_file():
        return path if path.suffix.lower() in {".csv", ".tsv"} else None
    tables = sorted(p for s in ("*.csv", "*.tsv") for p in path.glob(s))
    named = [p for p in tables if p.stem.lower() == "cohort"]
    if named:
        return named[0]
    return tables[0] if len(tables) == 1 else None


def matches(path: Path) -> bool:
    """Whether the path is a table or a folder with one.

    One that is not called cohort must name images and tumours: archives put tables of other things beside.
    """
    table = find(path)
    if table is None or path.is_file() or table.stem.lower() == "cohort":
        return table is not None
    try:
        rows = _rows(table)
    except csv.Error:
        return False
    named = [cell.strip().lower() for cell in rows[0]] if rows else []
    return all(any(name in named for name in _NAMES[needed]) for needed in _NEEDED)


def read(path: Path, track: Track = silent) -> Listing:
    """Read every row; paths are relative to the table, channels of an image are separated by ``;``.

    Where no patient is named, the image's name keys him, with its folder where other folders have that name.

    A row that cannot be used becomes a problem, "row 3: …", and the others are kept.
    """
    table = find(path)
    if table is None:
        raise CohortError(
            "one CSV or TSV, or one named cohort.csv",
            found="none or several",
            cure="Name the table cohort.csv.",
        )
    try:
        rows = _rows(table)
    except csv.Error as error:
        raise CohortError("a table", found=str(error), cure="Save it as CSV in UTF-8.") from error
    if not rows:
        raise CohortError(
            "a table with a header", found="an empty file", cure="Write patient,image,mask,tumor."
        )
    columns = _columns(rows[0])
    listing = Listing()
    for number, cells in enumerate(rows[1:], start=2):
        if any(cell.strip() for cell in cells):
            row = {name: cells[i].strip() if i < len(cells) else "" for name, i in columns.items()}
            _add(listing, row, table.parent, number)
    name_patients(listing, table.parent, listing.volumes)
    return listing


def _rows(table: Path) -> list[list[str]]:
    text = read_text(table)
    return list(csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(table, text)))


def _delimiter(table: Path, text: str) -> str:
    head = text.split("\n", 1)[0]
    if table.suffix.lower() == ".tsv" or head.count("\t") > head.count(","):
        return "\t"
    return ";" if head.count(";") > head.count(",") else ","


def _columns(header: list[str]) -> dict[str, int]:
    """Which cell holds what, by the accepted column names."""
    names = [cell.strip().lower() for cell in header]
    columns = {}
    for name, accepted in _NAMES.items():
        for other in accepted:
            if other in names:
                columns[name] = names.index(other)
                break
    for needed in _NEEDED:
        if needed not in columns:
            raise CohortError(
                f"a column {needed!r} in the table",
                found=f"{len(names)} columns without it",
                cure=nearest(needed, names or ["(none)"]),
            )
    return columns


def _add(listing: Listing, row: dict[str, str], root: Path, number: int) -> None:
    if not row["image"].strip("; "):
        listing.problems.append(f"row {number}: no image")
        return
    image = tuple(root / part.strip() for part in row["image"].split(";") if part.strip())
    mask = root / row["mask"] if row.get("mask") else None
    missing = [what for what, p in [*(("image", p) for p in image), ("mask", mask)] if p and not there(p)]
    if missing:
        listing.problems.append(f"row {number}: the {missing[0]} file does not exist")
        return
    if mask is not None and not row["tumor"]:
        listing.problems.append(f"row {number}: a mask, and nothing in the column tumor to say of what")
        return
    label = re.sub(r"\.0+$", "", row.get("label", ""))  # a column with gaps is written as 1.0
    if label and not label.isdecimal():
        listing.problems.append(f"row {number}: the label is not a whole number")
        return
    listing.volumes.append(
        Volume(
            patient=row.get("patient", ""),
            image=image,
            mask=mask,
            tumour=free_or(row["tumor"]),
            label=int(label) if label else None,
            series=row.get("series") or None,
            modality=tuple(m.strip().upper() for m in row.get("modality", "").split(";") if m.strip()),
        )
    )
