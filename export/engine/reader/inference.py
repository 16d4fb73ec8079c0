"""What onnx knows of a file before it runs: types and shapes of its tensors. What would be too large is refused before ONNX Runtime
sees it: it takes the memory first."""

import math
from typing import Any

from fineprune.common.errors import RunError

from .protobuf import MOST_ELEMENTS, MOST_UNPACKED, Constants

_MOST_KNOWN = 1 << 12
"""Elements of constants that may be shapes or axes."""
_LEAST = {"group": 1, "blocksize": 1}
"""Attributes with which ONNX Runtime ends the process where they are less, or so large that their square overflows."""
_MOST_OF_A_SIDE = 1 << 20
_AXES = {"Squeeze": 1, "Unsqueeze": 1, "Slice": 3, "Pad": 3}
"""Which input says axes; of reductions it is the second, too."""
_MOST_AXES = 64


def infer_types(model: Any, constants: Constants | None, where: str) -> dict[str, Any]:
    """The types of tensors by name, as far as they follow from inputs and constants; what the file says of others is not believed.

    RunError where a tensor has more elements than may be, or an attribute would end the process.
    """
    import onnx

    _check_attributes(model.graph.node, where)
    for function in model.functions:
        _check_attributes(function.node, where)
    slim = _without_large_constants(model, constants)
    _check_axes(slim.graph.node, slim.graph.initializer, where)
    _check_grids(slim.graph.node, slim.graph.initializer, where)
    for function in model.functions:
        _check_axes(function.node, (), where)
    try:
        graph = onnx.shape_inference.infer_shapes(slim, data_prop=True).graph
    except Exception:  # then layers behind it run in ONNX Runtime, which says what is wrong
        graph = slim.graph
    types = {value.name: value.type for value in (*graph.input, *graph.value_info, *graph.output)}
    computed = _computed_from_constants(slim.graph)
    for name, kind in types.items():
        most = MOST_UNPACKED if name in computed else MOST_ELEMENTS
        sizes = [max(1, dim.dim_value) for dim in kind.tensor_type.shape.dim if dim.HasField("dim_value")]
        if math.prod(sizes) > most:
            raise RunError(f"{where}: {name!r} would have the sizes {sizes}, more than {most} elements; the file is damaged or too large")
    return types


def _without_large_constants(model: Any, constants: Constants | None) -> Any:
    """The model without what it claims of its tensors and, where `constants` are known, without the nodes that make them."""
    import onnx

    slim = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    known = set(constants or ())
    slim.graph.name = "slim"
    slim.graph.node.extend(node for node in model.graph.node if not (len(node.output) == 1 and node.output[0] in known))
    slim.graph.input.extend(model.graph.input)
    slim.graph.output.extend(model.graph.output)
    for value in slim.graph.output:
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.ClearField("shape")
    if constants is not None:
        slim.graph.initializer.extend(constants.tensor(name, most=_MOST_KNOWN) for name in constants)
    else:
        slim.graph.initializer.extend(tensor for tensor in model.graph.initializer if math.prod(tensor.dims) <= _MOST_KNOWN)
    return slim


def _computed_from_constants(graph: Any) -> set[str]:
    """Names of what ONNX Runtime computes when it loads the file."""
    known = {"", *(tensor.name for tensor in graph.initializer)}
    for node in graph.node:
        if all(name in known for name in node.input) and not any(a.HasField("g") or a.graphs for a in node.attribute):
            known.update(node.output)
    return known - {tensor.name for tensor in graph.initializer}


def _check_axes(nodes: Any, initializers: Any, where: str) -> None:
    """onnx itself makes as many axes as the largest number says, until the memory is full."""
    known = {tensor.name: _integers(tensor) for tensor in initializers}
    for node in nodes:
        if node.op_type == "Constant" and len(node.output) == 1:
            known[node.output[0]] = [n for a in node.attribute for n in (*a.ints, a.i, *(_integers(a.t) if a.HasField("t") else ()))]
    for node in nodes:
        kind = str(node.op_type)  # bytes where the file has something else than text
        place = 1 if kind.startswith("Reduce") else _AXES.get(kind)
        axes = [n for a in node.attribute if a.name == "axes" for n in a.ints]
        axes += known.get(node.input[place], ()) if place is not None and place < len(node.input) else ()
        if any(abs(axis) > _MOST_AXES for axis in axes):
            raise RunError(f"{where}: {kind!r} {node.name or ''!r} has the axes {axes[:4]}; the file is damaged, export it again")


def _check_grids(nodes: Any, initializers: Any, where: str) -> None:
    """ONNX Runtime reads the first number of a scale or zero point, also where there is none, which ends the process."""
    empty = {tensor.name for tensor in initializers if 0 in tensor.dims}
    empty |= {node.output[0] for node in nodes if node.op_type == "Constant" and any(0 in a.t.dims for a in node.attribute) and node.output}
    for node in nodes:
        kind = str(node.op_type)
        found = sorted(empty & set(node.input)) if "Linear" in kind or kind == "QGemm" else []
        if found:
            raise RunError(
                f"{where}: {kind!r} {node.name or ''!r} reads {found[0]!r}, which is empty; the file is damaged, export it again"
            )


def _integers(tensor: Any) -> list[int]:
    """Of a small tensor of int64, else none."""
    import onnx

    if tensor.data_type != onnx.TensorProto.INT64 or math.prod(tensor.dims) > _MOST_AXES:
        return []
    try:
        return [int(n) for n in onnx.numpy_helper.to_array(tensor).reshape(-1)]
    except Exception:  # a damaged one, which whoever computes with it names
        return []


def _check_attributes(nodes: Any, where: str) -> None:
    for node in nodes:
        for attribute in node.attribute:
            least = _LEAST.get(attribute.name) if attribute.HasField("i") else None
            if least is not None and not least <= attribute.i <= _MOST_OF_A_SIDE:
                label = f"{where}: {node.op_type!r} {node.name or ''!r}"
                raise RunError(f"{label} has {attribute.name}={attribute.i}; the file is damaged, export it again")
            for graph in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                _check_attributes(graph.node, where)
