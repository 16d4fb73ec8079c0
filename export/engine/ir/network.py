"""What the engine computes: layers over named tensors of one sample, each [channels, height, width].

Conv       y = clip(masked convolution + bias (+ residual), low, high); a linear layer is a convolution whose kernel covers its input
Pool       maximum or average under a window
Mean       average over rows and columns
Map        one or two tensors element by element, then clip
Assemble   pieces of tensors copied to pieces of one: Concat, Slice, Split, Pad, channel shuffles
Permute    channels in another order; no node of a file, see reorder.py
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from fineprune.ops.multiply_adds import multiply_adds

from .conv import ConvShape
from .dtypes import FLOAT32, DType

Box = tuple[int, int, int]
"""channels, height, width"""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """Reads `inputs`, writes `output`; `name` is the file's."""

    name: str
    inputs: tuple[str, ...]
    output: str

    def dtype(self, inputs: Sequence[DType]) -> DType | None:
        """The type of the output, of inputs of these types; None where the engine cannot compute with them."""
        return FLOAT32 if all(dtype == FLOAT32 for dtype in inputs) else None


def same(inputs: Sequence[DType]) -> DType | None:
    """The type of what is made of numbers of the inputs as they are: theirs, where all have one."""
    return inputs[0] if len(set(inputs)) == 1 else None


@dataclass(frozen=True, kw_only=True, eq=False)
class Conv(Layer):
    """Weights float32 [F,C/groups,kh,kw] (dropped ones 0), mask bool [C,oh,ow]; a second input is added before the clip."""

    shape: ConvShape
    weights: NDArray[np.float32]
    bias: NDArray[np.float32]
    mask: NDArray[np.bool_] | None = None
    low: float = -np.inf
    high: float = np.inf

    @property
    def macs_dense(self) -> int:
        """Multiply-adds a sample if nothing were dropped."""
        return multiply_adds(self.weights.shape, prod(self.shape.output), self.shape.groups)

    @property
    def macs(self) -> int:
        """Multiply-adds a sample of what is kept."""
        return multiply_adds(self.weights.shape, prod(self.shape.output), self.shape.groups, blocks=self.mask, weights=self.weights)


@dataclass(frozen=True, kw_only=True)
class Pool(Layer):
    """`kind` "max" or "average"; where `counts_padding`, an average divides by the whole window."""

    kind: str
    kernel: tuple[int, int]
    strides: tuple[int, int]
    pads: tuple[int, int, int, int]
    dilations: tuple[int, int] = (1, 1)
    counts_padding: bool = False


@dataclass(frozen=True, kw_only=True)
class Mean(Layer):
    """y[c] = mean over i,j of x[c,i,j]"""


@dataclass(frozen=True, kw_only=True, eq=False)
class Map(Layer):
    """y = clip(function(x...), low, high).

    "identity", "sigmoid", "silu" (x * sigmoid(x)) of x; "hardsigmoid" clip(alpha*x + beta, 0, 1) and "hardswish" x * hardsigmoid(x)
    of it; "affine" scale[c]*x + shift[c]; "add", "multiply" of two tensors; "scale" x[c,i,j] * z[c,0,0].
    """

    function: str
    low: float = -np.inf
    high: float = np.inf
    alpha: float = 1 / 6
    beta: float = 0.5
    scale: NDArray[np.float32] | None = None
    shift: NDArray[np.float32] | None = None


@dataclass(frozen=True, kw_only=True)
class Piece:
    """`size` elements of input number `source`, from `start` on by `step` (each channel, row, column), go to `to` on by `to_step`."""

    source: int
    size: Box
    start: Box = (0, 0, 0)
    step: Box = (1, 1, 1)
    to: Box = (0, 0, 0)
    to_step: Box = (1, 1, 1)


@dataclass(frozen=True, kw_only=True)
class Assemble(Layer):
    """Copies `pieces`, which do not overlap; what they leave is zero."""

    pieces: tuple[Piece, ...]

    def dtype(self, inputs: Sequence[DType]) -> DType | None:
        """The inputs'."""
        return same(inputs)


@dataclass(frozen=True, kw_only=True, eq=False)
class Permute(Layer):
    """y[c] = x[order[c]]"""

    order: NDArray[np.int64]

    def dtype(self, inputs: Sequence[DType]) -> DType | None:
        """The inputs'."""
        return same(inputs)
