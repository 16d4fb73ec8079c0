"""Geometry of a convolution."""

from collections.abc import Sequence
from typing import NamedTuple


class Conv(NamedTuple):
    """How a convolution walks over its input; pairs are (vertical, horizontal)."""

    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    @classmethod
    def of(cls, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int) -> "Conv":
        return cls((stride[0], stride[1]), (padding[0], padding[1]), (dilation[0], dilation[1]), groups)

    def output(self, size: Sequence[int], kernel: Sequence[int]) -> tuple[int, int]:
        """(oh, ow) over an input of `size` (H, W)."""
        return output_size(size, kernel, self.stride, self.padding, self.dilation)


def output_size(
    size: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> tuple[int, int]:
    """Output (oh, ow) of a convolution over an input of `size` (H, W)."""
    oh, ow = (windows(size[a] + 2 * padding[a], kernel[a], stride[a], dilation[a]) for a in (0, 1))
    return oh, ow


def windows(size: int, kernel: int, stride: int, dilation: int) -> int:
    """How many windows of `kernel` elements, `dilation` apart, fit along an axis of `size` elements, its padding included."""
    return (size - dilation * (kernel - 1) - 1) // stride + 1
