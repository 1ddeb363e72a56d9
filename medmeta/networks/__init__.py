"""Backbones, image ``(n, channel, *voxel)`` to feature ``(n, feature, *space)``; learners own the head."""

from medmeta.networks.feature import (
    NetworkError,
    are_tokens,
    encoded,
    feature_size,
    features,
    group_norm,
    output_of,
    running_statistics,
)
from medmeta.networks.spec import build, encoder, lesion_encoder, unet

__all__ = [
    "NetworkError",
    "are_tokens",
    "build",
    "encoded",
    "encoder",
    "feature_size",
    "features",
    "group_norm",
    "lesion_encoder",
    "output_of",
    "running_statistics",
    "unet",
]
