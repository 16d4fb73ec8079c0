"""Kernel "map": functions of one or two tensors, number by number, then a clip; all tensors in the same layout.

    identity x    affine scale[c]*x + shift[c]    add x + z    multiply x * z    scale x * z[c]
    hardsigmoid clip(alpha*x + beta, 0, 1)    hardswish x * clip(alpha*x + beta, 0, 1)
    sigmoid 1 / (1 + exp(-x))    silu x * sigmoid(x)

A work item is a row. Where channels lie together, the surplus ones up to whole vectors are computed as well. y may be x.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from fineprune.ops.simd import LANES, tile_zeros
from fineprune.ops.simd.vectors import added, clipped, load, multiplied, multiply_added, same, sigmoid, store

from ..ir import costs
from ..ir.conv import Op, View
from ..ir.network import Box, Channels, Layer, Order, kernel, onnx
from ..ir.record import INT, PLACE, Record
from ..jit import jit

if TYPE_CHECKING:
    from ..reader.attributes import Node
    from ..reader.graph import Reader

IDENTITY, AFFINE, ADD, MULTIPLY, SCALE, HARDSIGMOID, HARDSWISH, SIGMOID, SILU = range(9)
_CODES = {
    "identity": IDENTITY,
    "affine": AFFINE,
    "add": ADD,
    "multiply": MULTIPLY,
    "scale": SCALE,
    "hardsigmoid": HARDSIGMOID,
    "hardswish": HARDSWISH,
    "sigmoid": SIGMOID,
    "silu": SILU,
}
_LOW, _HIGH, _ALPHA, _BETA, _SCALE = range(5)
"""Positions in the constants; from _SCALE on scales, then shifts of `lanes` channels each."""
_META = Record(function=INT, channels_last=INT, channels=INT, columns=INT, lanes=INT, x=PLACE, z=PLACE, y=PLACE)
_fields = _META.fields


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

    kernel_name: ClassVar[str] = "map"
    easy: ClassVar[bool] = True
    in_place: ClassVar[bool] = True

    def seconds_on_grids(self, box: Box) -> float:
        """Of a sum, which the engine adds to another layer."""
        return costs.seconds({"dense.int8.operation": 1, "dense.int8.output": prod(box)}) if self.function == "add" else 0.0

    def channels(self, boxes: Mapping[str, Box]) -> Channels:
        return Channels.FIRST

    def ordered(self, x: Order | None, y: Order | None) -> Self:
        if x is None or self.scale is None or self.shift is None:
            return self
        return replace(self, scale=self.scale[x], shift=self.shift[x])

    def plan(self, kernel: str, *views: View) -> list[Op]:
        x, other, y = views[0], views[-2], views[-1]
        channels_last = x.layout == "NHWC"
        width = x.pixel_stride if channels_last else x.channels
        meta = _META.pack(
            function=_CODES[self.function],
            channels_last=int(channels_last),
            channels=x.channels,
            columns=x.width,
            lanes=width,
            x=x.place,
            z=other.place,
            y=y.place,
        )
        constants = np.zeros(_SCALE + 2 * width, np.float32)
        constants[:_SCALE] = (self.low, self.high, self.alpha, self.beta)
        if self.scale is not None and self.shift is not None:
            constants[_SCALE : _SCALE + x.channels] = self.scale
            constants[_SCALE + width : _SCALE + width + x.channels] = self.shift
        return [Op(kernel="map", meta=meta, constants=constants, costs=np.ones(x.height), scratch=LANES)]


@onnx("Relu", "Clip")
def clip(node: "Node", reader: "Reader") -> list[Layer]:
    """Relu, and Clip with constant bounds: min(max(x, low), high), whichever of them is larger."""
    low, high = 0.0, np.inf
    if node.op_type == "Clip":
        node.arity(1, 3)
        largest = float(np.finfo(np.float32).max)  # what ONNX has where a bound is left out: infinite numbers become finite
        low, high = (_scalar(node, reader, index, default) for index, default in ((1, -largest), (2, largest)))
    return _unary(node, reader, function="identity", low=low, high=high)


def _scalar(node: "Node", reader: "Reader", index: int, default: float) -> float:
    if not node.input(index):
        return default
    value = reader.constant(node, index)
    node.require(value.size == 1 and value.dtype == np.float32, f"has a bound {value.dtype} {value.shape}")
    node.support(not np.isnan(value).any(), "a bound that is no number")
    return float(value.reshape(()))


def _unary(node: "Node", reader: "Reader", **arguments: Any) -> list[Layer]:
    value = reader.value(node, 0)
    output = reader.define(node, reader.boxes[value.tensor], value.dims)
    return [Map(name=node.name, inputs=(value.tensor,), output=output, **arguments)]


@onnx("Sigmoid", "HardSigmoid", "HardSwish")
def activation(node: "Node", reader: "Reader") -> list[Layer]:
    """Sigmoid, HardSigmoid, HardSwish."""
    node.arity(1, 1)
    if node.op_type == "HardSigmoid":
        return _unary(node, reader, function="hardsigmoid", alpha=node.number("alpha", 0.2), beta=node.number("beta", 0.5))
    return _unary(node, reader, function=node.op_type.lower())


@onnx("BatchNormalization")
def batchnorm(node: "Node", reader: "Reader") -> list[Layer]:
    """BatchNormalization in inference: scale[c] * x + shift[c]."""
    node.arity(5, 5)
    node.support(not node.integer("training_mode", 0), "training_mode")
    C = reader.image(node, 0)[0]
    gamma, beta, running_mean, variance = (reader.weights(node, index).astype(np.float64) for index in range(1, 5))
    node.require(all(v.shape == (C,) for v in (gamma, beta, running_mean, variance)), f"has parameters that do not fit {C} channels")
    spread = variance + node.number("epsilon", 1e-5)
    node.support(bool((spread > 0).all()), "a variance that is not positive")
    with np.errstate(over="ignore"):
        scale = (gamma / np.sqrt(spread)).astype(np.float32)
        shift = (beta - running_mean * (gamma / np.sqrt(spread))).astype(np.float32)
    node.support(bool(np.isfinite(scale).all() and np.isfinite(shift).all()), "scales that are not finite")
    return _unary(node, reader, function="affine", scale=scale, shift=shift)


@onnx("Add", "Mul")
def binary(node: "Node", reader: "Reader") -> list[Layer]:
    """Add and Mul of two tensors alike; Mul by one number a channel."""
    node.arity(2, 2)
    values = [reader.value(node, index) for index in (0, 1)]
    boxes = [reader.boxes[value.tensor] for value in values]
    function = {"Add": "add", "Mul": "multiply"}[node.op_type]
    if values[0].dims != values[1].dims:
        node.support(function == "multiply" and all(len(value.dims) == 3 for value in values), "operands of different shapes")
        if boxes[1][1:] != (1, 1):
            values, boxes = values[::-1], boxes[::-1]
        node.support(boxes[1] == (boxes[0][0], 1, 1), "operands of different shapes")
        function = "scale"
    else:
        node.support(boxes[0] == boxes[1], "operands that were reshaped differently")
    output = reader.define(node, boxes[0], values[0].dims)
    return [Map(name=node.name, inputs=(values[0].tensor, values[1].tensor), output=output, function=function)]


@kernel("map")
def run(first: int, last: int, scratch: int, arena: NDArray, constants: NDArray, index: NDArray, meta: NDArray, op: int) -> None:
    """Kernel "map"."""
    m = _fields(meta, op)
    k, code, channels_last, C, W, width = m.constants, m.function, m.channels_last == 1, m.channels, m.columns, m.lanes
    x, xc, xi, xj = m.x.start, m.x.channel, m.x.row, m.x.pixel
    z, zc, zi = m.z.start, m.z.channel, m.z.row
    y, yc, yi, yj = m.y.start, m.y.channel, m.y.row, m.y.pixel
    low, high = constants[k + _LOW], constants[k + _HIGH]
    for i in range(first, last):
        if channels_last and code == AFFINE:
            _pixels(constants, k + _SCALE, k + _SCALE + width, width, W, arena, x + i * xi, xj, y + i * yi, yj, low, high)
        elif channels_last and code == SCALE:
            _pixels(arena, z, -1, width, W, arena, x + i * xi, xj, y + i * yi, yj, low, high)
        elif channels_last:
            _line(code, W * width, arena, x + i * xi, z + i * zi, y + i * yi, constants, k, scratch)
        else:
            for c in range(C):
                source, target = x + c * xc + i * xi, y + c * yc + i * yi
                if code == AFFINE:
                    scale, shift = constants[k + _SCALE + c], constants[k + _SCALE + width + c]
                    _affine(W, arena, source, target, scale, shift, low, high, scratch)
                elif code == SCALE:
                    _affine(W, arena, source, target, arena[z + c * zc], np.float32(0), low, high, scratch)
                else:
                    _line(code, W, arena, source, z + c * zc + i * zi, target, constants, k, scratch)


@jit
def _line(code: int, n: int, arena: NDArray, x: int, z: int, y: int, constants: NDArray, k: int, scratch: int) -> None:
    """n numbers that follow each other."""
    low, high, alpha, beta = constants[k + _LOW], constants[k + _HIGH], constants[k + _ALPHA], constants[k + _BETA]
    if code == ADD:
        _add(n, arena, x, z, y, low, high, alpha, beta, scratch)
    elif code == MULTIPLY:
        _multiply(n, arena, x, z, y, low, high, alpha, beta, scratch)
    elif code == HARDSIGMOID:
        _hardsigmoid(n, arena, x, z, y, low, high, alpha, beta, scratch)
    elif code == HARDSWISH:
        _hardswish(n, arena, x, z, y, low, high, alpha, beta, scratch)
    elif code == SIGMOID:
        _sigmoid(n, arena, x, z, y, low, high, alpha, beta, scratch)
    elif code == SILU:
        _silu(n, arena, x, z, y, low, high, alpha, beta, scratch)
    else:
        _identity(n, arena, x, z, y, low, high, alpha, beta, scratch)


def _each(function: Callable[..., Any]) -> Any:
    """A loop over vectors; `function` gets one of x, arena and z of it, alpha and beta."""
    value = jit(function)

    @jit
    def line(n: int, arena: NDArray, x: int, z: int, y: int, low: float, high: float, alpha: float, beta: float, scratch: int) -> None:
        whole = n // LANES * LANES
        for e in range(0, whole, LANES):
            store(clipped(value(load(arena, x + e, 1), arena, z + e, alpha, beta), low, high), arena, y + e)
        if whole < n:
            last = clipped(value(load(arena, x + whole, 1), arena, z + whole, alpha, beta), low, high)
            put(last, arena, y + whole, n - whole, scratch)

    return line


_ZERO, _ONE = np.float32(0), np.float32(1)
_identity = _each(lambda x, arena, z, alpha, beta: x)
_add = _each(lambda x, arena, z, alpha, beta: added(x, load(arena, z, 1)))
_multiply = _each(lambda x, arena, z, alpha, beta: multiplied(x, load(arena, z, 1)))
_hardsigmoid = _each(lambda x, arena, z, alpha, beta: clipped(multiply_added(x, same(alpha, 1), same(beta, 1)), _ZERO, _ONE))
_hardswish = _each(lambda x, arena, z, alpha, beta: multiplied(x, clipped(multiply_added(x, same(alpha, 1), same(beta, 1)), _ZERO, _ONE)))
_sigmoid = _each(lambda x, arena, z, alpha, beta: sigmoid(x))
_silu = _each(lambda x, arena, z, alpha, beta: multiplied(x, sigmoid(x)))


@jit
def _pixels(
    numbers: NDArray, scale: int, shift: int, width: int, W: int, arena: NDArray, x: int, xj: int, y: int, yj: int, low: float, high: float
) -> None:
    """A row of pixels whose channels lie together, times numbers[scale:], plus numbers[shift:] where shift >= 0."""
    c = 0
    while c + 4 * LANES <= width:
        _pixels_4(numbers, scale + c, shift + c if shift >= 0 else -1, W, arena, x + c, xj, y + c, yj, low, high)
        c += 4 * LANES
    while c < width:
        _pixels_1(numbers, scale + c, shift + c if shift >= 0 else -1, W, arena, x + c, xj, y + c, yj, low, high)
        c += LANES


def _scaled(vectors: int) -> Any:
    """`_pixels` for so many vectors of channels."""

    @jit
    def pixels(
        numbers: NDArray, scale: int, shift: int, W: int, arena: NDArray, x: int, xj: int, y: int, yj: int, low: float, high: float
    ) -> None:
        factor = load(numbers, scale, vectors)
        more = load(numbers, shift, vectors) if shift >= 0 else tile_zeros(1, vectors)
        for j in range(W):
            store(clipped(multiply_added(load(arena, x + j * xj, vectors), factor, more), low, high), arena, y + j * yj)

    return pixels


_pixels_1, _pixels_4 = _scaled(1), _scaled(4)


@jit
def _affine(n: int, arena: NDArray, x: int, y: int, scale: float, shift: float, low: float, high: float, scratch: int) -> None:
    for e in range(0, n, LANES):
        a = multiply_added(load(arena, x + e, 1), same(scale, 1), same(shift, 1))
        put(clipped(a, low, high), arena, y + e, n - e, scratch)


@jit
def put(tile: NDArray, arena: NDArray, y: int, left: int, scratch: int) -> None:
    """A vector, or as much of it as is left."""
    if left >= LANES:
        store(tile, arena, y)
    else:
        store(tile, arena, scratch)
        for e in range(left):
            arena[y + e] = arena[scratch + e]
