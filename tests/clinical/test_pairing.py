"""A mask outlines the lesion of the scan that it is called after, whatever the order of the files."""

from __future__ import annotations

from pathlib import Path

import pytest

from medmeta.clinical import BundleError, masks_of
from medmeta.clinical.archive import Archive
from medmeta.clinical.bundle import CASE, CASE_OF, DEPTH, MASKS
from medmeta.clinical.cases import name_cases
from medmeta.clinical.pacs import Study
from medmeta.clinical.pairing import refuse_crossed

CASES = ("case_1", "case_10", "case_2")


def files(folder: Path, ending: str) -> list[str]:
    folder.mkdir()
    made = [folder / f"{case}{ending}.nii.gz" for case in CASES]
    for file in made:
        file.touch()
    return [str(file) for file in made]


@pytest.mark.parametrize("ending", ["", "_seg", "_mask", "_label"])
def test_masks_are_found_by_the_names_of_their_scans(ending: str, tmp_path: Path) -> None:
    """In MONAI alone, too, by the expressions of an exported bundle."""
    from monai.bundle import ConfigParser

    scans, masks = sorted(files(tmp_path / "scans", "")), files(tmp_path / "masks", ending)
    (tmp_path / "masks" / "of_no_scan.nii.gz").touch()
    assert masks_of(scans, tmp_path / "masks") == masks
    alone = {"imports": ["$import glob"], "case_of": CASE_OF, "masklist": MASKS}
    parser = ConfigParser({**alone, "datalist": scans, "mask_dir": str(tmp_path / "masks")})
    assert parser.get_parsed_content("imports")
    assert parser.get_parsed_content("masklist") == masks


@pytest.mark.parametrize("name", ["inference", "adapt"])
def test_the_workflow_pairs_by_name(name: str, tmp_path: Path) -> None:
    from monai.bundle import ConfigParser

    workflow = Path(__file__).resolve().parents[2] / "workflows" / "tumor_classification"
    files(tmp_path / "scans", "")
    masks = files(tmp_path / "masks", "_seg")
    parser = ConfigParser()
    parser.read_config(workflow / "configs" / f"{name}.json")
    parser["dataset_dir"], parser["mask_dir"] = str(tmp_path / "scans"), str(tmp_path / "masks")
    parser.parse()
    assert parser.get_parsed_content("imports")
    assert parser.get_parsed_content("masklist") == masks


def test_a_scan_without_a_mask_or_with_two(tmp_path: Path) -> None:
    from monai.bundle import ConfigParser

    scans = files(tmp_path / "scans", "")
    masks = files(tmp_path / "masks", "_seg")
    Path(masks[0]).rename(tmp_path / "masks" / "case_1_and_more.nii.gz")
    (tmp_path / "masks" / "case_2_mask.nii.gz").touch()
    with pytest.raises(BundleError, match="found 1 of 3 scans without, 1 with several"):
        masks_of(scans, tmp_path / "masks")
    alone = {"imports": ["$import glob"], "case_of": CASE_OF, "masklist": MASKS}
    parser = ConfigParser({**alone, "datalist": scans, "mask_dir": str(tmp_path / "masks")})
    with pytest.raises(RuntimeError):
        parser.get_parsed_content("masklist")
    assert masks_of(scans, tmp_path / "none") == []  # of whole scans


def test_the_mask_of_a_scan_in_a_file_a_channel(tmp_path: Path) -> None:
    masks = files(tmp_path / "masks", "_seg")
    folder = tmp_path / "scans"
    assert (
        masks_of([f"{folder}/{case}.nii.gz;{folder}/t2.nii.gz" for case in CASES], folder.parent / "masks")
        == masks
    )
    assert (
        masks_of([[f"{folder}/{case}.nii.gz", f"{folder}/t2.nii.gz"] for case in CASES], tmp_path / "masks")
        == masks
    )


@pytest.mark.parametrize("channels", [("_t1", "_t2"), ("_0000", "_0001"), ("-t1n", "-t2f")])
def test_a_mask_called_as_all_channels_of_its_scan(channels: tuple[str, str], tmp_path: Path) -> None:
    """As nnU-Net and BraTS call theirs; one called as the first channel comes before."""
    masks = files(tmp_path / "masks", "_seg")
    scans = [[tmp_path / "scans" / f"{case}{channel}.nii.gz" for channel in channels] for case in CASES]
    assert masks_of(scans, tmp_path / "masks") == masks
    first = tmp_path / "masks" / f"case_2{channels[0]}_seg.nii.gz"
    first.touch()
    assert masks_of(scans, tmp_path / "masks") == [*masks[:2], str(first)]


def test_scans_of_several_files_that_monai_names_by_the_first_are_told_apart() -> None:
    from monai.bundle import ConfigParser

    scans = [["/one/t1.nii.gz", "/one/a_t2.nii.gz"], ["/two/t1.nii.gz", "/two/b_t2.nii.gz"]]
    parser = ConfigParser({"datalist": scans, "depth": DEPTH, "name": CASE})
    name = parser.get_parsed_content("name")
    called = [name({"filename_or_obj": scan[0]}, None)["subject"] for scan in scans]
    assert called == ["one_t1.nii.gz", "two_t1.nii.gz"]


def test_masks_given_one_by_one_are_refused_where_they_plainly_cross() -> None:
    def crossed(scans: list[str], masks: list[str]) -> bool:
        try:
            refuse_crossed([[Path(p) for p in s.split(";")] for s in scans], [Path(m) for m in masks])
        except BundleError:
            return True
        return False

    assert crossed(["d/a.nii", "d/b.nii"], ["d/b_seg.nii", "d/a_seg.nii"])
    for ending in (".png", ".JPG", ".npz", ".mhd", ".nhdr", ".dicom"):
        assert crossed([f"d/a{ending}", f"d/b{ending}"], [f"d/b_seg{ending}", f"d/a_seg{ending}"])
        assert not crossed([f"d/a{ending}", f"d/b{ending}"], [f"d/a_seg{ending}", f"d/b_seg{ending}"])
    assert not crossed(["d/a.nii", "d/b.nii"], ["d/a_seg.nii", "d/b_seg.nii"])
    assert not crossed(["d/a.nii", "d/b.nii"], ["d/lesion2.nii", "d/lesion1.nii"])  # names say nothing
    assert crossed(["p1/image", "p2/image"], ["p2/seg.dcm", "p1/seg.dcm"])
    assert not crossed(["p1/image", "p2/image"], ["p1/seg.dcm", "p2/seg.dcm"])
    assert not crossed(["p1/image", "p2/image"], ["p1/image_seg.dcm", "p2/image_seg.dcm"])
    assert not crossed(["d1/scan_a", "d2/scan_b"], ["d1/lesion_a", "d1/lesion_b"])  # one annotator's folder
    for several in (
        "d/{0}_t1.nii;d/{0}_t1c.nii",
        "d/{0}_0000.nii;d/{0}_0001.nii",
        "d/{0}-fla.nii;d/{0}-t1.nii",
    ):
        scans = [several.format(case) for case in ("case_1", "case_10")]
        assert crossed(scans, ["m/case_10_seg.nii", "m/case_1_seg.nii"])
        assert not crossed(scans, ["m/case_1_seg.nii", "m/case_10_seg.nii"])
    assert crossed(["d/case_1.nii.gz", "d/case_10.nii.gz"], ["m/case_10_seg.nii.gz", "m/case_1_seg.nii.gz"])


def test_a_study_of_an_archive_keeps_its_place_among_the_scans(tmp_path: Path) -> None:
    study = Study(Archive("http://localhost"), "1.2.3")
    named = name_cases([tmp_path / "a.nii", study, tmp_path / "b.nii"], tmp_path)
    assert list(named.values()) == [(tmp_path / "a.nii",), study, (tmp_path / "b.nii",)]
    assert list(named)[::2] == ["a", "b"]


def test_masks_of_pictures_are_found_by_name(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).touch()
    (tmp_path / "masks").mkdir()
    for name in ("a_seg.png", "b_seg.png"):
        (tmp_path / "masks" / name).touch()
    found = masks_of([tmp_path / "b.png", tmp_path / "a.png"], tmp_path / "masks")
    assert [Path(f).name for f in found] == ["b_seg.png", "a_seg.png"]
