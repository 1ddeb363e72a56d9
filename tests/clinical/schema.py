"""What MONAI's metadata schema asks for."""

from __future__ import annotations

from typing import Any

TEXT, WHOLE, OBJECT = {"type": "string"}, {"type": "integer"}, {"type": "object"}
TENSOR = {
    "type": "object",
    "properties": {
        "type": TEXT,
        "format": TEXT,
        "num_channels": WHOLE,
        "spatial_shape": {"type": "array", "items": {"type": ["string", "integer"]}},
        "dtype": TEXT,
        "value_range": {"type": "array", "items": {"type": "number"}},
        "is_patch_data": {"type": "boolean"},
        "channel_def": OBJECT,
    },
    "required": ["type", "format", "num_channels", "spatial_shape", "dtype", "value_range", "channel_def"],
}
VERSIONS = ("version", "monai_version", "pytorch_version", "numpy_version")
TEXTS = ("schema", *VERSIONS, "task", "description", "authors", "copyright", "intended_use")
OBJECTS = ("changelog", "required_packages_version", "supported_apps", "network_data_format")


def schema() -> dict[str, Any]:
    """The demands of MONAI's schema of 2024-07-25, and what MONAI Label reads besides; no network here."""
    pair = {
        "type": "object",
        "properties": {
            "inputs": {"type": "object", "properties": {"image": TENSOR}, "required": ["image"]},
            "outputs": {"type": "object", "properties": {"pred": TENSOR}, "required": ["pred"]},
        },
        "required": ["inputs", "outputs"],
    }
    fields = {**dict.fromkeys(TEXTS, TEXT), **dict.fromkeys(OBJECTS, OBJECT)}
    fields["network_data_format"] = pair
    return {"type": "object", "properties": fields, "required": [*fields]}
