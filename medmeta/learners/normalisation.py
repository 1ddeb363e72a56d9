"""Group and instance norm with first and second derivatives in closed form, for faster meta-gradients.

With ``x^ = (x - mean) r`` over a group of ``N`` numbers and ``v = gamma g`` for a slope ``g``, the first
derivative is ``r (v - mean v - x^ mean(v x^))``. Torch writes the second one as some twenty passes over the
image, and instance norm as a batch norm of one example. Here every derivative is a sum of ``image x number of
its channel``: whatever must be known of the whole image fits into a few sums of it for each channel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

INNER = 64
"""Numbers that lie side by side under one row of factors; of fewer, the loop over rows costs the most."""


SMALL = 2**17
"""Numbers below which an image is left to torch: a dozen small operations take longer than one slow one."""


@dataclass(frozen=True)
class Layout:
    """How ``(n, channel, *space)`` lies in memory, seen as three axes; ``last`` is channels last.

    Example:
        >>> image = torch.arange(24.0).reshape(1, 2, 3, 2, 2).contiguous(memory_format=torch.channels_last_3d)
        >>> lay = Layout.of(image)
        >>> lay.last, lay.total(lay.flat(image)).tolist()
        (True, [[66.0, 210.0]])
    """

    shape: tuple[int, ...]
    last: bool

    @classmethod
    def of(cls, image: Tensor) -> Layout:
        """See how an image lies."""
        channels_last = image.ndim > 3 and not image.is_contiguous() and image.movedim(1, -1).is_contiguous()
        return cls(tuple(image.shape), channels_last)

    @property
    def size(self) -> int:
        """Points of space."""
        return torch.Size(self.shape[2:]).numel()

    @property
    def repeats(self) -> int:
        """Points of space that are taken together."""
        most = max(1, INNER // self.shape[1])
        return next(k for k in range(most, 0, -1) if self.size % k == 0)

    def flat(self, image: Tensor) -> Tensor:
        """Three axes: example, channel, space or example, space, channel (of several points)."""
        if not self.last:
            return image.reshape(*self.shape[:2], -1)
        return image.movedim(1, -1).reshape(self.shape[0], -1, self.repeats * self.shape[1])

    def empty(self, like: Tensor) -> Tensor:
        """An image to fill through :meth:`flat`; a layer's output may be changed in place, so is no view."""
        form = torch.contiguous_format
        if self.last:
            form = torch.channels_last_3d if len(self.shape) == 5 else torch.channels_last
        return torch.empty(self.shape, dtype=like.dtype, device=like.device, memory_format=form)

    def spread(self, each: Tensor) -> Tensor:
        """Numbers ``(n, channel)`` so that they multiply :meth:`flat`."""
        return each.repeat(1, self.repeats).unsqueeze(1) if self.last else each.unsqueeze(2)

    def total(self, flat: Tensor) -> Tensor:
        """Sums over space, ``(n, channel)``."""
        if not self.last:
            return flat.sum(2)
        return flat.sum(1).reshape(self.shape[0], self.repeats, self.shape[1]).sum(1)

    def mix(self, first: Tensor, *pairs: tuple[Tensor, Tensor]) -> Tensor:
        """Numbers ``(n, channel)`` plus images (flat) times numbers; an image, as it lies in memory."""
        (image, each), *rest = pairs
        whole = self.empty(image)
        out = self.flat(whole)
        torch.addcmul(self.spread(first), image, self.spread(each), out=out)
        for image, each in rest:
            out.addcmul_(image, self.spread(each))
        return whole

    def hat(
        self,
        mean: Tensor,
        rate: Tensor,
        first: Tensor,
        each: Tensor,
        *pairs: tuple[Tensor, Tensor],
        image: Tensor,
    ) -> Tensor:
        """The same, plus ``x^ = (image - mean) rate`` times ``each``."""
        slope = each * rate
        return self.mix(torch.addcmul(first, slope, mean, value=-1), (image, slope), *pairs)


@dataclass(frozen=True)
class Groups:
    """Means over groups of channels, of sums ``(n, channel)`` over ``size`` points."""

    groups: int
    size: int

    def mean(self, sums: Tensor) -> Tensor:
        """The mean of a channel's group, ``(n, channel)``."""
        n, channels = sums.shape
        if self.groups == channels:
            return sums / self.size
        parts = sums.reshape(n, self.groups, -1)
        mean = parts.sum(2, keepdim=True) / (parts.shape[2] * self.size)
        return mean.expand_as(parts).reshape(n, channels)


class Norm(torch.autograd.Function):
    """Group norm (Wu & He 2018, equation 1); with as many groups as channels, instance norm."""

    @staticmethod
    def forward(
        ctx: Any, image: Tensor, weight: Tensor | None, bias: Tensor | None, groups: int, tiny: float
    ) -> Tensor:
        """Normalise ``(n, channel, *space)``."""
        lay = Layout.of(image)
        group = Groups(groups, lay.size)
        flat = lay.flat(image)
        mean = group.mean(lay.total(flat))
        apart = flat - lay.spread(mean)
        rate = (group.mean(lay.total(apart.square())) + tiny).rsqrt()
        factor = rate if weight is None else rate * weight
        ctx.save_for_backward(image, weight, mean, rate)
        ctx.how, ctx.biased = (lay, group), bias is not None
        shift = torch.zeros_like(mean) if bias is None else bias.expand_as(mean)
        return lay.mix(shift, (apart, factor))

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        """Slopes of image, weight and bias, with a derivative of their own."""
        image, weight, mean, rate = ctx.saved_tensors
        apply: Any = Slopes.apply
        by_image, by_weight = apply(slope, image, weight, mean, rate, ctx.how)
        by_bias = slope.sum([0, *range(2, slope.ndim)]) if ctx.biased and ctx.needs_input_grad[2] else None
        return by_image, by_weight, by_bias, None, None


class Slopes(torch.autograd.Function):
    """The backward pass of a norm as a function of slope, image and weight."""

    @staticmethod
    def forward(
        ctx: Any,
        slope: Tensor,
        image: Tensor,
        weight: Tensor | None,
        mean: Tensor,
        rate: Tensor,
        how: tuple[Layout, Groups],
    ) -> tuple[Tensor, Tensor | None]:
        """Slopes of image and weight."""
        lay, group = how
        g, x = lay.flat(slope), lay.flat(image)
        of_g, gamma = lay.total(g), 1.0 if weight is None else weight
        along = rate * (lay.total(g * x) - mean * of_g)  # sums of g x^
        level, tilt = group.mean(of_g * gamma), group.mean(along * gamma)
        ctx.save_for_backward(slope, image, weight, mean, rate, of_g, along, level, tilt)
        ctx.how = how
        ctx.set_materialize_grads(False)
        by_hat = -rate * tilt
        by_image = lay.hat(mean, rate, -rate * level, by_hat, (g, rate * gamma), image=x)
        return by_image, None if weight is None else along.sum(0)

    @staticmethod
    def backward(ctx: Any, on_image: Tensor | None, on_weight: Tensor | None) -> tuple[Tensor | None, ...]:
        """Slopes of the slopes, of the image's and of the weight's."""
        slope, image, weight, mean, rate, of_g, along, level, tilt = ctx.saved_tensors
        lay, group = ctx.how
        g, x = lay.flat(slope), lay.flat(image)
        to_one = to_hat = on_one = on_hat = on_g = torch.zeros_like(rate)
        by_weight, with_w, by_w = None, [], []
        if on_weight is not None:  # of sums of g x^: r (u - mean u - x^ mean(u x^)) with u = q g
            to_hat = on_weight.expand_as(rate)
            on_g, on_one = rate * to_hat, -rate * group.mean(to_hat * of_g)
            on_hat = -rate * group.mean(to_hat * along)
        if on_image is not None:
            w, gamma = lay.flat(on_image), 1.0 if weight is None else weight
            of_w, of_wg = lay.total(w), lay.total(w * g)
            along_w = rate * (lay.total(w * x) - mean * of_w)
            level_w, tilt_w = group.mean(of_w), group.mean(along_w)
            both = group.mean(of_wg * gamma) - level_w * level - 3 * tilt_w * tilt
            square = rate.square()
            on_g, on_hat = on_g - square * tilt_w * gamma, on_hat - square * both
            on_one = on_one + square * (tilt * level_w + tilt_w * level)
            pull = rate * gamma
            to_hat, to_one = to_hat - pull * tilt_w, -pull * level_w
            with_w, by_w = [(w, -square * tilt)], [(w, pull)]
            if weight is not None:
                by_weight = (rate * (of_wg - level_w * of_g - tilt_w * along)).sum(0)
        by_image = lay.hat(mean, rate, on_one, on_hat, (g, on_g), *with_w, image=x)
        by_slope = lay.hat(mean, rate, to_one, to_hat, *by_w, image=x)
        return by_slope, by_image, by_weight, None, None, None


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor | None:
    """Normalise as ``torch.nn.functional.group_norm`` does; None where that is as quick."""
    if input.ndim != 5:  # torch's own is quick where it need not be channels last
        return None
    return _norm(input, num_groups, weight, bias, eps)


def instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor | None:
    """Normalise as ``torch.nn.functional.instance_norm`` does; None where that is as quick."""
    if running_mean is not None or not use_input_stats or input.shape[2:].numel() < 2:
        return None  # the last torch refuses, with its own words
    return _norm(input, input.shape[1], weight, bias, eps)


def _norm(input: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, tiny: float) -> Any:
    if input.is_cuda or input.ndim < 4 or input.numel() < SMALL:
        return None
    apply: Any = Norm.apply
    return apply(input, weight, bias, groups, tiny)
