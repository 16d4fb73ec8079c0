"""Patches of what a convolution reads."""

from typing import Any

from torch import Tensor, nn

from fineprune.calibrate import moments
from fineprune.ops.geometry import Conv
from fineprune.ops.masked_conv import explicit_padding


def walk(conv: nn.Conv2d, x: Tensor) -> tuple[Tensor, Conv]:
    """x with what padding a convolution cannot say itself, and how it goes over that."""
    x, padding = explicit_padding(conv, x)
    return x, Conv.of(conv.stride, padding, conv.dilation, conv.groups)


def patches(conv: nn.Conv2d, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """`moments.patches` of a layer."""
    x, how = walk(conv, x)
    return moments.patches(x, (conv.kernel_size[0], conv.kernel_size[1]), how, *args, **kwargs)
