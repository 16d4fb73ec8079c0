"""A segment for ONNX Runtime becomes a model of its nodes, cut out of the file."""

from collections import Counter
from typing import Any

from ..ir.program import Foreign
from ..reader.graph import Graph
from ..reader.protobuf import ContradictionError, one_line
from .partition import Segment


def foreign(graph: Graph, segment: Segment) -> Foreign:
    """ContradictionError where no model can be made of it."""
    label = "" if graph.whole else _label(segment)
    note = f"the engine cannot read it, all of it runs in ONNX Runtime: {graph.whole}" if graph.whole else _note(segment)
    try:
        model = (graph.model if graph.whole else _model(graph, segment)).SerializeToString()
    except Exception as error:  # onnx and protobuf raise many kinds
        where = ": ".join(filter(None, (graph.where, label)))
        raise ContradictionError(f"{where} cannot be cut out for ONNX Runtime: {one_line(error)}; export it again") from error
    return Foreign(model=model, inputs=segment.inputs, outputs=segment.outputs, label=label, note=note, doubt=graph.whole)


def _label(segment: Segment) -> str:
    return f"the part from {segment.steps[0].nodes[0].name!r} to {segment.steps[-1].nodes[-1].name!r}"


def _note(segment: Segment) -> str:
    reasons = Counter(f"{step.nodes[0].op_type} ({step.reason})" for step in segment.steps)
    listed = ", ".join(f"{count} {what}" if count > 1 else what for what, count in reasons.most_common(8))
    first, last = segment.steps[0].nodes[0], segment.steps[-1].nodes[-1]
    count = sum(len(step.nodes) for step in segment.steps)
    return f"{count} nodes from {first.name!r} to {last.name!r} run in ONNX Runtime: {listed}"


def _model(graph: Graph, segment: Segment) -> Any:
    """A ModelProto of the segment: its nodes, the constants that they read, the functions that they may call.

    Constants on grids stay so: ONNX Runtime would put float32 weights between tensors on grids on grids of its own.
    """
    import onnx

    model, known = graph.model, graph.constants
    if known is None:
        raise ValueError("a graph without constants is run whole")
    inputs = [_described(graph, name) for name in segment.inputs]
    outputs = [_described(graph, name, output=True) for name in segment.outputs]
    read = sorted({name for step in segment.steps for name in step.reads if name in known})
    grids = [known.dequantized[name] for name in read if name in known.dequantized]
    stored = {name for node in grids for name in node.input if name}
    constants = [known.tensor(name) for name in sorted({name for name in read if name not in known.dequantized} | stored)]
    nodes = [*grids, *(node.proto for step in segment.steps for node in step.nodes)]
    cut = onnx.helper.make_graph(nodes, "segment", inputs, outputs, constants)
    result = onnx.helper.make_model(cut, opset_imports=model.opset_import, functions=model.functions)
    result.ir_version = model.ir_version
    return result


def _described(graph: Graph, name: str, *, output: bool = False) -> Any:
    import onnx

    if name in graph.values:
        batch: Any = graph.batch if graph.batch is not None else "batch"
        own = graph.values[name]
        kind = onnx.helper.np_dtype_to_tensor_dtype(graph.dtypes[own.tensor])
        return onnx.helper.make_tensor_value_info(name, kind, [batch, *own.dims])
    known = graph.types.get(name)
    if known is None and not output:
        raise ValueError(f"the type of {name!r} is unknown")
    value = onnx.ValueInfoProto(name=name)
    if known is not None:
        value.type.CopyFrom(known)
    return value
