"""Convolutions and linear layers, with the masks of pruning.

    y[f,i,j] = clip( sum over c, u, v with M[c,i,j] and w[f,c,u,v] != 0 of  w[f,c,u,v] * x[c, i*sh + u*dh - top, j*sw + v*dw - left]
                     + bias[f] (+ residual[f,i,j]),  low, high )

They have several kernels, a module each: `filters`, `positions`, `linear` and `plain`. Which of them runs a layer is chosen with the
layouts of the whole network (passes/layouts.py).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from fineprune.ops.multiply_adds import multiply_adds
from fineprune.ops.simd.quads import stock_exact

from ...functions import DEPTHWISE, DOMAIN, MASKED, POINTWISE
from ..ir import costs
from ..ir.conv import ConvShape, Epilogue, Margins, Op, View
from ..ir.costs import Counts
from ..ir.grids import Integers
from ..ir.network import LAYOUTS, NCHW, NHWC, Box, Candidate, Channels, Layer, Order, onnx
from ..reader.attributes import LARGEST
from . import filters, linear, plain, positions
from .filter_orders import FilterWish
from .filters_forms import CACHED_WEIGHTS

if TYPE_CHECKING:
    from ..reader.attributes import Node
    from ..reader.graph import Reader


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """A module with supports, estimate and plan; `layouts` that its output can have; x in any layout? `limit`: what keeps it from the
    speed that dropped multiply-adds promise, in a few words."""

    module: Any
    layouts: tuple[str, ...]
    any_input: bool
    limit: str = ""

    @property
    def plan(self) -> Callable[..., Op]:
        """Makes an operation."""
        plan: Callable[..., Op] = self.module.plan
        return plan


CONVOLUTIONS = {
    "filters": Kernel(module=filters, layouts=(NHWC,), any_input=True),
    "positions": Kernel(module=positions, layouts=(NCHW,), any_input=False, limit="weights differ by filter: a load for a multiply-add"),
    "linear": Kernel(module=linear, layouts=(NHWC,), any_input=True),
    "plain": Kernel(module=plain, layouts=LAYOUTS, any_input=True),
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Conv(Layer):
    """Weights float32 [F,C/groups,kh,kw] (dropped ones 0), mask bool [C,oh,ow]; a second input is added before the clip.

    `integers`, `integer_bias`: what the file holds weights and bias as, where it holds them as integers.
    """

    shape: ConvShape
    weights: NDArray[np.float32]
    bias: NDArray[np.float32]
    integers: Integers | None = None
    integer_bias: Integers | None = None
    mask: NDArray[np.bool_] | None = None
    low: float = -np.inf
    high: float = np.inf

    @property
    def macs_dense(self) -> int:
        return multiply_adds(self.weights.shape, prod(self.shape.output), self.shape.groups)

    @property
    def macs(self) -> int:
        return multiply_adds(self.weights.shape, prod(self.shape.output), self.shape.groups, blocks=self.mask, weights=self.weights)

    movable: ClassVar[bool] = True

    @property
    def seconds_elsewhere(self) -> float | None:
        if self.mask is not None or self.integers is not None:
            return math.inf
        if "linear" in self.kernels:  # its weights come from memory once, which takes as long anywhere
            return None
        return costs.seconds(dense_counts(self.shape))

    def seconds_on_grids(self, box: Box) -> float:
        if self.integers is not None and self.mask is None:
            return costs.seconds(dense_counts(self.shape, integers=True)) if stock_exact(self.integers.values) else math.inf
        there = self.seconds_elsewhere
        return min(candidate.seconds for candidate in self.candidates) if there is None else there

    @cached_property
    def candidates(self) -> tuple[Candidate, ...]:
        """What can run it, with the expected seconds."""
        found = []
        for name, kernel in self.kernels.items():
            seconds = kernel.module.estimate(self.shape, self.weights, self.mask)
            any_input = kernel.any_input and not (name == "filters" and self.shape.depthwise)  # that has the activations in the lanes then
            found += [Candidate(kernel=name, layout=layout, any_input=any_input, seconds=seconds) for layout in kernel.layouts]
        return tuple(found)

    @property
    def kernels(self) -> Mapping[str, Kernel]:
        """Those that can run it."""
        arguments = self.shape, self.weights, self.mask
        if linear.supports(*arguments) is None:
            return {"linear": CONVOLUTIONS["linear"]}  # planned at once however large, which the others are not
        return {name: kernel for name, kernel in CONVOLUTIONS.items() if kernel.module.supports(*arguments) is None}

    @property
    def margins(self) -> Margins:
        return self.shape.pads

    @property
    def fingerprint(self) -> bytes:
        mask = b"" if self.mask is None else np.packbits(self.mask).tobytes()
        return repr((self.shape, len(self.inputs))).encode() + np.packbits(self.weights != 0).tobytes() + mask

    def channels(self, boxes: Mapping[str, Box]) -> Channels:
        if self.shape.groups == 1:
            return Channels.FREE
        return Channels.FIRST if self.shape.depthwise else Channels.FILE

    def wish(self, seconds: Callable[[Any], float]) -> FilterWish:
        return FilterWish(self, seconds)

    def ordered(self, x: Order | None, y: Order | None) -> Self:
        weights, mask = self.weights, self.mask
        if x is not None:
            weights = np.take(weights, x, 1) if self.shape.groups == 1 else weights
            mask = mask if mask is None else mask[x]
        if y is not None:
            return replace(self, weights=weights[y], bias=self.bias[y], mask=mask)
        return self if x is None else replace(self, weights=weights, mask=mask)

    def plan(self, kernel: str, *views: View) -> list[Op]:
        return self.planned(kernel, views)

    def planned(self, kernel: str, views: Sequence[View], form: Any = None) -> list[Op]:
        """`plan`, in a form of the kernel (None: the one that is expected to take least)."""
        x, *residual, y = views
        epilogue = Epilogue(low=self.low, high=self.high, residual=residual[0] if residual else None)
        return [CONVOLUTIONS[kernel].plan(self.shape, self.weights, self.mask, self.bias, x, y, epilogue, form)]


_TOGETHER = 64
"""Filters for which ONNX Runtime's kernels use what they load, at most: narrow layers take longer by the multiply-add."""


def dense_counts(shape: ConvShape, integers: bool = False) -> Counts:
    """Of ONNX Runtime's convolution within a dense network: it reads all weights, those of large layers from memory, which counts where
    they are of float32."""
    kind = "depthwise" if shape.groups == shape.channels > 1 else "pointwise" if shape.kernel == (1, 1) else "window"
    adds = multiply_adds((shape.filters, shape.channels // shape.groups, *shape.kernel), prod(shape.output), shape.groups)
    weights = shape.filters * shape.channels // shape.groups * prod(shape.kernel)
    name = "dense.int8" if integers else "dense"
    counts = {f"{name}.operation": 1, f"{name}.{kind}": adds, f"{name}.output": shape.filters * prod(shape.output)}
    if integers:
        return counts
    loads = adds / min(shape.filters // shape.groups, _TOGETHER) if kind == "window" else 0.0
    return {**counts, "dense.load": loads, "linear.weight": max(0, weights - CACHED_WEIGHTS)}


@onnx(MASKED, DEPTHWISE, POINTWISE, domain=DOMAIN)
@onnx("Conv")
def conv(node: "Node", reader: "Reader") -> list[Layer]:
    """Conv(X, W, B?) and the masked convolutions (X, W, M, B)."""
    masked = node.domain == DOMAIN
    node.arity(4 if masked else 2, 4 if masked else 3)
    x = reader.image(node, 0)
    weights = reader.weights(node, 1)
    node.support(weights.ndim == 4, f"weights of {weights.ndim} dimensions")
    F, per_group, kh, kw = weights.shape
    groups = node.integer("group", 1)
    node.require(F > 0 and kh > 0 and kw > 0 and max(kh, kw) <= LARGEST, f"has weights of shape {weights.shape}")
    node.require(
        groups > 0 and per_group * groups == x[0] and F % groups == 0, f"of group {groups} has {weights.shape} weights, {x[0]} inputs"
    )
    kernel = node.sizes("kernel_shape", (kh, kw), 1)
    node.require(kernel == (kh, kw), f"has kernel_shape {kernel}, but weights of shape {weights.shape}")
    shape = ConvShape(
        channels=x[0],
        filters=F,
        height=x[1],
        width=x[2],
        kernel=(kh, kw),
        strides=node.pair("strides"),
        pads=node.pads(),
        dilations=node.pair("dilations"),
        groups=groups,
    )
    node.require(min(shape.output) > 0, f"has no output: input {x}, kernel {kernel}, dilations {shape.dilations}, pads {shape.pads}")
    if masked:
        node.require(node.integer("channels", x[0]) == x[0], f"has channels={node.integer('channels', 0)}, its input {x[0]}")
    mask = _mask(node, reader, (x[0], *shape.output)) if masked else None
    bias = _bias(node, reader, 3 if masked else 2, F)
    layer = Conv(
        name=node.name,
        inputs=(reader.tensor(node.inputs[0]),),
        output=reader.define(node, (F, *shape.output)),
        shape=shape,
        weights=weights,
        bias=bias,
        mask=mask,
        integers=reader.integers_of(node.input(1), 0),
        integer_bias=reader.integers_of(node.input(3 if masked else 2), 0),
    )
    return [layer]


def _mask(node: "Node", reader: "Reader", shape: Box) -> NDArray[np.bool_]:
    mask = reader.constant(node, 2)
    node.require(mask.dtype == np.bool_ and mask.shape == shape, f"has a mask {mask.dtype} {mask.shape}, its blocks are {shape}")
    return mask


def _bias(node: "Node", reader: "Reader", index: int, filters: int) -> NDArray[np.float32]:
    if not node.input(index):
        return np.zeros(filters, np.float32)
    bias = reader.weights(node, index)
    node.require(bias.shape == (filters,), f"has a bias of shape {bias.shape} for {filters} filters")
    return bias


@onnx("Gemm")
def gemm(node: "Node", reader: "Reader") -> list[Layer]:
    """Gemm(X, W, B?) of a flat X: a convolution whose kernel covers its input."""
    node.arity(2, 3)
    node.support(not node.integer("transA", 0), "transA")
    weights = reader.weights(node, 1)
    node.support(weights.ndim == 2, "weights of another rank")
    rows = weights if node.integer("transB", 0) else weights.T
    bias = np.zeros(len(rows), np.float32)
    if node.input(2):
        given = reader.weights(node, 2)
        alike = given.size == 1 or (given.size == len(rows) and given.shape[-1] == len(rows))
        node.support(given.ndim <= 2 and alike, "a bias that varies with the sample")
        bias = np.broadcast_to(given.reshape(-1), bias.shape)
    alpha, beta = np.float32(node.number("alpha", 1)), np.float32(node.number("beta", 1))
    with np.errstate(over="ignore"):
        rows, bias = rows if alpha == 1 else rows * alpha, bias if beta == 1 else bias * beta
    node.support(bool(np.isfinite(rows).all() and np.isfinite(bias).all()), "weights that are not finite")
    if alpha != 1 or beta != 1:
        return _linear(node, reader, rows, bias)
    integers = reader.integers_of(node.input(1), 0) if node.integer("transB", 0) else _columns(node, reader)
    return _linear(node, reader, rows, bias, integers, reader.integers_of(node.input(2), 0))


@onnx("MatMul")
def matmul(node: "Node", reader: "Reader") -> list[Layer]:
    """MatMul(X, W) of a flat X."""
    node.arity(2, 2)
    weights = reader.weights(node, 1)
    node.support(weights.ndim == 2, "weights of another rank")
    return _linear(node, reader, weights.T, np.zeros(weights.shape[1], np.float32), _columns(node, reader))


def _columns(node: "Node", reader: "Reader") -> Integers | None:
    """The integers of weights [K,F], as those of rows."""
    found = reader.integers_of(node.input(1), 1)
    return found if found is None else replace(found, values=found.values.T, axis=0)


def _linear(
    node: "Node",
    reader: "Reader",
    rows: NDArray[np.float32],
    bias: NDArray[np.float32],
    integers: Integers | None = None,
    integer_bias: Integers | None = None,
) -> list[Layer]:
    value = reader.value(node, 0)
    node.support(len(value.dims) == 1, "an input that is not flat")
    box = reader.boxes[value.tensor]
    F, K = rows.shape
    node.require(F > 0 and value.dims == (K,), f"has weights for {K} inputs, but {value.dims} inputs")
    shape = ConvShape(channels=box[0], filters=F, height=box[1], width=box[2], kernel=(box[1], box[2]))
    weights = np.ascontiguousarray(rows, np.float32).reshape(F, *box)
    output = reader.define(node, (F, 1, 1), (F,))
    layer = Conv(
        name=node.name,
        inputs=(value.tensor,),
        output=output,
        shape=shape,
        weights=weights,
        bias=np.ascontiguousarray(bias, np.float32),
        integers=integers if integers is None else replace(integers, values=integers.values.reshape(F, *box)),
        integer_bias=integer_bias,
    )
    return [layer]
