"""Studies out of a real archive and results back into it; each thing that goes wrong gives one error."""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pytest

from medmeta import cli
from medmeta.clinical import predict, studies
from medmeta.clinical.archive import PASSWORD, TOKEN, USER, Archive, PacsError
from medmeta.clinical.bundle import BundleError
from medmeta.clinical.pacs import _INSTANCE, Study, _every
from medmeta.volumes import load, load_mask
from tests.clinical import orthanc
from tests.clinical.orthanc import Orthanc, between

FORMATS = ("nifti", "seg", "sr", "json")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    pytest.importorskip("dicomweb_client")
    with orthanc.running(tmp_path_factory.mktemp("orthanc")) as running:
        yield running


@pytest.fixture
def archive(server: Orthanc, unseen: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> Orthanc:
    """An archive that holds one study, and whose password is known."""
    server.clear()
    server.put(sorted(unseen[1].iterdir()))
    monkeypatch.setenv(USER, orthanc.USER)
    monkeypatch.setenv(PASSWORD, orthanc.PASSWORD)
    monkeypatch.delenv(TOKEN, raising=False)
    return server


@pytest.fixture
def uid(unseen: tuple[Path, Path]) -> str:
    return str(pydicom.dcmread(next(iter(unseen[1].iterdir()))).StudyInstanceUID)


def run(bundle: Path, url: str, uid: str, out: Path, **options: Any) -> dict[str, Any]:
    options = {"store": True, "timeout": 20.0, **options}
    archive = studies(url, [uid], store=options["store"], timeout=options["timeout"])
    (result,) = predict(bundle, archive, out, formats=FORMATS, resume=True)
    return result


def left(out: Path) -> list[str]:
    """What a run left, but for the key of its cases' names."""
    return sorted(p.name for p in out.iterdir() if p.name != ".case-key") if out.exists() else []


def test_a_study_in_and_its_results_back_once(
    archive: Orthanc,
    uid: str,
    segment_bundle: Path,
    unseen: tuple[Path, Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    slices = len(list(unseen[1].iterdir()))
    result = run(segment_bundle, archive.dicomweb, uid, tmp_path / "out")
    assert result["ok"], result
    assert result["stored"] == {"new": 2, "there": 0}
    assert archive.instances() == {"MR": slices, "SEG": 1, "SR": 1}
    # the same as from the folder, and readable by others
    (local,) = predict(segment_bundle, [unseen[1]], tmp_path / "local", formats=FORMATS)
    assert local["voxels"] == result["voxels"]
    seg = hd.seg.segread(archive.download("SEG", tmp_path))
    report = hd.sr.srread(archive.download("SR", tmp_path))
    assert seg.StudyInstanceUID == uid
    image = load(unseen[1])
    nifti = load_mask(tmp_path / "local" / local["case"] / f"{local['case']}_seg.nii.gz", like=image)
    assert np.array_equal(load_mask(tmp_path / "SEG.dcm", like=image), nifti)
    (group,) = report.content.get_volumetric_roi_measurement_groups()
    assert group.referenced_segment.referenced_sop_instance_uid == seg.SOPInstanceUID
    # a retried run stores nothing twice: passed over, or made again elsewhere
    again = run(segment_bundle, archive.dicomweb, uid, tmp_path / "out")
    assert (again["skipped"], again["stored"]) == (True, {"new": 0, "there": 2})
    fresh = run(segment_bundle, archive.dicomweb, uid, tmp_path / "fresh")
    assert fresh["stored"] == {"new": 0, "there": 2}
    assert fresh["series"]["why"] == "the only one"
    assert fresh["series"]["passed_over"][0]["why"] == "no image"
    assert archive.instances() == {"MR": slices, "SEG": 1, "SR": 1}
    # another folder has another key; no name, log line or JSON tells of study or password
    assert result["case"] == again["case"] != fresh["case"]
    told = [caplog.text, str(result), str(fresh), *map(str, (tmp_path / "out").rglob("*"))]
    told.append((tmp_path / "out" / result["case"] / f"{result['case']}.json").read_text())
    for secret in (uid, uid[-20:], orthanc.PASSWORD):
        assert not any(secret in text for text in told)
    assert (tmp_path / "out" / ".case-key").stat().st_mode & 0o077 == 0


def test_the_command_line(
    archive: Orthanc,
    uid: str,
    segment_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    words = ["predict", str(segment_bundle), "--dicomweb", archive.dicomweb, "--study", uid, "--store"]
    words += ["--out", str(tmp_path / "out"), "--formats", "seg", "--json"]
    monkeypatch.setattr(sys, "argv", ["medmeta", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    shown = capfd.readouterr()
    assert ended.value.code == 0, shown.err
    assert json.loads(shown.out)["stored"] == {"new": 1, "there": 0}
    assert archive.instances()["SEG"] == 1
    monkeypatch.setenv(PASSWORD, "another-password")
    words[words.index("--out") + 1] = str(tmp_path / "more")
    for code, given in ((1, words), (2, [word for word in words if word not in ("--study", uid)])):
        monkeypatch.setattr(sys, "argv", ["medmeta", *given])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        shown = capfd.readouterr()
        assert ended.value.code == code, shown.err
        assert not any(secret in shown.out + shown.err for secret in (uid, "another-password"))


def test_pages_of_an_archive_that_ignores_the_offset_end() -> None:
    every = [{_INSTANCE: {"Value": [str(n)]}} for n in range(5)]
    assert _every(lambda offset=0: every, _INSTANCE) == every
    assert _every(lambda offset=0: every[offset : offset + 2], _INSTANCE) == every
    assert _every(lambda offset=0: [], _INSTANCE) == []


def test_a_wrong_password(
    archive: Orthanc, uid: str, segment_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PASSWORD, "another-password")
    result = run(segment_bundle, archive.dicomweb, uid, tmp_path / "out")
    assert not result["ok"]
    assert result["message"].startswith("wanted credentials that the archive accepts, found HTTP 401. Set")
    assert "another-password" not in str(result)
    assert left(tmp_path / "out") == []
    monkeypatch.setenv(TOKEN, "not-a-token")
    assert "HTTP 401" in run(segment_bundle, archive.dicomweb, uid, tmp_path / "out")["message"]


def test_credentials_of_a_netrc_file(
    archive: Orthanc, uid: str, segment_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(USER)
    file = tmp_path / "netrc"
    file.write_text(f"machine 127.0.0.1 login {orthanc.USER} password {orthanc.PASSWORD}\n")
    file.chmod(0o600)
    monkeypatch.setenv("NETRC", str(file))
    assert run(segment_bundle, archive.dicomweb, uid, tmp_path / "out", store=False)["ok"]
    assert "SEG" not in archive.instances()


def test_an_earlier_run_that_wrote_no_dicom_is_not_taken_for_stored(
    archive: Orthanc, uid: str, segment_bundle: Path, tmp_path: Path
) -> None:
    (study,) = studies(archive.dicomweb, [uid], store=False, timeout=20.0)
    (first,) = predict(segment_bundle, [study], tmp_path / "out", resume=True)
    assert first["ok"], first
    result = run(segment_bundle, archive.dicomweb, uid, tmp_path / "out")
    assert (result["ok"], result["skipped"], result["stored"]) == (True, False, {"new": 2, "there": 0})
    assert first["files"][0] in result["files"]


def test_a_vanished_study_and_a_wrong_address(
    archive: Orthanc, uid: str, segment_bundle: Path, tmp_path: Path
) -> None:
    result = run(segment_bundle, archive.dicomweb, "1.2.3.4.5", tmp_path / "out")
    assert result["message"].startswith("wanted the study in the archive, found none")
    result = run(segment_bundle, archive.dicomweb + "-elsewhere", uid, tmp_path / "out")
    assert not result["ok"]
    assert left(tmp_path / "out") == []


def test_a_store_cut_in_the_middle_is_completed_by_a_retry(
    archive: Orthanc, uid: str, segment_bundle: Path, unseen: tuple[Path, Path], tmp_path: Path
) -> None:
    slices = len(list(unseen[1].iterdir()))
    with between(archive.port, cut_posts_after=20_000) as port:
        url = f"http://127.0.0.1:{port}/dicom-web"
        result = run(segment_bundle, url, uid, tmp_path / "out")
    assert not result["ok"]
    assert result["message"].startswith(
        "wanted an answer of the archive to storing results, found a connection that failed"
    )
    assert left(tmp_path / "out") == []
    assert archive.instances().get("SR", 0) == 0
    result = run(segment_bundle, archive.dicomweb, uid, tmp_path / "out")
    assert result["ok"]
    assert archive.instances() == {"MR": slices, "SEG": 1, "SR": 1}
    # the archive loses one of two: that one alone is sent again
    for one in archive.ask("/series?expand").json():
        if one["MainDicomTags"]["Modality"] == "SR":
            archive.ask(f"/series/{one['ID']}", method="DELETE")
    result = run(segment_bundle, archive.dicomweb, uid, tmp_path / "out")
    assert (result["skipped"], result["stored"]) == (True, {"new": 1, "there": 1})
    assert archive.instances() == {"MR": slices, "SEG": 1, "SR": 1}


@pytest.mark.parametrize("after", [30_000, 60_000, 61_700])  # within a file, and within the header of one
def test_a_series_that_arrives_in_part(
    archive: Orthanc, uid: str, segment_bundle: Path, tmp_path: Path, after: int
) -> None:
    with between(archive.port, cut_answers_after=after) as port:
        result = run(segment_bundle, f"http://127.0.0.1:{port}/dicom-web", uid, tmp_path / "out")
    # the answer has no length, so that HTTP takes its end for the end of the series
    wanted = r"(\d+ instances of a series, found \d+\.|an answer .* to a series, found one that is cut)"
    assert re.match(f"wanted {wanted}.* Run it again", result["message"]), result
    assert left(tmp_path / "out") == []
    assert "SEG" not in archive.instances()


@pytest.mark.parametrize("answered", [0, 1, 2])
def test_a_server_that_stops_answering(
    archive: Orthanc, uid: str, segment_bundle: Path, tmp_path: Path, answered: int
) -> None:
    before = archive.instances()
    with between(archive.port, mute_after=answered) as port:
        url = f"http://127.0.0.1:{port}/dicom-web"
        result = run(segment_bundle, url, uid, tmp_path / "out", timeout=0.7)
    assert not result["ok"]
    assert "found none within 0.7 s. Run it again" in result["message"], result
    assert left(tmp_path / "out") == []
    assert archive.instances() == before


def test_another_result_of_the_same_bundle_is_not_stored_beside(
    archive: Orthanc, uid: str, segment_bundle: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    result = run(segment_bundle, archive.dicomweb, uid, out)
    file = out / result["case"] / f"{result['case']}_seg.dcm"
    ds = pydicom.dcmread(file)
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = hd.UID()
    ds.save_as(file)
    study = Study(Archive(archive.dicomweb, store=True), uid)
    with pytest.raises(PacsError, match="no other result of this bundle"):
        study.keep([file])
    assert archive.instances()["SEG"] == 1


def test_what_is_asked_wrongly(segment_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(PacsError, match="together, found no study"):
        studies("http://localhost/dicom-web", [], store=False, timeout=1.0)
    with pytest.raises(PacsError, match="together, found no address"):
        studies(None, ["1.2.3"], store=False, timeout=1.0)
    with pytest.raises(PacsError, match="an http address"):
        studies("ftp://localhost", ["1.2.3"], store=False, timeout=1.0)
    with pytest.raises(PacsError, match="a StudyInstanceUID"):
        studies("http://localhost", ["../1.2.3"], store=False, timeout=1.0)
    given = studies("http://localhost", ["1.2.3"], store=True, timeout=1.0)
    with pytest.raises(BundleError, match="DICOM results to store"):
        predict(segment_bundle, given, tmp_path / "out", formats=("nifti",))
    (unreached,) = predict(
        segment_bundle,
        studies(f"http://127.0.0.1:{orthanc.free_port()}", ["1.2.3"], store=False, timeout=1.0),
        tmp_path / "out",
    )
    assert "found a connection that failed" in unreached["message"]
