"""Operators that leave numbers as they are and where they are: Identity, Dropout, and changes of shape. They make no layer."""

import math
from typing import TYPE_CHECKING

from ..ir.network import Layer, onnx

if TYPE_CHECKING:
    from ..reader.attributes import Node
    from ..reader.graph import Reader


@onnx("Identity", "Dropout")
def identity(node: "Node", reader: "Reader") -> list[Layer]:
    """Identity, and Dropout as it is when nobody trains."""
    node.arity(1, 3)
    node.support(not node.input(2), "training_mode")
    value = reader.value(node, 0)
    reader.alias(node, value.tensor, value.dims)
    return []


@onnx("Flatten", "Reshape", "Squeeze", "Unsqueeze")
def reshape(node: "Node", reader: "Reader") -> list[Layer]:
    """Flatten, Reshape, Squeeze and Unsqueeze of a sample: its numbers keep their order, nothing moves."""
    value = reader.value(node, 0)
    size = math.prod(value.dims)
    if node.op_type == "Flatten":
        node.support(node.integer("axis", 1) in (1, -len(value.dims)), "another axis")
        dims: tuple[int, ...] = (size,)
    elif node.op_type == "Reshape":
        node.arity(2, 2)
        dims = _reshaped(node, reader, value.dims)
    else:
        dims = _squeezed(node, reader, value.dims)
    node.require(math.prod(dims) == size, f"makes {dims} of {value.dims} a sample")
    box = reader.boxes[value.tensor]
    node.support(len(dims) == 1 or dims == box, f"a reshape of {box} to {dims}")
    reader.alias(node, value.tensor, dims)
    return []


def _reshaped(node: "Node", reader: "Reader", dims: tuple[int, ...]) -> tuple[int, ...]:
    wanted = reader.integers(node, 1)
    node.require(all(size >= -1 for size in wanted) and wanted.count(-1) <= 1, f"has the shape {wanted}")
    old = [-1 if reader.batch is None else reader.batch, *dims]
    if not node.integer("allowzero", 0):
        node.require(all(size != 0 or k < len(old) for k, size in enumerate(wanted)), f"has the shape {wanted}")
        wanted = [old[k] if size == 0 else size for k, size in enumerate(wanted)]
    rest, size = wanted[1:], math.prod(dims)
    node.support(len(wanted) >= 2 and 0 not in rest, f"a reshape to {wanted}")
    node.support(wanted[0] in (-1, old[0]), "a reshape of the batch dimension")
    if -1 in rest:
        known = -math.prod(rest)
        node.require(size % known == 0, f"makes {wanted} of {dims} a sample")
        rest[rest.index(-1)] = size // known
    elif wanted[0] == -1:
        node.support(math.prod(rest) == size, "a reshape of the batch dimension")
    return tuple(rest)


def _squeezed(node: "Node", reader: "Reader", dims: tuple[int, ...]) -> tuple[int, ...]:
    node.arity(1, 2)
    node.support(bool(node.input(1)), "no axes")
    axes = reader.integers(node, 1)
    rank = 1 + len(dims) + (len(axes) if node.op_type == "Unsqueeze" else 0)
    node.require(all(-rank <= axis < rank for axis in axes), f"has axes {axes}")
    places = sorted({axis % rank for axis in axes})
    node.support(0 not in places, "the batch dimension")
    result = [1, *dims]
    if node.op_type == "Unsqueeze":
        for place in places:
            result.insert(place, 1)
    else:
        node.require(all(result[place] == 1 for place in places), f"removes axes {axes} of {dims}")
        result = [size for place, size in enumerate(result) if place not in places]
    return tuple(result[1:])
