"""While derivatives are taken, layers whose own ones are slow run ours in their place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from medmeta.learners.activation import prelu
from medmeta.learners.convolution import convolution, transposed
from medmeta.learners.normalisation import group_norm, instance_norm

OURS: dict[Any, Callable[..., Any]] = {
    torch.conv2d: convolution,
    torch.conv3d: convolution,
    torch.conv_transpose3d: transposed,
    F.group_norm: group_norm,
    F.instance_norm: instance_norm,
    torch.prelu: prelu,
}
"""What is replaced; a replacement gives None where it would gain nothing."""


class QuickLayers(TorchFunctionMode):
    """While this is on, :data:`OURS` run in torch's place: convolutions, norms, PReLU.

    Example:
        >>> image, weight = torch.ones(1, 4, 3, 3, 3), torch.ones(2, 4, 3, 3, 3, requires_grad=True)
        >>> with QuickLayers():
        ...     out = torch.nn.functional.conv3d(image, weight)
        >>> out.flatten().tolist(), type(out.grad_fn).__name__
        ([108.0, 108.0], 'ConvolutionBackward')
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Take what gains; leave everything else as it is."""
        kwargs = kwargs or {}
        ours = OURS.get(func)
        if ours is not None and not torch.is_autocast_enabled("cpu"):  # ours know one precision
            out = ours(*args, **kwargs)
            if out is not None:
                return out
        return func(*args, **kwargs)
