"""Files that ONNX Runtime's quantiser wrote, in QDQ and QOperator form: all layers compute in integers, the same as ONNX Runtime's."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from fineprune.export.engine import Session
from fineprune.export.engine.reader.qoperators import as_qdq
from support.grids import File, Grid
from support.onnx_comparison import in_onnxruntime

SHAPE = (3, 16, 16)
IN_INTEGERS = {"load", "save", "quantize", "dequantize", "phases", "quad_pool", "quad_mean", "quad_add", "margins"}
IN_INTEGERS |= {"quad_positions", "quad_shared", "quad_filters", "quad_expanded", "quad_depthwise"}


class Network:
    """Of float32, with random weights."""

    def __init__(self) -> None:
        self.file, self._random = File(SHAPE), np.random.default_rng(0)

    def node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        return self.file.node(kind, list(inputs), f"t{len(self.file.nodes)}", **attributes)

    def constant(self, content: Any) -> str:
        return self.file.constant(f"c{len(self.file.constants)}", np.asarray(content, np.float32))

    def normal(self, *shape: int) -> str:
        return self.constant(self._random.standard_normal(shape) / np.sqrt(np.prod(shape[1:])))

    def conv(self, x: str, channels: int, filters: int, side: int, stride: int = 1, group: int = 1, act: str = "") -> str:
        weights, bias = self.normal(filters, channels // group, side, side), self.normal(filters)
        y = self.node("Conv", x, weights, bias, kernel_shape=[side, side], strides=[stride] * 2, pads=[side // 2] * 4, group=group)
        return y if not act else self.node("Relu", y) if act == "Relu" else self.node("Clip", y, self.constant(0), self.constant(6))


def residual() -> bytes:
    """As ResNet-18 begins and ends."""
    net = Network()
    x = net.node("MaxPool", net.conv("x", 3, 12, 7, 2, act="Relu"), kernel_shape=[3, 3], strides=[1, 1], pads=[1, 1, 1, 1])
    x = net.node("Relu", net.node("Add", net.conv(net.conv(x, 12, 12, 3, act="Relu"), 12, 12, 3), x))
    x = net.node("Relu", net.node("Add", net.conv(net.conv(x, 12, 20, 3, 2, act="Relu"), 20, 20, 3), net.conv(x, 12, 20, 1, 2)))
    x = net.node("Flatten", net.node("GlobalAveragePool", x))
    return net.file.model(net.node("Gemm", x, net.normal(10, 20), net.normal(10), transB=1))


def inverted() -> bytes:
    """As MobileNet-v2."""
    net = Network()
    x = net.conv("x", 3, 8, 3, 2, act="Relu6")
    for channels, filters, stride in ((8, 8, 1), (8, 12, 2), (12, 12, 1)):
        y = net.conv(net.conv(x, channels, 3 * channels, 1, act="Relu6"), 3 * channels, 3 * channels, 3, stride, 3 * channels, "Relu6")
        y = net.conv(y, 3 * channels, filters, 1)
        x = net.node("Add", x, y) if stride == 1 else y
    x = net.node("Flatten", net.node("GlobalAveragePool", net.conv(x, 12, 32, 1, act="Relu6")))
    return net.file.model(net.node("MatMul", x, net.normal(32, 10)))


class Images(CalibrationDataReader):
    def __init__(self) -> None:
        self._left = [{"x": np.random.default_rng(1).standard_normal((4, *SHAPE), np.float32)}]

    def get_next(self) -> Any:
        return self._left.pop() if self._left else None


TYPES = [(QuantType.QInt8, QuantType.QUInt8), (QuantType.QUInt8, QuantType.QUInt8), (QuantType.QInt8, QuantType.QInt8)]


@pytest.mark.parametrize(("weights", "activations"), TYPES, ids=["w int8, x uint8", "w uint8, x uint8", "w int8, x int8"])
@pytest.mark.parametrize("by_channel", [False, True])
@pytest.mark.parametrize("form", [QuantFormat.QDQ, QuantFormat.QOperator], ids=["QDQ", "QOperator"])
@pytest.mark.parametrize("network", [residual, inverted])
def test_onnxruntimes_quantiser(
    network: Callable[[], bytes], form: Any, by_channel: bool, weights: Any, activations: Any, tmp_path: Path
) -> None:  # fmt: skip
    (tmp_path / "float.onnx").write_bytes(network())
    types = {"weight_type": weights, "activation_type": activations}
    quantize_static(
        tmp_path / "float.onnx", tmp_path / "int8.onnx", Images(), quant_format=form, per_channel=by_channel, reduce_range=True, **types
    )
    x = np.random.default_rng(2).standard_normal((8, *SHAPE), np.float32)
    with Session(tmp_path / "int8.onnx", fallback=False) as session:
        assert {record.kernel for record in session.profile(x, repeats=1)} <= IN_INTEGERS
        made = session.run(None, {"x": x})[0]
    assert len(np.unique(made)) > 10
    assert np.array_equal(made, in_onnxruntime((tmp_path / "int8.onnx").read_bytes(), x)[0])


def qlinear_conv(**changed: Any) -> Any:
    """A file of one QLinearConv between QuantizeLinear and DequantizeLinear; `changed`: constants."""
    random, file = np.random.default_rng(0), File((4, 6, 6))
    constants = {
        "xs": np.float32(0.02), "xz": np.uint8(114), "w": random.integers(-60, 60, (8, 4, 3, 3)).astype(np.int8),
        "ws": np.full(8, 0.01, np.float32), "wz": np.zeros(8, np.int8), "ys": np.float32(0.1), "yz": np.uint8(100),
        "b": random.integers(-999, 999, 8).astype(np.int32),
    } | changed  # fmt: skip
    for name, content in constants.items():
        file.constant(name, content)
    file.node("QuantizeLinear", ["x", "xs", "xz"], "q")
    file.node("QLinearConv", ["q", "xs", "xz", "w", "ws", "wz", "ys", "yz", "b"], "c", pads=[1, 1, 1, 1])
    file.node("DequantizeLinear", ["c", "ys", "yz"], "y")
    return onnx.load_from_string(file.model("y"))


def test_a_node_becomes_three() -> None:
    model = as_qdq(qlinear_conv())
    kinds = [node.op_type for node in model.graph.node]
    assert kinds == ["QuantizeLinear", *["DequantizeLinear"] * 3, "Conv", "QuantizeLinear", "DequantizeLinear"]
    x = np.random.default_rng(1).standard_normal((2, 4, 6, 6), np.float32)
    wanted = in_onnxruntime(qlinear_conv().SerializeToString(), x)[0]
    assert np.array_equal(in_onnxruntime(model.SerializeToString(), x)[0], wanted)
    with Session(qlinear_conv().SerializeToString(), fallback=False) as session:
        assert np.array_equal(session.run(None, {"x": x})[0], wanted)


def test_a_pool_of_bytes_knows_the_grid_of_a_concat() -> None:
    file = File((4, 6, 6))
    x, y = (file.parameters(name, grid) for name, grid in (("a", Grid(0.02, 114)), ("b", Grid(0.03, 100))))
    file.node("QuantizeLinear", ["x", *x], "q")
    file.node("QLinearConcat", [*y, "q", *x, "q", *x], "c", domain="com.microsoft", axis=1)
    file.node("DequantizeLinear", [file.node("MaxPool", ["c"], "p", kernel_shape=(2, 2)), *y], "y")
    model = onnx.load_from_string(file.model("y"))
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    content = model.SerializeToString()
    kinds = [node.op_type for node in as_qdq(model).graph.node]
    assert kinds[-6:] == ["Concat", "QuantizeLinear", "DequantizeLinear", "MaxPool", "QuantizeLinear", "DequantizeLinear"]
    images = np.random.default_rng(1).standard_normal((2, 4, 6, 6), np.float32)
    with Session(content, fallback=False) as session:
        assert np.array_equal(session.run(None, {"x": images})[0], in_onnxruntime(content, images)[0])


@pytest.mark.parametrize("changed", [{"xs": np.float32(0)}, {"ws": np.full(8, np.inf, np.float32)}, {"ws": np.float32(3e38)}], ids=str)
def test_what_has_no_scale_of_sums_stays_as_it_is(changed: dict[str, Any]) -> None:
    model = qlinear_conv(**{"xs": np.float32(3), **changed})
    assert as_qdq(model).graph.node[1].op_type == "QLinearConv"


def test_constants_on_grids_stay_so_in_parts_for_onnxruntime() -> None:
    """Float32 weights between tensors on grids would be put on grids of ONNX Runtime's own."""
    random, file, grid = np.random.default_rng(3), File((4, 6, 6)), Grid(0.03, 128)
    weights, scales = random.integers(-64, 64, (8, 4, 3, 3)).astype(np.int8), np.full(8, 0.002, np.float32)
    unknown = file.node("Resize", ["x", "", file.constant("r", np.array([1, 1, 2, 2], np.float32))], "large", mode="cubic")
    y = file.layer("Conv", file.on_grid(unknown, grid), "y", weights, scales, random.integers(-99, 99, 8), grid)
    content = file.model(file.on_grid(y, grid))
    images = random.standard_normal((2, 4, 6, 6), np.float32)
    with Session(content) as session:
        assert np.array_equal(session.run(None, {"x": images})[0], in_onnxruntime(content, images)[0])


def test_functions_of_the_file_are_its_own() -> None:
    model = qlinear_conv()
    nodes = [helper.make_node("Identity", ["a"], ["b"])]
    model.functions.append(helper.make_function("com.microsoft", "QLinearSigmoid", list("acdef"), ["b"], nodes, model.opset_import))
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    own = helper.make_node("QLinearSigmoid", ["c", "ys", "yz", "ys", "yz"], ["o"], domain="com.microsoft")
    model.graph.node.insert(2, own)
    assert "QLinearSigmoid" in [node.op_type for node in as_qdq(model).graph.node]
