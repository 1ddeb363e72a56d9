"""The page: the answer first and honest, whole without a network, a viewer that works in a real browser."""

from __future__ import annotations

import csv
import html
import io
import itertools
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from medmeta.evaluation import NAMES, Case, Judged, Part, Picture, Report, advise, cases_csv, render, results
from medmeta.evaluation.checklist import CLAIM, TRIPOD, items
from medmeta.evaluation.failures import reason
from medmeta.evaluation.patients import patient_tables
from medmeta.evaluation.proof import Proof, Side
from medmeta.evaluation.viewer import film, reel
from medmeta.evaluation.words import answer, cautions
from medmeta.volumes import Plan, Volume

NAMED = {"maml": "meta-trained (maml)", **NAMES}


def phantom(
    level: dict[str, float], shots=(1, 3, 5), *, patients: int = 20, draws: int = 2, slope: float = 0.08
) -> Judged:
    """Made-up Dice: a level a method, so much more a doubling of labels, patients that differ."""
    generator = np.random.default_rng(0)
    ease = generator.normal(size=patients) / 15
    cases = []
    for (method, mean), shot, draw, p in itertools.product(
        level.items(), shots, range(draws), range(patients)
    ):
        dice = float(np.clip(mean + slope * np.log2(shot) + ease[p] + generator.normal() / 100, 0, 1))
        values = {"dice": dice, "hd95_mm": 5.0, "volume_error_ml": 0.0}
        cases.append(Case("rimose", shot, method, draw, f"{p:012x}", values))
    return Judged("segmentation", tuple(cases), (), dict.fromkeys(level, 1.0))


def scans(folder: Path, judged: Judged) -> Judged:
    """The same with pictures of real voxels: a bright ball, found by each method with an error of its own."""
    import nibabel

    shape, pictures = (48, 40, 12), []
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"))
    moved = {"maml": 3, "pixel-trees": 9}
    for p in range(5):
        centre = np.array([20, 18 + p, 5])[:, None, None, None]
        truth = ((grid - centre) ** 2).sum(0) < 17
        voxels = np.random.default_rng(p).normal(100, 10, shape) + 80 * truth
        file = folder / f"{p}.nii.gz"
        nibabel.save(nibabel.Nifti1Image(voxels.astype("f4"), np.diag([1.0, 1.0, 3.0, 1.0])), file)
        for method in moved:
            found = np.roll(truth, moved[method] + p, 0)
            case = next(c for c in judged.cases if (c.method, c.patient) == (method, f"{p:012x}"))
            kept = reel(Volume(f"p{p}", (file,)), torch.tensor(truth), torch.tensor(found), (1.0, 1.0, 3.0))
            cut = [a[..., 5].T for a in (voxels, truth, found)]
            pictures.append(Picture(case, cut[0], cut[1], cut[2], 1.0, kept))
    return Judged(judged.task, judged.cases, tuple(pictures), judged.seconds)


def page_of(part: Part) -> str:
    return render(
        Report("A title", "Below it", [part], {"Seed": "0"}, proof=["no volume of it was trained on"])
    )


def said(judged: Judged, further: Judged | None = None) -> str:
    """The answer, and the warnings."""
    (advice,) = advise(judged, {"maml"}, further=further)
    return " ".join([*answer(advice, NAMED), *cautions([judged])])


def test_the_report_opens_with_what_to_use_and_says_where_a_plain_way_wins() -> None:
    judged = phantom({"maml": 0.3, "pretrain-finetune": 0.5, "pixel-trees": 0.2})
    text = said(judged)
    assert "rimose: with 5 labelled patients, use the pre-trained and fine-tuned network: Dice 0.6" in text
    assert "This is sure" in text
    assert "ahead of the next best, the meta-trained (maml)" in text
    assert "Meta-training saves no labels here: the pre-trained and fine-tuned network reaches" in text
    assert "Few patients were outlined, 20 with rimose: intervals are wide" in text
    assert "Only 2 supports were drawn" in text


def test_the_labels_that_the_ordinary_way_needs_are_read_off_its_curve() -> None:
    judged = phantom({"maml": 0.5, "pretrain-finetune": 0.4, "pixel-trees": 0.2})
    text = said(judged)
    assert "would need more than the 5 labelled patients that it was judged with" in text
    # .5 + .08 log2 5 = .4 + .08 log2 n has n = 5 * 2 ** 1.25 = 11.9
    text = said(judged, phantom({"pretrain-finetune": 0.4}, (10, 20)))
    assert "would need about 12 labelled patients (95 % interval" in text
    assert "From 3 to 5 labelled patients the meta-trained (maml) gained 0.0" in text
    assert "label more, that still pays" in text


def test_another_program_is_no_ordinary_way() -> None:
    """What it was trained on is not known: that few labels do for it says nothing of those that are saved."""
    judged = phantom({"maml": 0.4, "pretrain-finetune": 0.3, "pixel-trees": 0.6})
    theirs = Judged(judged.task, judged.cases, (), {**judged.seconds, "pixel-trees": None})
    text = said(theirs)
    assert "use the pixel classifier" in text
    assert "saves" not in text
    assert "The best ordinary way, the pre-trained and fine-tuned network, would need more than the 5" in text
    assert "for the same Dice" not in text
    assert "to score as the meta-trained (maml) does" in text


def test_a_warning_counts_those_whom_the_score_rests_on() -> None:
    """Many who are free of a tumour make the Dice of a few who have it no surer, nor does another type."""
    few = phantom({"maml": 0.4}, patients=12, draws=10)
    free = [replace(c, patient=f"{n}", values={}, truth=False) for n, c in enumerate(few.cases)][:90]
    other = [replace(c, tumour="sericate", patient=f"s{c.patient}") for c in few.cases]
    (line,) = cautions([replace(few, cases=(*few.cases, *free, *other))])
    assert line.startswith("Few patients were outlined, 12 with rimose; 12 with sericate: intervals are wide")
    asked = [
        Case("cyst", 1, "m", d, f"{p}", truth=p < 12, probability=0.5) for d in range(10) for p in range(99)
    ]
    (line,) = cautions([Judged("classification", tuple(asked), (), {"m": 1.0})])
    assert line.startswith("Few patients were told apart, 12 with cyst and 87 without: intervals are wide")


def test_a_warning_counts_the_supports_of_each_number_of_labels() -> None:
    """A manifest of another hand may have many for one number, and one for another."""
    judged = phantom({"maml": 0.4}, draws=10)
    alone = tuple(c for c in judged.cases if c.shot < 5 or c.draw == 0)
    assert "Only 1 support was drawn for some number of labels" in cautions([replace(judged, cases=alone)])[1]


def test_no_method_is_recommended_that_finds_nothing() -> None:
    (advice,) = advise(phantom({"maml": 0.0, "pixel-trees": 0.0}, slope=-9.0), {"maml"})
    first, others = answer(advice, NAMED)
    assert first.startswith(
        "rimose: with 5 labelled patients, no method that was judged is of use: of the best"
    )
    assert "ordinary way" not in others
    assert advice.to_json()["of_use"] is False


@pytest.mark.parametrize(("right", "words"), [(50, "no better than chance"), (60, "is not sure")])
def test_chance_is_no_score(right: int, words: str) -> None:
    """An AUROC of a half is that of a coin, and one whose interval holds it may be."""
    chance = [float((p % 2 == 0) == (p < right)) for p in range(100)]
    cases = tuple(
        Case("cyst", 1, "m", 0, f"{p}", truth=p % 2 == 0, probability=c) for p, c in enumerate(chance)
    )
    (advice,) = advise(Judged("classification", cases, (), {"m": 1.0}), {"m"})
    assert words in " ".join(answer(advice, {"m": "network"}))


def test_what_scores_the_same_is_not_ahead() -> None:
    judged = phantom({"maml": 0.4})
    twin = tuple(replace(c, method="pixel-trees") for c in judged.cases)
    text = said(replace(judged, cases=(*judged.cases, *twin), seconds={"maml": 1.0, "pixel-trees": 1.0}))
    assert "The pixel classifier (ExtraTrees) scores the same, on the same patients and supports." in text
    assert "ahead" not in text


def test_nothing_is_sure_of_a_few_patients_or_of_other_supports_than_one() -> None:
    assert "From fewer than 10 patients nothing is called sure: it is 0.2" in said(
        phantom({"maml": 0.4, "pixel-trees": 0.2}, patients=5)
    )
    one = said(phantom({"maml": 0.4, "pixel-trees": 0.2}, draws=1))
    assert "This is sure for the one support that was drawn: it is 0.2" in one


def test_what_cannot_be_told_is_not_told() -> None:
    """Two methods alike, one number of labels: no winner is made up, and nothing is said of more labels."""
    text = said(phantom({"maml": 0.4, "pixel-trees": 0.4}, (3,)))
    assert "This is not sure" in text
    assert "saves no labels" not in text
    assert "cannot be told from one number of labels" in text
    flat = said(phantom({"maml": 0.4, "pixel-trees": 0.2}, slope=0.0))
    assert "labelling more hardly pays" in flat


def test_the_page_needs_no_network_and_has_no_nan(tmp_path: Path) -> None:
    judged = phantom({"maml": 0.3, "pixel-trees": 0.2}, (1, 3), patients=6)
    nothing = Case("lost", 1, "maml", 0, "0" * 12, {"dice": None, "hd95_mm": None, "volume_error_ml": 0.0})
    judged = Judged(judged.task, (*judged.cases, nothing), (), judged.seconds)
    page = page_of(Part(scans(tmp_path, judged), "maml", {m: NAMED[m] for m in ("maml", "pixel-trees")}))
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", page)
    assert "default-src 'none'" in page
    assert "<strong>lost: which method to use cannot be told" in page
    assert not re.search(r"\b(nan|None|inf)\b", re.sub(r"base64,[^\"']+", "", page.replace("isNaN", "")))
    for image in re.findall(r"<img [^>]+>", page):
        assert re.search(r'alt="[^"]{10,}"', image)


FACTS = {
    "Tumour type": "rimose, in no stage of training",
    "Trained on": "annular",
    "Learner": "maml (400 outer steps)",
    "Patients judged": "6",
    "Episodes": "6, in manifest.json, sha256 0123456789abcdef",
    "Preprocessing": str(Plan(3, (1.0, 1.0, 2.0), (16, 16, 8), 1)),
    "Seed": "0",
    "Versions": "medmeta 0.1.0",
}
"""As an evaluation gives them."""
MADE = {f"made/{name}" for name in FACTS}
PROOF = Proof(
    ("rimose",), {"training": ("annular",)}, Side(9, 9, "0" * 64), Side(6, 6, "1" * 64), 1, 54, 54, None
)
STANDS = {
    "whether few labels do for a type never trained on": "with 1 labelled patient",
    "which method to use": "use the meta-trained",
    "preprocessing": "Preprocessing .*spacing",
    "crops, or volumes or lesions whole": "crops of",
    "the scan, and the outline of a lesion": "by the scan and, where lesions are classified, their outlines",
    "how many were judged": "; 6 judged",
    "each patient judged": "tumour .*yes",
    "a missing prediction counts the worst": "A prediction that is missing counts as the worst",
    "held-out type; those learnt from and judged apart": "learnt from and those judged are different",
    "by type and patient": "none of them one of the 9 whom training or validation saw",
    "the patient, and the tumour type": "not rimose, nor that in other case .* different patients",
    "the tumour type": "training: annular; not rimose",
    "how many were trained on, how many judged": "6 patients were learnt from or judged, .* of the 9",
    "learner": "Learner .*maml .*outer steps",
    "steps": "400 outer steps",
    "with intervals, a row a method": "method .*pixel classifier",
    "learnt from drawn ones, others judged": "drawn anew for each support.* same other patients",
    "a mask, or a probability": "gives a mask .* likelier than not",
    "every episode, in manifest.json": "in manifest.json",
    "medmeta and its version": "medmeta 0.1.0",
    "versions": "medmeta 0.1.0",
    "seed": "Seed 0",
    "keys are salted hashes": "Keys are salted hashes",
    "named above each table": "rimose: Dice",
    "every table": "rimose: Dice .*0\\.\\d\\d",
    "intervals by patient and draw": "95 % interval, clustered by patient and by draw",
    "intervals count in which supports": "by draw of the support",
    "intervals; no subgroups": "95 % interval",
    "patients of the cohort who were not learnt from": "Mean over patients who were not learnt from",
    "worst cases, with the reason": "displaced|over-segmented|under-segmented|elsewhere",
    "warnings": "Few patients were outlined, 6 with rimose",
    "whether to label more": "label more|labelling more",
    "in words": "use the",
}
"""What an item's note begins with, and what must stand in the section that it leads to."""


def sections(page: str) -> dict[str, str]:
    """The text of each section of a page, without drawings."""
    found = re.findall(r'<section id="(\w+)".*?</section>', page, re.DOTALL)
    plain = {}
    for name in found:
        body = re.search(rf'<section id="{name}".*?</section>', page, re.DOTALL)
        assert body
        text = re.sub(r"<svg.*?</svg>", "", body.group(0), flags=re.DOTALL)
        plain[name] = " ".join(html.unescape(re.sub(r"<[^>]+>", " ", text)).split())
    return plain


def test_every_answered_item_of_a_checklist_stands_where_it_leads(tmp_path: Path) -> None:
    bare = phantom({"maml": 0.3, "pixel-trees": 0.2}, (1,), patients=6)
    part = Part(scans(tmp_path, bare), "maml", {m: NAMED[m] for m in ("maml", "pixel-trees")})
    page = render(Report("A title", "Below it", [part], FACTS, proof=PROOF.lines()))
    links = re.findall(r'<a href="#([^"]+)">here</a>: ([^<]+)', page)
    assert len(links) > 30
    text = sections(page)
    for section, note in links:
        said = html.unescape(note)
        wanted = STANDS[max((begin for begin in STANDS if said.startswith(begin)), key=len)]
        assert re.search(wanted, text[section]), (section, said)
    answered = {
        i.note for checklist in (TRIPOD, CLAIM) for i in items(checklist, {*text, *MADE, "answer/warnings"})
    }
    assert {html.unescape(note) for _, note in links} == {
        n for n in answered if not n.startswith("not answered")
    }
    without = page_of(Part(bare, "maml", NAMED))  # neither pictures nor any fact but the seed
    assert '"#failures">here' in page
    assert '"#failures">here' not in without
    assert "every episode, in manifest.json" not in without


def test_the_page_prints_the_ends_that_results_json_has() -> None:
    """The bootstrap behind a lopsided score has one seed, whatever seed patients were drawn with."""
    generator = np.random.default_rng(0)
    cases = [
        Case("rimose", 1, method, 0, f"{p:012x}", {"dice": 0.5, "volume_error_ml": generator.gamma(0.3, 9.0)})
        for method, p in itertools.product(("maml", "pixel-trees"), range(12))
    ]
    judged = Judged("segmentation", tuple(cases), (), {"maml": 1.0, "pixel-trees": 1.0})
    content = results([judged], held_out=["rimose"], seed=7, seconds=1.0)
    there = content["results"]["rimose"]["1"]["maml"]["volume_error_ml"]
    assert there == Part(judged, "maml", NAMED).table["rimose"]["1"]["maml"]["volume_error_ml"].to_json()
    assert there != judged.table(7)["rimose"]["1"]["maml"]["volume_error_ml"].to_json()
    page = page_of(Part(judged, "maml", {m: NAMED[m] for m in ("maml", "pixel-trees")}))
    assert f"{there['low']:.2f}–{there['high']:.2f}" in page


def test_failures_are_told_apart() -> None:
    assert reason(0.0, 3.0, 0.0).startswith("false alarm")
    assert reason(3.0, 0.0, 0.0).startswith("missed")
    assert reason(3.0, 3.0, 0.0).startswith("elsewhere")
    assert reason(3.0, 5.0, 3.0).startswith("over-segmented")
    assert reason(3.0, 1.0, 1.0).startswith("under-segmented")
    assert reason(3.0, 3.3, 2.0).startswith("displaced")


def test_a_film_is_small_and_loses_no_small_target() -> None:
    image, truth = torch.rand(300, 256, 130), torch.zeros(300, 256, 130, dtype=torch.bool)
    truth[100, 100, 101] = True
    made = film(image, truth, {"a": ~truth & False}, (0.7, 0.7, 1.0))
    assert max(made.rows, made.columns) <= 176
    assert made.count <= 40
    assert made.start == 101 // made.step
    assert len(made.image) + len(made.masks["a"]) < 900_000  # pure noise; a scan compresses better


def test_cases_are_written_as_they_were_judged() -> None:
    judged = phantom({"maml": 0.3}, (1,), patients=2, draws=1)
    lines = cases_csv([judged]).splitlines()
    assert len(lines) == 3
    row = dict(zip(lines[0].split(","), lines[1].split(","), strict=True))
    assert float(row["dice"]) == pytest.approx(judged.cases[0].values["dice"], abs=1e-6)
    assert row["patient"] == judged.cases[0].patient


def test_a_patient_with_the_tumour_in_one_of_two_scans_has_it() -> None:
    after = Case("a", 1, "m", 0, "p", {"dice": None, "false_alarm": 0.0}, truth=False)
    cases = (after, replace(after, values={"dice": 0.5}, truth=True))
    (table,) = patient_tables(Judged("segmentation", cases, (), {"m": 1.0}), {"m": "maml"})
    assert table.rows == (("p", "yes", "0.50", "1"),)


def test_a_missing_prediction_is_told_from_a_wrong_one_in_the_table_of_cases() -> None:
    """Both have Dice 0."""
    case = Case("a", 1, "m", 0, "p", {"dice": 0.0})
    rows = list(
        csv.DictReader(
            io.StringIO(cases_csv([Judged("segmentation", (case, replace(case, missing=True)), (), {})]))
        )
    )
    assert [(row["dice"], row["missing"]) for row in rows] == [("0.0", "0"), ("0.0", "1")]
    assert list(rows[0])[-1] == "missing"


DRIVE = Path(__file__).with_name("drive_viewer.js")


@pytest.mark.slow
def test_the_viewer_works_in_a_browser(tmp_path: Path) -> None:
    """Chromium, offline: keys, slider, swipe, the boxes, other scans and methods, sorting."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium (Debian: apt-get install chromium)")
    judged = scans(tmp_path, phantom({"maml": 0.3, "pixel-trees": 0.2}, (3,)))
    page = page_of(Part(judged, "maml", {m: NAMED[m] for m in ("maml", "pixel-trees")}))
    file = tmp_path / "page.html"
    file.write_text(page.replace("</body>", f"<script>{DRIVE.read_text()}</script></body>"))
    command = [
        program,
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    command += ["--virtual-time-budget=8000", "--window-size=390,900", "--dump-dom", f"file://{file}"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    found = re.search(r'<pre id="seen">(.*?)</pre>', shown, re.DOTALL)
    assert found, "the script in the page did not end"
    seen = json.loads(html.unescape(found.group(1)))
    assert [s.split(":")[0] for s in seen["scans"]] == ["rimose, best", "rimose, median", "rimose, worst"]
    assert len(seen["methods"]) == 2
    first = seen["first"]
    assert first["slice"] == 5  # the middle of the ball
    assert first["grey"] > 10_000
    assert first["coloured"] > 300
    assert "Slice 6 of 12" in first["said"]
    assert "truth in this slice" in first["said"]
    assert (seen["up"]["slice"], seen["down"]["slice"]) == (6, 4)
    assert (seen["end"]["slice"], seen["home"]["slice"]) == (11, 0)
    assert seen["end"]["coloured"] == 0  # the ball does not reach the last slice
    assert seen["slider"] == first
    assert 0 < seen["noTruth"]["coloured"] < first["coloured"]
    assert seen["neither"]["coloured"] == 0
    assert seen["swiped"]["slice"] > first["slice"]
    assert seen["next"]["at"] == "1"
    assert seen["other"]["coloured"] > 0
    assert seen["sorted"] == sorted(seen["sorted"])
    assert len(seen["sorted"]) == 20
