"""Convolutions whose second derivative runs on the kernels of the first, for faster meta-gradients.

Torch's own second derivative writes the weight's part as a convolution with a kernel as large as the image,
for which there is no fast kernel. The same sums are those of a backward pass with other inputs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class Convolution(torch.autograd.Function):
    """A convolution; ``how`` is stride, padding, dilation, transposed, output padding and groups."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, weight: Tensor, bias: Tensor | None, how: tuple[Any, ...]) -> Tensor:
        """Convolve."""
        ctx.save_for_backward(image, weight)
        ctx.how, ctx.bias = how, bias is not None
        return torch.ops.aten.convolution(image, weight, bias, *how)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        """Slopes of image, weight and bias, with a derivative of their own."""
        image, weight = ctx.saved_tensors
        apply: Any = Slopes.apply
        first, second = apply(slope, image, weight, ctx.how, tuple(ctx.needs_input_grad[:2]))
        bias = slope.sum([0, *range(2, slope.ndim)]) if ctx.bias and ctx.needs_input_grad[2] else None
        return first, second, bias, None


class Slopes(torch.autograd.Function):
    """The backward pass of a convolution as a function of slope, image and weight; linear in each."""

    @staticmethod
    def forward(
        ctx: Any,
        slope: Tensor,
        image: Tensor,
        weight: Tensor,
        how: tuple[Any, ...],
        wanted: tuple[bool, bool],
    ) -> tuple[Tensor | None, Tensor | None]:
        """Slopes of image and weight."""
        ctx.save_for_backward(slope, image, weight)
        ctx.how = how
        ctx.set_materialize_grads(False)
        return _slopes(slope, image, weight, how, wanted)

    @staticmethod
    def backward(ctx: Any, on_image: Tensor | None, on_weight: Tensor | None) -> tuple[Tensor | None, ...]:
        """Each is a convolution or a backward pass of one, the new slopes in place of image or weight."""
        slope, image, weight = ctx.saved_tensors
        parts: list[Tensor] = []
        by_image = by_weight = None
        if on_image is not None:
            parts.append(torch.ops.aten.convolution(on_image, weight, None, *ctx.how))
            by_weight = _slopes(slope, on_image, weight, ctx.how, (False, True))[1]
        if on_weight is not None:
            parts.append(torch.ops.aten.convolution(image, on_weight, None, *ctx.how))
            by_image = _slopes(slope, image, on_weight, ctx.how, (True, False))[0]
        by_slope = sum(parts[1:], parts[0]) if parts else None
        return by_slope, by_image, by_weight, None, None


def _slopes(
    slope: Tensor, image: Tensor, weight: Tensor, how: tuple[Any, ...], wanted: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    found = torch.ops.aten.convolution_backward(slope, image, weight, None, *how, [*wanted, False])
    return found[0] if wanted[0] else None, found[1] if wanted[1] else None


class QuickConvolutions(TorchFunctionMode):
    """While this is on, 3D convolutions at every voxel run channels-last, with :class:`Convolution`'s
    derivatives.

    Others, strided, pointwise or of few channels, stay as they are: measured, they gain nothing.

    Example:
        >>> image, weight = torch.ones(1, 4, 3, 3, 3), torch.ones(2, 4, 3, 3, 3, requires_grad=True)
        >>> with QuickConvolutions():
        ...     out = torch.nn.functional.conv3d(image, weight)
        >>> out.flatten().tolist(), type(out.grad_fn).__name__
        ([108.0, 108.0], 'ConvolutionBackward')
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Take what gains; leave everything else as it is."""
        kwargs = kwargs or {}
        if func is torch.conv3d and (given := _arguments(*args, **kwargs)) is not None:
            apply: Any = Convolution.apply
            return apply(*given)
        return func(*args, **kwargs)


def _arguments(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> tuple[Any, ...] | None:
    """Arguments of :class:`Convolution`, or None where it would gain nothing."""
    stride, dilation = _three(stride), _three(dilation)
    dense = weight.shape[1] >= 4 and min(weight.shape[2:]) > 1 and max(stride) == 1
    if not dense or isinstance(padding, str) or input.is_cuda or input.ndim != 5:
        return None
    image = input.contiguous(memory_format=torch.channels_last_3d)
    kernel = weight.contiguous(memory_format=torch.channels_last_3d)
    return image, kernel, bias, (stride, _three(padding), dilation, False, [0, 0, 0], groups)


def _three(value: Any) -> list[int]:
    return [value] * 3 if isinstance(value, int) else list(value)
