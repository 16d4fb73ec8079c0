"""Pieces of tensors copied to pieces of one: Concat, Slice, Split, Pad and the channel shuffle of three nodes.

Where a piece is a whole tensor that nobody else reads, it may be made at its place, and nothing is copied (passes/instructions.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from ..ir.conv import Op, View
from ..ir.dtypes import DType
from ..ir.network import Box, Channels, Layer, Piece, onnx, onnx_sequence, same
from ..reader.attributes import LARGEST
from . import copies

if TYPE_CHECKING:
    from ..reader.attributes import Node
    from ..reader.graph import Reader


@dataclass(frozen=True, kw_only=True)
class Assemble(Layer):
    """Copies `pieces`, which do not overlap; what they leave is zero."""

    pieces: tuple[Piece, ...]

    kernel_name: ClassVar[str] = "copy"
    any_input: ClassVar[bool] = True
    easy: ClassVar[bool] = True

    @property
    def pieces_of_inputs(self) -> Sequence[Piece]:
        return self.pieces

    def dtype(self, inputs: Sequence[DType]) -> DType | None:
        """The inputs'."""
        return same(inputs)

    def channels(self, boxes: Mapping[str, Box]) -> Channels:
        """Where the output is its inputs, whole and one after another, their orders go on."""
        starts = np.cumsum([0, *[boxes[name][0] for name in self.inputs]])
        whole = [Piece(source=k, size=boxes[name], to=(int(starts[k]), 0, 0)) for k, name in enumerate(self.inputs)]
        joins = list(self.pieces) == whole and boxes[self.output] == (int(starts[-1]), *whole[0].size[1:])
        return Channels.JOINED if joins else Channels.FILE

    def plan(self, kernel: str, *views: View) -> list[Op]:
        return put_together(self.pieces, *views)


def put_together(pieces: Sequence[Piece], *views: View) -> list[Op]:
    """Copies; views: of the inputs of which there are pieces, and of the output."""
    *sources, y = views
    return [copies.plan(part(sources[p.source], p.start, p.step), part(y, p.to, p.to_step), p.size) for p in pieces]


def part(view: View, start: Box, step: Box) -> View:
    """The elements from `start` in steps of `step`, as a view for copies."""
    strides = view.channel_stride * step[0], view.row_stride * step[1], view.pixel_stride * step[2]
    return replace(
        view, start=view.at(*start), channel_stride=strides[0], row_stride=strides[1], pixel_stride=strides[2], margins=(0, 0, 0, 0)
    )


@onnx("Concat")
def concat(node: "Node", reader: "Reader") -> list[Layer]:
    """Concat of channels, or of flattened images: their numbers follow each other in the same order."""
    node.arity(1, 1 << 12)
    values = [reader.value(node, index) for index in range(len(node.inputs))]
    rank = len(values[0].dims)
    node.require(all(len(value.dims) == rank for value in values), "joins tensors of different ranks")
    node.support(rank in (1, 3) and node.axis("axis", 1, rank + 1) == 1, "another axis")
    boxes = [reader.boxes[value.tensor] for value in values]
    node.require(len({value.dims[1:] for value in values}) == 1, f"joins {[value.dims for value in values]}")
    node.support(len({box[1:] for box in boxes}) == 1, "flattened images of different sizes")
    pieces, channels = [], 0
    for k, box in enumerate(boxes):
        pieces.append(Piece(source=k, size=box, to=(channels, 0, 0)))
        channels += box[0]
    output = reader.define(node, (channels, *boxes[0][1:]), (sum(value.dims[0] for value in values), *values[0].dims[1:]))
    return [Assemble(name=node.name, inputs=tuple(value.tensor for value in values), output=output, pieces=tuple(pieces))]


@onnx("Slice")
def slice_(node: "Node", reader: "Reader") -> list[Layer]:
    """Slice of channels, rows and columns with positive steps."""
    node.arity(3, 5)
    x = reader.image(node, 0)
    starts, ends = (reader.integers(node, index) for index in (1, 2))
    axes = reader.integers(node, 3) if node.input(3) else list(range(len(starts)))
    steps = reader.integers(node, 4) if node.input(4) else [1] * len(starts)
    node.require(len(starts) == len(ends) == len(axes) == len(steps), "has starts, ends, axes and steps of different lengths")
    node.require(all(-4 <= axis < 4 for axis in axes), f"has axes {axes}")
    start, step, size = [0, 0, 0], [1, 1, 1], list(x)
    for axis, first, end, stride in zip((axis % 4 for axis in axes), starts, ends, steps, strict=True):
        node.support(axis > 0 and stride > 0, "a slice of the batch, or backwards")
        kept = range(*slice(first, end, stride).indices(x[axis - 1]))
        node.support(len(kept) > 0, f"nothing is kept of axis {axis}")
        start[axis - 1], step[axis - 1], size[axis - 1] = kept.start, stride if len(kept) > 1 else 1, len(kept)
    piece = Piece(source=0, size=(size[0], size[1], size[2]), start=(start[0], start[1], start[2]), step=(step[0], step[1], step[2]))
    output = reader.define(node, piece.size)
    return [Assemble(name=node.name, inputs=(reader.tensor(node.inputs[0]),), output=output, pieces=(piece,))]


@onnx("Pad")
def pad(node: "Node", reader: "Reader") -> list[Layer]:
    """Pad with zeros."""
    node.arity(2, 4)
    node.support(node.text("mode", "constant") == "constant" and not node.input(3), "another mode or axes")
    if node.input(2):
        node.support(not reader.constant(node, 2).any(), "padding that is not zero")
    x = reader.image(node, 0)
    pads = reader.integers(node, 1)
    node.require(len(pads) == 8, f"has pads {pads}")
    node.support(pads[0] == pads[4] == 0 and min(pads) >= 0, "padding of the batch, or negative")
    node.require(max(pads) <= LARGEST, f"has pads {pads}")
    output = reader.define(node, (x[0] + pads[1] + pads[5], x[1] + pads[2] + pads[6], x[2] + pads[3] + pads[7]))
    piece = Piece(source=0, size=x, to=(pads[1], pads[2], pads[3]))
    return [Assemble(name=node.name, inputs=(reader.tensor(node.inputs[0]),), output=output, pieces=(piece,))]


@onnx("Split")
def split(node: "Node", reader: "Reader") -> list[Layer]:
    """Split of channels."""
    node.arity(1, 2, outputs=1 << 12)
    x = reader.image(node, 0)
    node.support(node.axis("axis", 0, 4) == 1, "another axis")
    if node.input(1):
        sizes = reader.integers(node, 1)
    else:
        count = node.integer("num_outputs", len(node.outputs))
        node.require(0 < count == len(node.outputs), f"has num_outputs={count} and {len(node.outputs)} outputs")
        share = -(-x[0] // count)
        sizes = [share] * (count - 1) + [x[0] - share * (count - 1)]
    node.require(len(sizes) == len(node.outputs) and min(sizes) > 0 and sum(sizes) == x[0], f"makes {sizes} of {x[0]} channels")
    layers: list[Layer] = []
    for k, first in enumerate(np.cumsum([0, *sizes[:-1]]).tolist()):
        if node.outputs[k]:
            piece = Piece(source=0, size=(sizes[k], *x[1:]), start=(first, 0, 0))
            output = reader.define(node, piece.size, output=k)
            layers.append(Assemble(name=output, inputs=(reader.tensor(node.inputs[0]),), output=output, pieces=(piece,)))
    return layers


@onnx_sequence("Reshape", "Transpose", "Reshape")
def shuffle(first: "Node", middle: "Node", last: "Node", reader: "Reader") -> list[Layer]:
    """Reshape to [N,g,C/g,H,W], Transpose of g and C/g, Reshape back: output channel k*g + q is input channel q*(C/g) + k."""
    C, H, W = reader.image(first, 0)
    inner = reader.integers(first, 1)
    batch = (-1, 0, reader.batch)
    first.support(len(inner) == 5 and inner[0] in batch and inner[3:] == [H, W], f"a reshape to {inner}")
    groups = inner[1]
    first.support(groups > 0 and C % groups == 0 and inner[2] == C // groups, f"a reshape to {inner}")
    middle.support(middle.attributes.get("perm") == [0, 2, 1, 3, 4], "another permutation")
    outer = reader.integers(last, 1)
    last.support(outer[1:] == [C, H, W] and outer[0] in batch, f"a reshape to {outer}")
    size = (C // groups, H, W)
    pieces = tuple(Piece(source=0, size=size, start=(q * size[0], 0, 0), to=(q, 0, 0), to_step=(groups, 1, 1)) for q in range(groups))
    output = reader.define(last, (C, H, W))
    return [Assemble(name=last.name, inputs=(reader.tensor(first.inputs[0]),), output=output, pieces=pieces)]
