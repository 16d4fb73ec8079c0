"""ONNX -> torch: node by node, by the handlers of `ops`."""

from typing import Any

import torch

from fineprune.common.errors import UsageError, said_by

from .builder import Builder, Node, Value, bounded
from .file import array, batch_of, input_shape, is_single, opset_of
from .network import OnnxNetwork
from .ops import HANDLERS

_DYNAMIC_BATCH = 2


def build(model: Any, where: str = "its graph") -> OnnxNetwork:
    """The network of a graph that `file.read` or `file.parse` gave, its input sized. UsageError names the node that cannot be read, of
    the file `where`."""
    unknown = sorted({_kind(node) for node in model.graph.node} - HANDLERS.keys())
    if unknown:
        raise UsageError(f"{where} has the operators {', '.join(unknown)}, which cannot be read; give its PyTorch code (file.py:factory)")
    builder = Builder(single=is_single(model))
    values = _constants(model, where)
    shape = bounded([batch_of(model) or _DYNAMIC_BATCH, *(size or 1 for size in input_shape(model))])
    values[model.graph.input[0].name] = Value(tensor=torch.zeros(shape, device="meta"), number=builder.number())
    for proto in model.graph.node:
        label = f"{proto.op_type} {proto.name or proto.output[0]!r}"
        try:
            node = _node(proto, values, opset_of(model))
            results = HANDLERS[_kind(proto)](builder, node)
        except UsageError as error:
            raise UsageError(f"{where}: the node {label}: {error}") from error
        except Exception as error:  # whatever torch says of shapes and types
            raise UsageError(f"{where}: the node {label} cannot be read: {said_by(error)[:200]}") from error
        results = (results,) if isinstance(results, Value) else results
        values.update({name: value for name, value in zip(proto.output, results, strict=False) if name})
    output = values.get(model.graph.output[0].name)
    if output is None:
        raise UsageError(f"{where}: the output {model.graph.output[0].name!r} is computed by no node")
    return builder.finished(output)


def _constants(model: Any, where: str) -> dict[str, Value]:
    """The graph's tensors by name."""
    found = {}
    for tensor in model.graph.initializer:
        try:
            found[tensor.name] = Value(tensor=torch.from_numpy(array(tensor)), name=tensor.name)
        except Exception as error:  # types that torch has not, values that are fewer than the dimensions say
            raise UsageError(f"{where}: the tensor {tensor.name!r} cannot be read: {str(error)[:200]}") from error
    return found


def _kind(proto: Any) -> str:
    return proto.op_type if proto.domain in ("", "ai.onnx") else f"{proto.domain}.{proto.op_type}"


def _node(proto: Any, values: dict[str, Value], opset: int) -> Node:
    from onnx import helper

    missing = next((name for name in proto.input if name and name not in values), None)
    if missing is not None:
        raise UsageError(f"it reads {missing!r}, which no node before it computes, or one whose further outputs cannot be read")
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in proto.attribute}
    return Node(
        kind=proto.op_type,
        name=proto.name,
        opset=opset,
        attributes={key: _plain(value) for key, value in attributes.items()},
        inputs=tuple(values[name] if name else None for name in proto.input),
        outputs=len(proto.output),
    )


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return list(value) if not isinstance(value, str | int | float) and hasattr(value, "__iter__") else value
