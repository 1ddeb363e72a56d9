"""Episodes: written first, replayed to the case, by another program too; and what was held out is proved."""

from __future__ import annotations

import csv
import io
import json
import locale
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from medmeta.evaluation import (
    Answers,
    Beside,
    Catalogue,
    EvaluationError,
    Trees,
    draw_classification,
    draw_segmentation,
    evaluate,
    open_manifest,
    replay,
    results,
    write_manifest,
)
from medmeta.evaluation.baselines import NAMES, CopiedMask, Majority, NearestPixels
from medmeta.evaluation.drawing import new_volumes
from medmeta.evaluation.manifest import Key, Manifest, read
from medmeta.evaluation.outlines import judged_values
from medmeta.evaluation.proof import Looked, check_names, prove
from medmeta.training import Recipe, Run, RunError, Schedule, open_run, train
from medmeta.volumes import Cohort, Plan, Prepared, Store, Volume, VolumeError, make_plan
from medmeta.volumes.names import same_type
from medmeta.volumes.progress import silent

SHAPE = (20, 18, 12)


def patient(folder: Path, name: str, kind: str | None, *, seed: int) -> Volume:
    """A noisy scan with a bright block, or with none."""
    generator = np.random.default_rng(seed)
    voxels, mask = generator.normal(size=SHAPE).astype("f4"), np.zeros(SHAPE, "u1")
    corner = generator.integers(2, 6, 3)
    place = tuple(slice(c, c + 5) for c in corner)
    files = {"image": voxels}
    if kind:
        mask[place] = 1
        voxels[place] += {"cyst": 3, "nodule": 5}.get(kind, 4)
        files["mask"] = mask
    for word, array in files.items():
        nibabel.save(
            nibabel.Nifti1Image(array, np.diag([1.0, 1.0, 2.0, 1.0])), folder / f"{name}_{word}.nii.gz"
        )
    image = folder / f"{name}_image.nii.gz"
    return Volume(name, (image,), folder / f"{name}_mask.nii.gz" if kind else None, kind)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    """Five patients of each of three types, and four free of all."""
    folder = tmp_path_factory.mktemp("cohort")
    kinds = ["cyst"] * 5 + ["nodule"] * 5 + ["spot"] * 5 + [None] * 4
    volumes = [patient(folder, f"p{n:02}", kind, seed=n) for n, kind in enumerate(kinds)]
    return Cohort("made", tuple(volumes), folder)


@pytest.fixture(scope="module")
def run(cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Trained for two steps; what it learnt does not matter."""
    recipe = Recipe(learner="prototypical", schedule=Schedule(steps=2), shot=(1, 1), patch=(16, 16, 8))
    return train(cohort, recipe, out=tmp_path_factory.mktemp("run") / "run", hold_out=["cyst"])


PLAN = Plan(3, (1.0, 1.0, 2.0), (16, 16, 8), 1)


def drawn(cohort: Cohort, **options) -> Manifest:
    return draw_segmentation(cohort.volumes, ["cyst"], PLAN, **{"shots": (1, 3), "episodes": 2, **options})


def test_a_manifest_names_no_patient_and_is_the_same_wherever_the_data_lies(
    cohort: Cohort, tmp_path: Path
) -> None:
    made = drawn(cohort)
    text = made.text()
    assert read(text) == made
    assert not any(v.patient in text or v.image[0].name in text for v in cohort.volumes)
    moved = []
    for number, v in enumerate(reversed(cohort.volumes)):
        file = tmp_path / f"other{number}.nii.gz"
        shutil.copy(v.image[0], file)
        moved.append(replace(v, image=(file,)))
    assert Catalogue(moved).keys(moved)[::-1] == Catalogue(cohort.volumes).keys(cohort.volumes)
    Catalogue(moved).check(made)
    assert drawn(replace(cohort, volumes=tuple(moved))).digest == made.digest
    assert drawn(cohort, seed=1).digest != made.digest


class Asked(Exception):
    """Ends an evaluation where the test has seen enough."""


def test_nobody_who_is_judged_chooses_a_rate(
    cohort: Cohort, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a cohort of several labels one patient may show the judged type and one that rates are chosen on."""
    both = (*cohort.volumes, *(replace(v, tumour="spot") for v in cohort.volumes if v.tumour == "cyst"))
    offered: set[str] = set()

    def stop(run: Run, volumes, store: Store, shots, *, seed: int) -> None:
        offered.update(v.patient for v in volumes)
        raise Asked

    monkeypatch.setattr(sys.modules["medmeta.evaluation.evaluate"], "validation_episodes", stop)
    with pytest.raises(Asked):
        evaluate(run, replace(cohort, volumes=both), tmp_path / "out", tumour="cyst", shots=(1,), episodes=1)
    assert offered
    assert not offered & {v.patient for v in cohort.of("cyst")}
    assert not (tmp_path / "out").exists()


def test_free_series_of_one_folder_are_the_same_whatever_order_they_come_in(cohort: Cohort) -> None:
    """Which are judged was drawn by place in a list whose order was the input's."""
    image = next(v for v in cohort.volumes if v.tumour is None).image
    free = [Volume("free", image, None, None, series=f"1.2.{n}") for n in range(6)]
    cysts = list(cohort.of("cyst"))
    made = [
        draw_segmentation([*cysts, *some], ["cyst"], PLAN, shots=(1,), episodes=1, absent=2)
        for some in (free, free[::-1])
    ]
    assert made[0] == made[1]


def test_supports_are_nested_and_nobody_is_on_both_sides(cohort: Cohort) -> None:
    made, catalogue = drawn(cohort), Catalogue(cohort.volumes)
    by_place = {(e.shot, e.draw): e for e in made.episodes}
    for draw in range(2):
        assert set(by_place[1, draw].support) < set(by_place[3, draw].support)
    for e in made.episodes:
        sides = [{catalogue[k].patient for k in side} for side in (e.support, e.query)]
        assert not sides[0] & sides[1]
        assert len(sides[0]) == e.shot
        assert sum(k.kind == "none" for k in e.query) == 4
    assert sum(k.kind == "none" for k in drawn(cohort, absent=2).episodes[0].query) == 2
    assert drawn(cohort, shots=(1, 3, 1)) == made


def test_a_manifest_whose_cases_are_missing_or_that_is_none_is_one_clear_error(
    cohort: Cohort, tmp_path: Path
) -> None:
    made = drawn(cohort)
    with pytest.raises(EvaluationError, match=r"found 1 missing \(cyst\)"):
        Catalogue(cohort.volumes[1:]).check(made)
    cousins = [replace(v, patient="same") for v in cohort.volumes]
    with pytest.raises(EvaluationError, match=r"on both sides in this cohort"):
        Catalogue(cousins).check(made)
    file = tmp_path / "manifest.json"
    with pytest.raises(EvaluationError, match="none at the path"):
        open_manifest(file)
    file.write_text('{"format": "other"}')
    with pytest.raises(EvaluationError, match="another document"):
        open_manifest(file)
    file.write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(EvaluationError, match="found a file that is no text"):
        open_manifest(file)
    file.write_text(replace(made, episodes=()).text())
    with pytest.raises(EvaluationError, match="at least 1 episode, found none in it"):
        open_manifest(file)
    file.write_text(replace(made, episodes=(replace(made.episodes[0], tumours=()),)).text())
    with pytest.raises(EvaluationError, match="one of its classes, found none"):
        open_manifest(file)
    broken = json.loads(made.text())
    broken["episodes"][0]["query"] += broken["episodes"][0]["support"]
    file.write_text(json.dumps(broken))
    with pytest.raises(EvaluationError, match="1 in both"):
        open_manifest(file)


def test_a_query_that_never_shows_the_type_is_refused(
    run: Run, cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = drawn(cohort, shots=(1,), episodes=1)
    only = tuple(k for k in made.episodes[0].query if k.kind == "none")
    empty = replace(made, episodes=(replace(made.episodes[0], query=only),))
    store = Store(PLAN, salt="s")
    with pytest.raises(EvaluationError, match="4 without it"):
        replay({"trees": Trees()}, empty, Catalogue(cohort.volumes), store)
    _nothing_is_chosen(monkeypatch)
    with pytest.raises(EvaluationError, match="4 without it"):
        evaluate(run, cohort, tmp_path / "out", manifest=empty)
    assert not list(tmp_path.iterdir())


def _nothing_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """What can be known before rates are chosen is said before: that may take an hour."""

    def stop(*_: object, **__: object) -> None:
        raise Asked

    monkeypatch.setattr(sys.modules["medmeta.evaluation.evaluate"], "validation_episodes", stop)


@pytest.mark.parametrize("side", ["support", "query"])
def test_a_case_whose_mask_is_not_there_is_refused_before_rates_are_chosen(
    side: str, run: Run, cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who replays a manifest has the same images, but maybe not yet all of the outlines."""
    made = drawn(cohort, shots=(3,), episodes=1)
    catalogue = Catalogue(cohort.volumes)
    gone = catalogue[next(k for k in getattr(made.episodes[0], side) if k.kind == "cyst")]
    volumes = tuple(replace(v, mask=None) if v == gone else v for v in cohort.volumes)
    _nothing_is_chosen(monkeypatch)
    with pytest.raises(EvaluationError, match="each of the 5 cases that show cyst, found 1 without"):
        evaluate(run, replace(cohort, volumes=volumes), tmp_path / "out", manifest=made)


def judged_masks(
    cohort: Cohort, folder: Path, change: Callable[[np.ndarray], np.ndarray], *, leave_out: int = 0
) -> tuple[Manifest, Answers]:
    """Another program's masks: the truth, changed; of free patients nothing at all."""
    made, catalogue = drawn(cohort, shots=(1,)), Catalogue(cohort.volumes)
    for e in made.episodes:
        (folder / e.name).mkdir(parents=True)
        for key in sorted(e.query, key=lambda k: k.kind)[leave_out:]:
            volume = catalogue[key]
            image = nibabel.load(volume.image[0])
            truth = (
                np.zeros(SHAPE, "u1")
                if volume.mask is None
                else np.asarray(nibabel.load(volume.mask).dataobj)
            )
            nibabel.save(
                nibabel.Nifti1Image(change(truth), image.affine), folder / e.name / f"{key.image}.nii.gz"
            )
    return made, Answers(folder, made)


def test_another_program_is_judged_on_the_same_episodes(cohort: Cohort, tmp_path: Path) -> None:
    made, answers = judged_masks(cohort, tmp_path, lambda truth: truth)
    judged = replay({"theirs": answers}, made, Catalogue(cohort.volumes), Store(PLAN, salt="s"))
    row = judged.table()["cyst"]["1"]["theirs"]
    for name in ("dice", "dice_target_slices", "nsd", "lesion_sensitivity"):
        assert row[name].mean == 1.0
    assert row["false_alarm_rate"].mean == 0.0
    assert 0 < row["false_alarm_rate"].high < 0.7  # type: ignore[operator]  # four free patients say little
    assert row["hd95_mm"].mean == row["volume_error_ml"].mean == row["false_lesions"].mean == 0.0
    content = results([judged], held_out=["cyst"], seed=0, seconds=1.0, manifests=[made])
    assert content["target_absent"]["cyst"]["1"]["theirs"]["rightly_nothing"] == 8
    assert content["manifest"]["segmentation"]["sha256"] == made.digest


def test_what_is_missing_counts_as_the_worst_and_a_false_alarm_as_one(cohort: Cohort, tmp_path: Path) -> None:
    everything = lambda truth: np.ones_like(truth)  # noqa: E731
    made, answers = judged_masks(cohort, tmp_path, everything, leave_out=1)
    judged = replay({"theirs": answers}, made, Catalogue(cohort.volumes), Store(PLAN, salt="s"))
    missing = [c for c in judged.cases if c.missing]
    assert len(missing) == len(made.episodes)
    assert all(c.values["dice"] == c.values["nsd"] == 0 for c in missing)
    row = judged.table()["cyst"]["1"]["theirs"]
    assert row["false_alarm_rate"].mean == 1.0
    assert row["false_volume_ml"].mean == pytest.approx(20 * 18 * 12 * 2 / 1000)
    assert row["dice"].mean < row["dice_target_slices"].mean  # type: ignore[operator]
    assert any(
        "predictions were missing" in w for w in results([judged], held_out=[], seed=0, seconds=1)["warnings"]
    )
    with pytest.raises(EvaluationError, match="none of the manifest's episodes"):
        Answers(tmp_path / made.episodes[0].name, made)


def test_probabilities_of_another_program(cohort: Cohort, tmp_path: Path) -> None:
    made = draw_classification(
        cohort.volumes,
        ["cyst"],
        make_plan(cohort.volumes, whole=True, patch=(8, 8, 8)),
        shots=(1,),
        episodes=2,
    )
    asked = [(e, k) for e in made.episodes for k in sorted(e.query, key=lambda k: k.kind)]
    rows = [f"{e.name},{k.image},cyst,{0.9 if k.kind == 'cyst' else 0.2}" for e, k in asked]
    file = tmp_path / "predictions.csv"
    file.write_text("\n".join(["episode,image,type,probability", *rows[1:]]))  # a cyst is missing
    store = Store(make_plan(cohort.volumes, whole=True, patch=(8, 8, 8)), salt="s")
    catalogue = Catalogue(cohort.volumes)
    methods = {"theirs": Answers(tmp_path, made), "majority": Majority(), "nearest": NearestPixels()}
    judged = replay(methods, made, catalogue, store)
    assert sum(c.missing for c in judged.cases) == 1
    table = judged.table()["cyst"]["1"]
    assert (
        table["theirs"]["auroc"].mean == (1 + 0.75) / 2
    )  # one of four is below all others in one of two draws
    assert table["theirs"]["brier"].mean < 0.1  # type: ignore[operator]
    assert table["majority"]["auroc"].mean == 0.5
    assert table["majority"]["accuracy"].mean == 0.5
    file.write_text("episode,image,type,probability\na,b,cyst,1.5\n")
    with pytest.raises(EvaluationError, match=r"'1.5' in line 2"):
        Answers(tmp_path, made)
    file.write_text("episode,image\n")
    with pytest.raises(EvaluationError, match="no row"):
        Answers(tmp_path, made)


@pytest.mark.usefixtures("ascii_only")
def test_replaying_gives_the_same_figures_to_the_bit(run: Run, cohort: Cohort, tmp_path: Path) -> None:
    made = write_manifest(
        run, cohort, "cyst", tmp_path / "m.json", shots=(1,), episodes=1, paths=tmp_path / "p.csv"
    )
    assert len((tmp_path / "p.csv").read_text().splitlines()) == 1 + len(made.cases)
    with pytest.raises(EvaluationError, match="one that does"):
        write_manifest(run, cohort, "cyst", tmp_path / "m.json")
    with pytest.raises(EvaluationError, match=r"a folder to write p\.csv into"):
        write_manifest(run, cohort, "cyst", tmp_path / "n.json", paths=tmp_path / "none" / "p.csv")
    with pytest.raises(EvaluationError, match="two files"):
        write_manifest(run, cohort, "cyst", tmp_path / "n.json", paths=tmp_path / "n.json")
    assert not (tmp_path / "n.json").exists()
    never_there = replace(run, held_out=())  # as where no cohort of training had the type
    first = evaluate(never_there, cohort, tmp_path / "one", tumour="cyst", shots=(1,), episodes=1)
    assert first["held_out"] == ["cyst"]
    assert (tmp_path / "one" / "manifest.json").read_text() == (tmp_path / "m.json").read_text()
    taken = Beside(predictions={"Copied-mask": tmp_path})
    with pytest.raises(EvaluationError, match="no method's of medmeta, found 'Copied-mask'"):
        evaluate(run, cohort, tmp_path / "none", tumour="cyst", shots=(1,), episodes=1, beside=taken)
    beside = Beside(trained_on=[cohort])
    again = evaluate(
        run, cohort, tmp_path / "two", manifest=open_manifest(tmp_path / "m.json"), beside=beside
    )
    assert first["results"] == again["results"]
    assert first["differences"] == again["differences"]
    methods = set(first["results"]["cyst"]["1"])
    assert methods == {"prototypical", "safeguarded", *NAMES} - {
        "pretrain-finetune", "pretrain-linear", "ridge-untrained", "nearest-pixels", "majority",
    }  # fmt: skip
    proof = again["proof"][0]
    assert proof["voxels"] == proof["trained"]["images"] * proof["judged"]["images"] > 0
    assert proof["near"] > 0
    page = (tmp_path / "two" / "report.html").read_text(encoding="utf-8")
    assert "What was held out, and how that is known" in page
    assert "nan" not in (tmp_path / "two" / "results.json").read_text().lower()
    with pytest.raises(EvaluationError, match="a manifest of 'nodule'"):
        evaluate(run, cohort, tmp_path / "three", tumour="nodule", manifest=made)
    assert not (tmp_path / "three").exists()


def test_a_type_under_another_name_and_an_image_in_another_cohort_are_found(
    run: Run, cohort: Cohort, tmp_path: Path
) -> None:
    with pytest.raises(EvaluationError, match="'nodule', the same but for case or spelling"):
        check_names(run, ["Nodules"])
    renamed = tuple(replace(v, tumour="Cyst") if v.patient == "p00" else v for v in cohort.volumes)
    with pytest.raises(RunError, match="'Cyst', the same but for case or spelling"):
        train(replace(cohort, volumes=renamed), Recipe(), out=tmp_path / "run", hold_out=["cyst"])
    store = Store(run.plan, salt=run.config["salt"])
    new = [v for v in cohort.volumes if v.tumour == "cyst"]
    assert prove(run, ["cyst"], new, store).names > 0
    # a training image again, as another patient's, uncompressed, turned to another orientation, called a cyst
    seen = next(v for v in cohort.volumes if v.tumour == "nodule")
    image = nibabel.load(seen.image[0]).as_reoriented(np.array([[0, -1], [1, 1], [2, 1]]))
    nibabel.save(image, tmp_path / "stranger.nii")
    stranger = Volume("stranger", (tmp_path / "stranger.nii",), seen.mask, "cyst")
    with pytest.raises(EvaluationError, match="1 with the very voxels"):
        prove(run, ["cyst"], [*new, stranger], store)
    twin = replace(new[0], patient="twin")
    with pytest.raises(EvaluationError, match="under two or more patients"):
        prove(run, ["cyst"], [*new, twin], store)
    with pytest.raises(EvaluationError, match="patients whom training has not seen"):
        prove(run, ["cyst"], [seen], store)


def test_the_table_of_paths_is_csv_whatever_a_type_is_called(cohort: Cohort) -> None:
    kind = 'glioma, "high" grade'
    renamed = [replace(v, tumour=kind if v.tumour == "cyst" else v.tumour) for v in cohort.volumes]
    made = draw_segmentation(renamed, [kind], PLAN, shots=(1,), episodes=1)
    rows = list(csv.DictReader(io.StringIO(Catalogue(renamed).table(made))))
    assert [Key(row["image"], row["kind"]) for row in rows] == sorted(made.cases)
    assert all(Path(row["path"]).is_file() for row in rows)


def test_an_image_under_two_patients_is_refused_in_any_file(run: Run, cohort: Cohort, tmp_path: Path) -> None:
    """Its very bytes are one volume to the catalogue: of the copies' patients none may be passed over."""
    first = cohort.volumes[0]
    copy = Path(shutil.copy(first.image[0], tmp_path / "copy.nii.gz"))
    other = replace(first, patient="other", image=(copy,))
    catalogue = Catalogue([*cohort.volumes, other])
    made = draw_segmentation(catalogue.volumes, ["cyst"], PLAN, shots=(1,), episodes=1, catalogue=catalogue)
    for look in (lambda: catalogue.check(made), lambda: new_volumes(run, made, catalogue)):
        with pytest.raises(EvaluationError, match=r"1 image.* bytes are there under two or more patients"):
            look()
    # where nobody asks of the copies they do no harm
    others = draw_segmentation(catalogue.volumes, ["spot"], PLAN, shots=(1,), episodes=1, catalogue=catalogue)
    catalogue.check(others)


def test_the_proof_counts_what_was_looked_at(run: Run, cohort: Cohort, tmp_path: Path) -> None:
    store = Store(run.plan, salt=run.config["salt"])
    new = [v for v in cohort.volumes if v.tumour == "cyst"]
    old = [v for v in cohort.volumes if store.patient(v) in run.config["seen"]]
    strangers = replace(cohort, volumes=tuple(new))
    with pytest.raises(EvaluationError, match=rf"found none of the {len(old)} in the 1 given"):
        prove(run, ["cyst"], new, store, trained_on=[strangers])
    some = replace(cohort, volumes=tuple(old[:3]))
    proof = prove(run, ["cyst"], new, store, trained_on=[some])
    assert (proof.near, proof.looked) == (len(new) * 3, Looked(3, 3, 0))
    text = " ".join(proof.lines())
    assert f"3 images of the 3 of those {len(old)} patients whom the cohorts given hold (15 pairs)" in text
    assert f"the other {len(old) - 3} were not looked for" in text
    (tmp_path / "broken.nii.gz").write_bytes(b"no image")
    broken = replace(old[0], image=(tmp_path / "broken.nii.gz",))
    proof = prove(run, ["cyst"], new, store, trained_on=[replace(some, volumes=(broken, *old[1:3]))])
    assert (proof.near, proof.looked) == (len(new) * 2, Looked(3, 2, 1))
    assert "1 of their images could not be read and were not looked at" in " ".join(proof.lines())
    with pytest.raises(EvaluationError, match="none that can be read"):
        prove(run, ["cyst"], new, store, trained_on=[replace(some, volumes=(broken,))])
    assert "not looked for; --trained-on does" in " ".join(prove(run, ["cyst"], new, store).lines())


def test_a_type_in_the_rest_alone_was_trained_on(cohort: Cohort, tmp_path: Path) -> None:
    """Two patients with a polyp: too few for episodes of it, but shown as what is none of the others."""
    rare = [replace(v, tumour="polyp") if v.patient in ("p10", "p11") else v for v in cohort.volumes]
    recipe = Recipe(
        task="classification", learner="prototypical", schedule=Schedule(steps=1), shot=(1, 1),
        against="rest", patch=(16, 16, 16),
    )  # fmt: skip
    out = tmp_path / "run"
    run = train(replace(cohort, volumes=tuple(rare)), recipe, out=out, hold_out=["cyst"])
    assert (run.types, run.drawn) == (("nodule", "spot"), ("nodule", "polyp", "spot"))
    with pytest.raises(EvaluationError, match="a run that has not seen 'polyp', found it among the types"):
        check_names(run, ["polyp"])
    stranger = replace(rare[10], patient="stranger")
    assert run.unseen([stranger, replace(stranger, tumour="cyst")])[0].tumour == "cyst"
    # a run from before this was kept opens and goes on, and the proof says what is not known
    config = {name: value for name, value in run.config.items() if name != "drawn"}
    (out / "config.json").write_text(json.dumps(config))
    older = open_run(out)
    assert older.drawn == older.types
    new = [v for v in cohort.volumes if v.tumour == "cyst"]
    store = Store(run.plan, salt=run.config["salt"])
    says = [" ".join(prove(one, ["cyst"], new, store).lines()) for one in (run, older)]
    assert ["among the rest that they were told from is not known" in text for text in says] == [False, True]
    resumed = train(replace(cohort, volumes=tuple(rare)), recipe, out=out, hold_out=["cyst"], resume=True)
    assert resumed.drawn == run.drawn


def test_names_of_one_type() -> None:
    assert same_type("Tumour", "tumors")
    assert same_type("liver-metastasis", "Liver Metastasis")
    assert same_type("meningioma", "menigioma")
    assert not same_type("label_1", "label_2")
    assert not same_type("T1 glioma", "T2 glioma")
    assert not same_type("left", "right")
    assert not same_type("meningioma", "melanoma")


def test_a_copied_mask_is_the_majority_at_the_same_place() -> None:
    masks = torch.zeros(3, 8, 8)
    masks[:2, 2:4, 2:4] = 1
    masks[2, 6:, 6:] = 1
    scans = [labelled(m) for m in masks]
    found = CopiedMask().learn(scans)(torch.rand(1, 1, 16, 16)).argmax(1)[0]
    expected = torch.zeros(16, 16, dtype=torch.int64)
    expected[4:8, 4:8] = 1
    # linear interpolation rounds the corners off
    assert int((found != expected).sum()) <= 4
    assert int(found.sum()) >= 12


def labelled(mask: torch.Tensor) -> Prepared:
    return Prepared(torch.rand(1, 8, 8), mask, torch.eye(4), "p", "cyst")


def test_where_there_is_no_target_overlap_says_nothing() -> None:
    nothing = torch.zeros(6, 6, 4, dtype=torch.bool)
    something = nothing.clone()
    something[1:3, 1:3, 1:3] = True
    quiet, alarm = (judged_values(found, nothing, (1, 1, 2), 2.0) for found in (nothing, something))
    assert quiet["dice"] is None
    assert alarm["dice"] is None
    assert (quiet["false_alarm"], alarm["false_alarm"]) == (0.0, 1.0)
    assert alarm["false_volume_ml"] == pytest.approx(8 * 2 / 1000)
    missed = judged_values(nothing, something, (1, 1, 2), 2.0)
    assert (missed["dice"], missed["nsd"], missed["lesions_hit"]) == (0.0, 0.0, 0.0)
    assert "false_alarm" not in missed


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda m, e: m["episodes"].append(e), "every episode once, found 1 with the name of another"),
        (lambda m, e: e["query"].append(e["query"][0]), "every case once in episode cyst-1-0, found 1 again"),
        (lambda m, e: e.update(shot=5), "5 labelled of each class in the support .* found 1 of 1"),
        (lambda m, e: e.update(shot=-1), "another document"),
        (lambda m, e: e.update(draw=-1), "another document"),
        (lambda m, e: e.update(shot=1.5), "another document"),
        (lambda m, e: m.update(seed=float("inf")), "another document"),
        (lambda m, e: m.update(crops=-2), "another document"),
        (lambda m, e: m.update(crops=0), "at least 1 crop a support patient, found 0"),
        (
            lambda m, e: m.update(task="outlining"),
            "the task segmentation or classification, found 'outl",
        ),
        (lambda m, e: m.update(task="classification"), "episodes of classification, found 2 of the other"),
        (
            lambda m, e: e.update(classes=["cyst"]),
            "cases of the classes of episode cyst-1-0, found some of none",
        ),
        (lambda m, e: e.update(classes=["cyst", "background"]), "found some of none"),
        (lambda m, e: e.update(tumours=["background"]), "a type that is scored .* found another"),
        (lambda m, e: e.update(classes=["background", "cyst", "spot"]), "a type that is scored"),
        (
            lambda m, e: e.update(
                support=[k for k in e["query"] if k[1] == "none"][:1],
                query=[k for k in e["query"] if k[1] == "cyst"],
            ),
            "1 labelled of each class in the support .* found 0 of 1",
        ),
    ],
)
def test_an_episode_that_cannot_be_is_one_clear_error(
    cohort: Cohort, spoil: Callable[[dict, dict], None], words: str
) -> None:
    """Each was judged without a word, as something else than it said, or ended in a traceback."""
    plain = json.loads(drawn(cohort, episodes=1).text())
    spoil(plain, plain["episodes"][0])
    with pytest.raises(EvaluationError, match=words):
        read(json.dumps(plain))


def test_a_question_that_only_one_class_is_asked_is_refused(cohort: Cohort) -> None:
    plan = make_plan(cohort.volumes, whole=True, patch=(8, 8, 8))
    made = draw_classification(cohort.volumes, ["cyst"], plan, shots=(1,), episodes=1)
    (episode,) = made.episodes
    for keep, words in ((True, "a patient without 'cyst' .* found 4 with it"), (False, "13 without it")):
        query = tuple(k for k in episode.query if (k.kind == "cyst") == keep)
        spoilt = replace(made, episodes=(replace(episode, query=query),))
        with pytest.raises(EvaluationError, match=words):
            replay({"m": Majority()}, spoilt, Catalogue(cohort.volumes), Store(plan, salt="s"))


def test_a_manifest_that_would_be_refused_is_not_written(run: Run, cohort: Cohort, tmp_path: Path) -> None:
    """Half of what was asked for was there, and in the way of asking again."""
    first = next(v for v in cohort.volumes if v.tumour == "cyst")
    copy = Path(shutil.copy(first.image[0], tmp_path / "copy.nii.gz"))
    twice = replace(cohort, volumes=(*cohort.volumes, replace(first, patient="other", image=(copy,))))
    for paths in (None, tmp_path / "p.csv"):
        with pytest.raises(EvaluationError, match="under two or more patients"):
            write_manifest(run, twice, "cyst", tmp_path / "m.json", shots=(1,), episodes=1, paths=paths)
    assert not (tmp_path / "m.json").exists()


def test_a_mask_that_cannot_be_read_is_found_before_anything_is_adapted(
    run: Run, cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = write_manifest(run, cohort, "cyst", tmp_path / "m.json", shots=(1,), episodes=2)
    last = made.episodes[-1]
    for e in made.episodes:
        (tmp_path / e.name).mkdir()
    image = nibabel.Nifti1Image(np.ones((3, 3, 3), "u1"), np.eye(4))
    nibabel.save(image, tmp_path / last.name / f"{last.query[-1].image}.nii.gz")

    _nothing_is_chosen(monkeypatch)
    beside = Beside(predictions={"theirs": tmp_path})
    with pytest.raises(VolumeError, match="a mask on the image's grid"):
        evaluate(run, cohort, tmp_path / "out", manifest=made, beside=beside)


def test_more_labels_are_of_the_manifest_s_patients_at_its_tolerance(
    run: Run, cohort: Cohort, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of others in the cohort nothing was proved; a surface Dice at another tolerance is another score."""
    fewer = [v for v in cohort.volumes if v.patient not in ("p04", "p15", "p18")]
    made = replace(draw_segmentation(fewer, ["cyst"], run.plan, shots=(1,), episodes=1), crops=1)
    made = replace(made, episodes=tuple(replace(e, query=e.query[:-1]) for e in made.episodes))
    store, there = Store(run.plan, salt=run.config["salt"]), sys.modules["medmeta.evaluation.evaluate"]
    asked = there._Asked(run, cohort, made, Catalogue(cohort.volumes), store, silent)
    always = lambda ours, learnt, available, judge: judge("copied-mask", [2])  # noqa: E731
    monkeypatch.setattr(there, "judge_further", always)
    found = asked.answer({"copied-mask": CopiedMask()}, None, 7.5)
    assert found.further.tolerance == 7.5
    again = read(found.manifest.text())  # what was judged with more labels can be replayed
    assert {e.shot for e in again.episodes} == {2}
    replayed = replay({"copied-mask": CopiedMask()}, again, asked.catalogue, store, tolerance=7.5)
    assert replayed.cases == found.further.cases
    assert "with more labels 1, in manifest-further.json, sha256" in there._where(made, found.manifest)
    in_it = {store.patient(asked.catalogue[k]) for k in made.cases}
    assert {c.patient for c in found.further.cases} <= in_it
    assert asked._available == 4


def test_more_labels_are_of_every_type_of_the_manifest(
    cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They were of the first one alone, whichever it was that needed them."""
    recipe = Recipe(learner="prototypical", schedule=Schedule(steps=1), shot=(1, 1), patch=(16, 16, 8))
    run = train(cohort, recipe, out=tmp_path / "run", hold_out=["cyst", "nodule"])
    made = draw_segmentation(cohort.volumes, ["cyst", "nodule"], run.plan, shots=(1,), episodes=1)
    store, there = Store(run.plan, salt=run.config["salt"]), sys.modules["medmeta.evaluation.evaluate"]
    asked = there._Asked(run, cohort, made, Catalogue(cohort.volumes), store, silent)
    always = lambda ours, learnt, available, judge: judge("copied-mask", [available - 2])  # noqa: E731
    monkeypatch.setattr(there, "judge_further", always)
    found = asked.answer({"copied-mask": CopiedMask()}, None, 2.0)
    assert {(c.tumour, c.shot) for c in found.further.cases} == {("cyst", 3), ("nodule", 3)}
    assert found.manifest.tumours == ("cyst", "nodule")
    content = results([found.judged], held_out=made.tumours, seed=0, seconds=1.0, further=[found.further])
    assert {t: list(by_shot) for t, by_shot in content["further"].items()} == {"cyst": ["3"], "nodule": ["3"]}


def test_scans_are_shown_of_every_type_however_draws_are_numbered(cohort: Cohort) -> None:
    """Another program's manifest may number its draws through, and have fewer labels for one type."""
    made = draw_segmentation(cohort.volumes, ["cyst", "nodule"], PLAN, shots=(1, 3), episodes=2)
    numbered = [replace(e, draw=n) for n, e in enumerate(made.episodes) if e.shot == 1 or "cyst" in e.tumours]
    one = replace(made, episodes=tuple(numbered))
    judged = replay({"a": CopiedMask()}, one, Catalogue(cohort.volumes), Store(PLAN, salt="s"))
    shown = {(p.case.tumour, p.case.shot, p.case.draw) for p in judged.pictures}
    assert shown == {("cyst", 3, 2), ("nodule", 1, 4)}


def test_an_evaluation_stopped_by_sigterm_leaves_nothing_and_says_143(
    run: Run, cohort: Cohort, tmp_path: Path
) -> None:
    rows = [[v.patient, v.image[0], v.mask or "", v.tumour or "none"] for v in cohort.volumes]
    with (tmp_path / "cohort.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["patient", "image", "mask", "tumor"], *rows])
    out = tmp_path / "reports" / "report"
    command = [sys.executable, "-m", "medmeta", "evaluate", str(run.path), str(tmp_path / "cohort.csv")]
    command += ["--tumor", "cyst", "--shots", "1", "--episodes", "300", "--out", str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        began = time.monotonic()
        while not list(out.parent.glob(".report.*/manifest.json")) and process.poll() is None:
            assert time.monotonic() - began < 240
            time.sleep(0.05)
        assert process.poll() is None, process.communicate()
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGTERM)  # a second one changes nothing
        said, _ = process.communicate(timeout=120)
    assert process.returncode == 143, said
    assert "Traceback" not in said
    assert not list(out.parent.iterdir())


@pytest.fixture
def ascii_only() -> Iterator[None]:
    """A machine that writes text in ASCII where nothing else is said."""
    before = locale.setlocale(locale.LC_CTYPE)
    locale.setlocale(locale.LC_CTYPE, "C")
    yield
    locale.setlocale(locale.LC_CTYPE, before)
