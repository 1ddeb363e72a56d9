"""From a predictor to a MONAI bundle that needs MONAI alone, or says that it needs medmeta."""

from __future__ import annotations

import json
import math
import os
import re
import secrets
import shutil
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from medmeta.clinical import bundle as names
from medmeta.clinical.bundle import BundleError, sha256
from medmeta.clinical.card import card, data_licence, held_of, licence
from medmeta.clinical.confidence import Confidence, folded
from medmeta.clinical.config import inference, layer_spec, metadata, needs_medmeta
from medmeta.clinical.onnx_file import save_onnx
from medmeta.errors import new_folder
from medmeta.learners import Predictor, plain_network
from medmeta.networks import build
from medmeta.volumes import Plan


def export(
    predictor: Predictor,
    *,
    plan: Plan,
    network_spec: Mapping[str, Any],
    classes: Sequence[str],
    task: str,
    about: Mapping[str, Any] | None = None,
    confidence: Confidence | None = None,
    out: str | os.PathLike[str],
) -> Path:
    """Write an adapted predictor as a complete MONAI bundle; whole or not at all.

    Args:
        predictor: what ``adapt`` of a learner gave. Those of ``mann``, ``local-prototype`` and ``in-context``
            give a bundle that needs medmeta, and says so; all others one that needs MONAI alone.
        plan: the preprocessing its images had.
        network_spec: of its backbone, as :func:`medmeta.networks.build` takes it.
        classes: names by label; ``"background"`` first when segmenting.
        task: ``"segmentation"`` or ``"classification"``.
        about: JSON values for the model card and the metadata. Never a patient's name, id or path: hashed
            keys only.
        confidence: its temperature goes into the last layer, so that any program gets calibrated
            probabilities; the moments of the support's features into a file of their own.
        out: the folder to write; refused where it exists.

    Returns:
        The folder.

    Raises:
        BundleError: where ``out`` exists, the parts do not fit, or the disk refuses.
        LearnerError: where the predictor cannot be written down (trees, mirrored views, your own network).

    Example:
        >>> import tempfile
        >>> from medmeta.episodes import Examples
        >>> from medmeta.learners import create_learner
        >>> from medmeta.networks import unet
        >>> spec = unet(2, 1, base=2)
        >>> support = Examples(torch.rand(2, 1, 16, 16), torch.randint(2, (2, 16, 16)), ("background", "x"))
        >>> predictor = create_learner("prototypical", build(spec)).adapt(support)
        >>> plan = Plan(2, (1.0, 1.0, 1.0), (16, 16), 1)
        >>> folder = export(predictor, plan=plan, network_spec=spec, classes=support.classes,
        ...                 task="segmentation", out=Path(tempfile.mkdtemp()) / "bundle")
        >>> sorted(p.name for p in folder.iterdir())
        ['LICENSE', 'configs', 'docs', 'manifest.json', 'models']
    """
    folder = new_folder(out, BundleError)
    _refuse_task(task, plan, classes)
    sure = confidence or Confidence()
    network = folded(home_form(predictor).cpu(), sure.temperature)
    layers = _layers(network, network_spec)
    _refuse_other(network, layers, plan, classes)
    described = metadata(plan, classes, task, about or {}, needs_medmeta=needs_medmeta(layers))
    written = texts(described, plan, as_json(inference(plan, layers)))
    return write(folder, network, plan, written, centre=sure.centre)


def texts(
    described: Mapping[str, Any], plan: Plan, configuration: str, data: str | None = None
) -> dict[str, str]:
    """What a person or MONAI reads of a bundle, by file name.

    Args:
        described: the metadata.
        plan: the preprocessing.
        configuration: of inference.
        data: licence of the data that the weights were learnt from; by default what is known of it.
    """
    held = held_of(json.loads(configuration)["layers"], described["medmeta"]["task"])
    return {
        names.METADATA: as_json(described),
        names.INFERENCE: configuration,
        names.CARD: card(described, plan, held),
        names.DATA_LICENCE: data if data is not None else data_licence(held),
        names.LICENCE: licence(),
    }


def home_form(predictor: Predictor) -> nn.Sequential:
    """What a bundle holds of a predictor: MONAI's layers, or the predictor itself where it needs medmeta.

    Raises:
        LearnerError: where it can be written down in neither way.
    """
    if isinstance(predictor, nn.Module) and hasattr(predictor, "spec"):
        return nn.Sequential(predictor).eval()
    return plain_network(predictor)


def _layers(network: nn.Sequential, network_spec: Mapping[str, Any]) -> list[dict[str, Any]]:
    own = getattr(network[0], "spec", None)
    if callable(own):
        return [dict(own(network_spec))]
    return [dict(network_spec), *(layer_spec(layer) for layer in list(network)[1:])]


def as_json(content: Mapping[str, Any]) -> str:
    """JSON text of a bundle's file."""
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _refuse_task(task: str, plan: Plan, classes: Sequence[str]) -> None:
    if task not in names.TASKS or plan.whole != (task == "classification"):
        raise BundleError(
            "'segmentation' with a plan of crops, or 'classification' with one of whole volumes",
            found=f"{task!r} with {'whole volumes' if plan.whole else 'crops'}",
            cure="Give the plan that the support was prepared with.",
        )
    bad = [c for c in classes if not re.fullmatch(r"[^\x00-\x1f$@%|`]{1,100}", c)]
    if len(set(classes)) != len(classes) or len(classes) < 2 or bad:
        raise BundleError(
            "two or more class names, different, of ordinary characters",
            found=", ".join(map(repr, classes)) or "none",
            cure="Rename the classes.",
        )


def _refuse_other(
    network: nn.Sequential, layers: Sequence[Mapping[str, Any]], plan: Plan, classes: Sequence[str]
) -> None:
    """The specification must rebuild the very network, and the network must fit plan and classes."""
    rebuilt = nn.Sequential(*(build(layer, ours=True) for layer in layers)).eval()
    try:
        rebuilt.load_state_dict(network.state_dict())
    except RuntimeError as error:
        raise BundleError(
            "the specification of the predictor's backbone",
            found="that of another network",
            cure="Give the network_spec that the learner's backbone was built from.",
        ) from error
    image = _example(plan)
    with torch.no_grad():
        wanted, made = network(image), rebuilt(image)
    same = wanted.shape == made.shape and torch.allclose(wanted, made, rtol=1e-3, atol=1e-3)
    if not same or wanted.shape[1] != len(classes):
        raise BundleError(
            f"a network that the specification rebuilds, with {len(classes)} outputs",
            found=f"another result, or {wanted.shape[1]} outputs",
            cure="Give the network_spec and classes of this predictor.",
        )
    if not all(bool(torch.isfinite(w).all()) for w in network.state_dict().values()):
        raise BundleError("finite weights", found="NaN or infinity", cure="Adapt again with a smaller rate.")


def _example(plan: Plan) -> torch.Tensor:
    shape = (1, plan.inputs, *plan.patch)
    return torch.linspace(-1, 1, math.prod(shape)).reshape(shape)


def write(
    folder: Path,
    network: nn.Sequential,
    plan: Plan,
    texts: Mapping[str, str],
    *,
    centre: torch.Tensor | None = None,
    onnx: bool = False,
) -> Path:
    """Write a bundle's folder, whole or not at all.

    Args:
        folder: to write.
        network: backbone and head.
        plan: the preprocessing.
        texts: content of the configuration, card and licences, by file name.
        centre: moments of the support's features, where they are known.
        onnx: write the network as ONNX, too.

    Raises:
        BundleError: where the disk refuses.
    """
    temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    try:
        for name in ("configs", "models", "docs"):
            (temporary / name).mkdir(parents=True)
        for name, text in texts.items():
            (temporary / name).write_text(text, encoding="utf-8")
        _save(network, plan, temporary)
        if centre is not None:
            save_file({"centre": centre.contiguous()}, temporary / names.LIKENESS)
        if onnx:
            save_onnx(network, _example(plan), temporary / names.ONNX)
        written = [n for n in (*names.FILES, *names.OPTIONAL) if (temporary / n).is_file()]
        hashes = {name: sha256(temporary / name) for name in sorted(written)}
        (temporary / names.MANIFEST).write_text(as_json({"sha256": hashes}), encoding="utf-8")
        for file in (*written, names.MANIFEST):
            _sync(temporary / file)
        os.replace(temporary, folder)
    except OSError as error:
        raise BundleError(
            f"room to write {folder.name}",
            found=error.strerror or "a refusing disk",
            cure="Free disk space or name another folder.",
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    _sync(folder.parent)
    return folder


def _save(network: nn.Sequential, plan: Plan, folder: Path) -> None:
    state = {name: weight.detach().contiguous().clone() for name, weight in network.state_dict().items()}
    torch.save(state, folder / names.STATE)
    save_file(state, folder / names.TENSORS)
    if hasattr(network[0], "spec"):  # it needs medmeta, and says so
        return
    with warnings.catch_warnings():  # torch.jit is deprecated, but it is what MONAI Deploy reads
        warnings.simplefilter("ignore")
        script = torch.jit.trace(network, _example(plan), check_trace=False)
        torch.jit.save(script, str(folder / names.SCRIPT))
    _forget_callers(folder / names.SCRIPT)


def _forget_callers(script: Path) -> None:
    """Take out of a TorchScript file who called: torch keeps each operation's stack, with the paths of all
    programs on it, and the folder of a notebook may be called by a patient. Loading does without."""
    traced = script.with_suffix(".traced")
    os.replace(script, traced)
    with zipfile.ZipFile(traced) as found, zipfile.ZipFile(script, "w") as kept:
        for record in found.infolist():
            if not record.filename.endswith(".debug_pkl"):
                kept.writestr(record, found.read(record))
    traced.unlink()


def _sync(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
