"""Softmax in the engine, against ONNX Runtime."""

from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from fineprune.common.errors import RunError
from fineprune.export.engine import Session
from fineprune.export.engine.ir.network import KERNELS
from fineprune.export.engine.ops.softmax import Softmax
from fineprune.export.engine.passes import memory
from support.tolerances import FLOAT32


def network(shape: tuple[int, ...], *, pooled: bool = False, **attributes: Any) -> bytes:
    """Softmax of x[n, *shape], or of its average pool, which may lie in another layout."""
    nodes = [helper.make_node("AveragePool", ["x"], ["p"], kernel_shape=[1, 1])] if pooled else []
    nodes.append(helper.make_node("Softmax", ["p" if pooled else "x"], ["y"], **attributes))
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", *shape]) for name in "xy")
    graph = helper.make_graph(nodes, "network", [x], [y])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10).SerializeToString()


def both(content: bytes, x: Any, threads: int = 1) -> tuple[Any, Any]:
    stock = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    with Session(content, threads, fallback=False) as session:
        return session.run(None, {"x": x})[0], stock.run(None, {"x": x})[0]


@pytest.mark.parametrize("attributes", [{}, {"axis": 1}, {"axis": -1}])
@pytest.mark.parametrize("channels", [1, 2, 10, 35, 1000])
def test_of_vectors(channels: int, attributes: dict[str, int]) -> None:
    x = 8 * np.random.default_rng(channels).standard_normal((3, channels), np.float32)
    np.testing.assert_allclose(*both(network((channels,), **attributes), x), *FLOAT32)


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("axis", [1, -3])
@pytest.mark.parametrize("shape", [(2, 3, 5), (19, 7, 2), (32, 1, 1)])
def test_of_images_over_their_channels(shape: tuple[int, int, int], axis: int, pooled: bool) -> None:
    x = 8 * np.random.default_rng(0).standard_normal((4, *shape), np.float32)
    np.testing.assert_allclose(*both(network(shape, pooled=pooled, axis=axis), x, threads=2), *FLOAT32)


def test_large_and_infinite_numbers() -> None:
    x = np.array([[1e30, 0, -1e30], [-np.inf, 3, 3], [200, 100, 0]], np.float32)
    np.testing.assert_allclose(*both(network((3,)), x), *FLOAT32)


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_in_either_layout_and_over_its_input(layout: str) -> None:
    x = np.random.default_rng(1).standard_normal((5, 2, 3), np.float32)
    geometry, size = memory.geometry(layout, x.shape, (1, 0, 0, 2))
    view = memory.at(geometry, 16)
    [op] = Softmax(name="s", inputs=("x",), output="y").plan("softmax", view, view)
    arena = np.zeros(size + 32, np.float32)
    places = [view.at(c, i, j) for c, i, j in np.ndindex(*x.shape)]
    arena[places] = x.reshape(-1)
    KERNELS["softmax"](0, 2, 0, arena, op.constants, op.index, op.meta, 0)
    expected = np.exp(x) / np.exp(x).sum(0)
    np.testing.assert_allclose(arena[places].reshape(x.shape), expected, *FLOAT32)


@pytest.mark.parametrize(("shape", "axis"), [((3, 4, 5), -1), ((3, 4, 5), 2), ((3,), 0)])
def test_other_axes_go_to_onnx_runtime(shape: tuple[int, ...], axis: int) -> None:
    content = network(shape, axis=axis)
    with pytest.raises(RunError, match="another axis"):
        Session(content, fallback=False)
    x = np.random.default_rng(2).standard_normal((2, *shape), np.float32)
    with Session(content) as session:
        expected = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
        np.testing.assert_array_equal(session.run(None, {"x": x})[0], expected)
