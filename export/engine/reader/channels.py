"""Nodes that pick, pad or reorder parts of a tensor -> Assemble layers: Slice, Pad, Split, and the channel shuffle of three nodes."""

from typing import TYPE_CHECKING

import numpy as np

from ..ir.network import Assemble, Layer, Piece
from .attributes import LARGEST, Node

if TYPE_CHECKING:
    from .graph import Reader


def slice_(node: Node, reader: "Reader") -> list[Layer]:
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


def pad(node: Node, reader: "Reader") -> list[Layer]:
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


def split(node: Node, reader: "Reader") -> list[Layer]:
    """Split of channels."""
    node.arity(1, 2, outputs=1 << 12)
    x = reader.image(node, 0)
    node.support(node.axis("axis", 0, 4) == 1, "another axis")
    if node.input(1):
        sizes = reader.integers(node, 1)
    else:
        count = node.integer("num_outputs", len(node.outputs))
        node.require(0 < count == len(node.outputs), f"has num_outputs={count} and {len(node.outputs)} outputs")
        part = -(-x[0] // count)
        sizes = [part] * (count - 1) + [x[0] - part * (count - 1)]
    node.require(len(sizes) == len(node.outputs) and min(sizes) > 0 and sum(sizes) == x[0], f"makes {sizes} of {x[0]} channels")
    layers: list[Layer] = []
    for k, first in enumerate(np.cumsum([0, *sizes[:-1]]).tolist()):
        if node.outputs[k]:
            piece = Piece(source=0, size=(sizes[k], *x[1:]), start=(first, 0, 0))
            output = reader.define(node, piece.size, output=k)
            layers.append(Assemble(name=output, inputs=(reader.tensor(node.inputs[0]),), output=output, pieces=(piece,)))
    return layers


def shuffle(first: Node, middle: Node, last: Node, reader: "Reader") -> list[Layer]:
    """Reshape to [N,g,C/g,H,W], Transpose of g and C/g, Reshape back: output channel k*g + q is input channel q*(C/g) + k."""
    C, H, W = reader.image(first, 0)
    inner = reader.integers(first, 1)
    same = (-1, 0, reader.batch)
    first.support(len(inner) == 5 and inner[0] in same and inner[3:] == [H, W], f"a reshape to {inner}")
    groups = inner[1]
    first.support(groups > 0 and C % groups == 0 and inner[2] == C // groups, f"a reshape to {inner}")
    middle.support(middle.attributes.get("perm") == [0, 2, 1, 3, 4], "another permutation")
    outer = reader.integers(last, 1)
    last.support(outer[1:] == [C, H, W] and outer[0] in same, f"a reshape to {outer}")
    size = (C // groups, H, W)
    pieces = tuple(Piece(source=0, size=size, start=(q * size[0], 0, 0), to=(q, 0, 0), to_step=(groups, 1, 1)) for q in range(groups))
    output = reader.define(last, (C, H, W))
    return [Assemble(name=last.name, inputs=(reader.tensor(first.inputs[0]),), output=output, pieces=pieces)]
