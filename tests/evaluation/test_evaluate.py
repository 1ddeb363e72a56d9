"""What an evaluation writes: all of it under its name at once, or kept where that is taken."""

from __future__ import annotations

from pathlib import Path

import pytest

from medmeta.evaluation import EvaluationError
from medmeta.evaluation.evaluate import _check, _written


def test_what_was_found_is_kept_where_the_folder_came_to_be_meanwhile(tmp_path: Path) -> None:
    """Two evaluations of one --out, say: the later one's hours are not lost."""
    out = tmp_path / "report"
    written = _written(out)
    work = written.__enter__()
    for folder, text in ((work, "{}"), (out, "[]")):
        folder.mkdir(exist_ok=True)
        (folder / "results.json").write_text(text)
    with pytest.raises(EvaluationError, match=r"came to be meanwhile\. All .* is in \.report\.\d+"):
        written.__exit__(None, None, None)
    assert (work / "results.json").read_text() == "{}"
    assert (out / "results.json").read_text() == "[]"


@pytest.mark.parametrize("tolerance", [-1.0, float("nan"), float("inf")])
def test_a_tolerance_that_cannot_be_is_refused(tmp_path: Path, tolerance: float) -> None:
    """All surfaces were wrong at it, or right, without a word."""
    with pytest.raises(EvaluationError, match="a tolerance of 0 mm or more"):
        _check(tmp_path / "report", (1,), 1, tolerance)
