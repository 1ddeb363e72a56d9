"""Nothing of a patient leaves: names, ids, dates and telling folders are planted, everything is run, and each
byte written or said is searched, compressed streams opened."""

from __future__ import annotations

import base64
import binascii
import contextlib
import csv
import gzip
import io
import itertools
import json
import logging
import re
import shutil
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel
import pydicom
import pytest

from medmeta import cli
from medmeta.clinical import adapt, predict
from medmeta.clinical.outputs import FORMATS
from medmeta.evaluation import evaluate
from medmeta.networks import encoder, unet
from medmeta.training import Recipe, Schedule, open_run, train
from medmeta.volumes import find_leaks, open_cohort

NAME, BIRTH, STUDY, FOLDER = "DOE^JANE", "19610203", "20190817", "DOE_JANE_1961"
TYPES, HELD_OUT = ("gnarled", "quilted", "rimose", "sericate"), ("rimose", "sericate")
DATES = ("StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


# -- planting -------------------------------------------------------------------------------------------


def mark(source: Path, target: Path, number: int, uids: set[str]) -> None:
    """Copy a DICOM file with the patient's fields filled in."""
    ds = pydicom.dcmread(source)
    ds.PatientName, ds.PatientID, ds.PatientBirthDate = NAME, f"MRN-4711-{number}", BIRTH
    ds.AccessionNumber, ds.ReferringPhysicianName = "ACC-5544-9", "HOUSE^GREGORY"
    for name in DATES:
        setattr(ds, name, STUDY)
    uids.update(str(ds.get(n, "")) for n in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"))
    target.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(target)


def mark_nifti(source: Path, target: Path, number: int) -> None:
    """Copy a NIfTI file with the patient in the header's free text and in the name that gzip keeps."""
    image = nibabel.load(source)
    image.header["descrip"] = f"{NAME} {BIRTH} MRN-4711-{number}".encode()
    image.header["intent_name"] = NAME.encode()
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target, "wb") as raw, gzip.GzipFile(f"{FOLDER}.nii", "wb", fileobj=raw) as packed:
        packed.write(image.to_bytes())


class Clinic:
    """A folder of scans as a hospital might keep it, and what must not be seen of it again."""

    def __init__(self, root: Path, sample_data: Path) -> None:
        self.scans = root / FOLDER / f"{FOLDER}_scans"
        self.uids: set[str] = set()
        self.dicom: list[Path] = []
        self.nifti: list[Path] = []
        with (sample_data / "cohort.csv").open() as file:
            rows = list(csv.DictReader(file))
        table = ["patient,image,mask,tumor,modality"]
        for tumour in TYPES:
            of_it = [row for row in rows if row["tumor"] == tumour]
            for kind in ("dicom", "nifti"):
                for row in [r for r in of_it if r["image"].startswith(kind)][:2]:
                    image, mask = self._add(sample_data, row, len(table), kind)
                    table.append(f"MRN-4711-{len(table)},{image},{mask},{tumour},MR")
        (self.scans / "cohort.csv").write_text("\n".join(table) + "\n")
        self.uids.discard("")

    def _add(self, sample_data: Path, row: dict[str, str], number: int, kind: str) -> tuple[str, str]:
        name = f"{FOLDER}_{number}"
        if kind == "nifti":
            for source, target in (("image", "t1"), ("mask", "mask")):
                mark_nifti(sample_data / row[source], self.scans / name / f"{target}.nii.gz", number)
            self.nifti.append(self.scans / name / "t1.nii.gz")
            return f"{name}/t1.nii.gz", f"{name}/mask.nii.gz"
        for file in sorted((sample_data / row["image"]).iterdir()):
            mark(file, self.scans / name / "image" / file.name, number, self.uids)
        mark(sample_data / row["mask"], self.scans / name / "seg.dcm", number, self.uids)
        self.dicom.append(self.scans / name / "image")
        return f"{name}/image", f"{name}/seg.dcm"

    def secrets(self) -> list[str]:
        """Whatever must not be found; each long enough not to be there by chance."""
        plain = [NAME, FOLDER, "JANE_DOE", "MRN-4711", BIRTH, STUDY, "ACC-5544-9", "HOUSE^GREG"]
        turned = [
            "DOE JANE",
            "DOE, JANE",
            "JANE DOE",
            "1961-02-03",
            "2019-08-17",
            str(self.scans.parent.parent),
        ]
        return [*plain, *turned, *sorted(self.uids)]


# -- searching ------------------------------------------------------------------------------------------


def streams(content: bytes) -> Iterator[bytes]:
    """The bytes, and those of every compressed stream inside, however deep."""
    yield content
    for inner in itertools.chain(_packed(content), _png_texts(content), _encoded(content)):
        yield from streams(inner)


def _packed(content: bytes) -> Iterator[bytes]:
    rest = content
    while rest[:2] == b"\x1f\x8b":  # members one after another, the last one perhaps cut
        member = zlib.decompressobj(31)
        try:
            yield member.decompress(rest)
        except zlib.error:
            break
        rest = member.unused_data
    if content[:4] == b"PK\x03\x04":
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for entry in archive.infolist():
                yield entry.filename.encode() + entry.comment
                yield archive.read(entry)


def _png_texts(content: bytes) -> Iterator[bytes]:
    if content[:8] != b"\x89PNG\r\n\x1a\n":
        return
    for found in re.finditer(rb"(zTXt|iTXt|eXIf|iCCP)", content):
        # keyword, flags, then the stream: it begins with zlib's own mark within a hundred bytes
        for start in range(found.end(), found.end() + 120):
            if content[start : start + 1] == b"\x78":
                with contextlib.suppress(zlib.error):
                    yield zlib.decompressobj().decompress(content[start:])


def _encoded(content: bytes) -> Iterator[bytes]:
    for found in re.finditer(rb"base64,([A-Za-z0-9+/=\s]{16,})", content):
        try:
            yield base64.b64decode(found.group(1))
        except binascii.Error:
            continue


def seen(content: bytes, secrets: list[str]) -> set[str]:
    """The secrets in the bytes, in large or small letters, in one or two bytes a letter."""
    words = {form: s for s in secrets for form in (s.lower().encode(), s.lower().encode("utf-16-le"))}
    pattern = re.compile(b"|".join(re.escape(word) for word in words))
    return {words[found] for stream in streams(content) for found in pattern.findall(stream.lower())}


@pytest.mark.parametrize(
    "pack",
    [
        lambda raw: raw,
        gzip.compress,
        lambda raw: b"<img src='data:image/png;base64," + base64.b64encode(gzip.compress(raw)) + b"'>",
        lambda raw: b"\x89PNG\r\n\x1a\n\0\0\0\x09zTXtTitle\0\0" + zlib.compress(raw),
        lambda raw: raw.decode().upper().encode("utf-16"),
    ],
)
def test_the_search_itself_sees(pack: Callable[[bytes], bytes], tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", pack(b"of Doe^Jane, born"))
    assert seen((tmp_path / "a.npz").read_bytes(), [NAME, BIRTH]) == {NAME}


# -- running --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clinic(sample_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Clinic:
    return Clinic(tmp_path_factory.mktemp("clinic"), sample_data)


def recipe(task: str) -> Recipe:
    return Recipe(
        task=task,
        learner="prototypical",
        network=unet(3, 1, base=2) if task == "segmentation" else encoder(3, 1, base=4),
        schedule=Schedule(steps=2, save_every=1, validate_every=2),
        warm=Schedule(steps=1) if task == "segmentation" else None,
        shot=(1, 1),
        query=1,
        spacing=(4.0, 4.0, 4.0),
        patch=(16, 16, 16),
    )


class Said:
    """Whatever was said: output, errors, logs, results and refusals."""

    def __init__(self, capfd: Any, caplog: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.capfd, self.caplog, self.monkeypatch = capfd, caplog, monkeypatch
        self.texts: list[str] = []

    def command(self, *words: str | Path) -> tuple[int, str]:
        """Run the command line here; its exit code and its output."""
        self.flush()
        self.monkeypatch.setattr(sys, "argv", ["medmeta", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        shown = self.capfd.readouterr()
        self.texts.append(shown.err)
        return int(ended.value.code or 0), shown.out

    def flush(self) -> None:
        shown = self.capfd.readouterr()
        self.texts += [shown.out, shown.err]

    def everything(self) -> str:
        self.flush()
        records = [f"{r.name} {r.getMessage()} {r.exc_text or ''}" for r in self.caplog.records]
        return "\n".join([*self.texts, *records, self.caplog.text])


def learn(task: str, clinic: Clinic, out: Path, said: Said) -> tuple[Path, Path]:
    """Train, evaluate and adapt; gives the run and the bundle."""
    cohort = open_cohort(clinic.scans)
    run = train(cohort, recipe(task), out=out / f"{task}-run", hold_out=HELD_OUT, cache=out / "store")
    options: dict[str, Any] = {"shots": (1,), "episodes": 1, "cache": out / "store"}
    judged = evaluate(open_run(run.path), cohort, out / f"{task}-report", tumour=HELD_OUT[0], **options)
    said.texts.append(json.dumps(judged))
    return run.path, adapt(run.path, cohort, out / f"{task}-bundle", tumour=HELD_OUT[0])


def look(clinic: Clinic, said: Said) -> None:
    """inspect as table and as JSON: paths below what was inspected are the answer, nothing else may tell."""
    code, out = said.command("inspect", clinic.scans, "--json")
    assert code == 0
    entries = json.loads(out)
    assert len(entries) == 16
    said.texts.append(json.dumps([{**entry, "path": ""} for entry in entries]))
    one = clinic.dicom[0].parent
    code, out = said.command("inspect", one)
    assert code == 0
    said.texts.append(out)
    copy = Path(shutil.copytree(one, clinic.scans.parent / "again" / "study"))
    code, out = said.command("inspect", "--leaks", one, copy)
    assert code == 1
    said.texts.append(out)
    cohorts = [open_cohort(one), open_cohort(copy)]
    shared = find_leaks(cohorts)
    assert "same-patient" in {leak.kind for leak in shared}
    sorted(copy.rglob("*.dcm"))[3].unlink()
    unread = find_leaks(cohorts)
    assert unread.problems
    for report in (shared, unread):
        said.texts += [str(report), *map(str, report), *report.problems]
    code, out = said.command("inspect", copy)
    assert code == 1
    said.texts.append(out)
    assert said.command("inspect", one, "--series", "1.2.3") == (2, "")
    shutil.rmtree(copy.parent)


def refusals(clinic: Clinic, run: Path, bundle: Path, out: Path, said: Said) -> None:
    """Commands that fail, each in one line."""
    damaged = clinic.scans.parent / "damaged.nii.gz"
    damaged.write_bytes(clinic.nifti[0].read_bytes()[:-2000])
    for words in (
        ("inspect", clinic.scans / "nowhere" / FOLDER / "not_there.nii"),
        ("train", clinic.scans, "--out", run),
        ("train", clinic.scans, "--out", out / "never", "--hold-out", "nothing"),
        ("evaluate", run, clinic.scans, "--tumor", "gnarled", "--out", out / "never"),
        ("adapt", run, clinic.scans, "--tumor", "gnarld", "--out", out / "never"),
        ("predict", bundle, damaged, "--out", out / "refused", "--json"),
        ("predict", bundle, clinic.dicom[0], clinic.dicom[0], "--out", out / "refused"),
        ("verify", clinic.scans),
    ):
        code, text = said.command(*words)
        assert code in (1, 2), words
        said.texts.append(text)
    damaged.unlink()


def test_each_byte(
    clinic: Clinic,
    tmp_path: Path,
    capfd: Any,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level(logging.DEBUG)
    out, spare = tmp_path / "out", tmp_path / "spare"
    for folder in (out, spare):
        folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(spare))
    before = {file: file.read_bytes() for file in clinic.scans.rglob("*") if file.is_file()}
    said = Said(capfd, caplog, monkeypatch)

    look(clinic, said)
    run, bundle = learn("segmentation", clinic, out, said)
    _, classifier = learn("classification", clinic, out, said)
    results = predict(bundle, clinic.dicom[:1], out / "dicom", formats=FORMATS)
    results += predict(bundle, clinic.nifti[:1], out / "nifti", formats=("nifti", "json"))
    results += predict(classifier, [clinic.dicom[1], clinic.nifti[1]], out / "classes")
    assert all(result["ok"] for result in results), results
    (unfit,) = predict(bundle, clinic.nifti[:1], out / "unfit", formats=("seg",))
    assert not unfit["ok"]
    said.texts.append(json.dumps([*results, unfit]))
    code, text = said.command("predict", bundle, clinic.dicom[2], "--out", out / "more", "--json")
    assert code == 0
    said.texts.append(text)
    refusals(clinic, run, bundle, out, said)

    secrets = clinic.secrets()
    told = said.everything()
    assert seen(told.encode(), secrets) == set(), [
        line for line in told.splitlines() if seen(line.encode(), secrets)
    ]
    written = [file for folder in (out, spare) for file in sorted(folder.rglob("*")) if file.is_file()]
    assert len(written) > 30
    found = {}
    for file in written:
        name = file.relative_to(tmp_path).as_posix()
        assert seen(name.encode(), secrets) == set(), name
        hits = seen(file.read_bytes(), secrets)
        if name.startswith("out/dicom/") and name.endswith(("_seg.dcm", "_sr.dcm")):
            belongs_to_the_patient(file, hits)
        elif hits:
            found[name] = hits
    assert found == {}
    assert {file: file.read_bytes() for file in clinic.scans.rglob("*") if file.is_file()} == before


def belongs_to_the_patient(file: Path, hits: set[str]) -> None:
    """A DICOM result is filed under the patient it is of, and says nothing of folders."""
    ds = pydicom.dcmread(file)
    assert (ds.PatientName, ds.PatientBirthDate, ds.StudyDate) == (NAME, BIRTH, STUDY)
    assert ds.PatientID.startswith("MRN-4711-")
    assert FOLDER not in hits
