"""Kernel "map": functions of one or two tensors, number by number, then a clip; all tensors in the same layout.

    identity x    affine scale[c]*x + shift[c]    add x + z    multiply x * z    scale x * z[c]
    hardsigmoid clip(alpha*x + beta, 0, 1)    hardswish x * clip(alpha*x + beta, 0, 1)
    sigmoid 1 / (1 + exp(-x))    silu x * sigmoid(x)

A work item is a row. Where channels lie together, the surplus ones up to whole vectors are computed as well. y may be x.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fineprune.ops.simd import LANES, tile_zeros
from fineprune.ops.simd.vectors import added, clipped, load, multiplied, multiply_added, same, sigmoid, store

from ..ir.conv import Op, View
from ..ir.network import Map
from ..ir.record import INT, PLACE, Record
from ..jit import jit

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


def plan(layer: Map, x: View, z: View | None, y: View) -> Op:
    """`z` is the second input."""
    other = z or x
    channels_last = x.layout == "NHWC"
    width = x.pixel_stride if channels_last else x.channels
    meta = _META.pack(
        function=_CODES[layer.function],
        channels_last=int(channels_last),
        channels=x.channels,
        columns=x.width,
        lanes=width,
        x=x.place,
        z=other.place,
        y=y.place,
    )
    constants = np.zeros(_SCALE + 2 * width, np.float32)
    constants[:_SCALE] = (layer.low, layer.high, layer.alpha, layer.beta)
    if layer.scale is not None and layer.shift is not None:
        constants[_SCALE : _SCALE + x.channels] = layer.scale
        constants[_SCALE + width : _SCALE + width + x.channels] = layer.shift
    costs = np.full(x.height, (3e-10 if layer.function in ("sigmoid", "silu") else 2e-10) * x.channels * x.width)
    return Op(kernel="map", meta=meta, constants=constants, costs=costs, scratch=LANES)


@jit
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
            _put(last, arena, y + whole, n - whole, scratch)

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
        _put(clipped(a, low, high), arena, y + e, n - e, scratch)


@jit
def _put(tile: NDArray, arena: NDArray, y: int, left: int, scratch: int) -> None:
    """A vector, or as much of it as is left."""
    if left >= LANES:
        store(tile, arena, y)
    else:
        store(tile, arena, scratch)
        for e in range(left):
            arena[y + e] = arena[scratch + e]
