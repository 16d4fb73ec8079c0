"""Softmax over the channels.

    y[c,i,j] = exp(x[c,i,j] - m) / sum_k exp(x[k,i,j] - m),      m = max_k x[k,i,j]

A work item is a row. Any layout, the same on both sides; y may be x.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..ir.conv import Op, View
from ..ir.network import Box, Channels, Layer, kernel, onnx
from ..ir.record import INT, PLACE, Record

if TYPE_CHECKING:
    from ..reader.attributes import Node
    from ..reader.graph import Reader

_META = Record(x=PLACE, y=PLACE, channels=INT, width=INT)
_fields = _META.fields


@dataclass(frozen=True, kw_only=True)
class Softmax(Layer):
    """Over the channels, at each place."""

    kernel_name: ClassVar[str] = "softmax"
    in_place: ClassVar[bool] = True

    def channels(self, boxes: Mapping[str, Box]) -> Channels:
        return Channels.FIRST

    def plan(self, kernel: str, *views: View) -> list[Op]:
        x, y = views
        meta = _META.pack(x=x.place, y=y.place, channels=x.channels, width=x.width)
        return [Op(kernel="softmax", meta=meta, costs=np.ones(x.height))]


@onnx("Softmax")
def softmax(node: "Node", reader: "Reader") -> list[Layer]:
    """Softmax of images over their channels, and of vectors."""
    node.arity(1, 1)
    value = reader.value(node, 0)
    box, rank = reader.boxes[value.tensor], 1 + len(value.dims)
    node.support(node.axis("axis", -1, rank) == 1, "another axis")
    node.support(value.dims[0] == box[0], "flattened images")
    output = reader.define(node, box, value.dims)
    return [Softmax(name=node.name, inputs=(value.tensor,), output=output)]


@kernel("softmax")
def run(first: int, last: int, scratch: int, arena: NDArray, constants: NDArray, index: NDArray, meta: NDArray, op: int) -> None:
    """Kernel "softmax"."""
    m = _fields(meta, op)
    xc, yc, C = m.x.channel, m.y.channel, m.channels
    for i in range(first, last):
        for j in range(m.width):
            x, y = m.x.start + i * m.x.row + j * m.x.pixel, m.y.start + i * m.y.row + j * m.y.pixel
            largest = arena[x]
            for c in range(1, C):
                value = arena[x + c * xc]
                largest = value if value > largest or value != value else largest
            total = np.float64(0)
            for c in range(C):
                power = np.exp(arena[x + c * xc] - largest)
                arena[y + c * yc] = power
                total += power
            factor = np.float32(1 / total)
            for c in range(C):
                arena[y + c * yc] *= factor
