"""Whatever is altered in a bundle is found before anything of it is run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from medmeta.clinical import BundleError, export, load_bundle, verify
from medmeta.clinical.bundle import FILES, SCRIPT, sha256
from medmeta.clinical.config_check import forbidden


@pytest.fixture
def copy(segment_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(segment_bundle, tmp_path / "copy"))


def sign(bundle: Path) -> None:
    """Make the manifest fit, as whoever alters a file could."""
    hashes = {name: sha256(bundle / name) for name in (*FILES, SCRIPT)}
    (bundle / "manifest.json").write_text(json.dumps({"sha256": hashes}))


def edit(bundle: Path, change: Callable[[dict[str, Any]], Any], name: str = "inference") -> list[str]:
    file = bundle / "configs" / f"{name}.json"
    config = json.loads(file.read_text())
    change(config)
    file.write_text(json.dumps(config))
    sign(bundle)
    return verify(bundle)


def test_an_exported_bundle_is_right(segment_bundle: Path, classify_bundle: Path) -> None:
    assert verify(segment_bundle) == []
    assert verify(classify_bundle) == []


@pytest.mark.parametrize("name", [*FILES, SCRIPT])
def test_one_bit_flipped_in_any_file(copy: Path, name: str) -> None:
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    assert verify(copy) == [f"{name}: changed since it was exported"]
    with pytest.raises(BundleError, match="changed since it was exported"):
        load_bundle(copy)


def test_a_file_missing_and_one_added(copy: Path) -> None:
    (copy / "LICENSE").unlink()
    (copy / "configs" / "train.json").write_text("{}")
    assert verify(copy) == ["LICENSE: missing", "configs/train.json: not in the manifest"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c.update(extra="$__import__('os').system('true')"), "expression"),
        (lambda c: c["run"].append("$@evaluator.run() "), "expression"),
        (lambda c: c.update(extra="%other.json#key"), "expression"),
        (lambda c: c["dataset"].update({"$print(1)": 1}), "expression"),
        (lambda c: c["dataset"].update(_target_="os.system"), "_target_ that no exported"),
        (lambda c: c["dataset"].update(_target_="monai.bundle.run"), "_target_ that no exported"),
        (lambda c: c["dataset"].update(_target_="monai.data.utils.os.system"), "_target_ that no exported"),
        (lambda c: c["layers"][0].update(_target_="torch.nn.modules.module.warnings.warn"), "no part of"),
        (lambda c: c["dataset"].update(_target_="Dataset"), "_target_ that no exported"),
        (lambda c: c.update({"dataset#_target_": "os.system"}), "another entry"),
        (lambda c: c.update({"dataset::_target_": "os.system"}), "another entry"),
        (lambda c: c.update({"+dataset": {}}), "another entry"),
        (
            lambda c: c["preprocessing"]["transforms"][0].update(reader="os.system", command="true"),
            "a reader",
        ),
        (lambda c: c["preprocessing"]["transforms"][0].update(reader=["NumpyReader"]), "a reader that no"),
        (lambda c: c["preprocessing"]["transforms"][0].update(allow_pickle=True), "run its data"),
        (lambda c: c.update(extra={"_target_": "monai.data.NumpyReader", "allow_pickle": True}), "its data"),
        (lambda c: c["dataset"].update(_target_=["os.system"]), "_target_ that no exported"),
        (lambda c: c.update(output_dir="/etc"), "leads out"),
        (lambda c: c.update(output_dir="../../up"), "leads out"),
        (lambda c: c.update(datalist=["https://example.org/a"]), "leads out"),
        (lambda c: c.pop("evaluator"), "without evaluator"),
    ],
)
def test_a_configuration_that_would_do_more(
    copy: Path, change: Callable[[dict[str, Any]], Any], said: str
) -> None:
    problems = edit(copy, change)
    assert any(said in p for p in problems), problems


@pytest.mark.parametrize(
    "target",
    [
        "torch.nn.modules.module.torch.load",
        "torch.nn.functional.torch.hub.load",
        "torch.optim.adam.torch.utils.collect_env.run",
        "monai.networks.nets.hovernet.download_url",
        "monai.networks.nets.milmodel.torch.hub.load",
        "monai.transforms.io.array.optional_import",
        "monai.networks.utils.deepcopy",
        "monai.networks.nets.UNet.load_state_dict",
        "monai.networks.nets",
        "monai.networks.nets.NoSuchNet",
        "monai.networks.utils.save_state",
        "monai.transforms.apply_transform",
        "monai.transforms.LoadImage",
        "monai.transforms.Lambda",
        "torch.optim.Adam",
        "torch.nn.",
    ],
)
def test_a_module_s_imports_are_no_classes_of_its_own(copy: Path, target: str) -> None:
    """Each is reached through an allowed home and was defined elsewhere, or is no class or function there."""

    def change(config: dict[str, Any]) -> None:
        config["run"] = [{"_target_": target, "f": "docs/extra.bin", "weights_only": False}]

    problems = edit(copy, change)
    assert any("inference.json: a _target_ that" in p and f": {target!r}" in p for p in problems)
    with pytest.raises(BundleError, match="do not run it"):
        load_bundle(copy)


@pytest.mark.parametrize(
    "target",
    [
        "monai.networks.nets.UNet",
        "monai.networks.nets.unet.UNet",
        "torch.nn.Conv3d",
        "torch.nn.modules.conv.Conv3d",
        "monai.data.Dataset",
        "medmeta.learners.in_context.in_context_predictor",
    ],
)
def test_a_class_may_be_named_where_it_is_defined_or_handed_on(target: str) -> None:
    assert list(forbidden({"_target_": target})) == []


def test_a_loader_that_calls_what_it_is_handed(copy: Path) -> None:
    loader = {"_target_": "monai.transforms.LoadImage", "_mode_": "callable", "cmd": "touch ran"}
    step = {
        "_target_": "monai.transforms.apply_transform",
        "data": "subprocess.getoutput",
        "transform": loader,
    }
    problems = edit(copy, lambda c: c.update(initialize=[step]))
    assert any("'_mode_'" in p for p in problems)
    assert any("'monai.transforms.apply_transform'" in p for p in problems)


def test_what_monai_would_run_of_metadata(copy: Path) -> None:
    """It is read as a section of the configuration, whose expressions a reference runs."""
    evil = "$__import__('os').system('touch ran')"
    assert edit(copy, lambda c: c.update(evil=evil), "metadata") == [
        f"configs/metadata.json: an expression: {evil!r}"
    ]
    assert any("'@_meta_::evil'" in p for p in edit(copy, lambda c: c.update(initialize=["@_meta_::evil"])))
    assert edit(copy, lambda c: c.update(evil="t2$"), "metadata") == [
        "configs/inference.json: an expression that no exported bundle has: '@_meta_::evil'"
    ]


def test_a_loader_without_a_list_of_readers(copy: Path) -> None:
    """MONAI's own list has one that unpickles arrays."""
    problems = edit(copy, lambda c: c["preprocessing"]["transforms"][0].pop("reader"))
    assert any("every format" in p for p in problems)


def test_metadata_without_a_field(copy: Path) -> None:
    assert edit(copy, lambda c: c.pop("monai_version"), "metadata") == [
        "configs/metadata.json: without monai_version"
    ]


def test_metadata_with_another_plan(copy: Path) -> None:
    assert "no plan" in edit(copy, lambda c: c["medmeta"]["plan"].update(version=99), "metadata")[0]


def test_weights_that_are_not_finite(copy: Path) -> None:
    state = load_file(copy / "models" / "model.safetensors")
    name = next(iter(state))
    state[name].view(-1)[0] = float("nan")
    save_file(state, copy / "models" / "model.safetensors")
    sign(copy)
    assert any("NaN or infinity" in p for p in verify(copy))


def test_a_pickle_that_runs_code(copy: Path, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"w": Evil()}, copy / "models" / "model.pt")
    sign(copy)
    assert any("cannot be read" in p for p in verify(copy))
    assert not (tmp_path / "ran").exists()


def test_a_link_out_of_the_bundle(copy: Path, tmp_path: Path) -> None:
    shutil.move(copy / "LICENSE", tmp_path / "LICENSE")
    (copy / "LICENSE").symlink_to(tmp_path / "LICENSE")
    assert verify(copy) == ["LICENSE: a link out of the bundle, or to no file"]


def test_the_manifest_says_nothing_of_files_outside(copy: Path) -> None:
    hashes = json.loads((copy / "manifest.json").read_text())["sha256"]
    (copy / "manifest.json").write_text(json.dumps({"sha256": {**hashes, "../other": "0"}}))
    assert verify(copy) == ["../other: not in the manifest, or outside the bundle"]
    (copy / "manifest.json").write_text("[]")
    assert verify(copy) == ["manifest.json: no list of SHA-256"]


def test_export_refuses(flat_parts: Callable[[], dict[str, Any]], tmp_path: Path) -> None:
    parts = flat_parts()
    out = tmp_path / "bundle"
    with pytest.raises(BundleError, match="with crops"):
        export(**{**parts, "task": "classification"}, out=out)
    with pytest.raises(BundleError, match="that of another network"):
        export(**{**parts, "network_spec": {**parts["network_spec"], "out_channels": 7}}, out=out)
    with pytest.raises(BundleError, match="2 outputs"):
        export(**{**parts, "classes": ("background", "a", "b")}, out=out)
    with pytest.raises(BundleError, match="class names"):
        export(**{**parts, "classes": ("background", "$evil")}, out=out)
    assert not list(tmp_path.iterdir())
    export(**parts, out=out)
    with pytest.raises(BundleError, match="does not exist"):
        export(**parts, out=out)


def test_a_key_of_metadata_that_makes_another_entry_something_to_build(copy: Path, tmp_path: Path) -> None:
    """MONAI joins ``version#_target_`` to ``version``, and builds it when someone asks for the version."""
    from monai.bundle import ConfigParser

    made = tmp_path / "made"

    def change(about: dict[str, Any]) -> None:
        about["version"] = {}
        about.update({"version#_target_": "os.mkdir", "version#path": str(made)})

    problems = edit(copy, change, "metadata")
    parser = ConfigParser({})
    parser.read_meta(copy / "configs" / "metadata.json")
    parser.get_parsed_content("_meta_::version")
    assert made.is_dir()  # so it would have been run
    assert "configs/metadata.json: a key that changes another entry: 'version#_target_'" in problems


def test_a_type_may_be_called_with_any_sign(copy: Path) -> None:
    rows = {"grade #2::a": {"1": {"+x": {"dice": {"mean": 0.5, "low": 0.4, "high": 0.6}}}}}
    assert edit(copy, lambda about: about["medmeta"].update(results={"results": rows}), "metadata") == []


@pytest.mark.parametrize("target", ["nothing", "LICENSE", "docs"])
def test_a_link_to_no_file(copy: Path, target: str) -> None:
    (copy / "LICENSE").unlink()
    (copy / "LICENSE").symlink_to(target)
    assert verify(copy) == ["LICENSE: a link out of the bundle, or to no file"]


@pytest.mark.parametrize("weights", [5, torch.ones(2), {"a": "b"}, "sparse"], ids=str)
def test_weights_that_are_no_tensors_by_name(copy: Path, weights: Any) -> None:
    state = torch.load(copy / "models" / "model.pt", weights_only=True)
    first = next(iter(state))
    made = {**state, first: state[first].to_sparse()} if weights == "sparse" else weights
    torch.save(made, copy / "models" / "model.pt")
    sign(copy)
    said = "differs from" if isinstance(weights, str) else "no tensors by name"
    assert any(said in problem for problem in verify(copy))


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("metadata", lambda a: a.update(network_data_format=[]), "inputs.image without type"),
        ("metadata", lambda a: a["network_data_format"].update(inputs=5), "inputs.image without type"),
        ("metadata", lambda a: a.update(medmeta=[]), "no plan or confidence"),
        ("metadata", lambda a: a["medmeta"].pop("about"), "no plan or confidence"),
        ("metadata", lambda a: a["medmeta"].update(about={"confidence": {"temperature": "hot"}}), "no plan"),
        (
            "metadata",
            lambda a: a["medmeta"].update(about={"confidence": {"distance_thresholds": []}}),
            "no plan",
        ),
        ("metadata", lambda a: a["medmeta"].update(classes="ab"), "classes that are no names"),
        ("metadata", lambda a: a["medmeta"].update(task="detection"), "neither segmentation nor class"),
        ("metadata", lambda a: a["medmeta"].update(task="classification"), "a plan for another task"),
        ("metadata", lambda a: a["medmeta"]["classes"].append("x"), "3 classes for 2 outputs"),
        (
            "metadata",
            lambda a: a["network_data_format"]["outputs"]["pred"].update(num_channels=4),
            "2 classes for 4 outputs",
        ),
        ("inference", lambda c: c["layers"][-1].update(out_channels=3), "2 classes for 3 outputs"),
        ("inference", lambda c: c.pop("layers"), "no list of layers"),
        ("inference", lambda c: c.update(layers=["a"]), "no list of layers"),
    ],
)
def test_what_is_of_another_shape_is_a_problem_and_no_crash(
    copy: Path, name: str, change: Callable[[dict[str, Any]], Any], said: str
) -> None:
    assert any(said in problem for problem in edit(copy, change, name))
    with pytest.raises(BundleError):
        load_bundle(copy)


def test_a_likeness_of_another_network(copy: Path) -> None:
    layers = json.loads((copy / "configs" / "inference.json").read_text())["layers"]
    right = layers[1]["in_channels"] + 2  # what the backbone gives, and of the image its values and steps
    for length in (right, right + 1):
        save_file({"centre": torch.ones(2, length)}, copy / "models" / "likeness.safetensors")
        sign(copy)
        hashes = json.loads((copy / "manifest.json").read_text())["sha256"]
        hashes["models/likeness.safetensors"] = sha256(copy / "models" / "likeness.safetensors")
        (copy / "manifest.json").write_text(json.dumps({"sha256": hashes}))
        said = f"moments of {length} features, where the network gives {right}"
        assert verify(copy) == ([] if length == right else [f"models/likeness.safetensors: {said}"])


@pytest.mark.parametrize("name", ["metadata", "inference"])
@pytest.mark.parametrize("content", [b"{", b"\xff\xfe{}", b""])
def test_what_is_no_json_is_a_problem(copy: Path, name: str, content: bytes) -> None:
    (copy / "configs" / f"{name}.json").write_bytes(content)
    sign(copy)
    said = f"configs/{name}.json: wanted the bundle's {name}.json, found a file that is no JSON"
    assert verify(copy) == [said]


@pytest.mark.parametrize("depth", [950, 100_000])
def test_brackets_in_brackets(copy: Path, depth: int) -> None:
    text = '{"a": ' + "[" * depth + "]" * depth + "}"
    (copy / "configs" / "inference.json").write_text(text)
    sign(copy)
    with pytest.raises(BundleError):
        load_bundle(copy)
