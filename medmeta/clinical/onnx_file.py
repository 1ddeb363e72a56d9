"""A bundle's network as ONNX, for runtimes without torch."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from medmeta.clinical.bundle import BundleError

TOLERANCE = 1e-4
"""How far the ONNX runtime's logits may be from torch's; a part of the largest where that is over 1."""


def save_onnx(network: nn.Module, example: torch.Tensor, file: Path) -> None:
    """Write a network as ONNX, images ``image`` to logits ``pred``, any number of images at a time.

    Args:
        network: in eval mode.
        example: one image ``(1, channel, *voxel)``; images are of its size.
        file: to write.

    Raises:
        BundleError: where onnx, onnxscript or onnxruntime is not installed, torch cannot express the
            network, or the runtime gives other logits.
    """
    missing = [n for n in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(n) is None]
    if missing:
        raise BundleError(
            "onnx, onnxscript and onnxruntime", found=f"no {missing[0]}", cure="pip install 'medmeta[onnx]'"
        )
    two = torch.cat([example, example.flip(-1)])
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            torch.onnx.export(
                network,
                (two,),
                str(file),
                input_names=["image"],
                output_names=["pred"],
                dynamic_shapes=({0: torch.export.Dim("n", min=1)},),
                dynamo=True,
                external_data=False,
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            raise BundleError(
                "a network that ONNX can express",
                found=" ".join(str(error).split())[:200],
                cure="Leave --onnx out; model.pt and model.ts serve torch.",
            ) from error
        wanted = network(two)
    _forget_callers(file)
    _compare(file, two, wanted)


def _forget_callers(file: Path) -> None:
    """Take out of an ONNX file what torch notes on each node: its stack, with the paths of programs."""
    import onnx

    model = onnx.load(file)
    _bare(model)
    onnx.save(model, file)


def _bare(message: Any) -> None:
    """A part of a model, and all parts of it, without notes for people, in place."""
    for field, value in message.ListFields():
        if field.name in ("metadata_props", "doc_string"):
            message.ClearField(field.name)
        elif field.message_type is not None:
            for part in [value] if hasattr(value, "ListFields") else value:
                _bare(part)


def _compare(file: Path, image: torch.Tensor, wanted: torch.Tensor) -> None:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    for count in (1, len(image)):
        (found,) = session.run(["pred"], {"image": image[:count].numpy()})
        gap = float((torch.as_tensor(found) - wanted[:count]).abs().max())
        if not gap <= TOLERANCE * max(1.0, float(wanted.abs().max())):
            raise BundleError(
                "the same logits from the ONNX runtime", found=f"{gap:.1e} apart", cure="Leave --onnx out."
            )
