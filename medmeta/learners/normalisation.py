"""Group and instance norm with first and second derivatives in closed form, for faster meta-gradients.

With ``x^ = (x - mean) r`` over a group of ``N`` numbers and ``v = gamma g`` for a slope ``g``, the first
derivative is ``r (v - mean v - x^ mean(v x^))``. Torch writes the second one as some twenty passes over the
image, and instance norm as a batch norm of one example. Here every derivative is a sum of ``image x number of
its channel``: whatever must be known of the whole image fits into a few sums of it for each channel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

INNER = 64
"""Numbers that lie side by side under one row of factors; of fewer, the loop over rows costs the most."""


SMALL = 2**17
"""Numbers below which an image is left to torch: a dozen small operations take longer than one slow one."""


FAR = 8.0
"""Deviations from zero to the mean beyond which channels are not left last: torch's kernel for these takes
the variance as a difference of two sums, which rounding spoils there."""


NARROW = 8
"""Channels of a group below which torch's kernels for channels last are slow: the backward one always, the
forward one on images of fewer than :data:`POINTS` points."""
POINTS = 1024


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

    @property
    def form(self) -> torch.memory_format:
        """The same in torch's words."""
        if not self.last:
            return torch.contiguous_format
        return torch.channels_last_3d if len(self.shape) == 5 else torch.channels_last

    def empty(self, like: Tensor) -> Tensor:
        """An image to fill through :meth:`flat`; a layer's output may be changed in place, so is no view."""
        return torch.empty(self.shape, dtype=like.dtype, device=like.device, memory_format=self.form)

    def alike(self, image: Tensor) -> Tensor:
        """The same numbers, lying so."""
        return image.contiguous(memory_format=self.form)

    def spread(self, each: Tensor) -> Tensor:
        """Numbers ``(n, channel)`` so that they multiply :meth:`flat`."""
        return each.repeat(1, self.repeats).unsqueeze(1) if self.last else each.unsqueeze(2)

    def total(self, flat: Tensor) -> Tensor:
        """Sums over space, ``(n, channel)``."""
        if not self.last:
            return flat.sum(2)
        return flat.sum(1).reshape(self.shape[0], self.repeats, self.shape[1]).sum(1)

    def dot(self, one: Tensor, other: Tensor) -> Tensor:
        """Sums of products over space, ``(n, channel)``."""
        if not self.last:
            found: Tensor = torch.linalg.vecdot(one, other)
            return found
        return self.total(one * other)

    def mix(self, first: Tensor, *pairs: tuple[Tensor, Tensor]) -> Tensor:
        """Numbers ``(n, channel)`` plus images (flat) times numbers; an image, as it lies in memory."""
        (image, each), *rest = pairs
        whole = self.empty(image)
        out = self.flat(whole)
        if self.last:
            torch.addcmul(self.spread(first), image, self.spread(each), out=out)
        else:  # one number for a whole row: of three operands torch takes one such in a quick loop, not two
            torch.mul(image, self.spread(each), out=out).add_(self.spread(first))
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

    def narrow(self, channels: int) -> bool:
        """Whether a group has few of the channels."""
        return channels // self.groups < NARROW

    def each(self, means: Tensor, channels: int) -> Tensor:
        """Numbers ``(n, group)`` for each channel, ``(n, channel)``."""
        return means.unsqueeze(2).expand(-1, -1, channels // self.groups).reshape(len(means), channels)

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
        image = lay.alike(image)
        group, size = Groups(groups, lay.size), (*lay.shape[:2], lay.size, groups)
        kernel: Any = torch.ops.aten.native_group_norm
        slow = lay.last and group.narrow(lay.shape[1]) and lay.size < POINTS
        if not slow:
            out, mean, rate = kernel(image, weight, bias, *size, tiny)
        if slow or (lay.last and float((mean * rate).abs().max()) > FAR):
            plain, mean, rate = kernel(image.contiguous(), weight, bias, *size, tiny)
            out = lay.empty(plain).copy_(plain)
        ctx.save_for_backward(image, weight, mean, rate)
        ctx.how, ctx.biased = (lay, group), bias is not None
        normal: Tensor = out
        return normal

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        """Slopes of image, weight and bias, with a derivative of their own."""
        apply: Any = Slopes.apply
        by_image, by_weight, by_bias = apply(slope, *ctx.saved_tensors, *ctx.how)
        return by_image, by_weight, by_bias if ctx.biased else None, None, None


class Slopes(torch.autograd.Function):
    """The backward pass of :class:`Norm` as a function of slope, image and weight."""

    @staticmethod
    def forward(ctx: Any, *given: Any) -> tuple[Tensor, Tensor | None, Tensor]:
        """Slopes of image, weight and bias; given a :class:`Pass`, part by part for autograd to follow."""
        slope, image, weight, mean, rate, lay, group = made = Pass(*given)
        ctx.how = (lay, group)
        ctx.set_materialize_grads(False)
        if lay.last and group.narrow(lay.shape[1]):
            sums = Sums.of(made)
            ctx.save_for_backward(slope, image, weight, mean, rate, *sums)
            hat = -sums.rate * sums.tilt
            factors = (sums.mean, sums.rate, -sums.rate * sums.level, hat)
            by_image = lay.hat(*factors, (lay.flat(slope), sums.rate * made.gamma), image=lay.flat(image))
            return by_image, None if weight is None else sums.along.sum(0), sums.of_slope.sum(0)
        slope = lay.alike(slope)
        ctx.save_for_backward(slope, image, weight, mean, rate)
        each = image.new_ones(lay.shape[1]) if weight is None else weight  # of None it gives no bias's slope
        size = (*lay.shape[:2], lay.size, group.groups)
        kernel: Any = torch.ops.aten.native_group_norm_backward
        by_image, by_weight, by_bias = kernel(slope, image, mean, rate, each, *size, [True] * 3)
        return by_image, None if weight is None else by_weight, by_bias

    @staticmethod
    def backward(
        ctx: Any, on_image: Tensor | None, on_weight: Tensor | None, on_bias: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """Slopes of the slopes: of the image's, the weight's and the bias's."""
        given, known = ctx.saved_tensors[:5], ctx.saved_tensors[5:]
        slope, image, weight, _, _, lay, group = made = Pass(*given, *ctx.how)
        g, x = lay.flat(slope), lay.flat(image)
        sums = Sums(*known) if known else Sums.of(made)
        mean, rate = sums.mean, sums.rate
        to_one = to_hat = on_one = on_hat = on_g = torch.zeros_like(rate)
        by_weight, with_w, by_w = None, [], []
        if on_bias is not None:
            to_one = on_bias.expand_as(rate)
        if on_weight is not None:  # of sums of g x^: r (u - mean u - x^ mean(u x^)) with u = q g
            to_hat = on_weight.expand_as(rate)
            on_g, on_one = rate * to_hat, -rate * group.mean(to_hat * sums.of_slope)
            on_hat = -rate * group.mean(to_hat * sums.along)
        if on_image is not None:
            w, gamma = lay.flat(on_image), made.gamma
            of_w, of_wg = lay.total(w), lay.dot(w, g)
            along_w = rate * (lay.dot(w, x) - mean * of_w)
            level_w, tilt_w = group.mean(of_w), group.mean(along_w)
            both = group.mean(of_wg * gamma) - level_w * sums.level - 3 * tilt_w * sums.tilt
            square = rate.square()
            on_g, on_hat = on_g - square * tilt_w * gamma, on_hat - square * both
            on_one = on_one + square * (sums.tilt * level_w + tilt_w * sums.level)
            pull = rate * gamma
            to_hat, to_one = to_hat - pull * tilt_w, to_one - pull * level_w
            with_w, by_w = [(w, -square * sums.tilt)], [(w, pull)]
            if weight is not None:
                by_weight = (rate * (of_wg - level_w * sums.of_slope - tilt_w * sums.along)).sum(0)
        by_image = lay.hat(mean, rate, on_one, on_hat, (g, on_g), *with_w, image=x)
        by_slope = lay.hat(mean, rate, to_one, to_hat, *by_w, image=x)
        return by_slope, by_image, by_weight, None, None, None, None


class Pass(NamedTuple):
    """One way through the norm and back.

    Args:
        slope: of what came out, ``(n, channel, *space)``.
        image: what went in.
        weight: ``(channel)``, or None for one that is 1.
        mean: of each group, ``(n, group)``.
        rate: one over its standard deviation.
        lay: how the image lies in memory.
        group: which channels are normalised together.
    """

    slope: Tensor
    image: Tensor
    weight: Tensor | None
    mean: Tensor
    rate: Tensor
    lay: Layout
    group: Groups

    @property
    def gamma(self) -> Tensor | float:
        """The weight as a factor."""
        return 1.0 if self.weight is None else self.weight


class Sums(NamedTuple):
    """What all derivatives need to know of a whole image, ``(n, channel)`` each.

    Args:
        mean: of the channel's group.
        rate: one over its standard deviation.
        of_slope: sums of the slope over space.
        along: sums of slope times normalised image.
        level: means of ``of_slope`` times the weight over a group.
        tilt: the same of ``along``.
    """

    mean: Tensor
    rate: Tensor
    of_slope: Tensor
    along: Tensor
    level: Tensor
    tilt: Tensor

    @classmethod
    def of(cls, made: Pass) -> Sums:
        """Add up."""
        lay, group = made.lay, made.group
        g, x = lay.flat(made.slope), lay.flat(made.image)
        mean, rate = (group.each(t, lay.shape[1]) for t in (made.mean, made.rate))
        of_slope = lay.total(g)
        along = rate * (lay.dot(g, x) - mean * of_slope)
        level, tilt = (group.mean(sums * made.gamma) for sums in (of_slope, along))
        return cls(mean, rate, of_slope, along, level, tilt)


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor | None:
    """Normalise as ``torch.nn.functional.group_norm`` does; None where that is as quick."""
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
