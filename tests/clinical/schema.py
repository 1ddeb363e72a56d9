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
VALUE = {"anyOf": [{"type": ["number", "string", "boolean"]}, TENSOR]}
OTHERS = {"additionalProperties": VALUE}
VERSIONS = ("version", "monai_version", "pytorch_version", "numpy_version")
TEXTS = ("schema", *VERSIONS, "task", "description", "authors", "copyright", "intended_use")
OPTIONAL = ("data_source", "data_type", "image_classes", "label_classes", "pred_classes")
OBJECTS = ("changelog", "required_packages_version", "supported_apps", "network_data_format")


def schema() -> dict[str, Any]:
    """The demands of MONAI's schema of 2024-07-25 in our own words, and what others ask besides.

    The installed packages were searched and do not hold the file, which is published at
    https://project-monai.github.io/schema/meta_schema_20240725.json; tests have no network. Its fields were
    compared with these one by one, for one network. Asked for beyond it: the names ``image`` and ``pred``,
    ``channel_def``, ``changelog``, ``supported_apps``, ``intended_use``.
    """
    pair = {
        "type": "object",
        "properties": {
            "inputs": {"type": "object", "properties": {"image": TENSOR}, "required": ["image"], **OTHERS},
            "outputs": {"type": "object", "properties": {"pred": TENSOR}, "required": ["pred"], **OTHERS},
            "post_processed_outputs": {"type": "object", **OTHERS},
        },
        "required": ["inputs", "outputs"],
    }
    fields = {**dict.fromkeys(TEXTS, TEXT), **dict.fromkeys(OBJECTS, OBJECT)}
    fields["network_data_format"] = pair
    optional = {
        **dict.fromkeys(OPTIONAL, TEXT),
        "eval_metrics": OBJECT,
        "references": {"type": "array", "items": TEXT},
    }
    return {"type": "object", "properties": fields | optional, "required": [*fields]}
