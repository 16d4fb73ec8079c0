"""Rule: channels that nothing reads leave the graph, with the filters that make them and the weights that would read them.

    read[c] of a map  <=>  a weight that is not zero, of a filter whose own channel is read, multiplies channel c, or something reads the
                           map that is not known here (an output of the graph, a join, a reshaping)

Maps that activations, pools, sums and products of maps or depthwise convolutions join have the same channels, so they keep the same
ones. Weights of unread channels are zero, or make channels that are unread: outputs are what they were, but for the order of sums.
This is how filters that were dropped as a whole make smaller dense layers for every runtime; wide maps keep a multiple of `WIDTH` channels.
What stays: channels of a sum of which one summand still reads, convolutions of several groups that are not depthwise, what divides
another map, and what joins (Concat) or reshapes channels.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .graph import Refusal, constant, is_conv, is_masked_conv, set_constant

DENSE = "fineprune.dense"
"""In a node's `meta`: weight shape and groups of a convolution before channels left it."""
WIDTH = 16
"""Maps of at least so many channels keep a multiple of it, or all: other widths cost ONNX Runtime its blocked layout, which costs more."""
_UNARY = (
    *("Relu", "Clip", "Sigmoid", "Tanh", "LeakyRelu", "Elu", "Selu", "Softplus", "HardSigmoid", "HardSwish", "Gelu", "Identity"),
    *("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "BatchNormalization"),
)
_BINARY = ("Add", "Sub", "Mul", "Max", "Min")
"""And Div by one number: an unread channel that stays for the width may be zero, and 0 / 0 reaches all who multiply it with zero."""


@dataclass(eq=False)
class _Maps:
    """Maps with the same channels, and which of these are read."""

    read: NDArray
    members: list[Any] = field(default_factory=list)


def drop_unread(model: Any) -> list[Refusal]:
    """Slice weights, biases, masks and statistics of all that has unread channels."""
    maps = _maps(model)
    apart = list(dict.fromkeys(maps.values()))
    readers = [node for node in reversed(model.graph) if _is_full(node) or _is_matrix(node)]  # what reads goes from outputs to inputs
    while sum(_mark(node, maps) for node in readers):  # of all each time, and not to the first that is new: networks are deep
        pass
    for of in apart:
        missing = -max(1, int(of.read.sum())) % WIDTH if len(of.read) >= WIDTH else int(not of.read.any())
        of.read[np.flatnonzero(~of.read)[:missing]] = True
    for node in list(model.graph):
        _slice(model, node, maps)
    for of in apart:
        if not of.read.all():
            for value in of.members:
                _resize(value, int(of.read.sum()))
    return []


def _maps(model: Any) -> dict[Any, _Maps]:
    """By value of [batch,C,...], the maps that have its channels."""
    maps: dict[Any, _Maps] = {}

    def of(value: Any) -> _Maps | None:
        if value not in maps and (channels := _channels(value)):
            maps[value] = _Maps(np.zeros(channels, bool), [value])
        return maps.get(value)

    def all_read(values: Any) -> None:
        for value in values:
            if value is not None and (known := of(value)) is not None:
                known.read[:] = True

    def join(values: list[Any]) -> bool:
        """Whether all are maps of as many channels; then they keep the same ones."""
        found = [one for value in values if (one := of(value)) is not None]
        if not found or len(found) < len(values) or len({len(one.read) for one in found}) > 1:
            return False
        first, *others = dict.fromkeys(found)
        for other in others:
            first.read |= other.read
            first.members += other.members
            maps.update(dict.fromkeys(other.members, first))
        return True

    all_read(model.graph.inputs)
    for node in model.graph:
        if _is_full(node):
            of(node.inputs[0]), of(node.outputs[0])
        elif _is_matrix(node):
            of(node.inputs[0])
            all_read((*node.inputs[1:], *node.outputs))  # Gemm may add a map
        elif not join(_alike(node)):
            all_read((*node.inputs, *node.outputs))
    all_read(model.graph.outputs)
    return maps


def _channels(value: Any) -> int:
    """C of a map [batch,C,...] that is no constant; 0 where there is none."""
    shape: Any = None if value is None else value.shape  # None: an input that is left out
    known = shape is not None and len(shape) >= 2 and isinstance(shape[1], int) and constant(value) is None
    return int(shape[1]) if known else 0


def _alike(node: Any) -> list[Any]:
    """The maps of a node that have the same channels; none where that is not known."""
    if len(node.outputs) > 1:  # indices of MaxPool count the channels
        return []
    if node.domain == "" and node.op_type in _UNARY:
        if all(one is None or constant(one) is not None for one in node.inputs[1:]):
            return [node.inputs[0], node.outputs[0]]
    elif _joins(node):
        others = [value for value in node.inputs if not _is_scalar(value)]
        if all(len(value.shape or ()) == 4 for value in others):
            return [*others, *node.outputs]
    elif _spatial(node) or _squeezes(node) or _is_depthwise(node):
        return [node.inputs[0], node.outputs[0]]
    return []


def _joins(node: Any) -> bool:
    """A sum, a product or the like of two values, element by element."""
    if node.domain != "" or len(node.inputs) != 2:
        return False
    return node.op_type in _BINARY or (node.op_type == "Div" and _is_scalar(node.inputs[1]))


def _is_scalar(value: Any) -> bool:
    content = constant(value)
    return content is not None and content.size == 1


def _spatial(node: Any) -> bool:
    """A mean over positions."""
    if node.domain != "" or node.op_type != "ReduceMean" or len(node.inputs[0].shape or ()) != 4 or len(node.inputs) < 2:
        return False
    axes = constant(node.inputs[1])
    return axes is not None and {int(axis) % 4 for axis in axes.ravel()} <= {2, 3}


def _squeezes(node: Any) -> bool:
    """[batch,C,1,1] as [batch,C], by a shape that does not say C, or a constant one that does."""
    shape = node.inputs[0].shape if node.inputs and node.inputs[0] is not None else None
    if node.domain != "" or node.op_type not in ("Flatten", "Reshape") or shape is None or list(shape[2:]) != [1, 1]:
        return False
    if node.op_type == "Flatten":
        return "axis" not in node.attributes or node.attributes["axis"].as_int() == 1
    to = constant(node.inputs[1])
    return to is not None and to.size == 2 and int(to[1]) in (-1, shape[1])


def _weights(node: Any) -> NDArray | None:
    return constant(node.inputs[1]) if len(node.inputs) > 1 else None


def _groups(node: Any) -> int:
    return node.attributes["group"].as_int() if "group" in node.attributes else 1


def _changeable(node: Any) -> bool:
    """Whether all constants of a convolution are known."""
    return (is_conv(node) or is_masked_conv(node)) and all(constant(value) is not None for value in node.inputs[1:] if value is not None)


def _is_full(node: Any) -> bool:
    """A convolution in which every filter reads every channel."""
    return _changeable(node) and _groups(node) == 1 and _channels(node.inputs[0]) > 0 < _channels(node.outputs[0])


def _is_depthwise(node: Any) -> bool:
    """A convolution with one filter a channel."""
    weights = _weights(node) if _changeable(node) else None
    return weights is not None and weights.shape[1] == 1 and len(weights) == _groups(node) > 1


def _is_matrix(node: Any) -> bool:
    """A product of a [batch,C] with a constant matrix."""
    weights = _weights(node) if node.domain == "" and node.op_type in ("Gemm", "MatMul") else None
    if weights is None or weights.ndim != 2 or len(node.inputs[0].shape or ()) != 2:
        return False
    return "transA" not in node.attributes or not node.attributes["transA"].as_int()


def _by_input(node: Any) -> NDArray:
    """The constant matrix as [C,outputs]."""
    weights = _weights(node)
    assert weights is not None
    return weights.T if "transB" in node.attributes and node.attributes["transB"].as_int() else weights


def _mark(node: Any, maps: dict[Any, _Maps]) -> bool:
    """Whether the node reads channels that were not known to be read."""
    x = maps.get(node.inputs[0])
    if x is None:
        return False
    if _is_matrix(node):
        reads = _by_input(node).any(1)
    else:
        weights = _weights(node)
        assert weights is not None
        reads = weights[maps[node.outputs[0]].read].any((0, 2, 3)) if weights.ndim == 4 else np.ones(len(x.read), bool)
        if is_masked_conv(node):
            reads = reads & constant(node.inputs[2]).any((1, 2))  # type: ignore[union-attr]
    new = bool((reads & ~x.read).any())
    x.read |= reads
    return new


def _slice(model: Any, node: Any, maps: dict[Any, _Maps]) -> None:
    """Constants of a node without what belongs to unread channels."""

    def kept(value: Any) -> NDArray | None:
        of = maps.get(value)
        return None if of is None or of.read.all() else of.read

    def cut(index: int, axis: int, keep: NDArray | None) -> None:
        if keep is not None and index < len(node.inputs) and node.inputs[index] is not None:
            content = constant(node.inputs[index])
            assert content is not None
            set_constant(model, node, index, content.compress(keep, axis), node.inputs[index].name)

    from onnxscript import ir

    inputs, outputs = kept(node.inputs[0]) if node.inputs else None, kept(node.outputs[0])
    if inputs is None and outputs is None:
        return
    if _is_matrix(node):
        transposed = "transB" in node.attributes and node.attributes["transB"].as_int()
        cut(1, 1 if transposed else 0, inputs)
    elif _is_full(node) or _is_depthwise(node):
        full = _is_full(node)
        weights = _weights(node)
        assert weights is not None
        node.meta[DENSE] = weights.shape, _groups(node)
        cut(1, 0, outputs)
        if full:
            cut(1, 1, inputs)
        masked = is_masked_conv(node)
        if masked:
            cut(2, 0, inputs)
            cut(3, 0, outputs)
        else:
            cut(2, 0, outputs)
        if inputs is not None:
            count = int(inputs.sum())
            for name in (("channels",) if masked else ()) + (() if full else ("group",)):
                node.attributes[name] = ir.AttrInt64(name, count)
    elif node.op_type == "BatchNormalization":
        for index in range(1, 5):
            cut(index, 0, outputs)
    elif node.op_type == "Reshape" and inputs is not None:
        shape = constant(node.inputs[1])
        assert shape is not None
        if int(shape[1]) > 0:
            set_constant(model, node, 1, np.asarray([shape[0], inputs.sum()], np.int64), node.inputs[1].name)


def _resize(value: Any, channels: int) -> None:
    from onnxscript import ir

    value.shape = ir.Shape([value.shape[0], channels, *list(value.shape)[2:]])
