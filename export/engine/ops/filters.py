"""The kernel "filters": convolutions with the filters in the SIMD lanes. y is NHWC; x may be either.

    y[f,p] = clip(bias[f] + sum over the channels c kept at p and the taps t kept in (f,c) of w[f,c,t] * x[c, p*stride + t] + residual[f,p])

An FFP mask is the same for all filters, so that with filters in the lanes nothing in a vector is wasted: the kernel broadcasts an
activation and multiplies it with contiguous weights. Any set of positions can share the weights in the registers, which makes FFP exact:
positions that keep about the same channels are a tile, which goes through the channels that enough of its positions keep; those that
drop one read zeros for it. A channel that fewer of a tile's positions keep has a pass over exactly these (filters_tiles.py). A panel of
vectors keeps the (channel, tap) pairs that any of its filters uses: FWP with scope `channel` costs what it keeps with panels of any
width, and with scope `group` with panels of one vector, where the filters of a group follow each other. Grouped convolutions are such
panels too. The width with the least expected time is chosen for each layer (filters_forms.py).

A layer whose weights don't stay in the caches is as fast as they arrive: they are stored in the order of use, without those that meet only
padding and dropped activations, and every entry fetches some lines for later (PACE). Lists are fetched ahead where they are long.

What the parts cost, and what was tried without gain: docs/notes/kernels.md.
"""

import numpy as np
from numpy.typing import NDArray

from ..ir import costs
from ..ir.conv import ConvShape, Epilogue, Op, View
from ..ir.costs import Counts
from . import filters_forms
from .filters_forms import useful
from .filters_plan import Layout, operation
from .filters_run import run
from .filters_tiles import Form

__all__ = ["counts", "estimate", "forms", "plan", "run", "supports"]


def supports(shape: ConvShape, weights: NDArray, mask: NDArray | None) -> str | None:
    """Why this kernel can't do a convolution; None: it can."""
    return None


def forms(shape: ConvShape, weights: NDArray, mask: NDArray | None) -> list[Form]:
    """In which it can be planned."""
    return list(filters_forms.forms(shape))


def counts(shape: ConvShape, weights: NDArray, mask: NDArray | None, form: Form) -> Counts:
    """What it comes to in a form."""
    return filters_forms.counts(shape, useful(shape, weights, mask), _kept(shape, mask), form)


def estimate(shape: ConvShape, weights: NDArray, mask: NDArray | None) -> float:
    """Expected seconds on one core."""
    return _choice(shape, weights, mask)[0]


def plan(
    shape: ConvShape, weights: NDArray, mask: NDArray | None, bias: NDArray, x: View, y: View, epilogue: Epilogue, form: Form | None = None
) -> Op:
    """weights: float32 [F,C/groups,kh,kw], dropped ones 0; mask: bool [C,oh,ow], None: all kept; bias: float32 [F]; form: None: the one
    that is expected to take least. ValueError: the margins of x don't hold the padding."""
    layout = Layout(shape, x, y, epilogue.residual)
    return operation(shape, weights, mask, bias, layout, epilogue, form or _choice(shape, weights, mask)[1])


def _choice(shape: ConvShape, weights: NDArray, mask: NDArray | None) -> tuple[float, Form]:
    """Expected seconds in the form that needs the least, and that form."""
    weights, kept = useful(shape, weights, mask), _kept(shape, mask)
    return min((costs.seconds(filters_forms.counts(shape, weights, kept, form)), form) for form in forms(shape, weights, mask))


def _kept(shape: ConvShape, mask: NDArray | None) -> NDArray:
    positions = shape.output[0] * shape.output[1]
    return np.ones((shape.channels, positions), bool) if mask is None else mask.reshape(-1, positions)
