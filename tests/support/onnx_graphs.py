"""Hand-made graphs of one convolution, in the form in which tracing leaves them, and the runtimes to run them in."""

from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from onnxscript import ir

from fineprune.export.functions import DEPTHWISE, DOMAIN, MASKED

OPSET = 18


def conv_graph(
    input_shape: tuple[int, int, int],
    output_shape: tuple[int, int, int],
    w: NDArray,
    bias: NDArray | None = None,
    mask: NDArray | None = None,
    *,
    strides: tuple[int, int] = (1, 1),
    pads: tuple[int, int, int, int] = (0, 0, 0, 0),
    dilations: tuple[int, int] = (1, 1),
    group: int = 1,
) -> Any:
    """x -> Conv -> y, or where there is a mask x -> MaskedConv (-> Add of the bias) -> y; weights are called "layer.weight"."""
    attributes: dict[str, Any] = {"strides": list(strides), "pads": list(pads), "dilations": list(dilations), "group": group}
    inputs, domain, op_type = ["x", "layer.weight"], "", "Conv"
    initializers = [onnx.numpy_helper.from_array(w.astype(np.float32), "layer.weight")]
    if mask is not None:
        initializers.append(onnx.numpy_helper.from_array(mask, "layer.ffp_mask"))
        inputs.append("layer.ffp_mask")
        domain, op_type = DOMAIN, DEPTHWISE if w.shape[1] == 1 else MASKED
        attributes["channels"] = input_shape[0]
        if op_type == MASKED:
            attributes["taps"] = w[0, 0].size
    addition = []
    if bias is not None:
        if mask is None:
            initializers.append(onnx.numpy_helper.from_array(bias.astype(np.float32), "layer.bias"))
            inputs.append("layer.bias")
        else:
            initializers.append(onnx.numpy_helper.from_array(bias.astype(np.float32).reshape(-1, 1, 1), "added"))
            addition = [onnx.helper.make_node("Add", ["products", "added"], ["y"], name="add")]
    node = onnx.helper.make_node(op_type, inputs, ["products" if addition else "y"], name="conv", domain=domain, **attributes)
    x, y = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", *shape])
        for name, shape in (("x", input_shape), ("y", output_shape))
    )
    graph = onnx.helper.make_graph([node, *addition], "network", [x], [y], initializers)
    opsets = [onnx.helper.make_opsetid("", OPSET), onnx.helper.make_opsetid(DOMAIN, 1)]
    return ir.serde.deserialize_model(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10))


def append(model: Any, op_type: str, constants: dict[str, NDArray], **attributes: float) -> Any:
    """Put one more node, reading the graph's output and `constants`, behind the graph; the node's output becomes `z`."""
    values = []
    for name, content in constants.items():
        value = ir.Value(name=name, const_value=ir.tensor(content, name=name), shape=ir.Shape(content.shape))
        model.graph.register_initializer(value)
        values.append(value)
    old = model.graph.outputs[0]
    old.type = ir.TensorType(ir.DataType.FLOAT)
    node = ir.node(op_type, [old, *values], attributes, name=op_type.lower())
    node.outputs[0].name, node.outputs[0].shape, node.outputs[0].type = "z", old.shape, old.type
    model.graph.append(node)
    model.graph.outputs[0] = node.outputs[0]
    return node


def serialize(model: Any) -> bytes:
    """The file's bytes, passed by the checker with full shape inference."""
    proto = ir.serde.serialize_model(model)
    onnx.checker.check_model(proto, full_check=True)
    return proto.SerializeToString()


def run_onnxruntime(content: bytes, x: NDArray) -> NDArray:
    """First output in ONNX Runtime, one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x.astype(np.float32)})[0]


def run_reference(content: bytes, x: NDArray) -> NDArray:
    """First output in onnx.reference."""
    evaluator = ReferenceEvaluator(content)
    return evaluator.run(None, {evaluator.input_names[0]: x.astype(np.float32)})[0]


def op_types(model: Any) -> list[str]:
    """The types of the main graph's nodes, in order."""
    return [node.op_type for node in model.graph]
