"""Kernel "map": functions of one or two tensors, number by number, then a clip; all tensors in the same layout.

    identity x    affine scale[c]*x + shift[c]    add x + z    multiply x * z    scale x * z[c]
    hardsigmoid clip(alpha*x + beta, 0, 1)    hardswish x * clip(alpha*x + beta, 0, 1)    sigmoid 1 / (1 + exp(-x))

exp(x) = 2^k * exp(r), k = round(x / ln 2), |r| <= ln 2 / 2, exp(r) by its Taylor polynomial of degree 6: within 3e-7 of itself.
A work item is a row. Where channels lie together, the surplus ones up to whole vectors are computed as well.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .conv import HEADER, Op, View
from .jit import jit
from .network import Map
from .vectors import power_of_two

IDENTITY, AFFINE, ADD, MULTIPLY, SCALE, HARDSIGMOID, HARDSWISH, SIGMOID = range(8)
_CODES = {
    "identity": IDENTITY,
    "affine": AFFINE,
    "add": ADD,
    "multiply": MULTIPLY,
    "scale": SCALE,
    "hardsigmoid": HARDSIGMOID,
    "hardswish": HARDSWISH,
    "sigmoid": SIGMOID,
}
_LOW, _HIGH, _ALPHA, _BETA, _SCALE = range(5)
_LOG2E = np.float32(1.4426950408889634)
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.1219444005469057e-4)  # the first has few digits: its multiples are exact


def plan(layer: Map, x: View, z: View | None, y: View) -> Op:
    """`z` is the second input."""
    other = z or x
    channels_last = x.layout == "NHWC"
    width = x.pixel_stride if channels_last else x.channels
    own = [_CODES[layer.function], int(channels_last), x.channels, x.width, width]
    for view in (x, other, y):
        own += [view.start, view.channel_stride, view.row_stride, view.pixel_stride]
    constants = np.zeros(_SCALE + 2 * width, np.float32)
    constants[:_SCALE] = (layer.low, layer.high, layer.alpha, layer.beta)
    if layer.scale is not None and layer.shift is not None:
        constants[_SCALE : _SCALE + x.channels] = layer.scale
        constants[_SCALE + width : _SCALE + width + x.channels] = layer.shift
    costs = np.full(x.height, (2e-9 if layer.function == "sigmoid" else 2e-10) * x.channels * x.width)
    return Op(kernel="map", meta=np.array([0] * HEADER + own, np.int64), constants=constants, costs=costs)


@jit
def run(first: int, last: int, scratch: int, arena: NDArray, constants: NDArray, index: NDArray, meta: NDArray, op: int) -> None:
    """Kernel "map"."""
    m, k = op + HEADER, meta[op]
    code, channels_last, C, W, width = meta[m], meta[m + 1] == 1, meta[m + 2], meta[m + 3], meta[m + 4]
    x, xc, xi, xj = meta[m + 5], meta[m + 6], meta[m + 7], meta[m + 8]
    z, zc, zi = meta[m + 9], meta[m + 10], meta[m + 11]
    y, yc, yi, yj = meta[m + 13], meta[m + 14], meta[m + 15], meta[m + 16]
    by_channel = code in (AFFINE, SCALE)
    for i in range(first, last):
        if channels_last and not by_channel:
            _line(code, W * width, arena, x + i * xi, z + i * zi, y + i * yi, constants, k)
        elif channels_last:
            for j in range(W):
                if code == AFFINE:
                    _scale(
                        width,
                        arena,
                        x + i * xi + j * xj,
                        y + i * yi + j * yj,
                        constants,
                        k + _SCALE,
                        constants,
                        k + _SCALE + width,
                        constants,
                        k,
                    )
                else:
                    _scale(width, arena, x + i * xi + j * xj, y + i * yi + j * yj, arena, z, constants, -1, constants, k)
        else:
            for c in range(C):
                if code == AFFINE:
                    _affine(
                        W,
                        arena,
                        x + c * xc + i * xi,
                        y + c * yc + i * yi,
                        constants[k + _SCALE + c],
                        constants[k + _SCALE + width + c],
                        constants,
                        k,
                    )
                elif code == SCALE:
                    _affine(W, arena, x + c * xc + i * xi, y + c * yc + i * yi, arena[z + c * zc], np.float32(0), constants, k)
                else:
                    _line(code, W, arena, x + c * xc + i * xi, z + c * zc + i * zi, y + c * yc + i * yi, constants, k)


@jit
def _clip(value: float, low: float, high: float) -> float:
    value = low if value < low else value
    return high if value > high else value


@jit
def _affine(n: int, arena: NDArray, x: int, y: int, scale: float, shift: float, constants: NDArray, k: int) -> None:
    low, high = constants[k + _LOW], constants[k + _HIGH]
    for e in range(n):
        arena[y + e] = _clip(arena[x + e] * scale + shift, low, high)


@jit
def _scale(
    n: int, arena: NDArray, x: int, y: int, scales: NDArray, scale: int, shifts: NDArray, shift: int, constants: NDArray, k: int
) -> None:
    low, high = constants[k + _LOW], constants[k + _HIGH]
    if shift < 0:
        for e in range(n):
            arena[y + e] = _clip(arena[x + e] * scales[scale + e], low, high)
    else:
        for e in range(n):
            arena[y + e] = _clip(arena[x + e] * scales[scale + e] + shifts[shift + e], low, high)


@jit
def _line(code: int, n: int, arena: NDArray, x: int, z: int, y: int, constants: NDArray, k: int) -> None:
    low, high, alpha, beta = constants[k + _LOW], constants[k + _HIGH], constants[k + _ALPHA], constants[k + _BETA]
    zero, one = np.float32(0), np.float32(1)
    if code == IDENTITY:
        for e in range(n):
            arena[y + e] = _clip(arena[x + e], low, high)
    elif code == ADD:
        for e in range(n):
            arena[y + e] = _clip(arena[x + e] + arena[z + e], low, high)
    elif code == MULTIPLY:
        for e in range(n):
            arena[y + e] = _clip(arena[x + e] * arena[z + e], low, high)
    elif code == HARDSIGMOID:
        for e in range(n):
            arena[y + e] = _clip(_clip(arena[x + e] * alpha + beta, zero, one), low, high)
    elif code == HARDSWISH:
        for e in range(n):
            arena[y + e] = _clip(arena[x + e] * _clip(arena[x + e] * alpha + beta, zero, one), low, high)
    else:
        for e in range(n):
            arena[y + e] = _clip(one / (one + _exp(-arena[x + e])), low, high)


@jit
def _exp(x: Any) -> Any:
    x = _clip(x, np.float32(-87), np.float32(88))
    k = np.int32(np.floor(x * _LOG2E + np.float32(0.5)))
    r = (x - np.float32(k) * _LN2_HIGH) - np.float32(k) * _LN2_LOW
    p = np.float32(1 / 720)
    p = p * r + np.float32(1 / 120)
    p = p * r + np.float32(1 / 24)
    p = p * r + np.float32(1 / 6)
    p = p * r + np.float32(0.5)
    p = p * r + np.float32(1)
    p = p * r + np.float32(1)
    return p * power_of_two(k)
