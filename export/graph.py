"""Small helpers over an ONNX graph in memory (`onnxscript.ir`) that the rules share."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .functions import DOMAIN, MASKED_CONVS


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """A node that a rule left as it was, and why."""

    rule: str
    node: str
    reason: str


def is_masked_conv(node: Any) -> bool:
    """Whether `node` (None: no node) calls one of our masked convolutions."""
    return node is not None and bool(node.domain == DOMAIN and node.op_type in MASKED_CONVS)


def is_conv(node: Any) -> bool:
    """Whether `node` (None: no node) is a standard Conv."""
    return node is not None and bool(node.domain == "" and node.op_type == "Conv")


def masked_convs(model: Any) -> Iterator[Any]:
    """The masked convolutions of the main graph, in order; the graph may be changed meanwhile."""
    yield from [node for node in model.graph if is_masked_conv(node)]


def constant(value: Any) -> NDArray | None:
    """The content of `value` if it is an initializer (and no graph input that a caller could replace), else None."""
    if value is None or value.const_value is None or value.is_graph_input():
        return None
    return np.asarray(value.const_value.numpy())


def add_initializer(model: Any, name: str, content: NDArray) -> Any:
    """A new initializer; `name` gets a number where it is taken."""
    from onnxscript import ir

    taken, unique, count = model.graph.initializers, name, 1
    while unique in taken:
        count += 1
        unique = f"{name}.{count}"
    content = np.asarray(content, order="C")  # ascontiguousarray would give a scalar an axis
    tensor = ir.tensor(content, name=unique)
    value = ir.Value(name=unique, shape=ir.Shape(content.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    model.graph.register_initializer(value)
    return value


def set_constant(model: Any, node: Any, index: int, content: NDArray, name: str) -> None:
    """Make `content` input `index` of `node` (appended where the node has no such input); other readers keep the old one."""
    if index >= len(node.inputs):
        node.resize_inputs(index + 1)
    old = node.inputs[index]
    node.replace_input_with(index, None)
    if old is not None and old.is_initializer() and not old.uses() and not old.is_graph_output():
        del model.graph.initializers[old.name]
    node.replace_input_with(index, add_initializer(model, name, content))


def sole_consumer(value: Any) -> Any | None:
    """The only node that reads `value`, or None where several do or it is an output of the graph."""
    uses = value.uses()
    return uses[0][0] if len(uses) == 1 and not value.is_graph_output() else None


def bypass(model: Any, node: Any, replacement: Any) -> None:
    """Remove the one-output `node`; its readers (and the graph's outputs) take `replacement`, which takes over its name."""
    from onnxscript import ir

    output = node.outputs[0]
    if output.is_graph_output():
        replacement.name, output.name = output.name, f"{output.name}.removed"
        replacement.shape, replacement.type = output.shape, output.type
    ir.convenience.replace_all_uses_with(output, replacement, replace_graph_outputs=True)
    model.graph.remove(node, safe=True)


def remove_unused(model: Any) -> None:
    """Drop nodes and initializers that nothing reads any more."""
    from onnxscript import ir

    ir.passes.common.RemoveUnusedNodesPass()(model)
