"""What takes a bundle besides MONAI's run: its exports and loader, ONNX, MONAI Deploy's conventions."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch

from medmeta.clinical import BundleError, hand_on, load_bundle, predict, verify
from medmeta.clinical.bundle import sha256

pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning",
    "ignore::DeprecationWarning",
    "ignore::FutureWarning",
    "ignore::torch.jit.TracerWarning",
)


@pytest.fixture(scope="module", params=["segment", "classify"])
def bundle(request: pytest.FixtureRequest) -> Path:
    return Path(request.getfixturevalue(f"{request.param}_bundle"))


def files(bundle: Path) -> dict[str, str]:
    return {
        "meta_file": str(bundle / "configs" / "metadata.json"),
        "config_file": str(bundle / "configs" / "inference.json"),
        "ckpt_file": str(bundle / "models" / "model.pt"),
    }


def image() -> torch.Tensor:
    return torch.randn(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))


def from_onnx(file: Path, given: torch.Tensor) -> torch.Tensor:
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return torch.as_tensor(session.run(None, {session.get_inputs()[0].name: given.numpy()})[0])


def test_monai_exports_torchscript(bundle: Path, tmp_path: Path) -> None:
    from monai.bundle import ckpt_export, load

    ckpt_export("network_def", filepath=str(tmp_path / "model.ts"), use_trace=True, **files(bundle))
    script = torch.jit.load(str(tmp_path / "model.ts"))
    with torch.no_grad():
        assert torch.allclose(script(image()), load_bundle(bundle)(image()), atol=1e-5)
        loaded = load(bundle.name, bundle_dir=str(bundle.parent), workflow_type="inference", device="cpu")
        assert torch.allclose(loaded.eval()(image()), load_bundle(bundle)(image()), atol=1e-5)


def test_monai_exports_onnx(segment_bundle: Path, tmp_path: Path) -> None:
    from monai.bundle import onnx_export

    onnx_export("network_def", filepath=str(tmp_path / "model.onnx"), use_trace=True, **files(segment_bundle))
    with torch.no_grad():
        wanted = load_bundle(segment_bundle)(image())
    assert torch.allclose(from_onnx(tmp_path / "model.onnx", image()), wanted, atol=1e-4)


def deployed(bundle: Path, given: torch.Tensor) -> tuple[torch.Tensor, dict[str, str]]:
    """Probabilities and names as MONAI Deploy's bundle operator finds them: ``model.ts`` first, the first
    input and output of the metadata, pre- and postprocessing by their usual keys."""
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    config = json.loads((bundle / "configs" / "inference.json").read_text())
    keys = {"network_def", "preprocessing", "postprocessing", "inferer", "device"}
    assert keys <= set(config)
    formats = metadata["network_data_format"]
    (_, inputs), (_, outputs) = (next(iter(formats[side].items())) for side in ("inputs", "outputs"))
    assert given.shape[1:] == (inputs["num_channels"], *inputs["spatial_shape"])
    assert inputs["dtype"] == "float32"
    with torch.no_grad():
        made = torch.jit.load(str(bundle / "models" / "model.ts"))(given)
    assert made.shape[1] == outputs["num_channels"]
    return made.softmax(1), outputs["channel_def"]


def test_a_reader_by_monai_deploys_conventions(bundle: Path) -> None:
    made, named = deployed(bundle, image())
    own = load_bundle(bundle)
    assert torch.allclose(made, own(image()).softmax(1), atol=1e-5)
    assert tuple(named.values()) == own.classes


def test_handed_on(segment_bundle: Path, unseen: tuple[Path, Path], tmp_path: Path) -> None:
    figures = {
        "dice": {"mean": 0.31, "low": 0.2, "high": 0.415, "secret": "P0001"},
        "nsd": {"mean": None, "low": None, "high": None},
    }
    found = {
        "results": {"crested": {"5": {"maml": figures}}},
        "patients": 12,
        "episodes": {"segmentation": 10},
        "held_out": ["crested"],
        "seed": 0,
        "cases": ["P0001"],
    }
    (tmp_path / "results.json").write_text(json.dumps(found))
    (tmp_path / "licence.txt").write_text("CC BY 4.0, the owners")
    told: dict[str, Any] = {"authors": "A. Body", "copyright": "A hospital", "onnx": True}
    made = hand_on(
        segment_bundle,
        tmp_path / "made",
        results=tmp_path / "results.json",
        data_licence=tmp_path / "licence.txt",
        **told,
    )
    assert verify(made) == []
    with torch.no_grad():
        wanted = load_bundle(segment_bundle)(image())
        assert torch.equal(load_bundle(made)(image()), wanted)
    assert torch.allclose(from_onnx(made / "models" / "model.onnx", image()), wanted, atol=1e-4)
    text = (made / "docs" / "README.md").read_text()
    assert "| crested | 5 | maml | 0.31 [0.2 to 0.415] | n/a |" in text
    assert "judged on no data" not in text
    assert "(episodes:\n10 of segmentation)" in text
    about = json.loads((made / "configs" / "metadata.json").read_text())
    assert (about["authors"], about["copyright"]) == ("A. Body", "A hospital")
    assert (made / "docs" / "data_license.txt").read_text() == "CC BY 4.0, the owners"
    assert not [f for f in made.rglob("*") if f.is_file() and b"P0001" in f.read_bytes()]
    assert predict(made, unseen[:1], tmp_path / "out")[0]["ok"]
    (made / "models" / "model.onnx").write_bytes(b"another")
    assert verify(made) == ["models/model.onnx: changed since it was exported"]


def test_no_file_knows_the_programs_that_wrote_it(segment_bundle: Path, tmp_path: Path) -> None:
    """torch notes who called, in TorchScript and ONNX: the folder of a notebook may be a patient's."""
    notebook = compile("made = hand_on(bundle, out, onnx=True)", "/home/DOE_JANE/notebook.py", "exec")
    exec(notebook, {"hand_on": hand_on, "bundle": segment_bundle, "out": tmp_path / "made"})
    for file in filter(Path.is_file, (tmp_path / "made").rglob("*")):
        content = file.read_bytes()
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                content = b"".join(archive.read(name) for name in archive.namelist())
        for told in (b"DOE_JANE", b"site-packages", b"medmeta/clinical", str(Path.home()).encode()):
            assert told not in content, (file.name, told)


def test_what_an_earlier_version_said_of_the_data_is_said_anew(segment_bundle: Path, tmp_path: Path) -> None:
    old, file = Path(shutil.copytree(segment_bundle, tmp_path / "old")), "docs/data_license.txt"
    now = (old / file).read_text()
    earlier = "This bundle holds no image and no annotation.\n\n" + now.partition("\n\n")[2]
    signed = json.loads((old / "manifest.json").read_text())
    for said, wanted in ((earlier, now), ("No part of it may be sold.", "No part of it may be sold.")):
        (old / file).write_text(said)
        signed["sha256"][file] = sha256(old / file)
        (old / "manifest.json").write_text(json.dumps(signed))
        made = hand_on(old, tmp_path / f"made {len(said)}")
        assert (made / file).read_text() == wanted


def resigned(bundle: Path, about: dict[str, Any]) -> Path:
    """The bundle with more said of its adaptation."""
    file, signed = bundle / "configs" / "metadata.json", json.loads((bundle / "manifest.json").read_text())
    metadata = json.loads(file.read_text())
    metadata["medmeta"]["about"].update(about)
    file.write_text(json.dumps(metadata))
    signed["sha256"]["configs/metadata.json"] = sha256(file)
    (bundle / "manifest.json").write_text(json.dumps(signed))
    return bundle


def test_results_of_another_run_are_not_handed_on(segment_bundle: Path, tmp_path: Path) -> None:
    """The card says that they are of the run that the bundle was adapted from."""
    about = {"learner": "maml", "trained_on": ["annular", "hollow"]}
    bundle = resigned(Path(shutil.copytree(segment_bundle, tmp_path / "bundle")), about)
    figures = {"dice": {"mean": 0.31, "low": 0.2, "high": 0.4}}
    others = (
        ("segmentation", "maml", ["hollow", "annular"], ""),
        ("classification", "maml", ["hollow", "annular"], "classification, and the bundle is of seg"),
        ("segmentation", "reptile", ["hollow", "annular"], "none of its learner, maml"),
        ("segmentation", "maml", ["hollow", "brindled"], "trained on brindled, hollow, and the bundle's on"),
    )
    for number, (task, learner, types, wanted) in enumerate(others):
        results = tmp_path / "results.json"
        told = {"patients": 12, "episodes": {task: 10}, "held_out": ["crested"], "seed": 0}
        told["proof"] = [{"stages": {"training": types}}]
        told["results"] = {"crested": {"5": {learner: figures}}}
        results.write_text(json.dumps(told))
        if not wanted:
            hand_on(bundle, tmp_path / "made", results=results)
            continue
        with pytest.raises(BundleError, match=wanted):
            hand_on(bundle, tmp_path / f"refused {number}", results=results)


def test_a_card_says_what_monai_alone_does_not_take_back(segment_bundle: Path, tmp_path: Path) -> None:
    said = "less than 1.5 mL is outlined in all"
    assert "takes that back" not in (segment_bundle / "docs" / "README.md").read_text()
    about = {"confidence": {"least_ml": 1.5}}
    bundle = resigned(Path(shutil.copytree(segment_bundle, tmp_path / "bundle")), about)
    assert said in (hand_on(bundle, tmp_path / "made") / "docs" / "README.md").read_text()


def test_what_is_not_handed_on(segment_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="does not exist"):
        hand_on(segment_bundle, tmp_path)
    with pytest.raises(BundleError, match=r"wanted the results\.json"):
        hand_on(segment_bundle, tmp_path / "a", results=segment_bundle / "manifest.json")
    with pytest.raises(BundleError, match="data's licence"):
        hand_on(segment_bundle, tmp_path / "a", data_licence=tmp_path / "none")
    with pytest.raises(BundleError, match="a bundle folder"):
        hand_on(tmp_path / "none", tmp_path / "a")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_on_the_command_line(segment_bundle: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "medmeta",
        "export",
        str(segment_bundle),
        "--out",
        str(tmp_path / "made"),
        "--onnx",
    ]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert ran.returncode == 0, ran.stderr
    assert verify(tmp_path / "made") == []
