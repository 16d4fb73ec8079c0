"""Convolutions with block masks on grids: in integers, those of int64; what has no form there computes in float32, as the file says."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import helper

from fineprune.export.engine import Session
from fineprune.export.engine.ops import quad_blocks
from fineprune.export.functions import DOMAIN, MASKED, POINTWISE, VERSION, functions
from support.grids import File, Grid, conv_sums, requantized

OPSET, WIDTH = 19, 18


@dataclass(frozen=True)
class Shape:
    channels: int
    filters: int
    kernel: tuple[int, int] = (3, 3)
    strides: tuple[int, int] = (1, 1)
    pads: tuple[int, ...] = (1, 1, 1, 1)
    dilations: tuple[int, int] = (1, 1)
    groups: int = 1
    blocks: float = 0.4
    most: int = 64


SHAPES = {
    "plain": Shape(16, 16),
    "of channels that fill no word": Shape(6, 5),
    "of more filters than registers hold": Shape(8, 150),
    "strided": Shape(8, 20, strides=(2, 2)),
    "of unequal strides, pads and kernel": Shape(8, 20, (3, 2), (2, 1), (1, 0, 2, 1)),
    "dilated": Shape(12, 16, dilations=(2, 2), pads=(2, 2, 2, 2)),
    "in groups": Shape(12, 12, groups=3),
    "1x1": Shape(24, 24, (1, 1), pads=(0, 0, 0, 0)),
    "of large weights": Shape(8, 16, most=127),
    "depthwise": Shape(10, 10, groups=10),
    "depthwise, strided": Shape(8, 8, strides=(2, 1), groups=8),
    "of which most words drop all blocks": Shape(16, 16, blocks=0.05),
}


def drawn(shape: Shape, random: np.random.Generator, size: tuple[int, int]) -> tuple[NDArray, NDArray, NDArray[np.bool_]]:
    """(weights, biases, mask), a third of the weights dropped."""
    weights = random.integers(-shape.most, shape.most + 1, (shape.filters, shape.channels // shape.groups, *shape.kernel))
    weights *= random.random(weights.shape) < 0.7
    return weights, random.integers(-999, 999, shape.filters), random.random((shape.channels, *size)) < shape.blocks


def masked_sums(x: NDArray, zero: int, shape: Shape, weights: NDArray, bias: NDArray, mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Channel by channel."""
    total = bias[None, :, None, None].astype(np.int64)
    per_filters, per_channels = shape.filters // shape.groups, shape.channels // shape.groups
    for c in range(shape.channels):
        f = slice(c // per_channels * per_filters, (c // per_channels + 1) * per_filters)
        own = np.zeros((shape.filters, 1, *shape.kernel), np.int64)
        own[f, 0] = weights[f, c % per_channels]
        one = conv_sums(x[:, c : c + 1], zero, own, np.zeros(shape.filters), shape.strides, shape.pads, shape.dilations, 1)
        total = total + one * mask[c]
    return total


def output_size(shape: Shape, height: int, width: int) -> tuple[int, int]:
    found = conv_sums(
        np.zeros((1, 1, height, width)), 0, np.zeros((1, 1, *shape.kernel)), np.zeros(1), shape.strides, shape.pads, shape.dilations, 1
    )
    return found.shape[2], found.shape[3]


def masked_file(
    shape: Shape, source: Grid, result: Grid, weights: NDArray, scales: NDArray, bias: NDArray, mask: NDArray,
    residual: bool = False, signed: bool = False,
) -> bytes:  # fmt: skip
    file = File((shape.channels, 9, WIDTH), np.int8 if signed else np.uint8)
    x = file.node("DequantizeLinear", ["x", *file.parameters("x", source, signed)], "real")
    w = file.weights("w", weights, scales, np.zeros(len(scales), np.int8))
    b = file.node(
        "DequantizeLinear", [file.constant("b", bias, np.int32), file.constant("bs", np.float32(source.scale) * scales, np.float32)],
        "bf", axis=0,
    )  # fmt: skip
    kind = POINTWISE if shape.kernel == (1, 1) else MASKED
    facts: dict[str, Any] = {"strides": shape.strides, "pads": shape.pads, "dilations": shape.dilations, "group": shape.groups}
    facts |= {"channels": shape.channels} | ({"taps": int(np.prod(shape.kernel))} if kind == MASKED else {})
    y = file.node(kind, [x, w, file.constant("m", mask), b], "y", domain=DOMAIN, **facts)
    out = file.on_grid(y, result)
    if residual:
        out = file.on_grid(file.node("Add", [out, x], "sum"), result)
    model = helper.make_model(
        helper.make_graph(
            file.nodes, "blocks", [file.input],
            [helper.make_tensor_value_info(f"{out[:-3]}.q", 2, None)], file.constants,
        ),
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, VERSION)],
        functions=functions({kind}, OPSET),
        ir_version=9,
    )  # fmt: skip
    content: bytes = model.SerializeToString()
    return content


@pytest.mark.parametrize("signed", [False, True], ids=["words of taps", "words of channels"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_blocks_in_integers(shape: Shape, signed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """int8 files come as words of channels."""
    monkeypatch.setenv("FINEPRUNE_PLANS", "anew")
    check(shape, signed)


def test_depthwise_layers_have_any_zero_point(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINEPRUNE_PLANS", "anew")
    check(SHAPES["depthwise"], signed=False, zero=117)


SCRIPT = """
import sys
from fineprune.ops.simd import quads
quads.LOWERED = int(sys.argv[1])
from test_integer_blocks import SHAPES, check
for signed in (False, True):
    check(SHAPES["of channels that fill no word"], signed)
"""


@pytest.mark.parametrize("lowered", [0, 128])
def test_the_twins_make_the_same_integers(lowered: int) -> None:
    """Also as CPUs do that have products of signed numbers alone."""
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    environment = os.environ | {"NUMBA_DISABLE_JIT": "1", "FINEPRUNE_COSTS": "assumed", "FINEPRUNE_PLANS": "anew", "PYTHONPATH": paths}
    subprocess.run([sys.executable, "-c", SCRIPT, str(lowered)], check=True, env=environment)


def check(shape: Shape, signed: bool, zero: int = 0) -> None:
    """The engine's integers, and the multiply-adds that it reports."""
    random, source = np.random.default_rng(7), Grid(0.05, zero)
    weights, bias, mask = drawn(shape, random, output_size(shape, 9, WIDTH))
    x = random.integers(0, 256, (2, shape.channels, 9, WIDTH)).astype(np.uint8)
    sums = masked_sums(x, zero, shape, weights, bias, mask)
    scales = random.uniform(0.5, 2, shape.filters).astype(np.float32)
    result = Grid(float(np.float32(np.abs(sums).max() * 0.05 / 150)), 100)
    factors = np.float32(source.scale) * scales / np.float32(result.scale)
    wanted = requantized(sums, factors, result.zero)
    content = masked_file(shape, source, result, weights, scales, bias, mask, signed=signed)
    x = (x.astype(int) - 128).astype(np.int8) if signed else x
    with Session(content, fallback=False) as session:
        kernel = "quad_depthwise" if shape.groups == shape.channels else "quad_blocks"
        [record] = [record for record in session.profile(x, repeats=1) if record.kernel == kernel]
        assert np.array_equal(session.run(None, {"x": x})[0], wanted)
    positions = mask.reshape(len(mask), -1).sum(1)
    per_channel = np.zeros(shape.channels, int)
    for group, kept in enumerate(np.split(weights != 0, shape.groups)):
        first = group * shape.channels // shape.groups
        per_channel[first : first + kept.shape[1]] += kept.sum((0, 2, 3))
    assert record.macs == int(positions @ per_channel)
    assert len(np.unique(wanted)) > 20


def test_a_residual_is_added(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINEPRUNE_PLANS", "anew")
    shape, random, source, result = Shape(12, 12), np.random.default_rng(3), Grid(0.05, 0), Grid(0.5, 90)
    weights, bias, mask = drawn(shape, random, (9, WIDTH))
    content = masked_file(shape, source, result, weights // 8, np.full(12, 0.04, np.float32), bias, mask, residual=True)
    x = random.integers(0, 256, (2, 12, 9, WIDTH)).astype(np.uint8)
    q = requantized(
        masked_sums(x, 0, shape, weights // 8, bias, mask), np.full(12, np.float32(0.05) * np.float32(0.04) / np.float32(0.5)), 90
    )
    wanted = np.clip(np.rint(((q - 90) * np.float32(0.5) + x * np.float32(0.05)) / np.float32(0.5)) + 90, 0, 255)
    with Session(content, fallback=False) as session:
        assert [record.kernel for record in session.profile(x, repeats=1)].count("quad_add") == 0
        found = session.run(None, {"x": x})[0]
    assert np.abs(found - wanted).max() <= 1 and (found == wanted).mean() > 0.99


@pytest.mark.parametrize(("shape", "zero"), [(Shape(8, 8), 30), (Shape(4, 8, groups=4), 0)], ids=["zero point", "two filters a channel"])
def test_what_has_no_form_computes_in_float32(shape: Shape, zero: int) -> None:
    random, source, result = np.random.default_rng(5), Grid(0.05, zero), Grid(40.0, 100)
    weights, bias, mask = drawn(shape, random, (9, WIDTH))
    content = masked_file(shape, source, result, weights, np.ones(8, np.float32), bias, mask)
    x = random.integers(0, 256, (2, shape.channels, 9, WIDTH)).astype(np.uint8)
    wanted = requantized(masked_sums(x, zero, shape, weights, bias, mask), np.full(8, np.float32(0.05) / np.float32(40)), 100)
    with Session(content, fallback=False) as session:
        assert "quad_blocks" not in {record.kernel for record in session.profile(x, repeats=1)}
        assert np.abs(session.run(None, {"x": x})[0].astype(int) - wanted).max() <= 1


@pytest.mark.skipif(bool(quad_blocks.LOWERED), reason="where x is multiplied less LOWERED, every block is computed and no order saves any")
def test_channels_that_masks_drop_together_share_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two kinds of channels in turn: half of the words are nothing."""
    monkeypatch.setenv("FINEPRUNE_PLANS", "anew")
    lists = []
    counted = quad_blocks._lists
    monkeypatch.setattr(quad_blocks, "_lists", lambda *given: lists.append(len((found := counted(*given))[1])) or found)
    shape, random = Shape(16, 16), np.random.default_rng(1)
    weights, bias, _ = drawn(shape, random, (9, WIDTH))
    mask = np.zeros((16, 9, WIDTH), bool)
    mask[::2, :, :4], mask[1::2, :, 4:] = True, True
    content = masked_file(shape, Grid(0.05, 0), Grid(400.0, 0), weights, np.ones(16, np.float32), bias, mask, signed=True)
    with Session(content, fallback=False) as session:
        assert "quad_permute" in {record.kernel for record in session.profile(np.zeros((1, 16, 9, WIDTH), np.int8), repeats=1)}
    assert min(lists) == 9 * WIDTH * 2
