"""The family of refusals: each code has a test of its own on a file made for it."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from medmeta.volumes import VolumeError
from medmeta.volumes.errors import CODES


def test_each_code_is_tested() -> None:
    written = "".join(file.read_text() for file in Path(__file__).parent.glob("test_*.py"))
    assert [code for code in CODES if f'"{code}"' not in written] == []


@pytest.mark.parametrize("code", sorted(CODES))
def test_a_refusal_is_one_sentence_with_its_cure(code: str, tmp_path: Path) -> None:
    folder = tmp_path / "DOE_JANE"
    folder.mkdir()
    (folder / "000").touch()
    error = VolumeError(code, found="something", where=folder / "000")
    again = pickle.loads(pickle.dumps(error))
    assert (again.code, str(again)) == (code, str(error))
    assert str(error) == f"wanted {CODES[code][0]}, found something in '000'. {CODES[code][1]}"
    assert error.cure == CODES[code][1]
    for where in (folder, tmp_path / "DOE_JANE.zip", tmp_path / "gone" / "DOE_JANE"):
        assert "DOE" not in str(VolumeError(code, found="something", where=where))
