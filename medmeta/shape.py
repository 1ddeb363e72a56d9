"""The tensor shapes, once: label ``(n, *space)``, logits ``(n, way, *space)``.

``*space`` is empty to classify and the voxel axes to segment, so one loss and one learner serve both.
"""

from __future__ import annotations

from typing import TypeAlias

from jaxtyping import Float, Int
from torch import Tensor

Image: TypeAlias = Float[Tensor, "n channel *voxel"]
Label: TypeAlias = Int[Tensor, "n *space"]
Logits: TypeAlias = Float[Tensor, "n way *space"]
Feature: TypeAlias = Float[Tensor, "n feature *space"]
