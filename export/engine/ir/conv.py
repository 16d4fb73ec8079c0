"""What the planner and the kernels of the engine say to each other: a convolution, where its tensors lie, and a planned operation.

A network runs on one sample at a time; samples of a batch are independent. All activations of a sample lie in one array, the *arena*:
float32 slots, which numbers of other types share (see dtypes.py). A `View` says where a tensor lies in it. A planned operation is an
`Op`: integers and floats that a compiled kernel reads.

Every kernel is one compiled function with the same signature:

    run(first, last, scratch, arena, constants, index, meta, op)

It does the work items first <= k < last of the operation whose integers start at meta[op]. `scratch` is the first element of arena
that this thread may use as it likes (`Op.scratch` floats). `constants` (slots) and `index` (int32) hold the numbers of all
operations one after another; meta[op + CONSTANTS] and meta[op + INDEX] are the first of this operation. Work items are independent:
threads take contiguous runs of them, in any order, and the result does not depend on who takes which.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fineprune.ops.geometry import windows

from .dtypes import FLOAT32, DType

CONSTANTS, INDEX = 0, 1
"""Positions in an operation's meta: starts of its constants and index (filled in when operations are put together)."""


@dataclass(frozen=True, kw_only=True)
class ConvShape:
    """Sizes of a 2-D convolution of one sample: x[C,H,W] with weights [F,C/groups,kh,kw] gives y[F,oh,ow]."""

    channels: int
    filters: int
    height: int
    width: int
    kernel: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    """top, left, bottom, right, as in ONNX."""
    dilations: tuple[int, int] = (1, 1)
    groups: int = 1

    @property
    def output(self) -> tuple[int, int]:
        """(oh, ow)"""
        sizes = (self.height + self.pads[0] + self.pads[2], self.width + self.pads[1] + self.pads[3])
        oh, ow = (windows(sizes[a], self.kernel[a], self.strides[a], self.dilations[a]) for a in (0, 1))
        return oh, ow

    @property
    def depthwise(self) -> bool:
        """Whether filter f reads channel f alone."""
        return self.groups == self.channels == self.filters > 1


Margins = tuple[int, int, int, int]
"""top, left, bottom, right"""


@dataclass(frozen=True, kw_only=True)
class View:
    """A tensor [channels, height, width] in the arena, which is seen as an array a of `dtype`: element (c,i,j) is
    a[start + c*channel_stride + i*row_stride + j*pixel_stride].

    Around it lie margins (top, left, bottom, right) of zeros, which nobody may change: a convolution reads its padding there.
    Layout "NHWC": channel_stride 1; pixel_stride is the number of channels rounded up to whole vectors, and the surplus channels may
    be written (their values are arbitrary but finite). Layout "NCHW": pixel_stride 1.
    A kernel may read, never write, up to 2 * LANES slots before the first and after the last element of a view with its margins.
    """

    start: int
    channels: int
    height: int
    width: int
    channel_stride: int
    row_stride: int
    pixel_stride: int
    margins: Margins = (0, 0, 0, 0)
    dtype: DType = FLOAT32

    @property
    def layout(self) -> str:
        return "NCHW" if self.pixel_stride == 1 and self.channel_stride != 1 else "NHWC"

    @property
    def place(self) -> tuple[int, int, int, int]:
        """Start and strides, as records of operations have them (record.PLACE)."""
        return self.start, self.channel_stride, self.row_stride, self.pixel_stride

    def at(self, channel: int, row: int, column: int) -> int:
        """Position of an element in the arena, counted in elements; rows and columns may lie in the margins."""
        return self.start + channel * self.channel_stride + row * self.row_stride + column * self.pixel_stride


@dataclass(frozen=True, kw_only=True)
class Epilogue:
    """y = clip(convolution + bias (+ residual), low, high); ReLU is low=0."""

    low: float = -np.inf
    high: float = np.inf
    residual: View | None = None


@dataclass(frozen=True, kw_only=True)
class Op:
    """A planned operation."""

    kernel: str
    """Name of the compiled function."""
    meta: NDArray[np.int64]
    """Starts of constants and index, then the kernel's own integers, see record.py."""
    index: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    constants: NDArray[Any] = field(default_factory=lambda: np.zeros(0, np.float32))
    """Of any type in DTYPES; they begin at a slot, and the kernel sees them through a view."""
    costs: NDArray[np.float64] = field(default_factory=lambda: np.ones(1))
    """[work items]: expected time of each, in any unit; threads get contiguous runs of about equal sums."""
    scratch: int = 0
    """Floats of scratch that a thread needs."""
    tensor: int | None = None
    """The number of a tensor of the caller, which the kernel is given as its constants."""
