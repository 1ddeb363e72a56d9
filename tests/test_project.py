"""What holds for the project as a whole: a quick help, one-line refusals, no patient in the repository."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

from medmeta.cli import spread
from tests.conftest import ROOT


def run(*command: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command of this environment and give what it printed."""
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=cwd, check=False)


def test_help_does_not_wait_for_torch() -> None:
    code = """
import sys
from medmeta.cli import app
try:
    app(["--help"])
except SystemExit:
    sys.exit(int(bool({"torch", "monai"} & set(sys.modules))))
"""
    answer = run("-c", code)
    assert answer.returncode == 0, answer.stderr
    assert "quickstart" in answer.stdout


def dicom(path: Path, name: str) -> Path:
    """A DICOM header with this patient's name."""
    header = Dataset()
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.file_meta.MediaStorageSOPClassUID = header.SOPClassUID = MRImageStorage
    header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID = generate_uid(entropy_srcs=[name])
    header.PatientName = name
    header.save_as(path, enforce_file_format=True)
    return path


@pytest.mark.parametrize(("name", "refused"), [("Doe^Jane", 1), ("Synthetic^S0001", 0), ("", 0)])
def test_the_hook_refuses_a_named_patient(tmp_path: Path, name: str, refused: int) -> None:
    answer = run(
        str(ROOT / ".ci" / "no_patients.py"), str(dicom(tmp_path / "slice", name)), str(ROOT / "LICENSE")
    )
    assert answer.returncode == refused
    assert "Jane" not in answer.stderr


@pytest.mark.parametrize(
    ("given", "spread_out"),
    [
        (["--shots", "1", "3", "--out", "x"], ["--shots", "1", "--shots", "3", "--out", "x"]),
        (["--hold-out", "a", "b"], ["--hold-out", "a", "--hold-out", "b"]),
        (["--hold-out", "a", str(ROOT)], ["--hold-out", "a", str(ROOT)]),
        (["c1", "c2", "--seed", "3"], ["c1", "c2", "--seed", "3"]),
        (["--trained-on", "tests", "medmeta"], ["--trained-on", "tests", "--trained-on", "medmeta"]),
    ],
)
def test_an_option_takes_several_values(given: list[str], spread_out: list[str]) -> None:
    assert spread(given) == spread_out


def test_a_type_called_as_a_folder_here_is_stays_held_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hollow").mkdir()
    (tmp_path / "3").touch()
    monkeypatch.chdir(tmp_path)
    assert spread(["--hold-out", "spot", "hollow"]) == ["--hold-out", "spot", "--hold-out", "hollow"]
    assert spread(["--shots", "1", "3"]) == ["--shots", "1", "--shots", "3"]
    assert spread(["--hold-out", "spot", "./hollow"]) == ["--hold-out", "spot", "./hollow"]


def test_public_names_are_what_they_say_however_often_they_are_asked_for() -> None:
    """Importing ``medmeta.quickstart`` puts the module of that name where the function is to be."""
    code = """
import medmeta
from medmeta import quickstart
import medmeta.quickstart as module
for name in medmeta.__all__[1:]:
    assert callable(getattr(medmeta, name)) and callable(getattr(medmeta, name)), name
assert callable(quickstart)
"""
    answer = run("-W", "ignore", "-c", code)
    assert answer.returncode == 0, answer.stderr
