"""Whether a bundle is what was exported, and runs nothing but what it says."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from medmeta.clinical import bundle as names
from medmeta.clinical.bundle import BundleError, read_json, sha256
from medmeta.clinical.confidence import OWN, Confidence
from medmeta.clinical.config_check import expressions, forbidden
from medmeta.volumes import CohortError, Plan

REQUIRED = (
    "schema",
    "version",
    "changelog",
    "monai_version",
    "pytorch_version",
    "numpy_version",
    "required_packages_version",
    "supported_apps",
    "task",
    "description",
    "authors",
    "copyright",
    "network_data_format",
    "medmeta",
)
_PROPERTIES = ("bundle_root", "device", "dataset_dir", "dataset", "inferer", "evaluator", "network_def")
_FORMAT = ("type", "format", "num_channels", "spatial_shape", "dtype", "value_range", "channel_def")


def verify(bundle: str | os.PathLike[str]) -> list[str]:
    """Say what is wrong with a bundle; nothing in it is run.

    Checks every file against the manifest's SHA-256, the metadata's fields, that weights are finite and the
    same in both files, and the configuration: no expression but :data:`~medmeta.clinical.bundle.EXPRESSIONS`,
    no ``_target_`` but those of an export and parts of networks, no reader or writer but those of an export,
    no absolute or outward path. Metadata is read as configuration, too: no expression in it.
    A manifest finds damage; it proves no origin, for whoever alters a file can alter the manifest too.

    Args:
        bundle: the folder.

    Returns:
        One line a problem; empty where there is none.

    Example:
        >>> import tempfile
        >>> print(*verify(tempfile.mkdtemp()))
        manifest.json: wanted the bundle's manifest.json, found none
    """
    folder = Path(bundle)
    problems = list(_manifest(folder))
    if problems:  # damaged files are not looked into
        return problems
    configs, unread = _configs(folder)
    problems = [*unread, *_metadata(configs), *_weights(folder), *_configuration(configs)]
    return problems or list(_fitting(folder, configs))  # what is of another shape fits nothing


def _manifest(folder: Path) -> Iterator[str]:
    try:
        hashes = read_json(folder / names.MANIFEST)["sha256"]
        listed = {str(name): str(value) for name, value in hashes.items()}
    except BundleError as error:
        yield _unread(names.MANIFEST, error)
        return
    except (KeyError, TypeError, AttributeError):
        yield f"{names.MANIFEST}: no list of SHA-256"
        return
    present = {
        str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file() or file.is_symlink()
    }
    for name in sorted({*listed, *names.FILES}):
        if name not in listed or Path(name).is_absolute() or ".." in Path(name).parts:
            yield f"{name}: not in the manifest, or outside the bundle"
        elif name not in present:
            yield f"{name}: missing"
        elif _leads_out(folder, name):
            yield f"{name}: a link out of the bundle, or to no file"
        elif sha256(folder / name) != listed[name]:
            yield f"{name}: changed since it was exported"
    yield from (
        f"{name}: not in the manifest"
        for name in sorted(present - {*listed, names.MANIFEST})
        if name.split("/")[0] in ("configs", "models", "scripts")
    )


def _leads_out(folder: Path, name: str) -> bool:
    """Whether a name means something else than a file in the bundle."""
    try:
        file = (folder / name).resolve(strict=True)
    except (OSError, RuntimeError):  # a link to nothing, or to itself
        return True
    return not file.is_relative_to(folder.resolve()) or not file.is_file()


def _configs(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """What every configuration holds, by the name of its file, and which cannot be read."""
    read, unread = dict[str, Any](), list[str]()
    for file in sorted((folder / "configs").rglob("*")):
        if file.is_dir():
            continue
        where = file.relative_to(folder).as_posix()
        if file.suffix != ".json":
            unread.append(f"{where}: not a JSON file")
            continue
        try:
            read[where] = read_json(file)
        except BundleError as error:
            unread.append(_unread(where, error))
    return read, unread


def _metadata(configs: Mapping[str, Any]) -> Iterator[str]:
    if names.METADATA not in configs:  # that has been said
        return
    about = _object(configs[names.METADATA])
    missing = [key for key in REQUIRED if key not in about]
    if missing:
        yield f"{names.METADATA}: without {', '.join(missing)}"
        return
    parts = about["network_data_format"]
    for side, name in (("inputs", "image"), ("outputs", "pred")):
        described = _object(_object(_object(parts).get(side)).get(name))
        lacking = [key for key in _FORMAT if key not in described]
        if lacking:
            yield f"{names.METADATA}: {side}.{name} without {', '.join(lacking)}"
    own = _object(about["medmeta"])
    if own.get("task") not in names.TASKS:
        yield f"{names.METADATA}: a task that is neither {' nor '.join(names.TASKS)}"
    classes = own.get("classes")
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        yield f"{names.METADATA}: classes that are no names"
    try:
        plan = Plan.from_json(json.dumps(own["plan"]))
        if plan.whole != (own.get("task") == "classification"):
            yield f"{names.METADATA}: a plan for another task"
        Confidence.read(own["about"], torch.ones(2, 1))
    except (CohortError, KeyError, TypeError, AttributeError, ValueError, IndexError):
        yield f"{names.METADATA}: no plan or confidence that this version can read"


def _object(value: Any) -> dict[str, Any]:
    """An object of JSON, an empty one where it is something else."""
    return value if isinstance(value, dict) else {}


def _weights(folder: Path) -> Iterator[str]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = torch.load(folder / names.STATE, map_location="cpu", weights_only=True)
        again = load_file(folder / names.TENSORS)
    except (RuntimeError, OSError, ValueError, EOFError, UnpicklingError, SafetensorError) as error:
        yield f"models: weights that cannot be read ({type(error).__name__})"
        return
    if not isinstance(state, dict) or not all(isinstance(weight, torch.Tensor) for weight in state.values()):
        yield f"{names.STATE}: no tensors by name"
        return
    for name, weight in again.items():
        if not bool(torch.isfinite(weight).all()):
            yield f"{names.TENSORS}: NaN or infinity in {name}"
        if name not in state or not _same(state[name], weight):
            yield f"{names.STATE}: {name} differs from {names.TENSORS}"
    yield from _likeness(folder)
    if set(state) != set(again):
        yield f"{names.STATE}: other weights than {names.TENSORS}"


def _same(one: Tensor, other: Tensor) -> bool:
    plain = one.layout == other.layout and not one.is_quantized
    return plain and one.dtype == other.dtype and torch.equal(one, other)


def _likeness(folder: Path) -> Iterator[str]:
    """Moments of the support's features: finite, and deviations positive."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not (folder / names.LIKENESS).is_file():
        return
    try:
        centre = load_file(folder / names.LIKENESS)["centre"]
    except (KeyError, OSError, ValueError, SafetensorError) as error:
        yield f"{names.LIKENESS}: cannot be read ({type(error).__name__})"
        return
    if centre.ndim != 2 or len(centre) != 2 or not bool(torch.isfinite(centre).all() & (centre[1] > 0).all()):
        yield f"{names.LIKENESS}: no means and positive deviations"


def _configuration(configs: Mapping[str, Any]) -> Iterator[str]:
    for where, content in configs.items():
        yield from _judged(where, (expressions if where == names.METADATA else forbidden)(content))
        if where == names.INFERENCE:
            yield from _parts(_object(content))


def _unread(name: str, error: BundleError) -> str:
    return f"{name}: wanted {error.wanted}, found {error.found}"


def _parts(config: dict[str, Any]) -> Iterator[str]:
    """What MONAI and medmeta look for in the configuration of inference."""
    for key in _PROPERTIES:
        if key not in config:
            yield f"{names.INFERENCE}: without {key}"
    layers = config.get("layers")
    if not layers or not isinstance(layers, list) or not all(isinstance(layer, dict) for layer in layers):
        yield f"{names.INFERENCE}: no list of layers"


def _judged(where: str, problems: Iterator[str]) -> Iterator[str]:
    try:
        yield from (f"{where}: {problem}" for problem in problems)
    except RecursionError:
        yield f"{where}: brackets in brackets, too deep to judge"


def _fitting(folder: Path, configs: Mapping[str, Any]) -> Iterator[str]:
    """Whether metadata, network and likeness, each right by itself, are of one bundle."""
    about, layers = configs[names.METADATA], configs[names.INFERENCE]["layers"]
    classes, plan = about["medmeta"]["classes"], Plan.from_json(json.dumps(about["medmeta"]["plan"]))
    said = about["network_data_format"]["outputs"]["pred"]["num_channels"]
    given = _outputs(layers[-1])
    if said != len(classes) or given not in (None, len(classes)):
        found = said if said != len(classes) else given
        yield f"{names.METADATA}: {len(classes)} classes for {found} outputs of the network"
    features = _features(layers)
    if (folder / names.LIKENESS).is_file() and features is not None:
        from safetensors.torch import load_file

        length = load_file(folder / names.LIKENESS)["centre"].shape[1]
        wanted = features + OWN * plan.inputs
        if length != wanted:
            yield f"{names.LIKENESS}: moments of {length} features, where the network gives {wanted}"


def _outputs(layer: Mapping[str, Any]) -> int | None:
    """How many classes a head gives, by its own words; None where it does not say."""
    if isinstance(layer.get("proposing"), list):
        return len(layer["proposing"]) + 1  # of every class but the background
    said = (layer.get(key) for key in ("out_features", "out_channels", "classes", "way"))
    return next((count for count in said if isinstance(count, int)), None)


def _features(layers: Sequence[Mapping[str, Any]]) -> int | None:
    """How many features the backbone gives, by what follows it; None where that does not say."""
    if len(layers) == 1:  # out of reach
        return 0
    tokens = [layer.get("output_size") for layer in layers[1:] if layer.get("output_size") not in (None, 1)]
    said = (layer.get(key) for layer in layers[1:] for key in ("in_features", "in_channels"))
    return None if tokens else next((count for count in said if isinstance(count, int)), None)
