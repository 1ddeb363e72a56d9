"""Backbones: an image ``(n, channel, *voxel)`` becomes features ``(n, feature, *space)``; learners own the head."""

from medmeta.networks.feature import NetworkError, feature_size, features, running_statistics
from medmeta.networks.spec import build, encoder, unet

__all__ = ["NetworkError", "build", "encoder", "feature_size", "features", "running_statistics", "unet"]
