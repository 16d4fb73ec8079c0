"""The kernel "filters": convolutions with the filters in the SIMD lanes. y is NHWC; x may be either.

    y[f,p] = clip(bias[f] + sum over the channels c kept at p and the taps t kept in (f,c) of w[f,c,t] * x[c, p*stride + t] + residual[f,p])

An FFP mask is the same for all filters, so that with filters in the lanes nothing in a vector is wasted: the kernel broadcasts an
activation and multiplies it with contiguous weights. Any set of positions can share the weights in the registers, which makes FFP exact:
the pass of a channel (filters_run.py) goes over exactly the positions that keep it. A panel of vectors keeps the (channel, tap) pairs
that any of its filters uses: FWP with scope `channel` costs what it keeps with panels of any width, and with scope `group` with panels
of one vector. Grouped convolutions are such panels too.
"""

from numpy.typing import NDArray

from .conv import ConvShape, Epilogue, Op, View
from .filters_plan import Layout, depthwise_cycles, filter_cycles, operation
from .filters_run import DEPTHWISE, TILES, run

__all__ = ["estimate", "plan", "run", "supports"]

SECONDS_PER_CYCLE = 0.26e-9


def supports(shape: ConvShape, weights: NDArray, mask: NDArray | None) -> str | None:
    """Why this kernel can't do a convolution; None: it can."""
    return None


def estimate(shape: ConvShape, weights: NDArray, mask: NDArray | None) -> float:
    """Expected seconds on one core."""
    return _choice(shape, weights, mask)[0] * SECONDS_PER_CYCLE


def plan(shape: ConvShape, weights: NDArray, mask: NDArray | None, bias: NDArray, x: View, y: View, epilogue: Epilogue) -> Op:
    """weights: float32 [F,C/groups,kh,kw], dropped ones 0; mask: bool [C,oh,ow], None: all kept; bias: float32 [F]. ValueError: the
    margins of x don't hold the padding."""
    layout = Layout(shape, x, y, epilogue.residual)
    return operation(shape, weights, mask, bias, layout, epilogue, _choice(shape, weights, mask)[1])


def _choice(shape: ConvShape, weights: NDArray, mask: NDArray | None) -> tuple[float, int]:
    """Expected cycles, and vectors of the panels that need the least."""
    if shape.groups == shape.channels == shape.filters > 1:
        return depthwise_cycles(shape), DEPTHWISE
    return min((filter_cycles(shape, weights, mask, vectors), vectors) for vectors in TILES)
