"""Largest and least numbers make exact integers in every kernel; what is no number, or infinite, is quantized as ONNX Runtime does."""

import platform

import numpy as np
import pytest
from onnx import helper

from fineprune.export.engine import Session
from fineprune.export.engine.ops.quads import USABLE, QuadConv
from support.grids import File, Grid, conv_sums, requantized
from support.onnx_comparison import in_onnxruntime

EXTREMES = [-128, -64, 64, 127, 255, -255]


@pytest.mark.parametrize("weight", EXTREMES)
@pytest.mark.parametrize(
    ("kernel", "groups"),
    [*((name, 1) for name in USABLE if name not in ("quad_depthwise", "quad_blocks")), ("quad_depthwise", 12)],
)
def test_all_weights_and_all_inputs_are_extreme(kernel: str, groups: int, weight: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINEPRUNE_PLANS", "anew")
    monkeypatch.setattr(QuadConv, "kernels", property(lambda layer: (kernel,)))
    x_grid, file, stored = Grid(1.0, 200), File((12, 5, 6), np.uint8), np.uint8 if abs(weight) > 128 else np.int8
    weights = np.full((12, 12 // groups, 3, 3), weight)
    zeros = np.full(12, 255 if weight == -255 else 0, stored)
    x = np.stack([np.full((12, 5, 6), value, np.uint8) for value in (0, 255, 200)])
    x = np.concatenate([x, np.random.default_rng(0).choice([0, 255], (1, 12, 5, 6)).astype(np.uint8)])
    sums = conv_sums(x, 200, weights, np.full(12, 77), (1, 1), (1, 1, 1, 1), (1, 1), groups)
    y_grid = Grid(float(np.float32(np.abs(sums).max() / 100)), 128)
    source = file.node("DequantizeLinear", ["x", *file.parameters("x", x_grid)], "real")
    w = file.weights("w", weights, np.ones(12), zeros)
    bias = file.node("DequantizeLinear", [file.constant("b", np.full(12, 77, np.int32)), file.constant("bs", np.float32(1))], "bias")
    out = file.on_grid(file.node("Conv", [source, w, bias], "y", pads=(1, 1, 1, 1), group=groups), y_grid)
    wanted = requantized(sums, np.full(12, 1 / np.float32(y_grid.scale), np.float32), 128)
    with Session(file.model(f"{out[:-3]}.q", types={f"{out[:-3]}.q": np.uint8}), fallback=False) as session:
        assert kernel in {record.kernel for record in session.profile(x, repeats=1)}
        assert np.array_equal(session.run(None, {"x": x})[0], wanted)
    assert len(np.unique(wanted)) > 2


@pytest.mark.parametrize("signed", [False, True])
def test_what_is_not_finite_is_quantized_as_in_onnxruntime(signed: bool) -> None:
    file = File((1, 2, 21))
    file.node("QuantizeLinear", ["x", *file.parameters("x", Grid(0.1, 100), signed)], "q")
    content = file.model("q", types={"q": np.int8 if signed else np.uint8})
    x = np.random.default_rng(0).choice(np.array([np.nan, np.inf, -np.inf, 3.4e38, -1e-45, 1.25], np.float32), (2, 1, 2, 21))
    wanted = in_onnxruntime(content, x)[0]
    with Session(content, fallback=False) as session:
        assert np.array_equal(session.run(None, {"x": x})[0], wanted)


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the order of roundings in ONNX Runtime's kernel for x86")
@pytest.mark.parametrize(
    "grids",
    [
        (Grid(0.06824705749750137, 171), Grid(0.06538466364145279, 195), Grid(0.199497789144516, 98)),
        (Grid(0.08083884418010712, 213), Grid(0.03154325112700462, 202), Grid(0.030542246997356415, 224)),
    ],
    ids=["one", "another"],
)
def test_sums_are_onnxruntimes_at_all_pairs_of_bytes(grids: tuple[Grid, Grid, Grid]) -> None:
    """These grids have a pair at which another order of the roundings makes another number."""
    pairs = np.stack([each.reshape(256, 16, 16) for each in np.meshgrid(np.arange(256), np.arange(256), indexing="ij")])
    x, file = pairs.reshape(1, 512, 16, 16).astype(np.uint8), File((512, 16, 16), np.uint8)
    file.nodes.append(helper.make_node("Split", ["x"], ["a", "b"], axis=1, num_outputs=2))
    operands = [
        file.node("DequantizeLinear", [part, *file.parameters(part, grid)], f"{part}r") for part, grid in zip("ab", grids, strict=False)
    ]
    file.node("QuantizeLinear", [file.node("Add", operands, "sum"), *file.parameters("sum", grids[2])], "y")
    content = file.model("y", types={"y": np.uint8})
    wanted = in_onnxruntime(content, x)[0]
    with Session(content, fallback=False) as session:
        assert "quad_add" in {record.kernel for record in session.profile(x, repeats=1)}
        assert np.array_equal(session.run(None, {"x": x})[0], wanted)
