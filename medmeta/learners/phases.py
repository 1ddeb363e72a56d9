"""The kernel's slope of the up-sampling layer of MONAI's UNet, as products of matrices.

Kernel 3, stride 2: of two neighbouring voxels of the output along an axis, the even one saw one voxel of the
input through tap 1, the odd one saw two, through taps 2 and 0. So each of the eight phases of the output
meets the input shifted by nothing or by one voxel, and each of the 27 taps is one product of a phase and a
shift. Torch's kernel for the same sums takes one and a half times as long on a CPU.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor

SMALL = (8192, 16)
"""Voxels of the input and channels of the output below which 27 products cost more than one slow kernel."""

_BITS = tuple(itertools.product((0, 1), repeat=3))
_TAP = {(0, 0): 1, (1, 0): 2, (1, 1): 0}
"""(phase, shift) along an axis to the tap of the kernel."""


def doubles(image: Tensor, kernel: tuple[int, ...], how: tuple[object, ...]) -> bool:
    """Whether a convolution with a kernel of this shape is that layer, on an image large enough."""
    this = ([2] * 3, [1] * 3, [1] * 3, True, [1] * 3, 1)
    large = image.numel() // image.shape[1] >= SMALL[0] and kernel[1] >= SMALL[1]
    return how == this and kernel[2:] == (3, 3, 3) and large


def kernel_slope(slope: Tensor, image: Tensor) -> Tensor:
    """Give the kernel's slope, ``(channel, other, 3, 3, 3)``.

    Args:
        slope: of the output, ``(n, other, 2 x, 2 y, 2 z)``, channels last.
        image: ``(n, channel, x, y, z)``, channels last.

    Example:
        >>> kernel_slope(torch.ones(1, 1, 4, 4, 4), torch.ones(1, 2, 2, 2, 2))[0, 0, 1]
        tensor([[2., 4., 4.],
                [4., 8., 8.],
                [4., 8., 8.]])
    """
    n, channels, *size = image.shape
    other = slope.shape[1]
    fine = slope.movedim(1, -1).reshape(n, size[0], 2, size[1], 2, size[2], 2, other)
    phases = fine.permute(2, 4, 6, 0, 1, 3, 5, 7).reshape(2, 2, 2, -1, other)
    padded = F.pad(image.movedim(1, -1), (0, 0, 0, 1, 0, 1, 0, 1))
    found = image.new_empty(3, 3, 3, channels, other)
    for shift in _BITS:
        a, b, c = shift
        seen = padded[:, a : a + size[0], b : b + size[1], c : c + size[2]].reshape(-1, channels).T
        for phase in _BITS:
            if all(s <= p for s, p in zip(shift, phase, strict=True)):
                taps = tuple(_TAP[pair] for pair in zip(phase, shift, strict=True))
                torch.mm(seen, phases[phase], out=found[taps])
    return found.permute(3, 4, 0, 1, 2)
