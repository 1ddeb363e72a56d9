"""Turn npz files of slices (images, masks, patients, ids) into a cohort folder: NIfTI or PNG and cohort.csv.

    python benchmarks/npz_cohort.py ../shared/data/images/atlas --out /tmp/atlas
    python benchmarks/npz_cohort.py ../shared/data/images/cls_brain_*.npz --block 10 --out /tmp/brain

One npz is one tumour type, named like the file. Where the patient is unknown ("?"), each image is taken as
its own patient, or with --block N each N neighbouring ids of a source as one; the summary says which. Types
of one source may share images, so they share their patients' keys, and nothing of one lands on both sides of
a split. Grey values carry no unit, so no modality is given.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
from PIL import Image

FIELDS = ("patient", "image", "mask", "tumor")
# no spacing is known; columns run to the patient's left and rows to the back, as on a screen
AFFINE = np.diag([-1.0, -1.0, 1.0, 1.0])


def main() -> int:
    """Write the cohort and say what was taken for a patient."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "npz", nargs="+", type=Path, help="npz files, or folders of them (nc/ below is included)"
    )
    parser.add_argument("--out", type=Path, required=True, help="new folder")
    parser.add_argument("--format", choices=("nifti", "png"), default="nifti")
    parser.add_argument(
        "--block", type=int, default=1, help="neighbouring images of an unknown patient kept together"
    )
    parser.add_argument("--kind", nargs="*", help="only these: tumour, lesion, organ")
    parser.add_argument(
        "--open-only", action="store_true", help="leave out folders called nc (non-commercial)"
    )
    args = parser.parse_args()
    if args.out.exists():
        print(f"{args.out} exists; name a new folder.", file=sys.stderr)
        return 2
    files = [f for p in args.npz for f in (sorted(p.rglob("*.npz")) if p.is_dir() else [p])]
    files = [f for f in files if not (args.open_only and "nc" in f.parts)]
    args.out.mkdir(parents=True)
    blocks, rows = blocks_of(files, args.block), []
    for file in files:
        rows += convert(file, args.out, args.format, blocks, args.kind)
    with open(args.out / "cohort.csv", "w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, FIELDS)
        writer.writeheader()
        writer.writerows(rows)
    patients, types = ({row[name] for row in rows} for name in ("patient", "tumor"))
    print(f"{len(rows)} images, {len(patients)} patients, {len(types)} types")
    return 0


@dataclass(frozen=True)
class Blocks:
    """Whom an image of an unknown patient is taken for.

    Args:
        width: neighbouring ids that are one patient.
        ids: of each source, those of all its types, in order: types may show the same images.
    """

    width: int
    ids: Mapping[str, Sequence[str]]

    def patient(self, source: str, name: str) -> str:
        """A key by source and id, or by source and block; the type has no part in it."""
        if self.width == 1:
            return f"{source}-?{name}"
        return f"{source}-?block{self.ids[source].index(name) // self.width}"


def blocks_of(files: Sequence[Path], width: int) -> Blocks:
    """Blocks over all ids of each source, whichever types are written in the end."""
    ids: dict[str, set[str]] = {}
    for file in files:
        with np.load(file, allow_pickle=False) as data:
            about = json.loads(str(data["meta"]))
            ids.setdefault(_source(about, file), set()).update(str(i) for i in data["ids"])
    return Blocks(width, {source: sorted(own, key=_natural) for source, own in ids.items()})


def convert(
    file: Path, out: Path, kind: str, blocks: Blocks, kinds: list[str] | None
) -> list[dict[str, str]]:
    """Write the images and masks of one npz; give its rows."""
    data = np.load(file, allow_pickle=False)
    about = json.loads(str(data["meta"]))
    if kinds and about.get("kind") not in kinds:
        return []
    images = data["images"]
    ids = [str(i) for i in data["ids"]]
    given = [str(p) for p in data["patients"]] if "patients" in data.files else ["?"] * len(images)
    source = _source(about, file)
    rows = []
    for i, image in enumerate(images):
        patient = f"{source}-{given[i]}" if given[i] != "?" else blocks.patient(source, ids[i])
        name = f"{file.stem}_{i:03d}"
        row = dict.fromkeys(FIELDS, "") | {
            "patient": patient,
            "tumor": file.stem,
            "image": write(out, name, image, kind),
        }
        if "masks" in data.files:
            row["mask"] = write(out, f"{name}_mask", (data["masks"][i] > 0).astype(np.uint8), kind)
        rows.append(row)
    unknown = given.count("?")
    taken = "one patient each" if blocks.width == 1 else f"blocks of {blocks.width}"
    how = f"{unknown} of unknown patient taken as {taken}"
    print(
        f"{file.stem}: {len(images)} images, {len({r['patient'] for r in rows})} patients"
        + (f" ({how})" if unknown else "")
    )
    return rows


def _source(about: Mapping[str, object], file: Path) -> str:
    return str(about.get("source", file.stem)).split(" ")[0].split("/")[-1].lower()


def _natural(name: str) -> tuple[int, str]:
    digits = "".join(c if c.isdigit() else " " for c in name).split()
    return (int(digits[0]) if digits else 0, name)


def write(out: Path, name: str, image: np.ndarray, kind: str) -> str:
    """Save one slice; give its path within the cohort."""
    if kind == "png":
        Image.fromarray(image.astype(np.uint8)).save(out / f"{name}.png")
        return f"{name}.png"
    array = image.astype(np.uint8 if image.dtype.kind in "ub" else np.float32).T[:, :, None]
    nibabel.save(nibabel.Nifti1Image(array, AFFINE), out / f"{name}.nii.gz")
    return f"{name}.nii.gz"


if __name__ == "__main__":
    sys.exit(main())
