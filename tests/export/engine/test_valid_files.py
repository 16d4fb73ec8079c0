"""Valid files in forms that the engine has no kernel for, or cannot read: they give the numbers of ONNX Runtime."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from fineprune.common.errors import RunError, UsageError
from fineprune.export.engine import Session
from support.onnx_comparison import compare

X = np.random.default_rng(0).standard_normal((2, 4, 6, 5), np.float32)
W = np.random.default_rng(1).standard_normal((3, 4, 3, 3), np.float32)
V = np.random.default_rng(2).standard_normal((4, 3), np.float32)
BIG = np.float32(3)
Make = Callable[[], Any]


def node(op_type: str, inputs: str, outputs: str = "y", **attributes: Any) -> Any:
    return helper.make_node(op_type, [name.strip("_") for name in inputs.split()], outputs.split(), **attributes)


def model(*nodes: Any, opset: int = 18, batch: Any = "n", outputs: str = "y", **constants: Any) -> Any:
    """x[batch, 4, 6, 5] float32 and outputs whose shapes the file leaves out."""
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs.split()]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 4, 6, 5])
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(list(nodes), "network", [x], infos, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def same(proto: Any, feeds: dict[str, NDArray] | None = None) -> None:
    outcome = compare(proto.SerializeToString(), [feeds or {"x": X}], threads=(1, 2))
    assert outcome.kind == "equal", outcome


def ints(*values: int) -> NDArray[np.int64]:
    return np.array(values, np.int64)


GAP = node("GlobalAveragePool", "x", "p")


@pytest.mark.parametrize(
    "proto",
    [
        model(GAP, node("Squeeze", "p", "s"), node("Gemm", "s v"), v=V),
        model(node("ReduceMean", "x")),
        model(node("ReduceMean", "x a", keepdims=0), a=ints(1, -1)),
        model(node("ReduceMean", "x", noop_with_empty_axes=1)),
        model(node("ReduceMean", "x", axes=[2, 3]), opset=13),
        model(node("Unsqueeze", "x a"), a=ints(0)),
        model(node("Reshape", "x s", allowzero=1), s=ints(-1, 120)),
        model(node("Reshape", "x s"), s=ints(2, 0, -1)),
        model(node("Flatten", "x", axis=-3)),
        model(node("Flatten", "x", axis=0)),
        model(node("Slice", "x s e a t"), s=ints(-1), e=ints(-9), a=ints(3), t=ints(-2)),
        model(node("Slice", "x s e a"), s=ints(4), e=ints(2), a=ints(2)),
        model(node("Concat", "x x", axis=-1)),
        model(node("Pad", "x p", mode="reflect"), p=ints(0, 0, 1, 1, 0, 0, 1, 1)),
        model(node("Pad", "x p v"), p=ints(0, 0, -1, 0, 0, 0, 0, 2), v=BIG),
        model(node("Dropout", "x", "y m")),
        model(node("BatchNormalization", "x a a a v"), a=V[:, 0], v=-np.ones(4, np.float32)),
        model(
            node("Relu", "x", "r"), node("Flatten", "r", "f"), node("Gemm", "f g b"), g=np.ones((120, 2), np.float32), b=V[:2, :1], batch=2
        ),
        model(node("Resize", "x _ s"), s=np.array([1, 1, 2, 2], np.float32)),
        model(node("AveragePool", "x", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1), node("Relu", "y", "z"), outputs="z"),
        model(node("Conv", "x w", auto_pad="SAME_UPPER"), w=W),
        model(node("Conv", "x w _"), w=W),
        model(node("MaxPool", "x", kernel_shape=[2, 2], strides=[1 << 40, 1])),
        model(node("Conv", "x w"), w=np.where(W > 1, np.inf, W)),
        model(node("Clip", "x l h"), l=BIG, h=np.float32(1)),
        model(node("Clip", "x l"), l=np.float32(np.nan)),
        model(node("Relu", "x", "r"), node("Clip", "r l h", "c"), node("Clip", "c h l"), l=np.float32(0.5), h=np.float32(0.25)),
        model(node("Relu", "r"), node("Neg", "x", "r")),
        model(node("Relu", "x"), outputs="y y"),
        model(node("GlobalAveragePool", "x"), node("Resize", "x _ s", "r"), node("Flatten", "r", "unread"), s=np.float32([1, 1, 2, 2])),
    ],
)
def test_other_forms(proto: Any) -> None:
    same(proto)


def with_sparse_initializer(places: NDArray) -> Any:
    proto = model(node("Conv", "x w"))
    values = numpy_helper.from_array(np.array([1, -2, 3], np.float32), "w")
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, numpy_helper.from_array(places, "i"), [3, 4, 3, 3]))
    return proto


def with_constant(value: Any = None, **attribute: Any) -> Any:
    given = {"value": numpy_helper.from_array(np.asarray(value))} if value is not None else attribute
    return model(helper.make_node("Constant", [], ["c"], **given), node("Cast", "c", "f", to=1), node("Add", "x f"))


def with_sparse_constant() -> Any:
    values = numpy_helper.from_array(np.array([5, 7], np.float32), "v")
    sparse = helper.make_sparse_tensor(values, numpy_helper.from_array(ints(1, 3), "i"), [5])
    return model(helper.make_node("Constant", [], ["c"], sparse_value=sparse), node("Add", "x c"))


def with_two_initializers_of_a_name() -> Any:
    proto = model(node("Conv", "x w"), w=W)
    proto.graph.initializer.append(numpy_helper.from_array(W, "w"))
    return proto


def with_outputs_that_are_there_already() -> Any:
    return model(node("Relu", "x"), outputs="y x c", c=V)


def with_a_function() -> Any:
    """A function of the file's own that is called like a standard operator elsewhere, with an attribute."""
    body = "Relu <factor: float = 2.0> (X) => (Y) { f = Constant <value_float: float = @factor> () Y = Mul (X, f) }"
    proto = model(helper.make_node("Relu", ["x"], ["r"], domain="own", factor=-3.0), node("Conv", "r w"), w=W)
    proto.functions.append(onnx.parser.parse_function(f'<domain: "own", opset_import: ["": 18]> {body}'))
    proto.opset_import.append(helper.make_opsetid("own", 1))
    return proto


@pytest.mark.parametrize(
    "make",
    [
        lambda: with_sparse_initializer(ints(1, 30, 100)),
        lambda: with_sparse_initializer(np.array([[0, 0, 0, 1], [1, 2, 0, 0], [2, 3, 2, 2]], np.int64)),
        with_sparse_constant,
        lambda: with_constant(value_float=2.5),
        lambda: with_constant(value_ints=[1, 2, 3, 4, 5]),
        lambda: with_constant(np.float16(0.1)),
        lambda: with_constant(np.arange(5.0)),
        with_two_initializers_of_a_name,
        with_outputs_that_are_there_already,
        with_a_function,
        lambda: model(node("Cast", "h", "w", to=1), node("Conv", "x w"), h=W.astype(np.float16)),
        lambda: model(node("Relu", "x"), unused=W.astype(np.float64)),
    ],
)
def test_constants_and_functions(make: Make) -> None:
    same(make())


@pytest.mark.parametrize("opset", [7, 9, 11, 13, 17, 18, 20, 22, 23])
def test_operator_sets(opset: int) -> None:
    same(model(node("Conv", "x w", "c"), node("Relu", "c", "r"), node("GlobalAveragePool", "r"), w=W, opset=opset))


@pytest.mark.parametrize("kind", ["uint8", "int8", "int32", "int64", "bool", "float16", "float64"])
def test_inputs_of_other_types(kind: str) -> None:
    """A cast in ONNX Runtime, the convolution in the engine; beside it an input that is a vector, and one number."""
    proto = model(node("Cast", "x", "f", to=1), node("Conv", "f w", "c"), node("Mul", "c k"), w=W)
    proto.graph.input[0].type.tensor_type.elem_type = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    proto.graph.input.append(helper.make_tensor_value_info("k", TensorProto.FLOAT, []))
    x = (X * 9 + 9 if kind == "uint8" else X).clip(-99, 99).astype(kind)
    same(proto, {"x": x, "k": np.array(2, np.float32)})
    with (
        Session(proto.SerializeToString()) as session,
        pytest.raises(UsageError, match=f"'x' is an array of tensor.*, got {np.dtype('u4')}"),
    ):
        session.run(None, {"x": np.zeros(x.shape, np.uint32), "k": np.array(2, np.float32)})


def test_an_input_without_a_shape() -> None:
    proto = model(node("Relu", "x"))
    proto.graph.input[0].type.tensor_type.ClearField("shape")
    same(proto, {"x": X[0]})


def test_sigmoid_of_what_is_infinite() -> None:
    """-inf * sigmoid(-inf) is no number, as in ONNX Runtime."""
    x = X.copy()
    x[0, 0, 0, :3] = np.inf, -np.inf, np.nan
    same(model(node("Sigmoid", "x", "s"), node("Mul", "x s"), outputs="s y"), {"x": x})


def test_clip_without_a_bound_makes_numbers_finite() -> None:
    x = np.where(X > 1, np.inf, np.where(X < -1, -np.inf, X)).astype(np.float32)
    same(model(node("Conv", "x i", "c"), node("Clip", "c _ h"), i=np.ones((1, 4, 1, 1), np.float32), h=BIG), {"x": x})


def test_edited_functions_are_run_as_they_are() -> None:
    """A file whose functions are not those that fineprune writes computes what they say."""
    from fineprune.export.functions import functions

    mask = np.arange(4 * 6 * 5).reshape(4, 6, 5) % 3 > 0
    attributes = {"strides": [1, 1], "pads": [0] * 4, "dilations": [1, 1], "group": 1, "channels": 4}
    masked = helper.make_node("MaskedPointwiseConv", ["x", "w", "m", "b"], ["y"], domain="fineprune", **attributes)
    proto = model(masked, w=W[:, :, :1, :1], m=mask, b=V[0])
    proto.functions.extend(functions({"MaskedPointwiseConv"}, 18))
    proto.opset_import.append(helper.make_opsetid("fineprune", 1))
    same(proto)
    [conv] = [inner for inner in proto.functions[0].node if inner.op_type == "Mul"]
    conv.op_type = "Add"
    same(proto)


def test_names_that_are_no_text() -> None:
    """Of a node: any will do. Of a tensor: the file is damaged."""
    content = model(helper.make_node("Relu", ["x"], ["y"], name="nodename")).SerializeToString()
    x = {"x": X}
    with Session(content.replace(b"nodename", b"node\xdeame")) as session:
        np.testing.assert_array_equal(session.run(None, x)[0], np.maximum(X, 0))
    with pytest.raises(RunError, match="is no text; the file is damaged"):
        Session(content.replace(b"\n\x01y", b"\n\x01\xde").replace(b"\x12\x01y", b"\x12\x01\xde"))
    with pytest.raises(RunError, match="is no text; the file is damaged"):
        Session(content.replace(b"Relu", b"Rel\xde"))


def test_what_neither_can_run_is_damaged() -> None:
    with pytest.raises(RunError, match=r"'y' reads 'z', which nothing before it makes .*the file is damaged"):
        Session(model(node("Relu", "z")).SerializeToString())
    with pytest.raises(RunError, match="outside of itself"):
        Session(with_sparse_initializer(ints(1, 30, 1000)).SerializeToString())
    with pytest.raises(RunError, match="'y' reads 'z'"):
        Session(model(node("Relu", "z"), node("Neg", "x", "z")).SerializeToString(), fallback=False)
