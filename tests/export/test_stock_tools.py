"""Files of ours in the hands of other people's tools: each makes a file that computes (about) the same."""

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import onnxruntime
import pytest
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch import nn

from fineprune.compressor.layers import MaskedConv2d
from fineprune.export.peers.int8 import quantise

SAMPLES = np.random.default_rng(0).standard_normal((3, 3, 11, 7), dtype=np.float32)


def dynamic(source: Path, target: Path, types: Sequence[str] | None = None) -> None:
    quantize_dynamic(source, target, op_types_to_quantize=types, weight_type=QuantType.QUInt8)


def dynamic_linear(source: Path, target: Path) -> None:
    """It wants the weights of a standard Conv as an initializer, which packed ones are not."""
    dynamic(source, target, ["MatMul", "Gemm"])


def static(source: Path, target: Path) -> None:
    quantise(source, target, SAMPLES)


def inferred(source: Path, target: Path) -> None:
    onnx.save(onnx.shape_inference.infer_shapes(onnx.load(source), check_type=True, strict_mode=True, data_prop=True), target)


def optimised(source: Path, target: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(target)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    onnxruntime.InferenceSession(str(source), options)


def inlined_and_converted(source: Path, target: Path) -> None:
    inlined = onnx.inliner.inline_local_functions(onnx.load(source))
    onnx.save(onnx.version_converter.convert_version(inlined, 21), target)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable(logging.WARNING)  # they advise through the root logger
    yield
    logging.disable(logging.NOTSET)


TOOLS = [(dynamic_linear, 0.1), (static, 0.5), (inferred, 0), (optimised, 1e-5), (inlined_and_converted, 1e-5)]


@pytest.mark.parametrize(
    ("tool", "tolerance", "kind"),
    [*((*tool, kind) for tool in TOOLS for kind in ("packed", "plain", "dense")), (dynamic, 0.1, "plain"), (dynamic, 0.1, "dense")],
)
def test_a_tool_takes_the_file(tool: Callable, tolerance: float, kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    exported: Any = request.getfixturevalue(kind)
    tool(exported.path, tmp_path / "other.onnx")
    before, after = (_run(path) for path in (exported.path, tmp_path / "other.onnx"))
    assert np.abs(before - after).max() <= tolerance * np.abs(before).max()


def test_packed_masks_are_no_hindrance_to_dynamic_quantisation(export: Callable, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(3, 11, 7, generator=generator) < 0.5
    conv = MaskedConv2d.wrap(nn.Conv2d(3, 32, 3, padding=1), ffp_mask=mask, fwp_mask=torch.rand(32, 3, 3, 3, generator=generator) < 0.5)
    exported = export(nn.Sequential(conv, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 4)).eval())
    assert {"fineprune::MaskedConv", "fineprune::UnpackWeights"} <= exported.report.nodes.keys()
    dynamic(exported.path, tmp_path / "other.onnx")
    assert np.abs(_run(exported.path) - _run(tmp_path / "other.onnx")).max() < 0.05


@pytest.mark.parametrize("kind", ["packed", "plain", "dense"])
def test_initializers_have_one_type_and_shape(kind: str, request: pytest.FixtureRequest) -> None:
    graph = onnx.load(request.getfixturevalue(kind).path).graph
    assert graph.value_info and not {info.name for info in graph.value_info} & {tensor.name for tensor in graph.initializer}


def _run(path: Path) -> Any:
    return onnxruntime.InferenceSession(str(path)).run(None, {"input": SAMPLES})[0]
