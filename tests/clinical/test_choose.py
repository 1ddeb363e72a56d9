"""The series of a study that a bundle is for, and the words that say why."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medmeta.clinical.choose import Rules, rules_of, series_rules, study
from medmeta.volumes import Plan, Volume, VolumeError
from medmeta.volumes.dicom_series import Choice
from tests.volumes.phantoms import MR, classic, save, voxels

PLAN = Plan(3, (1.0, 1.0, 3.0), (16, 16, 16), 1)


def series(folder: Path, description: str, *, step: float = 3.0, inplane: float = 1.0, **options: Any) -> str:
    """One series of 6 slices; gives its UID."""
    made = classic(voxels((6, 8, 8)), step=step, spacing=(inplane, inplane), **options)
    for ds in made:
        ds.SeriesDescription = description
    save(made, folder)
    return str(made[0].SeriesInstanceUID)


@pytest.fixture
def hospital(tmp_path: Path) -> Path:
    """A study of CT, two MR sequences, a thick repeat, a scout and a screenshot in colour."""
    folder = tmp_path / "study"
    mr: dict[str, Any] = {"sop_class": MR, "modality": "MR"}
    series(folder / "a", "ABDOMEN CT")
    series(folder / "b", "t2_tse_fs DOE^JANE", **mr)
    series(folder / "c", "t2_tse_fs thick", step=9.0, **mr)
    series(folder / "d", "t1_vibe", **mr)
    scout = [
        *classic(voxels((2, 8, 8)), **mr),
        *classic(voxels((2, 8, 8)), orientation=(0, 1, 0, 0, 0, -1), **mr),
    ]
    for ds in scout:
        ds.SeriesInstanceUID, ds.StudyInstanceUID, ds.FrameOfReferenceUID = "1.2.3", "1.2", "1.2.4"
        ds.SeriesDescription = "t2 scout"
    save(scout, folder / "e")
    return folder


def taken(folder: Path, rules: Rules) -> Any:
    with study(folder, rules) as found:
        assert found is not None
        return found[1]


def test_modality_description_then_spacing(hospital: Path) -> None:
    rules = Rules(("MR",), "t2", (1.0, 1.0, 3.0))
    chosen = taken(hospital, rules)
    assert (chosen.modality, chosen.spacing_mm, chosen.slices) == ("MR", (1.0, 1.0, 3.0), 6)
    assert chosen.why == "the nearest in spacing of 2 that fit"
    reasons = sorted(p.why for p in chosen.passed_over)
    assert reasons == ["2 orientations", "another description", "modality CT", "voxels of 1 x 1 x 9 mm"]
    assert "DOE" not in str(chosen) + str(chosen.json())
    assert str(chosen).count("passed over") == 1
    assert taken(hospital, Rules(("MR",), "t2", (1.0, 1.0, 8.0))).spacing_mm == (1.0, 1.0, 9.0)
    assert taken(hospital, Rules(("CT",))).why == "the only one that fits"


def test_two_alike_or_none_are_refused(hospital: Path) -> None:
    with pytest.raises(VolumeError, match="2 series that fit alike") as refused:
        taken(hospital, Rules(("MR",), None, (1.0, 1.0, 3.0)))
    assert refused.value.code == "several-volumes"
    with pytest.raises(VolumeError, match=r"none with modality PT among .* --series KEY"):
        taken(hospital, Rules(("PT",)))
    with pytest.raises(VolumeError, match="regular expression"):
        Rules(description="t2(")


def test_a_series_that_is_named_is_taken(hospital: Path, tmp_path: Path) -> None:
    key = taken(hospital, Rules(("CT",))).series
    chosen = taken(hospital, rules_of({}, PLAN, Choice(key)))
    assert (chosen.modality, chosen.why) == ("CT", "named by its key")
    archive = Path(shutil.make_archive(str(tmp_path / "DOE_JANE"), "zip", hospital))
    assert taken(archive, Rules(key=key)) == chosen


def test_a_damaged_series_is_not_passed_over(hospital: Path) -> None:
    (hospital / "b" / "002.dcm").unlink()
    with pytest.raises(VolumeError, match="every slice") as refused:
        taken(hospital, Rules(("MR",), "t2"))
    assert refused.value.code == "missing-slice"
    assert taken(hospital, Rules(("MR",), "t1")).modality == "MR"


def test_what_a_bundle_knows(hospital: Path) -> None:
    support = [Volume("p", (), modality=("MR",)), Volume("q", (), modality=("FLAIR", "MRI"))]
    about = {"medmeta": {"about": {"series": series_rules(support, "t2.*fs")}}}
    rules = rules_of(about, PLAN)
    assert rules == Rules(("MR",), "t2.*fs", (1.0, 1.0, 3.0))
    assert rules_of(about, PLAN, Choice(modality="ct", description="")).refusal("CT", "abdomen") == ""
    assert rules_of(about, PLAN, Choice(modality="mri")).modality == ("MR",)  # as the support's may be called
    window = Plan(2, (1.0, 1.0, 3.0), (16, 16), 1, intensity="window")
    assert rules_of({}, window) == Rules(("CT",), None, (1.0, 1.0, None))
    assert series_rules([Volume("p", ())]) == {}


@pytest.mark.parametrize("orientation", [(0, 1, 0, 0, 0, -1), (1, 0, 0, 0, 0, -1), (0.8, 0.6, 0, 0, 0, -1)])
def test_spacing_is_compared_along_the_body(tmp_path: Path, orientation: tuple[float, ...]) -> None:
    normal = np.abs(np.cross(orientation[:3], orientation[3:]))
    wanted = tuple(4.0 if axis == int(np.argmax(normal)) else 1.0 for axis in range(3))
    series(tmp_path / "a", "one", step=4.0, orientation=orientation)
    series(tmp_path / "b", "other", step=1.0, inplane=2.0, orientation=orientation)
    assert taken(tmp_path, Rules(spacing=wanted)).spacing_mm == (1.0, 1.0, 4.0)


def test_no_dicom_is_no_study(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("none")
    with study(tmp_path, Rules()) as found:
        assert found is None
