"""Convolutions whose second derivative runs on the kernels of the first, for faster meta-gradients.

Torch's own second derivative writes the weight's part as a convolution with a kernel as large as the image,
for which there is no fast kernel. The same sums are those of a backward pass with other inputs. All of it
runs channels last, and everything it gives lies so: tensors of two layouts in one sum cost ten times it. But
logits of a few classes lie as labels do, and pictures as they come: of these only the first layer is taken,
where torch works out a derivative by the image that nobody asked for.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from medmeta.learners.phases import doubles, kernel_slope

WIDE = 4
"""Taps along an axis up to which no kernel's slope was found wrong."""
FEW = 4
"""Channels of output below which an up-sampling layer runs plain: its fast kernel would compute eight."""


class Convolution(torch.autograd.Function):
    """A convolution; of volumes, of tensors that lie channels last.

    ``how`` is stride, padding, dilation, transposed, output padding and groups.
    """

    @staticmethod
    def forward(ctx: Any, image: Tensor, weight: Tensor, bias: Tensor | None, how: tuple[Any, ...]) -> Tensor:
        """Convolve."""
        ctx.save_for_backward(image, weight)
        ctx.how, ctx.bias = how, bias is not None
        return _convolve(image, weight, bias, how)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        """Slopes of image, weight and bias, with a derivative of their own."""
        image, weight = ctx.saved_tensors
        wanted = tuple(ctx.needs_input_grad[:2])
        if torch.is_grad_enabled():
            apply: Any = Slopes.apply
            first, second = apply(slope, image, weight, ctx.how, wanted)
        else:
            first, second = _slopes(_lie(slope, weight, ctx.how), image, weight, ctx.how, wanted)
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
        slope = _lie(slope, weight, how)
        ctx.save_for_backward(slope, image, weight)
        ctx.how = how
        ctx.set_materialize_grads(False)
        return _slopes(slope, image, weight, how, wanted)

    @staticmethod
    def backward(ctx: Any, on_image: Tensor | None, on_weight: Tensor | None) -> tuple[Tensor | None, ...]:
        """Each is a convolution or a backward pass of one, the new slopes in place of image or weight."""
        slope, image, weight = ctx.saved_tensors
        on_image, on_weight = (None if t is None else _lie(t, weight, ctx.how) for t in (on_image, on_weight))
        by_image = by_weight = None
        if on_image is not None and ctx.needs_input_grad[2]:
            by_weight = _slopes(slope, on_image, weight, ctx.how, (False, True))[1]
        if on_weight is not None and ctx.needs_input_grad[1]:
            by_image = _slopes(slope, image, on_weight, ctx.how, (True, False))[0]
        return _both(on_image, weight, image, on_weight, ctx.how), by_image, by_weight, None, None


def _both(
    on_image: Tensor | None, weight: Tensor, image: Tensor, on_weight: Tensor | None, how: tuple[Any, ...]
) -> Tensor | None:
    """Convolve each of two images with its kernel and add: one convolution of twice the channels, quicker."""
    pairs = [(i, w) for i, w in ((on_image, weight), (image, on_weight)) if i is not None and w is not None]
    if len(pairs) < 2 or how[-1] > 1:  # of grouped kernels each group would need its part of both
        parts = [_convolve(i, w, None, how) for i, w in pairs]
        return sum(parts[1:], parts[0]) if parts else None
    images, kernels = zip(*pairs, strict=True)
    transposed = how[3]
    joined = torch.cat(kernels, 0 if transposed else 1)
    return _convolve(torch.cat(images, 1), joined, None, how)


def _convolve(image: Tensor, weight: Tensor, bias: Tensor | None, how: tuple[Any, ...]) -> Tensor:
    image = _lie(image, weight, how)
    if not _few(weight, how):
        return _last(torch.ops.aten.convolution(image, weight, bias, *how))
    stride, padding, dilation, _, more, _ = how
    size = list(weight.shape[2:])
    plain: Any = torch.ops.aten.slow_conv_transpose3d
    out: Tensor = plain(image, weight.contiguous(), size, bias, stride, padding, more, dilation)
    return out


def _few(weight: Tensor, how: tuple[Any, ...]) -> bool:
    """Whether this is an up-sampling layer that gives the logits of a few classes."""
    return how[3] and how[-1] == 1 and weight.shape[1] < FEW


def _lie(tensor: Tensor, weight: Tensor, how: tuple[Any, ...]) -> Tensor:
    """The same numbers as this layer has them."""
    return tensor.contiguous() if _few(weight, how) else _last(tensor)


def _last(tensor: Tensor) -> Tensor:
    """The same numbers, those of volumes channels last."""
    return tensor if tensor.ndim < 5 else tensor.contiguous(memory_format=torch.channels_last_3d)


def _slopes(
    slope: Tensor, image: Tensor, weight: Tensor, how: tuple[Any, ...], wanted: tuple[bool, ...]
) -> tuple[Tensor | None, Tensor | None]:
    apart = wanted[1] and doubles(image, tuple(weight.shape), how)
    asked = [wanted[0], wanted[1] and not apart, False]
    found = (None, None, None)
    if any(asked):
        quick = not _overreaches(max(slope.shape[2:], image.shape[2:]), weight.shape[2:], how[0])
        with nullcontext() if quick else torch.backends.mkldnn.flags(False, None, None, None):
            found = torch.ops.aten.convolution_backward(slope, image, weight, None, *how, asked)
    by_weight = kernel_slope(slope, image) if apart else found[1]
    return None if found[0] is None else _last(found[0]), by_weight


def _overreaches(fine: tuple[int, ...], kernel: tuple[int, ...], stride: list[int]) -> bool:
    """Whether a wide kernel takes steps about as long as the image: oneDNN then leaves parts of the
    kernel's slope unwritten, or writes past its end (MedNeXt's kernels of 7 on five to seven voxels).

    Example:
        >>> _overreaches((7, 7, 7), (7, 7, 7), [2, 2, 2]), _overreaches((7, 7, 7), (3, 3, 3), [2, 2, 2])
        (True, False)
    """
    axes = zip(fine, kernel, stride, strict=True)
    return any(step > 1 and taps > WIDE and size <= taps + step for size, taps, step in axes)


def convolution(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor | None:
    """Convolve as ``conv3d`` and ``conv2d`` do, volumes channels last; None where it would gain nothing."""
    if isinstance(padding, str) or input.is_cuda or input.ndim != weight.ndim:
        return None
    axes = input.ndim - 2
    if axes == 2 and input.requires_grad:
        return None
    step, edge = _each(stride, axes), _each(padding, axes)
    if axes == 3 and max(*weight.shape[2:], *step) == 1 and not any(edge) and groups == 1:
        return pointwise(input, weight, bias)
    how = (step, edge, _each(dilation, axes), False, [0] * axes, groups)
    apply: Any = Convolution.apply
    out: Tensor = apply(_last(input), _last(weight), bias, how)
    return out


def transposed(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Tensor | None:
    """Convolve as ``conv_transpose3d`` does, channels last; None where it would gain nothing."""
    if input.is_cuda or input.ndim != 5:
        return None
    how = (*(_each(v, 3) for v in (stride, padding, dilation)), True, _each(output_padding, 3), groups)
    apply: Any = Convolution.apply
    out: Tensor = apply(_lie(input, weight, how), _lie(weight, weight, how), bias, how)
    return out


def pointwise(image: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A kernel of one voxel is a product of matrices, and so are all its derivatives.

    Example:
        >>> pointwise(torch.ones(1, 2, 3, 3, 3), torch.ones(4, 2, 1, 1, 1), None).shape
        torch.Size([1, 4, 3, 3, 3])
    """
    out = F.linear(_last(image).movedim(1, -1), weight.flatten(1), bias).movedim(-1, 1)
    return out if len(weight) >= 4 else out.contiguous()  # the logits of a few classes lie as labels do


def _each(value: Any, axes: int) -> list[int]:
    return [value] * axes if isinstance(value, int) else list(value)
