"""What the engine does not compute runs in ONNX Runtime: a model of the nodes in question, cut out of the file."""

import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from fineprune.common.errors import RunError

from ..passes.partition import Segment
from ..reader.graph import Graph
from ..reader.protobuf import ContradictionError, one_line

_LOG = logging.getLogger(__name__)


class Fallback:
    """A segment in ONNX Runtime."""

    def __init__(self, graph: Graph, segment: Segment, threads: int) -> None:
        import onnxruntime

        self._outputs, self._doubt = list(segment.outputs), graph.whole
        self._where = graph.where if graph.whole else _announced(graph, segment)
        if graph.whole:
            _LOG.info("%s runs in ONNX Runtime alone; the engine cannot read it: %s", graph.where, graph.whole)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        try:
            content = (graph.model if graph.whole else _extract(graph, segment)).SerializeToString()
            self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions share no base class of their own
            raise ContradictionError(f"{self._where} cannot be loaded by ONNX Runtime: {one_line(error)}; export it again") from error

    def run(self, feeds: dict[str, NDArray]) -> Sequence[NDArray]:
        """The outputs of the segment."""
        try:
            outputs: Sequence[NDArray] = self._session.run(self._outputs, feeds)
        except Exception as error:
            raise RunError(self._doubt or f"{self._where} fails in ONNX Runtime: {one_line(error)}") from error
        return outputs


def _announced(graph: Graph, segment: Segment) -> str:
    """What to call a segment in messages; it is logged."""
    reasons = Counter(f"{step.nodes[0].op_type} ({step.reason})" for step in segment.steps)
    listed = ", ".join(f"{count} {what}" if count > 1 else what for what, count in reasons.most_common(8))
    first, last = segment.steps[0].nodes[0], segment.steps[-1].nodes[-1]
    _LOG.info(
        "%s: %d nodes from %r to %r run in ONNX Runtime: %s",
        graph.where,
        sum(len(step.nodes) for step in segment.steps),
        first.name,
        last.name,
        listed,
    )
    return f"{graph.where}: the part from {first.name!r} to {last.name!r}"


def _extract(graph: Graph, segment: Segment) -> Any:
    """A ModelProto of the segment: its nodes, the constants that they read, the functions that they may call."""
    import onnx

    model, known = graph.model, graph.constants
    if known is None:
        raise ValueError("a graph without constants is run whole")
    inputs = [_described(graph, name) for name in segment.inputs]
    outputs = [_described(graph, name, output=True) for name in segment.outputs]
    read = sorted({name for step in segment.steps for name in step.reads if name in known})
    constants = [known.tensor(name) for name in read]
    nodes = [node.proto for step in segment.steps for node in step.nodes]
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
