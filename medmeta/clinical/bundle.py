"""What a bundle folder holds, and the few expressions its configuration may run."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from medmeta.errors import MedmetaError

METADATA = "configs/metadata.json"
INFERENCE = "configs/inference.json"
STATE = "models/model.pt"
SCRIPT = "models/model.ts"
TENSORS = "models/model.safetensors"
ONNX = "models/model.onnx"
LIKENESS = "models/likeness.safetensors"
CARD = "docs/README.md"
DATA_LICENCE = "docs/data_license.txt"
LICENCE = "LICENSE"
MANIFEST = "manifest.json"
TASKS = ("segmentation", "classification")
FILES = (METADATA, INFERENCE, STATE, TENSORS, CARD, DATA_LICENCE, LICENCE)
"""What every bundle has, besides the manifest that lists them."""
OPTIONAL = (SCRIPT, ONNX, LIKENESS)
"""TorchScript, but where medmeta is needed; ONNX where it was asked for; moments of the support's features,
by which ``medmeta predict`` tells a scan unlike it."""

DEPTH = (
    "$min(d for d in range(1, 99) if len({tuple(str(p if isinstance(p, str) else p[0]).split('/')[-d:]) "
    "for p in @datalist}) == len(@datalist))"
)
"""How many folders above it takes, the name included, to tell cases apart; one with a file a channel is
named by the first."""

CASE = "$lambda meta, saver: {'subject': '_'.join(str(meta['filename_or_obj']).split('/')[-@depth:])}"
"""A case is named by its file or folder and those folders above."""

ROW = (
    "$lambda batch: [{'filename_or_obj': "
    "'_'.join(str(item['image'].meta['filename_or_obj']).split('/')[-@depth:])"
    ".removesuffix('.gz').removesuffix('.nii')} for item in batch]"
)
"""A row of predictions.csv is named by its case alone: the folders far above it may name a patient."""

PAIRS = "$[{'image': image, 'mask': mask} for image, mask in zip(@datalist, @masklist, strict=True)]"
"""Where lesions are classified, a scan comes with the mask that outlines one: the two lists in one order."""

ENDINGS = ("_seg", "_mask", "_label")
"""What may follow the name of a scan in that of its mask."""

CASE_OF = (
    "$lambda path: str(path if isinstance(path, str) else path[0]).rstrip('/').split('/')[-1]"
    ".removesuffix('.gz').removesuffix('.nii')" + "".join(f".removesuffix('{ending}')" for ending in ENDINGS)
)
"""Which case a scan or a mask is of, by its name."""

MASKS = (
    "$[mask for scan in @datalist for (mask,) in "
    "[[path for path in sorted(glob.glob(@mask_dir + '/*')) if @case_of(path) == @case_of(scan)]]]"
)
"""The one mask of each scan, called as the scan is; an error where there is none or are several. Sorted lists
would not do: ``case_10.nii.gz`` comes after ``case_1.nii.gz``, and ``case_10_seg`` before ``case_1_seg``."""

EXPRESSIONS = (
    "$import glob",
    "$import torch",
    "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
    "$@bundle_root + '/data'",
    "$@bundle_root + '/eval'",
    "$@bundle_root + '/models/model.pt'",
    "$sorted(glob.glob(@dataset_dir + '/*'))",
    "$[{'image': path} for path in @datalist]",
    "$@bundle_root + '/masks'",
    "$sorted(glob.glob(@mask_dir + '/*'))",  # of bundles of earlier versions
    CASE_OF,
    MASKS,
    PAIRS,
    DEPTH,
    # of bundles of earlier versions, which took two cases of several files for one
    "$min(d for d in range(1, 99) "
    "if len({tuple(str(p).split('/')[-d:]) for p in @datalist}) == len(@datalist))",
    CASE,
    ROW,
    "$torch.nn.Sequential(*@layers)",
    "$@network_def.to(@device)",
    "$@evaluator.run()",
)
"""All code that a bundle of ours runs; a configuration with any other expression is refused."""


class BundleError(MedmetaError):
    """A bundle that cannot be made, trusted or run."""


def sha256(file: Path) -> str:
    """Hash of a file's bytes.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "a"
        >>> _ = file.write_bytes(b"abc")
        >>> sha256(file)[:8]
        'ba7816bf'
    """
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while block := opened.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_json(file: Path) -> Any:
    """A JSON file of a bundle.

    Raises:
        BundleError: where it is absent or no JSON.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # brackets in brackets, a thousand deep
        raise BundleError(
            f"the bundle's {file.name}", found=_why(error), cure="Export or copy the bundle again."
        ) from error


def _why(error: Exception) -> str:
    return "none" if isinstance(error, FileNotFoundError) else "a file that is no JSON"
