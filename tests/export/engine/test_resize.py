"""Resize in the engine, against ONNX Runtime."""

import contextlib
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from fineprune.common.errors import RunError
from fineprune.export.engine import Session
from support.tolerances import FLOAT32

COORDINATES = ["half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners"]
ROUNDINGS = ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"]


def network(
    shape: tuple[int, int, int], scales: Any = None, sizes: Any = None, *, opset: int = 18, batch: Any = "n", **attributes: Any
) -> bytes:
    """Resize of x[batch, *shape]."""
    given = {"scales": np.array(scales, np.float32) if scales else None, "sizes": np.array(sizes, np.int64) if sizes else None}
    constants = [numpy_helper.from_array(content, name) for name, content in given.items() if content is not None]
    inputs = ["x", "", *(name if content is not None else "" for name, content in given.items())]
    while not inputs[-1]:
        inputs.pop()
    node = helper.make_node("Resize", inputs, ["y"], **attributes)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, *shape])
    graph = helper.make_graph([node], "network", [x], [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10).SerializeToString()


def check(content: bytes, shape: tuple[int, int, int], threads: int = 1, batch: int = 3) -> None:
    x = np.random.default_rng(0).standard_normal((batch, *shape), np.float32)
    expected = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
    with Session(content, threads, fallback=False) as session:
        np.testing.assert_allclose(session.run(None, {"x": x})[0], expected, *FLOAT32)


@pytest.mark.parametrize("scales", [(1, 1, 2, 2), (1, 1, 3, 1.5), (1, 1, 0.5, 0.4), (1, 1, 1, 1)])
@pytest.mark.parametrize("coordinates", COORDINATES)
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_the_nearest_pixel(scales: tuple[float, ...], coordinates: str, rounding: str) -> None:
    content = network((3, 5, 6), scales, mode="nearest", coordinate_transformation_mode=coordinates, nearest_mode=rounding)
    check(content, (3, 5, 6))


@pytest.mark.parametrize("scales", [(1, 1, 2, 2), (1, 1, 3, 1.5), (1, 1, 0.5, 0.4), (1, 1, 1, 1)])
@pytest.mark.parametrize("coordinates", COORDINATES)
def test_between_pixels(scales: tuple[float, ...], coordinates: str) -> None:
    check(network((19, 5, 6), scales, mode="linear", coordinate_transformation_mode=coordinates), (19, 5, 6), threads=2)


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("size", [(1, 1), (7, 11), (2, 3), (10, 6)])
@pytest.mark.parametrize("coordinates", COORDINATES)
def test_to_fixed_sizes(mode: str, size: tuple[int, int], coordinates: str) -> None:
    more = {"mode": mode, "coordinate_transformation_mode": coordinates}
    check(network((5, 5, 6), sizes=size, axes=[2, 3], opset=20, **more), (5, 5, 6))
    check(network((5, 5, 6), sizes=(3, 5, *size), batch=3, **more), (5, 5, 6))


@pytest.mark.parametrize(
    "arguments",
    [
        {"scale_factor": 2, "mode": "nearest"},
        {"scale_factor": 2, "mode": "bilinear"},
        {"scale_factor": 2, "mode": "bilinear", "align_corners": True},
    ],
    ids=lambda arguments: " ".join(map(str, arguments.values())),
)
def test_as_torch_exports_it(arguments: dict[str, Any], tmp_path: Any) -> None:
    torch = pytest.importorskip("torch")
    from fineprune.export.exporter import export_onnx

    class Upsampled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 18, 3, padding=1)

        def forward(self, x: Any) -> Any:
            y = self.conv(x)
            return torch.cat([y, torch.nn.functional.interpolate(torch.nn.functional.max_pool2d(y, 2), **arguments)], 1)

    torch.manual_seed(0)
    model = Upsampled().eval()
    export_onnx(model, (3, 8, 6), tmp_path / "network.onnx")
    x = torch.randn(2, 3, 8, 6)
    with Session(tmp_path / "network.onnx", fallback=False) as session, torch.inference_mode():
        np.testing.assert_allclose(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0], model(x), *FLOAT32)


@pytest.mark.parametrize(
    ("why", "content"),
    [
        ("mode cubic", network((3, 4, 5), (1, 1, 2, 2), mode="cubic")),
        ("half_pixel_symmetric", network((3, 4, 5), (1, 1, 2, 2), coordinate_transformation_mode="half_pixel_symmetric")),
        ("antialias", network((3, 4, 5), (1, 1, 0.5, 0.5), mode="linear", antialias=1)),
        ("channels", network((3, 4, 5), (1, 2, 1, 1), mode="nearest")),
        ("axes", network((3, 4, 5), (2, 2), mode="nearest", axes=[3, 2])),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_forms_go_to_onnx_runtime(why: str, content: bytes) -> None:
    with pytest.raises(RunError, match=why):
        Session(content, fallback=False)
    x = np.random.default_rng(1).standard_normal((2, 3, 4, 5), np.float32)
    with Session(content) as session:
        expected = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
        np.testing.assert_array_equal(session.run(None, {"x": x})[0], expected)


@pytest.mark.parametrize(
    ("why", "content"),
    [
        ("scales and sizes, or none of them", network((3, 4, 5))),
        (r"makes \[inf, 10.0\] of \[4, 5\]", network((3, 4, 5), (1, 1, 3e38, 2))),
        (r"makes \[0, 10\] of \[4, 5\]", network((3, 4, 5), (1, 1, 0.1, 2))),
        ("has axes=2, not whole numbers", network((3, 4, 5), (2, 2), axes=2)),
        ("not whole numbers", network((3, 4, 5), (2, 2), axes=["a", "b"])),
    ],
)
def test_damaged_files(why: str, content: bytes) -> None:
    with pytest.raises(RunError, match=f"{why}.*the file is damaged"):
        Session(content, fallback=False)
    with contextlib.suppress(RunError):  # ONNX Runtime loads some of them
        Session(content).close()
