"""What an evaluation writes: all of it under its name at once, or kept where that is taken."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from medmeta.evaluation import EvaluationError
from medmeta.evaluation.evaluate import _check, _chosen, _written


def test_what_was_found_is_kept_where_the_folder_came_to_be_meanwhile(tmp_path: Path) -> None:
    """Two evaluations of one --out, say: the later one's hours are not lost."""
    out = tmp_path / "report"
    written = _written(out)
    work = written.__enter__()
    for folder, text in ((work, "{}"), (out, "[]")):
        folder.mkdir(exist_ok=True)
        (folder / "results.json").write_text(text)
    with pytest.raises(EvaluationError, match=r"came to be meanwhile\. All .* is in \.report\.\w+"):
        written.__exit__(None, None, None)
    assert (work / "results.json").read_text() == "{}"
    assert (out / "results.json").read_text() == "[]"


def test_figures_are_kept_where_the_page_cannot_be_made(tmp_path: Path) -> None:
    """It reads scans again, after hours of judging; where nothing has been found, nothing is left."""
    out = tmp_path / "report"
    with pytest.raises(EvaluationError, match=r"a page .* found OSError\. All that was found is in \.rep"):  # noqa: PT012, SIM117
        with _written(out) as work:
            (work / "results.json").write_text("{}")
            raise OSError
    (kept,) = tmp_path.iterdir()
    assert (kept / "results.json").read_text() == "{}"
    shutil.rmtree(kept)
    for reason in (OSError, KeyboardInterrupt):
        with pytest.raises(reason), _written(out):
            raise reason
    assert not list(tmp_path.iterdir())


def test_what_a_stopped_container_left_is_in_nobodys_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There every process is number 1, and so is the next one."""
    monkeypatch.setattr(os, "getpid", lambda: 1)
    (tmp_path / ".report.1").mkdir()
    with _written(tmp_path / "report"):
        pass
    assert (tmp_path / "report").is_dir()


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EvaluationError, match=r"room to write report, found Not a directory\. Give another"):
        _written(tmp_path / "file" / "report").__enter__()


def test_why_rates_are_the_defaults_is_true() -> None:
    """Types were kept for validation, but nobody of them is in the cohort that is judged."""
    assert "the cohort's patients of spot, kept for validation, do not suffice to choose" in _chosen(
        {"chosen": {}}, ["spot"], "maml"
    )
    assert "the run kept no types for validation to choose them on" in _chosen({"chosen": {}}, (), "maml")


def test_a_report_says_how_a_bundle_gets_the_rates_that_were_judged() -> None:
    chosen = {name: {"rate": 0.015, "steps": 30} for name in ("maml", "pretrain-linear")}
    said = _chosen({"chosen": chosen, "tasks": 4, "types": ["spot"]}, ["spot"], "maml")
    assert said.endswith("of spot; medmeta adapt --rate 0.015 --steps 30 makes a bundle so")
    assert "medmeta adapt" not in _chosen({"chosen": chosen, "tasks": 4, "types": ["spot"]}, (), "ridge")


@pytest.mark.parametrize("tolerance", [-1.0, float("nan"), float("inf")])
def test_a_tolerance_that_cannot_be_is_refused(tmp_path: Path, tolerance: float) -> None:
    """All surfaces were wrong at it, or right, without a word."""
    with pytest.raises(EvaluationError, match="a tolerance of 0 mm or more"):
        _check(tmp_path / "report", (1,), 1, tolerance)
