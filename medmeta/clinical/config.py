"""The two configurations of a bundle: what it is, and how MONAI runs it."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from medmeta.clinical.bundle import CASE, CASE_OF, DEPTH, MASKS, PAIRS, ROW, BundleError
from medmeta.volumes import Plan

SCHEMA = (
    "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
)
OVERLAP = 0.5
"""Of sliding windows; their borders count less (Gaussian weights), so a voxel is seen near a centre."""

_ARGUMENTS: dict[str, tuple[str, ...]] = {
    "Linear": ("in_features", "out_features"),
    "Conv1d": ("in_channels", "out_channels", "kernel_size"),
    "Conv2d": ("in_channels", "out_channels", "kernel_size"),
    "Conv3d": ("in_channels", "out_channels", "kernel_size"),
    "AdaptiveAvgPool1d": ("output_size",),
    "AdaptiveAvgPool2d": ("output_size",),
    "AdaptiveAvgPool3d": ("output_size",),
    "Flatten": (),
    "ReLU": (),
    "Softplus": ("beta", "threshold"),
    "LogSoftmax": ("dim",),
    "LocalResponseNorm": ("size", "alpha", "beta", "k"),
    "RMSNorm": ("normalized_shape", "eps"),
}


def layer_spec(layer: nn.Module) -> dict[str, Any]:
    """Describe one of torch's layers that follow a backbone.

    Raises:
        BundleError: where the layer is another one.

    Example:
        >>> layer_spec(nn.Conv3d(4, 2, 1))["kernel_size"]
        [1, 1, 1]
    """
    name = type(layer).__name__
    if name not in _ARGUMENTS:
        raise BundleError(
            f"a layer among {', '.join(_ARGUMENTS)}", found=name, cure="Use a learner with a linear head."
        )
    values = {argument: getattr(layer, argument) for argument in _ARGUMENTS[name]}
    plain = {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}
    return {"_target_": f"torch.nn.{name}", **plain}


def needs_medmeta(layers: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a network is made of more than MONAI and torch have.

    Example:
        >>> needs_medmeta([{"_target_": "torch.nn.ReLU"}])
        False
    """
    return any(str(layer["_target_"]).startswith("medmeta.") for layer in layers)


def solid_transforms(plan: Plan) -> list[dict[str, Any]]:
    """The plan's preprocessing of ``image`` with all three axes kept, slices of a plan in 2D included.

    Example:
        >>> plan = Plan(2, (1.0, 1.0, 5.0), (16, 16), 1)
        >>> [t["_target_"].split(".")[-1] for t in solid_transforms(plan)][-1]
        'NormalizeIntensityd'
    """
    return [step for step in plan.transforms() if not step["_target_"].endswith(".SqueezeDimd")]


def inferer(plan: Plan) -> dict[str, Any]:
    """How the network meets a whole volume: windows of the plan's patch, slice by slice in 2D."""
    if plan.whole:
        return {"_target_": "monai.inferers.SimpleInferer"}
    windows = {"roi_size": list(plan.patch), "sw_batch_size": 4, "overlap": OVERLAP, "mode": "gaussian"}
    if plan.spatial_dims == 2:
        return {"_target_": "monai.inferers.SliceInferer", "spatial_dim": plan.slice_axis, **windows}
    return {"_target_": "monai.inferers.SlidingWindowInferer", **windows}


def inference(plan: Plan, layers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The configuration ``python -m monai.bundle run`` takes.

    Args:
        plan: the preprocessing; a plan of whole volumes classifies.
        layers: specifications of the backbone and of what follows it.
    """
    handlers = [
        {
            "_target_": "monai.handlers.CheckpointLoader",
            "load_path": "$@bundle_root + '/models/model.pt'",
            "load_dict": {"model": "@network"},
            "map_location": "@device",
        }
    ]
    if plan.whole:
        handlers.append(_saver())
    outlined = plan.lesion is not None
    masks = {"mask_dir": "$@bundle_root + '/masks'", "case_of": CASE_OF, "masklist": MASKS}
    return {
        "imports": ["$import glob", "$import torch"],
        "bundle_root": ".",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "dataset_dir": "$@bundle_root + '/data'",
        "output_dir": "$@bundle_root + '/eval'",
        "datalist": "$sorted(glob.glob(@dataset_dir + '/*'))",
        **(masks if outlined else {}),
        "depth": DEPTH,
        "layers": [dict(layer) for layer in layers],
        "network_def": "$torch.nn.Sequential(*@layers)",
        "network": "$@network_def.to(@device)",
        "preprocessing": {"_target_": "monai.transforms.Compose", "transforms": _preprocessing(plan)},
        "dataset": {
            "_target_": "monai.data.Dataset",
            "data": PAIRS if outlined else "$[{'image': path} for path in @datalist]",
            "transform": "@preprocessing",
        },
        "dataloader": {
            "_target_": "monai.data.DataLoader",
            "dataset": "@dataset",
            "batch_size": 1,
            "shuffle": False,
            "num_workers": 0,
        },
        "inferer": inferer(plan),
        "postprocessing": {"_target_": "monai.transforms.Compose", "transforms": _postprocessing(plan)},
        "handlers": handlers,
        "evaluator": {
            "_target_": "monai.engines.SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "val_handlers": "@handlers",
        },
        "run": ["$@evaluator.run()"],
    }


def _saver() -> dict[str, Any]:
    return {
        "_target_": "monai.handlers.ClassificationSaver",
        "output_dir": "@output_dir",
        "filename": "predictions.csv",
        "batch_transform": ROW,
        "output_transform": {"_target_": "monai.handlers.from_engine", "keys": "pred"},
    }


def _preprocessing(plan: Plan) -> list[dict[str, Any]]:
    masks = ("mask",) if plan.lesion is not None else ()
    steps = solid_transforms(plan) if not plan.whole else plan.transforms(masks=masks)
    keys = ["image", *masks]
    return [
        {
            "_target_": "monai.transforms.LoadImaged",
            "keys": keys,
            "reader": ["PydicomReader", "NibabelReader"],
        },
        {"_target_": "monai.transforms.EnsureChannelFirstd", "keys": keys},
        *(part for step in steps for part in _beside_a_path(step)),
    ]


def _beside_a_path(step: dict[str, Any]) -> list[dict[str, Any]]:
    """A step, with ``image_path`` laid aside where it is Spacingd.

    MONAI Label keeps the scan's path there, and Spacingd (MONAI 1.6.1) takes every entry that begins with
    ``image_`` for metadata of a NIfTI image, which ends in an error. Elsewhere there is no such entry.
    """
    if not step["_target_"].endswith(".Spacingd"):
        return [step]
    away = {"_target_": "monai.transforms.CopyItemsd", "keys": ["image_path"], "names": ["kept"]}
    back = {"_target_": "monai.transforms.CopyItemsd", "keys": ["kept"], "names": ["image_path"]}
    return [
        {**away, "allow_missing_keys": True},
        {"_target_": "monai.transforms.DeleteItemsd", "keys": ["image_path"]},
        step,
        {**back, "allow_missing_keys": True},
    ]


def _postprocessing(plan: Plan) -> list[dict[str, Any]]:
    soft = {"_target_": "monai.transforms.Activationsd", "keys": ["pred"], "softmax": True}
    if plan.whole:
        return [soft]
    return [
        soft,
        {
            "_target_": "monai.transforms.Invertd",
            "keys": ["pred"],
            "transform": "@preprocessing",
            "orig_keys": ["image"],
            "nearest_interp": False,
            "to_tensor": True,
        },
        {"_target_": "monai.transforms.AsDiscreted", "keys": ["pred"], "argmax": True},
        {
            "_target_": "monai.transforms.SaveImaged",
            "keys": ["pred"],
            "output_dir": "@output_dir",
            "output_postfix": "seg",
            "output_name_formatter": CASE,
            "output_ext": ".nii.gz",
            "output_dtype": "uint8",
            # to the grid where it is already: by its shape MONAI (1.6.1) knows of three axes, and of an image
            # of several channels, stored as coronal or sagittal slices, in no other way
            "resample": True,
            "separate_folder": True,
            "writer": "NibabelWriter",
            "print_log": False,
        },
    ]


def metadata(
    plan: Plan,
    classes: Sequence[str],
    task: str,
    about: Mapping[str, Any],
    *,
    needs_medmeta: bool = False,
) -> dict[str, Any]:
    """What the bundle is, after MONAI's schema of 2024-07-25; ``medmeta`` holds what predicting needs.

    Example:
        >>> plan = Plan(3, (1.0, 1.0, 2.0), (32, 32, 16), 1)
        >>> made = metadata(plan, ("background", "glioma"), "segmentation", {})
        >>> made["network_data_format"]["outputs"]["pred"]["channel_def"]
        {'0': 'background', '1': 'glioma'}
    """
    packages = ("medmeta", "monai", "torch", "numpy")
    versions = {name: importlib.metadata.version(name) for name in packages}
    names = ", ".join(c for c in classes if c != "background")
    verb = "Outlines" if task == "segmentation" else "Tells apart"
    return {
        "schema": SCHEMA,
        "version": "0.1.0",
        "changelog": {"0.1.0": "exported"},
        "monai_version": versions["monai"],
        "pytorch_version": versions["torch"].split("+")[0],
        "numpy_version": versions["numpy"],
        "required_packages_version": {
            **({"medmeta": versions["medmeta"]} if needs_medmeta else {}),
            "nibabel": importlib.metadata.version("nibabel"),
            "pydicom": importlib.metadata.version("pydicom"),
            "pytorch-ignite": importlib.metadata.version("pytorch-ignite"),
        },
        "supported_apps": {},
        "name": f"{names} {task}",
        "task": f"few-shot tumour {task}",
        "description": f"{verb} {names}; adapted from a handful of labelled examples. Research use only.",
        "authors": "made with medmeta",
        "copyright": "the exporter of this bundle",
        "intended_use": "Research only; not a medical device.",
        "network_data_format": {
            "inputs": {"image": _input(plan)},
            "outputs": {"pred": _output(plan, classes, task)},
        },
        "medmeta": {
            "task": task,
            "classes": list(classes),
            "plan": json.loads(plan.to_json()),
            "versions": versions,
            "about": dict(about),
        },
    }


def _input(plan: Plan) -> dict[str, Any]:
    windowed = plan.intensity == "window"
    bounds = (plan.low, plan.high) if windowed else (-10.0, 10.0)
    scaled = [(b - plan.mean) / plan.std for b in bounds] if windowed else list(bounds)
    return {
        "type": "image",
        "format": "hounsfield" if windowed else "magnitude",
        "modality": "CT" if windowed else "MR",
        "num_channels": plan.inputs,
        "spatial_shape": list(plan.patch),
        "dtype": "float32",
        "value_range": scaled,
        "is_patch_data": not plan.whole,
        "channel_def": _channels(plan),
    }


def _channels(plan: Plan) -> dict[str, str]:
    named = [f"image {n}" for n in range(plan.channels)]
    return {
        str(n): name for n, name in enumerate([*named, *(["outline"] if plan.lesion is not None else [])])
    }


def _output(plan: Plan, classes: Sequence[str], task: str) -> dict[str, Any]:
    segments = task == "segmentation"
    return {
        "type": "image" if segments else "probabilities",
        "format": "segmentation" if segments else "classes",
        "num_channels": len(classes),
        "spatial_shape": list(plan.patch) if segments else [1],
        "dtype": "float32",
        "value_range": [0, 1],
        "is_patch_data": segments,
        "channel_def": {str(n): name for n, name in enumerate(classes)},
    }
