"""Resize of rows and columns: the nearest pixel, or linear between two of them.

    nearest    y[c,i,j] = x[c, r(i), q(j)]
    linear     y[c,i,j] = (1-a)(1-b) x[c,r,q] + (1-a) b x[c,r,q'] + a (1-b) x[c,r',q] + a b x[c,r',q']

with the pixels r, r' = r + 1 around the place of row i in x and its distance a from the first; q, q', b likewise of column j. Places
outside the image are moved to its border. Where row i lies in x, by coordinate_transformation_mode (s: sizes of y over those of x):

    half_pixel (i + 0.5) / s - 0.5      pytorch_half_pixel: so, but 0 where y has one row
    asymmetric i / s                    align_corners i (H - 1) / (oh - 1), 0 where y has one row

A work item is a row of y; vectors hold channels, so that both sides are NHWC.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fineprune.ops.simd import LANES
from fineprune.ops.simd.vectors import load, multiplied, multiply_added, same, store

from ..ir.conv import Op, View
from ..ir.network import NHWC, Box, Channels, Layer, kernel, onnx
from ..ir.record import INT, PLACE, Record
from ..jit import jit
from ..reader.attributes import LARGEST

if TYPE_CHECKING:
    from ..reader.attributes import Node
    from ..reader.graph import Reader

_META = Record(x=PLACE, y=PLACE, lanes=INT, height=INT, width=INT, linear=INT)
"""lanes: channels rounded up to whole vectors; height, width: of y."""
_fields = _META.fields

_PLACES: dict[str, Callable[..., Any]] = {
    "half_pixel": lambda i, scale, x, y: (i + np.float32(0.5)) / scale - np.float32(0.5),
    "pytorch_half_pixel": lambda i, scale, x, y: (i + np.float32(0.5)) / scale - np.float32(0.5) if y > 1 else i * 0,
    "asymmetric": lambda i, scale, x, y: i / scale,
    "align_corners": lambda i, scale, x, y: i * np.float32(x - 1) / np.float32(y - 1) if y > 1 else i * 0,
}
"""Of rows i of y (float32) in x, with the sizes x and y of both sides."""
_NEAREST: dict[str, Callable[..., Any]] = {
    "round_prefer_floor": lambda place: np.ceil(place - np.float32(0.5)),
    "round_prefer_ceil": lambda place: np.floor(place + np.float32(0.5)),
    "floor": np.floor,
    "ceil": np.ceil,
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Resize(Layer):
    """Pixels (first, second) and the weight of the second, of each row and of each column of y; `linear`: the second counts."""

    linear: bool
    rows: tuple[NDArray[np.int64], NDArray[np.float32]]
    columns: tuple[NDArray[np.int64], NDArray[np.float32]]
    """([2, places], [places])"""

    kernel_name: ClassVar[str] = "resize"
    layouts: ClassVar[tuple[str, ...]] = (NHWC,)
    movable: ClassVar[bool] = True

    def channels(self, boxes: Mapping[str, Box]) -> Channels:
        return Channels.FIRST

    def plan(self, kernel: str, *views: View) -> list[Op]:
        """index: offsets in x of both rows of each row of y, then of both columns of each column; constants: their weights."""
        x, y = views
        meta = _META.pack(x=x.place, y=y.place, lanes=x.pixel_stride, height=y.height, width=y.width, linear=int(self.linear))
        offsets = [(self.rows[0] * x.row_stride).T.reshape(-1), (self.columns[0] * x.pixel_stride).T.reshape(-1)]
        constants = np.concatenate([self.rows[1], self.columns[1]])
        return [
            Op(kernel="resize", meta=meta, index=np.concatenate(offsets).astype(np.int32), constants=constants, costs=np.ones(y.height))
        ]


@onnx("Resize")
def resize(node: "Node", reader: "Reader") -> list[Layer]:
    """Resize(X, roi?, scales?, sizes?) of rows and columns by constants."""
    node.arity(1, 4)
    mode, coordinates = node.text("mode", "nearest"), node.text("coordinate_transformation_mode", "half_pixel")
    rounding = node.text("nearest_mode", "round_prefer_floor")
    node.support(
        mode in ("nearest", "linear") and coordinates in _PLACES and rounding in _NEAREST, f"mode {mode}, {coordinates}, {rounding}"
    )
    plain = not node.integer("antialias", 0) and node.text("keep_aspect_ratio_policy", "stretch") == "stretch"
    node.support(plain and not node.integer("exclude_outside", 0), "antialias, exclude_outside or another keep_aspect_ratio_policy")
    C, *sizes = reader.image(node, 0)
    scales, wanted = _wanted(node, reader, sizes)
    node.require(min(wanted) > 0 and max(wanted) <= LARGEST, f"makes {wanted} of {sizes}")
    axes = []
    for size, scale, places in zip(sizes, scales, wanted, strict=True):
        place = _PLACES[coordinates](np.arange(places, dtype=np.float32), scale, size, places).astype(np.float32)
        place = np.clip(place if mode == "linear" else _NEAREST[rounding](place), 0, size - 1)
        first = np.floor(place).astype(np.int64)
        axes.append((np.stack([first, np.minimum(first + 1, size - 1)]), (place - first).astype(np.float32)))
    output = reader.define(node, (C, wanted[0], wanted[1]))
    layer = Resize(
        name=node.name,
        inputs=(reader.tensor(node.inputs[0]),),
        output=output,
        linear=mode == "linear",
        rows=axes[0],
        columns=axes[1],
    )
    return [layer]


def _wanted(node: "Node", reader: "Reader", sizes: list[int]) -> tuple[list[Any], list[int]]:
    """(scales, sizes) of rows and columns, from whichever of the two inputs is there."""
    axes = node.attributes.get("axes", [0, 1, 2, 3])
    node.require(isinstance(axes, list) and all(type(axis) is int for axis in axes), f"has axes={axes!r}, not whole numbers")
    node.support([axis % 4 for axis in axes] in ([0, 1, 2, 3], [2, 3]), f"axes {axes}")
    scaled = bool(node.input(2)) and reader.constant(node, 2).size > 0
    node.require(scaled != bool(node.input(3)), "has scales and sizes, or none of them")
    if scaled:
        scales = reader.weights(node, 2).reshape(-1)
        node.require(len(scales) == len(axes) and bool((scales > 0).all()), f"has scales {scales.tolist()} of axes {axes}")
        node.support(bool((scales[:-2] == 1).all()), "scales of the batch or of channels")
        with np.errstate(over="ignore"):
            made = np.floor(np.array(sizes, np.float32) * scales[-2:])
        node.require(bool(np.isfinite(made).all()), f"makes {made.tolist()} of {sizes}")
        return [*scales[-2:]], [int(size) for size in made]
    wanted = reader.integers(node, 3)
    node.require(len(wanted) == len(axes), f"has sizes {wanted} of axes {axes}")
    same_batch = len(axes) == 2 or (wanted[0] == reader.batch and wanted[1] == reader.image(node, 0)[0])
    node.support(same_batch, "sizes of the batch or of channels")
    return [np.float32(new) / np.float32(old) for new, old in zip(wanted[-2:], sizes, strict=True)], wanted[-2:]


@kernel("resize")
def run(first: int, last: int, scratch: int, arena: NDArray, constants: NDArray, index: NDArray, meta: NDArray, op: int) -> None:
    """Kernel "resize"."""
    m = _fields(meta, op)
    columns, weights, lanes = m.index + 2 * m.height, m.constants + m.height, m.lanes
    for i in range(first, last):
        upper, lower = m.x.start + index[m.index + 2 * i], m.x.start + index[m.index + 2 * i + 1]
        a = constants[m.constants + i]
        for j in range(m.width):
            left, right, b = index[columns + 2 * j], index[columns + 2 * j + 1], constants[weights + j]
            y = m.y.start + i * m.y.row + j * m.y.pixel
            for c in range(0, lanes, LANES):
                value = load(arena, upper + left + c, 1)
                if m.linear == 1:
                    above = _between(value, load(arena, upper + right + c, 1), b)
                    value = _between(above, _between(load(arena, lower + left + c, 1), load(arena, lower + right + c, 1), b), a)
                store(value, arena, y + c)


@jit
def _between(one: Any, other: Any, weight: float) -> Any:
    """(1 - weight) * one + weight * other"""
    return multiply_added(other, same(weight, 1), multiplied(one, same(np.float32(1) - weight, 1)))
