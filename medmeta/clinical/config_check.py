"""What a bundle's configuration may not hold: it is judged as data, before MONAI makes anything of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from medmeta.clinical.bundle import EXPRESSIONS
from medmeta.networks.spec import HOMES, OURS, is_network_part

_STEPS = (
    "Activationsd AsDiscreted Compose ConcatItemsd CopyItemsd CropForegroundd DeleteItemsd "
    "DistanceTransformEDTd EnsureChannelFirstd Invertd LoadImaged MaskIntensityd NormalizeIntensityd "
    "Orientationd ResizeWithPadOrCropd SaveImaged ScaleIntensityRanged ScaleIntensityRangePercentilesd "
    "Spacingd SqueezeDimd"
)
TARGETS = frozenset(
    [
        "monai.data.DataLoader",
        "monai.data.Dataset",
        "monai.engines.SupervisedEvaluator",
        "monai.handlers.CheckpointLoader",
        "monai.handlers.ClassificationSaver",
        "monai.handlers.from_engine",
        "monai.inferers.SimpleInferer",
        "monai.inferers.SliceInferer",
        "monai.inferers.SlidingWindowInferer",
        *(f"monai.transforms.{step}" for step in _STEPS.split()),
    ]
)
"""All else that an export has. MONAI has too many that call what they are given (``apply_transform``,
``Lambda``, ``LoadImage``) to judge each by what it is."""

NAMED: dict[str, tuple[str, ...]] = {
    "reader": ("PydicomReader", "NibabelReader"),
    "writer": ("NibabelWriter",),
    "merger_cls": (),
}
"""Arguments by which MONAI (1.6.1: ``LoadImage``, ``SaveImage``, ``PatchInferer``) looks up and calls what a
dotted name means, and the names that an export has there."""

PICKLES = ("allow_pickle", "weights_only")
"""Arguments that let a reader run what a file of data says; no export has them."""


def forbidden(value: Any) -> Iterator[str]:
    """Say what a configuration may not hold, anywhere in it; one line each.

    Args:
        value: of JSON.

    Example:
        >>> list(forbidden({"_target_": "monai.data.Dataset", "data": "@datalist"}))
        []
        >>> list(forbidden({"_target_": "torch.nn.functional.torch.hub.load"}))
        ["a _target_ that is no part of a network: 'torch.nn.functional.torch.hub.load'"]
    """
    if isinstance(value, dict):
        if value.get("_target_") == "monai.transforms.LoadImaged" and "reader" not in value:
            yield "a loader of every format there is, those that run their data, too"
        for key, item in value.items():
            yield from _key(key)
            yield from _named(key, item)
            yield from _target(item) if key == "_target_" else forbidden(item)
    elif isinstance(value, list):
        for item in value:
            yield from forbidden(item)
    elif isinstance(value, str):
        yield from _text(value)


def _changes(key: str) -> Iterator[str]:
    """MONAI takes ``dataset#_target_`` for an entry of an entry, and ``+dataset`` for one to add to: it would
    not be judged as what it becomes."""
    if "#" in key or "::" in key or key.startswith("+"):
        yield f"a key that changes another entry: {key[:80]!r}"


def _key(key: str) -> Iterator[str]:
    yield from _changes(key)
    if key.startswith("_") and key != "_target_":  # "_mode_" makes a thing that calls what it is handed
        yield f"a key of MONAI's own that no exported bundle has: {key[:80]!r}"
    if key in PICKLES:
        yield f"a reader that may be told to run its data: {key!r}"
    yield from _text(key)


def _named(key: str, value: Any) -> Iterator[str]:
    """What MONAI looks up by name, by the very names that an export has."""
    if key not in NAMED:
        return
    for name in value if isinstance(value, list) else [value]:
        if name not in NAMED[key]:
            yield f"a {key} that no exported bundle has: {str(name)[:80]!r}"


def _text(text: str) -> Iterator[str]:
    if text in EXPRESSIONS:
        return
    if "$" in text or text.startswith("%") or (text.startswith("@") and "_meta_" in text):
        yield f"an expression that no exported bundle has: {text[:80]!r}"
    elif text.startswith(("/", "~", "\\")) or ".." in text.replace("\\", "/").split("/") or "://" in text:
        yield f"a path that leads out of the bundle: {text[:80]!r}"


def _target(target: Any) -> Iterator[str]:
    if isinstance(target, str) and target in TARGETS:
        return
    if not isinstance(target, str) or not target.startswith((*HOMES, OURS)):
        yield f"a _target_ that no exported bundle has: {str(target)[:80]!r}"
    elif not is_network_part(target, ours=True):
        yield f"a _target_ that is no part of a network: {target[:80]!r}"


def expressions(metadata: Any) -> Iterator[str]:
    """Say what MONAI would run or build of metadata, which is no configuration and is read as one.

    Args:
        metadata: of JSON. MONAI takes a key as ``version#_target_`` for an entry of an entry on its outermost
            level alone: further in, it may be the name of a tumour type.
    """
    if isinstance(metadata, dict):
        yield from (problem for key in metadata for problem in _changes(key))
    yield from _expressions(metadata)


def _expressions(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, item in value.items():
            if key.startswith("_"):
                yield f"a key of MONAI's own: {key[:80]!r}"
            yield from _expressions(item)
    elif isinstance(value, list):
        for item in value:
            yield from _expressions(item)
    elif isinstance(value, str) and value.startswith(("$", "%", "@")):
        yield f"an expression: {value[:80]!r}"
