"""Another program's answers: what cannot be theirs is refused, what is missing is never the best."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from medmeta.episodes import Examples
from medmeta.evaluation import (
    Answers,
    Catalogue,
    EvaluationError,
    Judged,
    Part,
    Report,
    render,
    replay,
    results,
)
from medmeta.evaluation.answers import check_programs
from medmeta.evaluation.baselines import CopiedMask
from medmeta.evaluation.manifest import Manifest
from medmeta.evaluation.report import _others, _table
from medmeta.evaluation.supports import draw_classification, draw_segmentation
from medmeta.evaluation.truths import Truths
from medmeta.volumes import Plan, Store, Volume, make_plan
from medmeta.volumes.reading import read_image

SHAPE = (16, 14, 10)
AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])
PLAN = Plan(3, (1.0, 1.0, 2.0), (16, 16, 8), 1)


def save(array: np.ndarray, file: Path) -> Path:
    nibabel.save(nibabel.Nifti1Image(array, AFFINE), file)
    return file


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Volume, ...]:
    """Four patients with a cyst, three with a nodule, two free of both."""
    folder, made = tmp_path_factory.mktemp("scans"), []
    for n, kind in enumerate(["cyst"] * 4 + ["nodule"] * 3 + [None] * 2):
        voxels, mask = np.random.default_rng(n).normal(size=SHAPE).astype("f4"), np.zeros(SHAPE, "u1")
        mask[3 + n : 7 + n, 4:8, 3:6] = kind is not None
        image = save(voxels + 3 * mask, folder / f"{n}.nii.gz")
        made.append(Volume(f"p{n}", (image,), kind and save(mask, folder / f"{n}_m.nii.gz"), kind))
    return tuple(made)


@pytest.fixture
def masks(volumes: tuple[Volume, ...]) -> Manifest:
    return draw_segmentation(volumes, ["cyst"], PLAN, shots=(1,), episodes=2)


@pytest.fixture(scope="module")
def chances(volumes: tuple[Volume, ...]) -> Manifest:
    plan = make_plan(volumes, whole=True, patch=(8, 8, 8))
    return draw_classification(volumes, ["cyst"], plan, shots=(1,), episodes=1)


def rows(manifest: Manifest) -> list[str]:
    """A complete predictions.csv."""
    said = [f"{e.name},{k.image},cyst,0.5" for e in manifest.episodes for k in e.query]
    return ["episode,image,type,probability", *said]


def test_a_table_as_a_spreadsheet_saves_it_is_read(chances: Manifest, tmp_path: Path) -> None:
    lines = [line.replace(",", ", ") for line in rows(chances)]
    lines[0] = rows(chances)[0]
    (tmp_path / "predictions.csv").write_bytes("\r\n".join(lines).encode("utf-8-sig"))
    answers = Answers(tmp_path, chances)
    (episode,) = chances.episodes
    assert {answers.probability(episode, k, "cyst") for k in episode.query} == {0.5}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.replace("cyst-1-0", "cyst-3-0"), r"such as cyst-1-0, found another name in line 2"),
        (lambda t: t.replace(",cyst,", ".nii.gz,cyst,"), "found one with a suffix in line 2"),
        (lambda t: t.replace(",cyst,", "x,cyst,"), r"images of the episode .* found another name in line 2"),
        (lambda t: t.replace(",cyst,", ",Cyst,"), r"types of the episode \(rest, cyst\), found another name"),
        (lambda t: t.replace(",0.5", ",nan", 1), "found 'nan' in line 2"),
        (lambda t: t.replace(",0.5", "", 1), "found fewer in line 2"),
        (lambda t: t.replace(",cyst,", ",glioma, high grade,", 1), "found more in line 2"),
        (lambda t: t + "\n" + t.splitlines()[-1], "one again in line 9"),
        (lambda t: t.replace("type", "kind"), "found the columns episode, image, kind, probability"),
    ],
)
def test_a_row_that_cannot_be_is_one_clear_error(
    chances: Manifest, tmp_path: Path, change: object, words: str
) -> None:
    assert callable(change)
    (tmp_path / "predictions.csv").write_text(change("\n".join(rows(chances))))
    with pytest.raises(EvaluationError, match=words):
        Answers(tmp_path, chances)


def test_a_table_in_another_encoding_or_of_the_support_alone_is_refused(
    chances: Manifest, tmp_path: Path
) -> None:
    (episode,) = chances.episodes
    file = tmp_path / "predictions.csv"
    file.write_bytes("\n".join([*rows(chances), f"{episode.name},é,cyst,0.5"]).encode("latin-1"))
    with pytest.raises(EvaluationError, match="UTF-8, found another encoding"):
        Answers(tmp_path, chances)
    learnt = [f"{episode.name},{k.image},cyst,0.5" for k in episode.support]
    file.write_text("\n".join([rows(chances)[0], *learnt]))
    with pytest.raises(EvaluationError, match=r"probability of cyst .* asked of, found that of none"):
        Answers(tmp_path, chances)
    file.write_text("\n".join(rows(chances)).replace(",cyst,", ",rest,"))
    with pytest.raises(EvaluationError, match="found that of none"):
        Answers(tmp_path, chances)


def test_a_folder_without_one_mask_that_is_asked_for_is_refused(masks: Manifest, tmp_path: Path) -> None:
    for episode in masks.episodes:
        (tmp_path / episode.name).mkdir()
    save(np.zeros(SHAPE, "u1"), tmp_path / masks.episodes[0].name / "patient_1.nii.gz")
    with pytest.raises(EvaluationError, match="folders of 2 of its episodes, none with such a mask"):
        Answers(tmp_path, masks)


def test_names_of_other_programs_are_their_own() -> None:
    check_programs(["nnunet", "sam"], ["maml"])
    with pytest.raises(EvaluationError, match=r"no method's of medmeta, found 'maml'"):
        check_programs(["nnunet", "maml"], ["maml"])
    with pytest.raises(EvaluationError, match="each other program once, found 'A' twice"):
        check_programs(["A", "B", "A"], ["maml"])


def one_mask(masks: Manifest, volumes: tuple[Volume, ...], folder: Path) -> Judged:
    """A program that said of one free scan that it is free, and nothing else, beside a baseline."""
    for episode in masks.episodes:
        (folder / episode.name).mkdir()
    (first, *_) = (k for k in masks.episodes[0].query if k.kind == "none")
    save(np.zeros(SHAPE, "u1"), folder / masks.episodes[0].name / f"{first.image}.nii.gz")
    methods = {"copied-mask": CopiedMask(), "theirs": Answers(folder, masks)}
    return replay(methods, masks, Catalogue(volumes), Store(PLAN, salt="s"))


def test_a_missing_prediction_is_in_no_column_the_best(
    masks: Manifest, volumes: tuple[Volume, ...], tmp_path: Path
) -> None:
    judged = one_mask(masks, volumes, tmp_path)
    missing = [c for c in judged.cases if c.missing]
    assert len(missing) == 2 * 5 - 1
    for case in missing:
        unsaid = {"hd95_mm", "volume_error_ml"} if case.truth else {"false_volume_ml"}
        assert all(case.values[name] is None for name in unsaid | {"false_lesions"})
        assert case.values["dice" if case.truth else "false_alarm"] == (0.0 if case.truth else 1.0)
    part = Part(judged, "copied-mask", {"copied-mask": "copied mask", "theirs": "their network"})
    table = _others(part, "cyst")
    cells = dict(zip((c["label"] for c in table["columns"]), table["rows"][1]["cells"], strict=True))
    assert {name for name, cell in cells.items() if cell["best"]} <= {"false alarms"}  # one was no alarm
    assert cells["false volume (mL)"]["mean"] == "0.00"  # of the scan that was answered
    assert cells["false volume (mL)"]["range"].endswith("9 missing")
    assert cells["volume error (mL)"] == {"mean": "n/a", "range": "9 missing", "best": False}
    assert "missing" not in cells["false alarms"]["range"]  # there each counts as one
    assert "9 missing" in render(Report("t", "s", [part], {"Seed": "0"}))


def test_how_long_another_program_took_is_not_known(
    masks: Manifest, volumes: tuple[Volume, ...], tmp_path: Path
) -> None:
    judged = one_mask(masks, volumes, tmp_path)
    assert judged.seconds["theirs"] is None
    part = Part(judged, "copied-mask", {"copied-mask": "copied mask", "theirs": "their network"})
    assert _table(part, "cyst", "dice")["rows"][1]["seconds"] == "n/a"


def test_a_scan_has_the_target_of_one_episode_and_is_free_of_that_of_another(
    volumes: tuple[Volume, ...],
) -> None:
    """One image, cyst and nodule in turn what is asked for."""
    parts = [draw_segmentation(volumes, [t], PLAN, shots=(1,), episodes=1) for t in ("cyst", "nodule")]
    (cyst,), (nodule,) = (part.episodes for part in parts)
    both = [
        replace(e, query=tuple(sorted({*e.query, *(k for k in other.query if k.kind != "none")})))
        for e, other in ((cyst, nodule), (nodule, cyst))
    ]
    manifest = replace(parts[0], episodes=tuple(both))
    judged = replay({"copied": CopiedMask()}, manifest, Catalogue(volumes), Store(PLAN, salt="s"))
    wanted = [bool(e.label(k)) for e in both for k in e.query]
    assert [c.truth for c in judged.cases] == wanted
    assert {True, False} == set(wanted)


def held(thing: object) -> int:
    """Bytes of the arrays and tensors in what a list, a dictionary or an object's attributes hold."""
    if isinstance(thing, torch.Tensor):
        return thing.untyped_storage().nbytes()
    if isinstance(thing, np.ndarray):
        return thing.nbytes if thing.base is None else held(thing.base)
    if isinstance(thing, bytes):
        return len(thing)
    inner = thing.values() if isinstance(thing, dict) else vars(thing).values()
    return sum(held(one) for one in inner)


def test_of_a_judged_scan_no_voxels_are_kept(tmp_path: Path) -> None:
    """A large scan: its truth and grid take a thousandth, and a picture of it one slice."""
    shape = (96, 96, 64)
    mask = np.zeros(shape, "u1")
    mask[20:60, 30:50, 10:30] = 1
    files = [save(mask.astype(t), tmp_path / f"{t}.nii.gz") for t in ("f4", "u1")]
    volume, truths = Volume("p", (files[0],), files[1], "cyst"), Truths()
    grid, native = truths.grid(volume), read_image(volume)
    assert torch.equal(truths.truth(volume, present=True), torch.from_numpy(mask) > 0)
    assert not truths.truth(volume, present=False).any()
    assert torch.equal(grid.affine, native.affine)
    assert grid.shape == native.shape
    assert grid.meta["frame"] == native.meta["frame"]
    assert held(truths) < mask.size * 4 / 1000
    other = save(mask.astype("f4") + 1, tmp_path / "other.nii.gz")
    scans = [volume, replace(volume, patient="q", image=(other,))]
    manifest = draw_segmentation(scans, ["cyst"], PLAN, shots=(1,), episodes=1)
    judged = replay({"copied": CopiedMask()}, manifest, Catalogue(scans), Store(PLAN, salt="s"))
    (picture,) = judged.pictures
    for array in (picture.image, picture.truth, picture.found):
        assert array.size == 96 * 96
        assert held(array) <= 96 * 96 * 4
    assert picture.truth.sum() == 40 * 20


def test_a_judged_patient_without_a_mask_is_refused(volumes: tuple[Volume, ...]) -> None:
    with pytest.raises(EvaluationError, match="found one without"):
        Truths().truth(replace(volumes[0], mask=None), present=True)


def test_a_mask_of_255_is_an_answer(masks: Manifest, volumes: tuple[Volume, ...], tmp_path: Path) -> None:
    """What OpenCV and many others write; as a label nobody has said that it is one."""
    episode, catalogue = masks.episodes[0], Catalogue(volumes)
    key = next(k for k in episode.query if k.kind == "cyst")
    (tmp_path / episode.name).mkdir()
    truth = np.asarray(nibabel.load(catalogue[key].mask).dataobj)
    save(truth * 255, tmp_path / episode.name / f"{key.image}.nii.gz")
    found = Answers(tmp_path, masks).mask(episode, key, read_image(catalogue[key]))
    assert found is not None
    assert np.array_equal(found.numpy(), truth > 0)


def test_of_three_classes_each_is_answered_or_none(volumes: tuple[Volume, ...], tmp_path: Path) -> None:
    """Of the held-out type alone every image was called that, however unlikely."""
    plan = make_plan(volumes, whole=True, patch=(8, 8, 8))
    made = draw_classification(volumes, ["cyst"], plan, shots=(1,), episodes=1)
    (episode,) = made.episodes
    known = [k for k in (*episode.support, *episode.query) if k.kind != "none"]
    support = tuple({k.kind: k for k in known}.values())
    classes = ("cyst", "nodule", "spot")
    spot = replace(support[0], kind="spot", image="0123456789abcdef")
    query = tuple(k for k in known if k not in support)
    made = replace(made, episodes=(replace(episode, classes=classes, support=(*support, spot), query=query),))
    head = "episode,image,type,probability"
    said = [f"{episode.name},{k.image},cyst,0.1" for k in query]
    (tmp_path / "predictions.csv").write_text("\n".join([head, *said]))
    with pytest.raises(EvaluationError, match=rf"each of cyst, nodule, spot .* found {len(query)} image"):
        Answers(tmp_path, made)
    said = [
        f"{episode.name},{k.image},{c},{0.7 if c == k.kind else 0.15}" for k in query[1:] for c in classes
    ]
    (tmp_path / "predictions.csv").write_text("\n".join([head, *said]))
    answers = Answers(tmp_path, made)
    assert [answers.answer(made.episodes[0], k) for k in query] == [None, *(k.kind for k in query[1:])]


class Gone:
    """A method that ran away: whatever it is shown, what it gives is no number."""

    def adapt(self, support: Examples):
        space = support.label.ndim - 1

        def predict(image: torch.Tensor) -> torch.Tensor:
            return torch.full((len(image), len(support.classes), *image.shape[2:][:space]), torch.nan)

        return predict


def test_what_is_no_number_counts_as_missing(
    masks: Manifest, chances: Manifest, volumes: tuple[Volume, ...]
) -> None:
    """Outlines of it were none at all, the best there is of who is free; a chance of it ended the report."""
    whole = make_plan(volumes, whole=True, patch=(8, 8, 8))
    for manifest, plan in ((masks, PLAN), (chances, whole)):
        judged = replay({"gone": Gone()}, manifest, Catalogue(volumes), Store(plan, salt="s"))
        assert judged.cases
        assert all(c.missing for c in judged.cases)
        row = judged.table()["cyst"]["1"]["gone"]
        if manifest is masks:
            assert (row["dice"].mean, row["false_alarm_rate"].mean) == (0.0, 1.0)
        else:
            assert (row["auroc"].mean, row["brier"].mean) == (0.0, 1.0)
        content = results([judged], held_out=[], seed=0, seconds=1.0)
        json.dumps(content, allow_nan=False)
        assert any("predictions were missing" in w for w in content["warnings"])
