"""Operations run by themselves, by a kernel and in a form that are given, and as within a network: the place of the output was read not
long before, the input was written right before, and the weights were read by the run before.
"""

import gc
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..ir.conv import ConvShape, Op, View
from ..ir.costs import Counts
from ..ir.dtypes import FLOAT32, QUAD, DType
from ..ir.network import Box, Candidate, Layer
from ..ops.conv import CONVOLUTIONS, Conv
from ..ops.quads import QuadConv
from ..passes.layouts import conversion_counts
from ..passes.program import build
from .threads import Team


@dataclass(frozen=True, kw_only=True, eq=False)
class Trial:
    """The operation `name` of a network of `layers`, which reads x (and perhaps r) and makes y, all of `dtype`; `counts`: what it
    comes to."""

    layers: Sequence[Layer]
    boxes: Mapping[str, Box]
    name: str
    counts: Counts
    dtype: DType = FLOAT32


def convolution(conv: Conv, kernel: str, form: Any) -> Trial:
    """Of a kernel in a form."""
    names = ("x", "r")[: len(conv.inputs)]
    facts = {name: getattr(conv, name) for name in ("shape", "weights", "bias", "mask", "low", "high")}
    layer = _Fixed(name="layer", inputs=names, output="y", kernel=kernel, form=form, **facts)
    shape = conv.shape
    made = (shape.filters, *shape.output)
    boxes = {"x": (shape.channels, shape.height, shape.width), "r": made, "y": made}
    counts = CONVOLUTIONS[kernel].module.counts(shape, conv.weights, conv.mask, form)
    return Trial(layers=[layer], boxes=boxes, name="layer", counts=counts)


def conversion(box: Box) -> Trial:
    """Of a tensor from NHWC to NCHW, between two convolutions that are hardly there."""
    shape = ConvShape(channels=box[0], filters=box[0], height=box[1], width=box[2], kernel=(1, 1))
    weights = np.eye(1, box[0] ** 2, dtype=np.float32).reshape(box[0], box[0], 1, 1)
    facts: dict[str, Any] = {"shape": shape, "weights": weights, "bias": np.zeros(box[0], np.float32), "form": None}
    layers = [
        _Fixed(name="first", inputs=("x",), output="z", kernel="filters", **facts),
        _Fixed(name="second", inputs=("z",), output="y", kernel="positions", **facts),
    ]
    return Trial(layers=layers, boxes=dict.fromkeys("xyz", box), name="z to NCHW", counts=conversion_counts(box))


@dataclass(frozen=True, kw_only=True, eq=False)
class _Fixed(Conv):
    """A convolution whose kernel and form (None: the best one) are given."""

    kernel: str
    form: Any

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        [layout] = CONVOLUTIONS[self.kernel].layouts
        return (Candidate(kernel=self.kernel, layout=layout, any_input=False, seconds=0.0),)

    def plan(self, kernel: str, *views: View) -> list[Op]:
        return self.planned(kernel, views, self.form)


def quad_convolution(conv: QuadConv, channels: int, kernel: str) -> Trial:
    """Of integers, of so many quads of channels, with padding of one column at most."""
    (height, width), (down, right) = conv.size, conv.strides
    facts = {field.name: getattr(conv, field.name) for field in fields(conv)}
    layer = _FixedQuads(**facts | {"name": "layer", "kernel": kernel})
    boxes = {"x": (channels, down * height, right * width), "r": (-(-len(conv.weights) // 4), height, width)}
    return Trial(layers=[layer], boxes=boxes | {"y": boxes["r"]}, name="layer", counts=conv.counts[kernel], dtype=QUAD)


@dataclass(frozen=True, kw_only=True, eq=False)
class _FixedQuads(QuadConv):
    """A convolution of integers whose kernel is given."""

    kernel: str

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        return (Candidate(kernel=self.kernel, layout="NCHW", any_input=False, seconds=0.0),)


class _Run:
    """A trial that is ready to run."""

    def __init__(self, trial: Trial) -> None:
        inputs = sorted({name for layer in trial.layers for name in layer.inputs if name in ("x", "r")})
        program = build(trial.layers, trial.boxes, inputs, ["y"], dtypes=dict.fromkeys(inputs, trial.dtype))
        at = [operation.name for operation in program.operations].index(trial.name)
        self._operation, self._around = range(at, at + 1), (range(at + 1, len(program.operations)), range(at))
        random = np.random.default_rng(0)
        self._tensors = [random.standard_normal((1, *trial.boxes[name]), np.float32).view(trial.dtype) for name in inputs]
        self._tensors.append(np.empty((1, *trial.boxes["y"]), trial.dtype))
        self._team = Team(program, 1)

    def seconds(self) -> float:
        """Of the operation, and of the call. It runs before, too: in a network that runs again and again, weights lie near."""
        for operations in (self._operation, *self._around):
            self._team.run(1, self._tensors, operations)
        return self._timed(self._operation)

    def call(self) -> float:
        """Of a call that does nothing."""
        return self._timed(range(0))

    def _timed(self, operations: range) -> float:
        started = time.perf_counter()
        self._team.run(1, self._tensors, operations)
        return time.perf_counter() - started


def measured(trials: Sequence[Trial], seconds: float) -> NDArray[np.float64]:
    """Seconds of each: the least of as many rounds as fit in `seconds`, in which all take turns, so that what else the machine does is
    left out."""
    runs = [_Run(trial) for trial in trials]
    least = np.full((2, len(runs)), np.inf)
    collects, end = gc.isenabled(), time.perf_counter() + seconds
    gc.disable()
    try:
        while time.perf_counter() < end or not np.isfinite(least).all():
            for k, run in enumerate(runs):
                least[:, k] = np.minimum(least[:, k], (run.seconds(), run.call()))
    finally:
        if collects:
            gc.enable()
    found: NDArray[np.float64] = np.maximum(least[0] - least[1], _SHORTEST_S)
    return found


_SHORTEST_S = 1e-7
