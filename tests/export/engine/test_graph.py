"""Damaged and hostile files: a clear refusal, never a crash; sound files of other shapes than the exporter's are read as well."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from fineprune.common.errors import FinepruneError, RunError
from fineprune.export.engine import Session
from fineprune.export.engine.passes.partition import segments
from fineprune.export.engine.passes.program import build
from fineprune.export.engine.reader.graph import read_graph
from fineprune.export.functions import functions
from support.tolerances import FLOAT32

OPSETS = [helper.make_opsetid("", 18), helper.make_opsetid("fineprune", 1)]


def model(nodes: list[Any], constants: dict[str, NDArray], shape: tuple[Any, ...] = ("n", 4, 6, 5), output: str = "y") -> Any:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, list(shape))
    y = helper.make_tensor_value_info(output, TensorProto.FLOAT, ["n", None, None, None])
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "network", [x], [y], initializers)
    used = {node.op_type for node in nodes if node.domain == "fineprune"}
    return helper.make_model(graph, opset_imports=OPSETS, functions=functions(used, 18), ir_version=10)


def masked(**changes: Any) -> Any:
    """A MaskedConv of 4 channels, 3 filters and a 3x3 kernel, its tensors packed; `changes` to constants, or attributes."""
    w = np.arange(1, 109, dtype=np.float32).reshape(3, 4, 3, 3)
    mask = np.arange(4 * 6 * 5).reshape(4, 6, 5) % 3 > 0
    constants: dict[str, Any] = {
        "values": w.reshape(-1)[w.reshape(-1) % 2 == 1],
        "wbits": np.packbits(w.reshape(-1) % 2 == 1, bitorder="little"),
        "mbits": np.packbits(mask, bitorder="little"),
        "b": np.ones(3, np.float32),
    }
    attributes: dict[str, Any] = {"strides": [1, 1], "pads": [1, 1, 1, 1], "dilations": [1, 1], "group": 1, "channels": 4}
    shapes: dict[str, Any] = {"wshape": [3, 4, 3, 3], "mshape": [4, 6, 5]}
    for table in (constants, attributes, shapes):
        table.update({key: changes[key] for key in table if key in changes})
    nodes = [
        helper.make_node("UnpackWeights", ["values", "wbits"], ["w"], domain="fineprune", shape=shapes["wshape"]),
        helper.make_node("UnpackMask", ["mbits"], ["m"], domain="fineprune", shape=shapes["mshape"]),
        helper.make_node("MaskedConv", ["x", "w", "m", "b"], ["y"], name="conv", domain="fineprune", **attributes),
    ]
    return model(nodes, constants)


def test_the_sound_file_runs() -> None:
    x = np.random.default_rng(0).standard_normal((2, 4, 6, 5), np.float32)
    with Session(masked().SerializeToString()) as session:
        assert session.run(None, {"x": x})[0].shape == (2, 3, 6, 5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"wbits": np.zeros(13, np.uint8)}, r"needs 14 bytes for shape \(3, 4, 3, 3\), found uint8 \(13,\)"),
        ({"wbits": np.zeros(14, np.int8)}, "found int8"),
        ({"mbits": np.zeros(99, np.uint8)}, "needs 15 bytes"),
        ({"values": np.ones(53, np.float32)}, "54 bits are set, but there are float32 \\(53,\\) values"),
        ({"b": np.ones(4, np.float32)}, r"has a bias of shape \(4,\) for 3 filters"),
        ({"wshape": [3, -4, 3, 3]}, "none, or negative"),
        ({"wshape": [1 << 40, 4, 3, 3]}, "more than"),
        ({"wshape": [3, 3, 4, 3]}, "of group 1 has"),
        ({"mshape": [4, 5, 6]}, r"its blocks are \(4, 6, 5\)"),
        ({"pads": [-1, 1, 1, 1]}, r"has pads=\[-1, 1, 1, 1\], not integers from 0"),
        ({"pads": [1 << 40, 1, 1, 1]}, "not integers from 0"),
        ({"strides": [0, 1]}, "not integers from 1"),
        ({"dilations": [9, 1]}, "has no output"),
        ({"dilations": [1 << 33, 1]}, "not integers from 1"),
        ({"group": 0}, "of group 0"),
        ({"group": 3}, "of group 3"),
        ({"group": "one"}, "has group=b'one', not a whole number"),
        ({"channels": 5}, "has channels=5, its input 4"),
    ],
)
def test_contradictions_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RunError, match=message):
        read_graph(masked(**changes).SerializeToString())


def conv(**attributes: Any) -> Any:
    return helper.make_node("Conv", ["x", "w"], ["y"], name="conv", **attributes)


W = np.ones((2, 4, 3, 3), np.float32)


@pytest.mark.parametrize(
    ("proto", "message"),
    [
        (model([conv(), conv()], {"w": W}), "makes 'y', which is there already"),
        (model([helper.make_node("Add", ["x", "y"], ["y"])], {}), "reads 'y', which nothing before it makes"),
        (model([conv()], {"w": W}, output="z"), "no node makes the output 'z'"),
        (model([conv()], {"w": W}, shape=("n", 4, 6, 1 << 40)), "too large"),
        (model([conv()], {"w": W}, shape=("n", 4, 60000, 60000)), "the file is damaged or too large"),
        (model([conv(pads=[60000] * 4)], {"w": W}), "too large"),
        (model([conv()], {"w": W}, shape=()), "cannot be loaded by ONNX Runtime"),
        (model([helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[9, 9])], {}), "has a window"),
        (model([helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[2, 2], pads=[2, 0, 0, 0])], {}), "not below its window"),
        (model([helper.make_node("Clip", ["x", "l"], ["y"])], {"l": np.array([1, 2], np.float32)}), "has a bound"),
        (model([helper.make_node("DepthToSpace", ["x"], ["y"], blocksize=1 << 40)], {}), "has blocksize="),
        (model([helper.make_node("ConvTranspose", ["x", "w"], ["y"], group=0)], {"w": W}), "has group=0"),
        (model([helper.make_node("Tile", ["x", "r"], ["y"])], {"r": np.array([1, 1 << 20, 1 << 20, 1])}), "more than 268435456 elements"),
        (model([helper.make_node("ConstantOfShape", ["s"], ["c"]), conv()], {"w": W, "s": np.array([1 << 14] * 2)}), "more than 67108864"),
        (
            model([helper.make_node("Pad", ["x", "p"], ["y"])], {"p": np.array([0, 0, 10**9, 0, 0, 0, 0, 0])}),
            "more than 268435456 elements",
        ),
        (model([helper.make_node("Unsqueeze", ["x", "a"], ["y"])], {"a": np.array([1 << 62])}), "has the axes"),
        (model([helper.make_node("Slice", ["x", "s", "e"], ["y"])], {"s": np.array([9]), "e": np.array([3, 4])}), "different lengths"),
        (model([helper.make_node("Split", ["x", "s"], ["y", "z"], axis=1)], {"s": np.array([3, 3])}), "makes \\[3, 3\\] of 4 channels"),
        (model([helper.make_node("Concat", ["x", "x"], [], axis=1), conv()], {"w": W}), "has 2 inputs"),
    ],
)
def test_broken_graphs_are_named(proto: Any, message: str) -> None:
    """When it is loaded, or where ONNX Runtime finds it late, when it runs."""
    with pytest.raises(RunError, match=message), Session(proto.SerializeToString()) as session:
        session.run(None, {"x": X})


X = np.random.default_rng(0).standard_normal((2, 4, 6, 5), np.float32)
ROWS = np.random.default_rng(1).standard_normal((240, 3), np.float32)


def node(op_type: str, inputs: str, outputs: str, **attributes: Any) -> Any:
    return helper.make_node(op_type, inputs.split(), outputs.split(), **attributes)


def with_weights_among_the_inputs() -> Any:
    proto = model([conv(pads=[1, 1, 1, 1])], {"w": W})
    proto.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, W.shape))
    return proto


def without_the_shape_of_its_output() -> Any:
    joined = [node("Flatten", "x", "a"), node("Flatten", "x", "b"), node("Concat", "a b", "c", axis=1)]
    proto = model([*joined, node("MatMul", "c v", "y")], {"v": ROWS})
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    return proto


def with_the_mask_of_a_dropout() -> Any:
    proto = model([node("Relu", "x", "r"), node("Dropout", "r", "y m")], {})
    proto.graph.output.append(helper.make_tensor_value_info("m", TensorProto.BOOL, ["n", 4, 6, 5]))
    return proto


@pytest.mark.parametrize("make", [with_weights_among_the_inputs, without_the_shape_of_its_output, with_the_mask_of_a_dropout])
def test_unusual_files_run(make: Callable[[], Any]) -> None:
    import onnxruntime

    content = make().SerializeToString()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    expected = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"]).run(None, {"x": X})
    with Session(content) as session:
        assert [port.name for port in session.get_inputs()] == ["x"]
        for y, wanted in zip(session.run(None, {"x": X}), expected, strict=True):
            assert (y.shape, y.dtype) == (wanted.shape, wanted.dtype)
            np.testing.assert_allclose(y, wanted, rtol=FLOAT32[0], atol=10 * FLOAT32[1])


def test_external_data_is_not_opened() -> None:
    proto = model([conv()], {"w": W})
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")
    with pytest.raises(RunError, match="tensor 'w' lies in another file"):
        read_graph(proto.SerializeToString())
    inner = helper.make_node("Constant", [], ["c"], value=tensor)
    branch = helper.make_graph([inner], "branch", [], [helper.make_tensor_value_info("c", TensorProto.FLOAT, [1])])
    outer = model([helper.make_node("If", ["k"], ["y"], then_branch=branch, else_branch=branch)], {"k": np.array(True)})
    with pytest.raises(RunError, match="tensor 'w' lies in another file"):
        read_graph(outer.SerializeToString())


@pytest.mark.parametrize("content", [b"", b"\x00" * 64, b"no network", b"\x08\x0a"])
def test_other_files_are_named(content: bytes) -> None:
    with pytest.raises(RunError, match="ONNX"):
        read_graph(content)


def load(content: bytes) -> None:
    """Read, choose and plan everything; run it where nothing is left to ONNX Runtime and it is small."""
    graph = read_graph(content)
    parts = segments(graph)
    for part in parts:
        if part.native:
            build(part.layers, graph.boxes, part.inputs, part.outputs)
    small = sum(math.prod(box) for box in graph.boxes.values()) < 1 << 16
    if small and all(part.native for part in parts) and graph.batch in (None, 1) and all(p.is_image_or_vector for p in graph.inputs):
        with Session(content) as session:
            feeds = {port.name: np.ones((1, *(port.shape or (1,))[1:]), np.float32) for port in graph.inputs}
            for port, y in zip(session.get_outputs(), session.run(None, feeds), strict=True):
                assert y.ndim == len(port.shape) or None in port.shape


@pytest.fixture(scope="module")
def sound(packed: Any) -> bytes:
    return packed.path.read_bytes()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_flipped_bytes(sound: bytes, data: st.DataObject) -> None:
    content = bytearray(sound)
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content))) :]
    survives(lambda: load(bytes(content)))


def survives(action: Callable[[], None]) -> None:
    try:
        action()
    except FinepruneError as error:
        assert "\n" not in str(error).strip()


_SIZES = st.sampled_from([-(1 << 62), -2, -1, 0, 1, 2, 3, 4, 7, 1 << 20, 1 << 33, (1 << 62)])


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_changed_fields(sound: bytes, data: st.DataObject) -> None:
    """Attributes, shapes, inputs and constants replaced by others at random."""
    proto = onnx.load_from_string(sound)
    graph = proto.graph
    for _ in range(data.draw(st.integers(1, 2))):
        kind = data.draw(st.sampled_from(["attribute", "dims", "input", "swap", "port", "constant", "type", "operator"]))
        node = data.draw(st.sampled_from(list(graph.node)))
        tensor = data.draw(st.sampled_from(list(graph.initializer)))
        if kind == "attribute" and node.attribute:
            attribute = data.draw(st.sampled_from(list(node.attribute)))
            if attribute.ints:
                attribute.ints[data.draw(st.integers(0, len(attribute.ints) - 1))] = data.draw(_SIZES)
            else:
                attribute.i = data.draw(_SIZES)
        elif kind == "dims" and tensor.dims:
            tensor.dims[data.draw(st.integers(0, len(tensor.dims) - 1))] = data.draw(_SIZES)
        elif kind == "input" and node.input:
            names = [name for other in graph.node for name in (*other.input, *other.output)]
            node.input[data.draw(st.integers(0, len(node.input) - 1))] = data.draw(st.sampled_from(names))
        elif kind == "swap":
            first, second = (data.draw(st.integers(0, len(graph.node) - 1)) for _ in range(2))
            copy = onnx.NodeProto()
            copy.CopyFrom(graph.node[first])
            graph.node[first].CopyFrom(graph.node[second])
            graph.node[second].CopyFrom(copy)
        elif kind == "port":
            graph.input[0].type.tensor_type.shape.dim[data.draw(st.integers(0, 3))].dim_value = data.draw(_SIZES)
        elif kind == "constant":
            tensor.raw_data = tensor.raw_data[: data.draw(st.integers(0, len(tensor.raw_data)))]
        elif kind == "type":
            tensor.data_type = data.draw(st.integers(0, 24))
        else:
            node.op_type = data.draw(st.sampled_from([other.op_type for other in graph.node]))
    survives(lambda: load(proto.SerializeToString()))
