"""Refuse to commit a DICOM file that bears a patient's name; the pre-commit hook.

Only names that say of themselves that they are made up (``Synthetic…``) or empty ones pass.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pydicom
from pydicom.errors import InvalidDicomError


def bears_a_name(path: Path) -> bool:
    """Whether the file is DICOM with a PatientName that is not plainly synthetic."""
    try:
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["PatientName"])
    except (InvalidDicomError, IsADirectoryError):
        return False
    name = str(header.get("PatientName", "")).strip("^ ")
    return bool(name) and not name.lower().startswith("synthetic")


def main(files: list[str]) -> int:
    """Name the offending files on stderr; 1 where there are any."""
    offending = [file for file in files if bears_a_name(Path(file))]
    for file in offending:
        sys.stderr.write(f"{file}: a DICOM file with a patient's name is never committed; anonymise it.\n")
    return int(bool(offending))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
