"""What a pipeline acts on: a line of JSON a study, exit codes, and nothing half done when it is stopped."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image

from medmeta import cli
from medmeta.cli.clinic import _tell as tell
from medmeta.clinical import export, predict
from medmeta.clinical.confidence import Confidence, Likeness
from medmeta.clinical.measure import measure
from medmeta.clinical.preview import COLOURS, plane, sentences, write_page, write_preview
from medmeta.clinical.stopping import Terminated, remove, terminable
from medmeta.episodes import Examples
from medmeta.learners import create_learner
from medmeta.networks import build, unet
from medmeta.volumes import Cohort

FORMATS = ("nifti", "json", "png")


def command(monkeypatch: pytest.MonkeyPatch, *words: Any) -> int:
    monkeypatch.setattr(sys, "argv", ["medmeta", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def test_a_batch_goes_on_says_each_and_exits_1(
    segment_bundle: Path,
    unseen: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    bad = tmp_path / "bad.nii.gz"
    bad.write_bytes(unseen[0].read_bytes()[:300])
    study = Path(shutil.copytree(unseen[1], tmp_path / "study"))
    words = ["predict", segment_bundle, bad, study, "--out", tmp_path / "out", "--formats", "nifti,json"]
    assert command(monkeypatch, *words, "--json") == 1
    shown = capfd.readouterr()
    first, second = map(json.loads, shown.out.splitlines())
    assert (first["case"], first["ok"], first["files"]) == ("bad", False, [])
    assert first["message"].startswith("wanted a whole file")
    assert (second["case"], second["ok"], second["skipped"]) == ("study", True, False)
    assert second["lesion_count"].keys() == second["longest_diameter_mm"].keys() == {"brindled"}
    # the choice is said to people, and recorded
    assert second["series"]["said"] in " ".join(shown.err.split())
    written = json.loads((tmp_path / "out" / "study" / "study.json").read_text())
    assert written["series"] == second["series"]
    assert written["volume_ml"]["brindled"] == pytest.approx(written["measurements"]["brindled"]["volume_ml"])
    assert len(written["bundle"]["manifest_sha256"]) == 64
    # run again, the one that is there is passed over; alone it is a run in which nothing failed
    assert command(monkeypatch, *words, "--json", "--resume") == 1
    assert [json.loads(line)["skipped"] for line in capfd.readouterr().out.splitlines()] == [False, True]
    assert command(monkeypatch, *words[:2], study, *words[4:], "--resume") == 0
    assert command(monkeypatch, *words) == 2
    assert command(monkeypatch, *words[:2], study, "--out", tmp_path / "ct", "--modality", "CT") == 1
    assert "none with modality CT" in " ".join(capfd.readouterr().err.split())
    assert command(monkeypatch, "predict", segment_bundle, "--out", tmp_path / "none") == 2
    assert command(monkeypatch, *words, "--dicomweb", "http://127.0.0.1:1/dicom-web") == 2


def test_what_a_bundle_will_not_answer_for_is_said_to_people(capfd: pytest.CaptureFixture[str]) -> None:
    """Without --json, and in the default format, nothing else says of it."""
    support = Likeness(torch.tensor([[0.0, 0.0], [1.0, 1.0]]), own=1, thresholds=(0.5, 0.5))
    sure = Confidence(least_ml=1.0, likeness=support)
    for value, wanted in ((9.0, True), (0.1, False)):
        judged = sure.judged(0.9, torch.tensor([[value, 0.0], [1.0, 1.0]]))
        assert judged["abstain"] is wanted
        tell({"case": "a", "ok": True, "message": "", **judged}, as_json=False)
        said = " ".join(capfd.readouterr().err.split())
        assert ("a: unlike the support (distance 6.36, where 0.5 is the most)" in said) is wanted
    tell({"case": "a", "ok": True, "message": "", "abstain": None, "withheld_ml": 0.42}, as_json=False)
    assert "a: only 0.42 mL outlined in all" in " ".join(capfd.readouterr().err.split())


def test_a_sigterm_leaves_no_half_case(segment_bundle: Path, cohort: Cohort, tmp_path: Path) -> None:
    scans = [str(v.image[0]) for v in cohort.volumes if v.image[0].is_file()][:12]
    out = tmp_path / "out"
    words = [
        "predict",
        str(segment_bundle),
        *scans,
        "--out",
        str(out),
        "--formats",
        ",".join(FORMATS),
        "--json",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-m", "medmeta", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        assert process.stdout is not None
        said = [json.loads(process.stdout.readline())]  # one case is done
        for _ in range(5000):
            if any(p.name.startswith(".") for p in out.iterdir()):  # and another is being written
                break
            time.sleep(0.002)
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGTERM)  # a second one changes nothing
        rest, errors = process.communicate(timeout=120)
        assert process.returncode == 143, errors
    said += [json.loads(line) for line in rest.splitlines()]
    assert "Stopped; go on with --resume." in errors
    assert "Traceback" not in errors
    done = sorted(p.name for p in out.iterdir())
    assert 0 < len(done) < len(scans)
    assert not any(name.startswith(".") for name in done)
    assert {one["case"] for one in said} <= set(done)
    for name in done:
        assert len(list((out / name).glob("[!.]*"))) == len(FORMATS)
    results = predict(segment_bundle, scans[: len(done) + 1], out, formats=FORMATS, resume=True)
    assert [r["skipped"] for r in results] == [r["case"] in done for r in results]
    assert sum(not r["skipped"] for r in results) == 1
    assert all(r["ok"] for r in results)


def test_a_signal_while_tidying_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The signal comes while the temporary folder is being removed: the removal goes on to its end."""
    folder = tmp_path / ".case"
    folder.mkdir()
    for n in range(3):
        (folder / f"{n}").write_text("x")
    unlink = os.unlink
    sent = []

    def interrupted(*args: Any, **options: Any) -> None:
        if not sent:
            sent.append(True)
            os.kill(os.getpid(), signal.SIGTERM)
        unlink(*args, **options)

    monkeypatch.setattr(os, "unlink", interrupted)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated), terminable():
        remove(folder)
    assert sent
    assert not folder.exists()
    assert signal.getsignal(signal.SIGTERM) is before


# -- pictures -------------------------------------------------------------------------------------------


def test_views_are_those_of_a_radiologist() -> None:
    """The patient's right is on the left, anterior on top of axial slices, superior on top of the others."""
    body = np.zeros((5, 6, 7))
    body[4, 5, 6] = 1  # rightmost, foremost, topmost
    assert all(plane(body, axis, body.shape[axis] - 1)[0, 0] == 1 for axis in range(3))
    assert plane(body, 2, 6).shape == (6, 5)


@pytest.mark.parametrize("empty", [False, True])
def test_pictures_show_the_outline(empty: bool, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    image = rng.random((30, 40, 12)).astype(np.float32)
    labels = np.zeros(image.shape, np.uint8)
    if not empty:
        labels[5:20, 10:30, 3:9] = 1
    affine = np.array([[0, 1.0, 0, 3], [-1.0, 0, 0, 5], [0, 0, 4.0, 0], [0, 0, 0, 1]])
    measured = {"glioma": measure(labels == 1, affine)}
    write_preview(image, labels, affine, measured, tmp_path / "a.png")
    write_page(image, labels, affine, measured, ["<b>said</b>"], tmp_path / "a.html")
    pixels = np.asarray(Image.open(tmp_path / "a.png").convert("RGB")).astype(int)
    colour = np.array([int(COLOURS[0][i : i + 2], 16) for i in (1, 3, 5)])
    outlined = int((np.abs(pixels - colour).max(-1) < 40).sum())
    assert (outlined > 500) is not empty
    page = (tmp_path / "a.html").read_text()
    assert "&lt;b&gt;said" in page
    assert "http" not in page.replace("http-equiv", "")
    assert sentences(measured)[0] in page


def test_channels_in_files_of_their_own_are_one_scan(
    flat_parts: Callable[[], dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    parts, spec = flat_parts(), unet(2, 2, base=2)
    label = torch.zeros(2, 16, 16, dtype=torch.int64)
    label[:, 4:9, 4:9] = 1
    support = Examples(torch.rand(2, 2, 16, 16), label, ("background", "glioma"))
    parts["predictor"] = create_learner("prototypical", build(spec)).adapt(support)
    parts.update(network_spec=spec, plan=replace(parts["plan"], channels=2))
    bundle = export(**parts, out=tmp_path / "bundle")
    folder = tmp_path / "two; of them"
    folder.mkdir()
    rng = np.random.default_rng(0)
    both = rng.random((20, 24, 1, 2), np.float32)
    nibabel.save(nibabel.Nifti1Image(both, np.eye(4)), folder / "both.nii.gz")  # type: ignore[attr-defined]
    monkeypatch.chdir(folder)
    for n in range(2):
        nibabel.save(nibabel.Nifti1Image(both[..., n], np.eye(4)), f"t{n}.nii.gz")  # type: ignore[attr-defined]
    words = ["predict", bundle, "t0.nii.gz;t1.nii.gz", folder / "both.nii.gz", "--out", tmp_path / "out"]
    assert command(monkeypatch, *words, "--json") == 0
    one, two = map(json.loads, capfd.readouterr().out.splitlines())
    assert (one["case"], two["case"]) == ("t0", "both")
    assert one["voxels"] == two["voxels"]
    assert one["confidence"] == two["confidence"]
