"""The rewritten graph: integers as the formulas have them, in ONNX Runtime's int8 kernels and in onnx.reference."""

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnxscript import ir

from fineprune.export.exporter import INT8_OPSET
from fineprune.export.int8.quantiser import Int8Config, Quantiser
from fineprune.export.int8.rewrite import measured, quantise
from fineprune.export.pack import pack_weights
from fineprune.export.transform import add_functions, simplify
from support.onnx_graphs import OPSET, append, conv_graph, run_onnxruntime, run_reference, serialize
from support.reference import masked_conv2d

RANDOM = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RANDOM.normal(size=shape).astype(np.float32)


def quantised(graph: Any, x: np.ndarray) -> Any:
    graph.opset_imports[""] = INT8_OPSET
    Quantiser(samples=x, config=Int8Config(ranges="minmax")).apply(graph, INT8_OPSET)
    return graph


def integers(graph: Any, x: np.ndarray) -> dict[str, np.ndarray]:
    """Every uint8 tensor, in ONNX Runtime as it fuses the graph."""
    proto = onnx.ModelProto.FromString(serialize(graph))
    names = [node.output[0] for node in proto.graph.node if node.op_type == "QuantizeLinear"]
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return dict(zip(names, session.run(names, {session.get_inputs()[0].name: x}), strict=True))


def fused(graph: Any, path: Any) -> list[str]:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 3
    onnxruntime.InferenceSession(serialize(graph), options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(path).graph.node]


def constants(graph: Any) -> dict[str, np.ndarray]:
    return {name: value.const_value.numpy() for name, value in graph.graph.initializers.items()}


def by_name(values: dict[str, np.ndarray], suffix: str) -> np.ndarray:
    (found,) = [value for name, value in values.items() if name.endswith(suffix)]
    return found


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize(
    "geometry", [{}, {"strides": (2, 1), "pads": (1, 0, 2, 1)}, {"group": 2, "dilations": (1, 2)}], ids=["plain", "strided", "grouped"]
)
def test_a_convolution_has_the_integers_of_the_formula(geometry: dict[str, Any], relu: bool) -> None:
    group, strides = geometry.get("group", 1), geometry.get("strides", (1, 1))
    pads, dilations = geometry.get("pads", (0, 0, 0, 0)), geometry.get("dilations", (1, 1))
    w, bias, x = normal(6, 4 // group, 3, 2), normal(6), normal(3, 4, 9, 8)
    expected = masked_conv2d(x, w, bias, None, strides, pads, dilations, group)
    graph = conv_graph((4, 9, 8), expected.shape[1:], w, bias, **geometry)
    if relu:
        append(graph, "Relu", {})
    quantised(graph, x)
    known, tensors = constants(graph), integers(graph, x)
    q_w, q_b = known["layer.weight.int8"], known["layer.bias.int32"]
    assert np.abs(q_w).max() == 64
    q_x, q_y = tensors.values()
    scales = {
        node.inputs[0].name: (node.inputs[1].const_value.numpy(), node.inputs[2].const_value.numpy())
        for node in graph.graph
        if node.op_type == "QuantizeLinear"
    }
    (s_x, z_x), (s_y, z_y) = scales.values()
    # In whole numbers: float64 holds such sums exactly.
    sums = masked_conv2d(
        q_x.astype(np.float64) - z_x, q_w.astype(np.float64), q_b.astype(np.float64), None, strides, pads, dilations, group
    )
    multipliers = (s_x * known["layer.weight.scale"] / s_y).reshape(1, -1, 1, 1)
    y = np.clip(np.rint(sums.astype(np.float32) * multipliers) + z_y, 0, 255)
    assert (q_y == y).all()
    assert z_y == 0 if relu else z_y > 0
    shown = np.maximum(expected, 0) if relu else expected
    assert np.abs(s_y * (q_y.astype(np.float32) - z_y) - shown).max() < 0.05 * np.abs(shown).max()
    assert not relu or "Relu" not in [node.op_type for node in graph.graph]


def test_the_file_runs_in_the_specification_and_in_integer_kernels(tmp_path: Any) -> None:
    w, x = normal(6, 4, 3, 3), normal(8, 4, 6, 6)
    graph = conv_graph((4, 6, 6), (6, 4, 4), w, normal(6))
    append(graph, "Relu", {})
    quantised(graph, x)
    content = serialize(graph)
    y, reference = run_onnxruntime(content, x), run_reference(content, x)
    step = [value.const_value.numpy() for name, value in graph.graph.initializers.items() if name.startswith("int8.scale")][-1]
    assert np.abs(y - reference).max() <= 1.001 * step  # where a sum is halfway between two numbers, float32 sums fall to either side
    assert (np.abs(y - reference) < 0.5 * step).mean() > 0.99
    assert (
        {"QLinearConv"} <= set(fused(graph, tmp_path / "fused.onnx")) <= {"QLinearConv", "QuantizeLinear", "DequantizeLinear", "Transpose"}
    )


def test_dropped_weights_are_zero_and_packed() -> None:
    w, x = normal(32, 16, 3, 3), normal(4, 16, 6, 6)
    w[RANDOM.random(w.shape) < 0.7] = 0
    graph = quantised(conv_graph((16, 6, 6), (32, 4, 4), w), x)
    q = constants(graph)["layer.weight.int8"]
    assert (q[w == 0] == 0).all() and q.dtype == np.int8
    before = run_onnxruntime(serialize(graph), x)
    assert pack_weights(graph) == []
    add_functions(graph, opset=INT8_OPSET)
    known = constants(graph)
    assert known["layer.weight.int8.values"].shape == (np.count_nonzero(q),) and "layer.weight.int8" not in known
    assert (run_onnxruntime(serialize(graph), x) == before).all()


def network(*nodes: onnx.NodeProto, x: tuple[int, ...], constants: dict[str, np.ndarray]) -> Any:
    inputs = [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", *x])]
    outputs = [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)]
    initializers = [onnx.numpy_helper.from_array(content, name) for name, content in constants.items()]
    graph = onnx.helper.make_graph(list(nodes), "network", inputs, outputs, initializers)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", OPSET)], ir_version=10)
    return ir.serde.deserialize_model(onnx.shape_inference.infer_shapes(model))


def residual() -> Any:
    """conv - relu6 - (maxpool - conv | slice - pad) - add - relu - mean - linear, as the narrow networks of CIFAR have them."""
    node = onnx.helper.make_node
    return network(
        node("Conv", ["x", "w1", "b1"], ["c1"], name="first"),
        node("Clip", ["c1", "zero", "six"], ["r1"]),
        node("MaxPool", ["r1"], ["m1"], kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", ["m1", "w2", "b2"], ["c2"], name="second"),
        node("Slice", ["r1", "starts", "ends", "axes", "steps"], ["s1"]),
        node("Pad", ["s1", "pads"], ["p1"], mode="constant"),
        node("Add", ["c2", "p1"], ["a1"]),
        node("Relu", ["a1"], ["r2"]),
        node("Sigmoid", ["r2"], ["g"]),
        node("GlobalAveragePool", ["g"], ["mean"]),
        node("Flatten", ["mean"], ["flat"]),
        node("Gemm", ["flat", "w3", "b3"], ["y"], name="linear", transB=1),
        x=(3, 9, 9),
        constants={
            **{"w1": normal(4, 3, 2, 2), "b1": normal(4), "w2": normal(6, 4, 1, 1), "b2": normal(6), "w3": normal(5, 6), "b3": normal(5)},
            **{"zero": np.float32(0), "six": np.float32(6), "starts": np.array([0, 0]), "ends": np.array([99, 99])},
            **{"axes": np.array([2, 3]), "steps": np.array([2, 2]), "pads": np.array([0, 1, 0, 0, 0, 1, 0, 0])},
        },
    )


def test_a_network_is_near_itself_in_integers(tmp_path: Any) -> None:
    graph, x = residual(), normal(16, 3, 9, 9)
    exact = run_onnxruntime(serialize(graph), x)
    quantised(graph, x)
    content = serialize(graph)
    y = run_onnxruntime(content, x)
    assert 0 < np.abs(y - exact).max() < 0.1 * np.abs(exact).max()
    assert np.abs(run_reference(content, x) - y).max() < 0.03 * np.abs(exact).max()
    kinds = fused(graph, tmp_path / "fused.onnx")
    assert kinds.count("QLinearConv") == 2 and kinds.count("QLinearAdd") == 1 and kinds.count("QGemm") == 1
    assert not {"Relu", "Clip", "Conv", "Add", "Gemm"} & set(kinds)


def test_what_only_moves_values_keeps_their_grid() -> None:
    graph = quantised(residual(), normal(16, 3, 9, 9))
    grids = {node.inputs[0].name: tuple(v.name for v in node.inputs[1:]) for node in graph.graph if node.op_type == "QuantizeLinear"}
    assert grids["c1"] == grids["m1"] == grids["s1"] == grids["p1"] != grids["c2"]


@pytest.mark.parametrize("group", [1, 2, 6], ids=["plain", "grouped", "depthwise"])
def test_a_masked_convolution_has_the_integers_of_the_formula(group: int) -> None:
    w, bias, x, mask = normal(12, 6 // group, 3, 3), normal(12), np.abs(normal(3, 6, 8, 7)), RANDOM.random((6, 6, 5)) < 0.5
    graph = conv_graph((6, 8, 7), (12, 6, 5), w, bias, mask, group=group)
    append(graph, "Relu", {})
    simplify(graph)
    quantised(graph, x)
    add_functions(graph, opset=INT8_OPSET)
    known, tensors = constants(graph), integers(graph, x)
    (q_x, q_y), q_w, scales = tensors.values(), known["layer.weight.int8"], known["layer.weight.scale"]
    assert np.abs(q_w).max() == 64 and q_w.dtype == np.int8
    s_x, s_y = (known[f"int8.scale.{k}"] for k in (0, 2))
    q_b = by_name(known, ".grid") / (s_x * scales)
    assert np.allclose(q_b, np.rint(q_b), rtol=1e-5) and np.abs(q_b * s_x * scales - bias).max() < 1e-3
    sums = masked_conv2d(q_x.astype(np.float64), q_w.astype(np.float64), np.rint(q_b).astype(np.float64), mask, groups=group)
    y = np.clip(np.rint(sums.astype(np.float32) * (s_x * scales / s_y).reshape(1, -1, 1, 1)), 0, 255)
    assert np.abs(q_y - y).max() <= 1 and (q_y == y).mean() > 0.995  # its function sums float32 numbers
    assert "Relu" not in [node.op_type for node in graph.graph]


def test_layers_that_stay_are_left_as_they_were() -> None:
    graph, x = residual(), normal(16, 3, 9, 9)
    exact = run_onnxruntime(serialize(graph), x)
    quantise(graph, dict.fromkeys(measured(graph), (-1.0, 1.0)), kept=("first", "second", "linear"))
    assert {node.op_type for node in graph.graph} == {node.op_type for node in residual().graph}
    assert run_onnxruntime(serialize(graph), x).shape == exact.shape
    graph = residual()
    quantise(graph, dict.fromkeys(measured(graph), (-1.0, 1.0)), kept=("second",))
    weights = {node.name: node.inputs[1].producer() is not None for node in graph.graph if node.op_type in ("Conv", "Gemm")}
    assert weights == {"first": True, "second": False, "linear": True}


def test_an_output_of_a_convolution_keeps_its_name() -> None:
    graph = quantised(conv_graph((3, 5, 7), (2, 3, 5), normal(2, 3, 3, 3)), normal(2, 3, 5, 7))
    assert [value.name for value in graph.graph.outputs] == ["y"]
