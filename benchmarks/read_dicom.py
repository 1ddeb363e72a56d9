"""Reading DICOM: one CT against highdicom and pydicom, and a tree of series judged by its headers.

    python benchmarks/read_dicom.py [--quick] [--json FILE]

Both sides run interleaved in one process, on the same files, warm in the page cache; ratios are of medians.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import highdicom as hd
import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from rich.console import Console
from rich.table import Table

from medmeta.volumes import inspect, load


def ct(slices: int, size: int) -> list[Dataset]:
    """A CT of noise, with the tags a scanner writes."""
    generator = np.random.default_rng(0)
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    made = []
    for index in range(slices):
        ds = Dataset()
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.SOPClassUID, ds.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", generate_uid()
        ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = study, series, frame
        ds.PatientID, ds.PatientName, ds.PatientBirthDate, ds.PatientSex = "P", "", "", ""
        ds.StudyID, ds.StudyDate, ds.StudyTime, ds.AccessionNumber = "", "", "", ""
        ds.SeriesNumber, ds.InstanceNumber, ds.Modality = 1, index + 1, "CT"
        ds.ImageType, ds.Manufacturer = ["ORIGINAL", "PRIMARY", "AXIAL"], "maker"
        ds.ImageOrientationPatient = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]
        ds.ImagePositionPatient = [-200.0, -200.0, 2.5 * index]
        ds.PixelSpacing, ds.SliceThickness = [0.78, 0.78], 2.5
        ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType = 1, -1024, "HU"
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.Rows, ds.Columns = size, size
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
        ds.PixelData = generator.integers(0, 4096, (size, size), dtype=np.uint16).tobytes()
        made.append(ds)
    return made


def by_highdicom(folder: Path) -> np.ndarray:
    """highdicom's own way: a volume in patient space, rescaled."""
    datasets = [pydicom.dcmread(file) for file in sorted(folder.iterdir())]
    volume = hd.get_volume_from_series(datasets, apply_presentation_lut=False, dtype=np.float32)
    return volume.array


def by_pydicom(folder: Path) -> np.ndarray:
    """The shortest loop people write: no check, order by position along z."""
    datasets = sorted(map(pydicom.dcmread, folder.iterdir()), key=lambda ds: ds.ImagePositionPatient[2])
    planes = [ds.pixel_array * float(ds.RescaleSlope) + float(ds.RescaleIntercept) for ds in datasets]
    return np.stack(planes).astype(np.float32)


def timed(work: Callable[[], Any]) -> float:
    """Seconds that a piece of work takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def reading(folder: Path, slices: int, size: int, rounds: int) -> dict[str, Any]:
    """One CT, three readers, in turns."""
    for index, ds in enumerate(ct(slices, size)):
        pydicom.dcmwrite(folder / f"{index:04d}", ds, enforce_file_format=True)
    sides = {
        "medmeta": lambda: load(folder),
        "highdicom": lambda: by_highdicom(folder),
        "pydicom loop": lambda: by_pydicom(folder),
    }
    ours = load(folder)[0].numpy().transpose(2, 1, 0)
    np.testing.assert_array_equal(ours, by_pydicom(folder))
    np.testing.assert_array_equal(np.sort(ours, axis=0), np.sort(by_highdicom(folder), axis=0))
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, work in sides.items():
            seconds[name].append(timed(work))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "shape": [slices, size, size],
        "seconds": medians,
        "medmeta_to_highdicom": medians["medmeta"] / medians["highdicom"],
        "rounds": rounds,
    }


def tree(folder: Path, series: int, slices: int, workers: int, rounds: int) -> dict[str, Any]:
    """A tree of series whose pixels are holes in the files: only headers can be read fast."""
    made = ct(slices, 512)
    raw = []
    for ds in made:
        light = copy.copy(ds)
        out = io.BytesIO()
        pydicom.dcmwrite(out, light, enforce_file_format=True)
        raw.append(out.getvalue()[: -512 * 512 * 2])
    old = made[0].SeriesInstanceUID.encode()
    files = []
    for number in range(series):
        place = folder / f"{number:05d}"
        place.mkdir()
        new = old[:-5] + f"{number:05d}".encode()
        for index, header in enumerate(raw):
            file = place / f"{index:04d}"
            with open(file, "wb") as out_file:
                out_file.write(header.replace(old, new))
                out_file.truncate(len(header) + 512 * 512 * 2)
            files.append(file)

    def headers_alone() -> None:
        for file in files:
            pydicom.dcmread(file, stop_before_pixels=True)

    found = inspect(folder, workers=1)
    assert len(found) == series
    assert all(entry["ok"] for entry in found)
    sides: dict[str, Callable[[], Any]] = {
        "pydicom headers": headers_alone,
        "inspect, 1 process": lambda: inspect(folder, workers=1),
        f"inspect, {workers} processes": lambda: inspect(folder, workers=workers),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, work in sides.items():
            seconds[name].append(timed(work))
    alone, one, several = (statistics.median(values) for values in seconds.values())
    return {
        "series": series,
        "files": len(files),
        "workers": workers,
        "seconds": dict(zip(sides, (alone, one, several), strict=True)),
        "inspect_to_headers": one / alone,
        "processes_to_headers": several / alone,
        "series_per_second": series / min(one, several),
    }


def main() -> None:
    """Run both and print them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--quick", action="store_true", help="small sizes, a few seconds")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    slices, size, rounds = (20, 256, 3) if arguments.quick else (140, 512, 7)
    series, each = (40, 10) if arguments.quick else (1000, 20)
    with tempfile.TemporaryDirectory() as a, tempfile.TemporaryDirectory() as b:
        figures = {
            "reading": reading(Path(a), slices, size, rounds),
            "tree": tree(Path(b), series, each, os.cpu_count() or 1, 1 if arguments.quick else 3),
            "versions": {"pydicom": pydicom.__version__, "highdicom": hd.__version__, "python": sys.version},
        }
    console = Console()
    for title, part in (("one CT", figures["reading"]), ("a tree of series", figures["tree"])):
        table = Table("", "seconds", title=f"{title}: {part.get('shape') or part['files']}")
        for name, seconds in part["seconds"].items():
            table.add_row(name, f"{seconds:.3f}")
        console.print(table)
    console.print(f"medmeta / highdicom: {figures['reading']['medmeta_to_highdicom']:.2f}")
    console.print(f"inspect / headers alone: {figures['tree']['inspect_to_headers']:.2f}")
    console.print(f"series inspected in a second: {figures['tree']['series_per_second']:.0f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
