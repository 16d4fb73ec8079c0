"""Measures the costs of this machine (machine.py).

    costs = argmin over c >= LEAST * a of   sum over trials (counts . c / seconds - 1)^2  +  RIDGE * sum over names (c / a - 1)^2

a: what is assumed of such registers, times the factor that makes it fit the trials best. So the costs that no trial counts keep their
proportions. A trial is an operation of one kernel in one form (trials.py), or a dense convolution of ONNX Runtime (dense.py); they are
small, and take about three seconds together.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..ir import costs
from ..ir.conv import ConvShape
from ..ir.costs import Costs, Counts
from ..ir.grids import Grid
from ..ops.conv import Conv, dense_counts
from ..ops.quad_results import Residual
from ..ops.quads import QuadConv
from . import dense
from .trials import Trial, conversion, convolution, measured, quad_convolution

_LOG = logging.getLogger(__name__)
RIDGE, LEAST = 0.03, 0.1
SECONDS, DENSE_SECONDS = 0.7, 0.4
"""Of the trials' runs."""


def measure(assumed: Costs) -> Costs:
    """The costs of this machine, of what is assumed of it."""
    started = time.perf_counter()
    _LOG.info("the costs of this machine are measured, which happens once")
    with costs.using(lambda: assumed):
        tried, compared = list(trials()), dense.COMPARED
        counts = [*(trial.counts for trial in tried), *(dense_counts(*each) for each in compared)]
        seconds = np.r_[measured(tried, SECONDS), dense.measured(compared, DENSE_SECONDS)]
    found = fitted(counts, seconds, assumed)
    _LOG.info("they were measured in %.1f s", time.perf_counter() - started)
    return found


def fitted(counts: Sequence[Counts], seconds: NDArray[np.float64], assumed: Costs) -> Costs:
    """Costs that explain how long operations with such counts take."""
    scale = float(np.median(seconds / [assumed.seconds(each) for each in counts]))
    names = sorted({name for each in counts for name, count in each.items() if count})
    guess = np.array([scale * assumed[name] for name in names])
    relative = np.array([[each.get(name, 0.0) for name in names] for each in counts]) * guess / (1e9 * seconds[:, None])
    ridge = RIDGE**0.5
    matrix, target = np.vstack([relative, ridge * np.eye(len(names))]), np.r_[np.ones(len(counts)), np.full(len(names), ridge)]
    factors, free = np.full(len(names), LEAST), np.ones(len(names), bool)
    while free.any():
        rest = target - matrix[:, ~free].sum(1) * LEAST
        factors[free] = np.linalg.lstsq(matrix[:, free], rest, rcond=None)[0]
        if (factors >= LEAST).all():
            break
        free &= factors >= LEAST
        factors[~free] = LEAST
    scaled = {name: scale * nanoseconds for name, nanoseconds in assumed.nanoseconds.items()}
    return Costs(MappingProxyType(scaled | dict(zip(names, (guess * factors).tolist(), strict=True))))


class _Size(NamedTuple):
    """A convolution of so many channels to filters, on maps of so many rows and columns; `kept`: weights of each filter's own, or (where
    `shared`) taps of all filters; `blocks`: positions that are kept of each channel."""

    channels: int
    filters: int
    side: int
    kernel: int = 3
    stride: int = 1
    kept: float = 1.0
    shared: bool = False
    blocks: float = 1.0
    groups: int = 1
    residual: bool = False


_SIZES = (
    _Size(16, 16, 16, kept=0.3, residual=True),
    _Size(16, 16, 32, kept=0.25, shared=True),
    _Size(16, 32, 16, 1),
    _Size(24, 64, 14, 1, kept=0.4),
    _Size(32, 32, 8, kept=0.6),
    _Size(32, 32, 16, stride=2, kept=0.3),
    _Size(32, 32, 16, kept=0.15, shared=True, residual=True),
    _Size(48, 32, 14, kept=0.1, residual=True),
    _Size(64, 64, 4, kept=0.5),
    _Size(64, 128, 7, 1, kept=0.35),
    _Size(128, 64, 4, kept=0.1, shared=True),
    _Size(96, 8, 16, kept=0.15, shared=True),
    _Size(96, 48, 7, kept=0.1),
    _Size(16, 16, 16, blocks=0.6),
    _Size(16, 32, 16, kept=0.3, blocks=0.5),
    _Size(32, 32, 16, 1, blocks=0.4),
    _Size(64, 64, 8, kept=0.3, shared=True, blocks=0.5),
    _Size(64, 64, 8, 1, blocks=0.7),
    _Size(96, 24, 7, blocks=0.5),
    _Size(32, 32, 16, groups=32),
    _Size(64, 64, 8, groups=64),
    _Size(48, 48, 14, stride=2, groups=48),
    _Size(32, 32, 16, groups=32, blocks=0.5),
    _Size(32, 32, 32, kept=0.45, shared=True),
    _Size(64, 64, 16, kept=0.2),
    _Size(64, 64, 16, kept=0.3, shared=True),
    _Size(128, 128, 8, kept=0.15, shared=True, blocks=0.7),
    _Size(256, 64, 1, 1),
    _Size(512, 128, 1, 1),
)
_QUAD_SIZES = (
    _Size(16, 16, 16, kept=0.3, residual=True),
    _Size(16, 32, 16, 1),
    _Size(32, 32, 8, kept=0.6),
    _Size(64, 32, 4, kept=0.2),
    _Size(32, 64, 7, 1, kept=0.4),
    _Size(64, 64, 1, 1),
    _Size(16, 16, 24, kept=0.15),
    _Size(256, 512, 2, kept=0.3),
    _Size(32, 32, 12, groups=32),
    _Size(24, 24, 7, groups=24, residual=True),
    _Size(48, 48, 14, stride=2, groups=48),
    _Size(16, 16, 12, 5, groups=16),
    _Size(16, 16, 16, blocks=0.6),
    _Size(32, 64, 8, blocks=0.4),
    _Size(64, 32, 7, 1, blocks=0.5, residual=True),
)
_ALIKE = 2
"""Neighbours in rows, and in columns, that keep the same channels."""
_MANY, _EACH = 4, 3
"""Of so many forms of a layer, one in a few is measured."""
_BOXES = ((16, 32, 32), (32, 16, 16), (64, 8, 8), (128, 7, 7))
"""Tensors that change their layout."""


def trials() -> Iterator[Trial]:
    """The operations that are measured: every kernel and form of a few convolutions, and conversions."""
    random = np.random.default_rng(0)
    for number, size in enumerate(_SIZES):
        conv = _convolution(size, random)
        for name, kernel in conv.kernels.items():
            forms = kernel.module.forms(conv.shape, conv.weights, conv.mask)
            chosen = forms if len(forms) < _MANY else forms[number % _EACH :: _EACH]
            yield from (convolution(conv, name, form) for form in chosen if name != "plain")
    yield from map(conversion, _BOXES)
    for size in _QUAD_SIZES:
        quads = _quads(size, random)
        yield from (quad_convolution(quads, quads.weights.shape[1], name) for name in quads.kernels)


def _quads(size: _Size, random: np.random.Generator) -> QuadConv:
    F, C, pad = size.filters, size.channels // 4, size.kernel // 2
    weights = random.integers(-64, 65, (F, C, size.kernel, size.kernel, 4), np.int8)
    weights *= random.random((*weights.shape[:-1], 1)) < size.kept
    if size.groups > 1:
        f = np.arange(F)
        weights *= ((f[:, None] // 4 == np.arange(C))[..., None, None, None] & (f[:, None] % 4 == np.arange(4))[:, None, None, None]).view(
            np.int8
        )
    grid = Grid(scale=np.float32(1), zero=0)
    blocks = random.random((C, size.side, size.side, 4)) < size.blocks if size.blocks < 1 else None
    return QuadConv(
        name="layer",
        inputs=("x", "r") if size.residual else ("x",),
        output="y",
        weights=weights,
        bias=np.zeros(F, np.int64),
        factors=np.full(F, 1e-3, np.float32),
        source=grid,
        grid=grid,
        mask=blocks,
        pads=(pad, pad, pad, pad),
        strides=(size.stride, size.stride),
        size=(size.side, size.side),
        depthwise=size.groups > 1,
        residual=Residual.of(grid, grid, grid, 0, 255) if size.residual else None,
    )


def _convolution(size: _Size, random: np.random.Generator) -> Conv:
    pad = size.kernel // 2
    shape = ConvShape(
        channels=size.channels,
        filters=size.filters,
        height=size.side,
        width=size.side,
        kernel=(size.kernel, size.kernel),
        strides=(size.stride, size.stride),
        pads=(pad, pad, pad, pad),
        groups=size.groups,
    )
    weights = random.standard_normal((size.filters, size.channels // size.groups, size.kernel, size.kernel), np.float32)
    weights *= random.random((1, *weights.shape[1:]) if size.shared else weights.shape) < size.kept
    coarse = random.random((size.channels, *(-(-n // _ALIKE) for n in shape.output))) < size.blocks  # neighbours drop about the same
    mask = coarse.repeat(_ALIKE, 1).repeat(_ALIKE, 2)[:, : shape.output[0], : shape.output[1]] if size.blocks < 1 else None
    inputs = ("x", "r") if size.residual else ("x",)
    return Conv(name="layer", inputs=inputs, output="y", shape=shape, weights=weights, bias=np.ones(size.filters, np.float32), mask=mask)
