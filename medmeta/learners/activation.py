"""PReLU with first and second derivatives as products, for faster meta-gradients.

Torch chooses between two slopes voxel by voxel, slower on a CPU than multiplying by a mask. Where there is
one weight for all channels, the image's slope is that of leaky ReLU, which torch has in one quick pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

SMALL = 2**14
"""Numbers below which an image is left to torch: several small operations take longer than one slow one."""


class Prelu(torch.autograd.Function):
    """Numbers above zero as they are, others times a learnt weight (He et al. 2015, equation 1)."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, weight: Tensor) -> Tensor:
        """Images ``(n, channel, *space)``, one weight or one a channel."""
        ctx.save_for_backward(image, weight)
        return torch.prelu(image, weight)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, Tensor]:
        """Slopes of image and weight; with a derivative of their own where one is asked for."""
        image, weight = ctx.saved_tensors
        if torch.is_grad_enabled():
            apply: Any = Slopes.apply
            found: tuple[Tensor, Tensor] = apply(slope, image, weight)
            return found
        # both in one pass, which pays where nothing has to be kept for a second derivative
        by_image, each = torch.ops.aten._prelu_kernel_backward(slope, image, _spread(weight, image))
        return by_image, _reduce(each, weight)


class Slopes(torch.autograd.Function):
    """The backward pass of :class:`Prelu` as a function of slope, image and weight."""

    @staticmethod
    def forward(ctx: Any, slope: Tensor, image: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Slopes of image and weight."""
        ctx.save_for_backward(slope, image, weight)
        ctx.set_materialize_grads(False)
        return _along(slope, image, weight), _reduce(slope * image.clamp(max=0), weight)

    @staticmethod
    def backward(
        ctx: Any, on_image: Tensor | None, on_weight: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Slopes of the slopes."""
        slope, image, weight = ctx.saved_tensors
        below = (image <= 0).to(image.dtype).mul_(slope)
        by_slope = by_image = by_weight = None
        if on_image is not None:
            by_slope = _along(on_image, image, weight)
            by_weight = _reduce(on_image * below, weight)
        if on_weight is not None:
            each = _spread(on_weight, image)
            more = image.clamp(max=0).mul_(each)
            by_slope = more if by_slope is None else by_slope.add_(more)
            by_image = below * each
        return by_slope, by_image, by_weight


def _spread(weight: Tensor, image: Tensor) -> Tensor:
    return weight.reshape(-1, *[1] * (image.ndim - 2))


def _along(slope: Tensor, image: Tensor, weight: Tensor) -> Tensor:
    """Times one where the image is above zero, times the weight below."""
    if weight.numel() == 1:
        along: Tensor = torch.ops.aten.leaky_relu_backward(slope, image, float(weight), False)
        return along
    each = _spread(weight, image)
    return slope * (image > 0).to(image.dtype).mul_(1 - each).add_(each)


def _reduce(image: Tensor, weight: Tensor) -> Tensor:
    if weight.numel() == 1:
        return image.sum().reshape(weight.shape)
    return image.sum([0, *range(2, image.ndim)])


def prelu(input: Tensor, weight: Tensor) -> Tensor | None:
    """Activate as ``torch.prelu`` does; None where that is as quick."""
    if input.is_cuda or input.ndim < 4 or input.numel() < SMALL:
        return None
    apply: Any = Prelu.apply
    out: Tensor = apply(input, weight)
    return out
