"""The kernels that are no convolutions of their own file, against naive loops, in both layouts, with margins; uncompiled too."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fineprune.export.engine.ir.conv import ConvShape, Epilogue, Op, View
from fineprune.export.engine.ir.dtypes import DTYPES, DType, per_slot
from fineprune.export.engine.ir.dtypes import FLOAT32 as F32
from fineprune.export.engine.ir.network import KERNELS, Layer
from fineprune.export.engine.ops import copies, linear, plain
from fineprune.export.engine.ops.assemble import part
from fineprune.export.engine.ops.maps import Map
from fineprune.export.engine.ops.permute import Permute
from fineprune.export.engine.ops.pools import Mean, Pool
from fineprune.export.engine.passes import memory
from support.reference import masked_conv2d
from support.tolerances import FLOAT32

LAYOUTS = st.sampled_from(["NHWC", "NCHW"])
MARGINS = st.tuples(*[st.integers(0, 2)] * 4)
NAN = float("nan")


class Room:
    """An arena that is filled view by view; what kernels must not read is NaN, margins are zero."""

    def __init__(self) -> None:
        self.size, self.views, self.tensors = 64, [], []

    def add(
        self,
        box: tuple[int, int, int],
        layout: str,
        margins: tuple[int, int, int, int],
        content: NDArray | None = None,
        dtype: DType = F32,
    ) -> View:
        geometry, size = memory.geometry(layout, box, margins, dtype)
        view = memory.at(geometry, self.size * per_slot(dtype))
        size = -(-size // per_slot(dtype))
        self.views.append((view, self.size, size, content))
        self.size += size + 64
        return view

    def run(self, op: Op) -> None:
        self.arena = np.full(self.size + 4096, NAN, np.float32)
        for view, start, size, content in self.views:
            self.arena[start : start + size] = 0
            self.grid(view)[...] = 7 if content is None else content
        scratch = self.size
        half = len(op.costs) // 2
        for first, last in ((half, len(op.costs)), (0, half)):
            KERNELS[op.kernel](first, last, scratch, self.arena, op.constants, op.index, op.meta, 0)
        for view, start, size, _ in self.views:
            rest = self.arena.copy()
            assert np.isnan(rest[[start - 1, start + size]]).all(), "something was written beside a buffer"
            self.grid(view, rest)[...] = 0
            if view.layout == "NHWC":
                self.grid(view, rest, view.pixel_stride)[...] = 0  # surplus channels may be written
            assert not rest[start : start + size].any(), "a margin was written"

    def grid(self, view: View, arena: NDArray | None = None, channels: int = 0) -> NDArray:
        data = (self.arena if arena is None else arena).view(view.dtype)
        strides = [view.dtype.itemsize * step for step in (view.channel_stride, view.row_stride, view.pixel_stride)]
        return np.lib.stride_tricks.as_strided(data[view.start :], (channels or view.channels, view.height, view.width), strides)


def planned(layer: Layer, *views: View) -> Op:
    [op] = layer.plan(layer.kernel_name, *views)
    return op


def close(actual: NDArray, expected: NDArray) -> None:
    np.testing.assert_allclose(actual, expected, rtol=FLOAT32[0], atol=FLOAT32[1])


def numbers(shape: tuple[int, ...], seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def any_numbers(shape: tuple[int, ...], dtype: DType, seed: int) -> NDArray:
    """All values of a whole number's type, or normally distributed ones."""
    if dtype == F32:
        return numbers(shape, seed)
    return np.random.default_rng(seed).integers(np.iinfo(dtype).min, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def check_copy(
    box: tuple[int, int, int], layouts: tuple[str, str], margins: Any, seed: int, dtype: DType = F32, step: tuple[int, int, int] = (1, 1, 1)
) -> None:
    x = any_numbers(box, dtype, seed)
    size = tuple(-(-a // b) for a, b in zip(box, step, strict=True))
    room = Room()
    source, target = room.add(box, layouts[0], margins[0], x, dtype), room.add(size, layouts[1], margins[1], None, dtype)
    room.run(copies.plan(part(source, (0, 0, 0), step), target, size))
    np.testing.assert_array_equal(room.grid(target), x[:: step[0], :: step[1], :: step[2]])


def check_pool(layer: Pool, x: NDArray, layouts: tuple[str, str], margins: tuple[int, int, int, int]) -> None:
    C = len(x)
    padded = np.pad(x.astype(np.float64), ((0, 0), (layer.pads[0], layer.pads[2]), (layer.pads[1], layer.pads[3])), constant_values=NAN)
    sizes = [(padded.shape[a + 1] - (layer.kernel[a] - 1) * layer.dilations[a] - 1) // layer.strides[a] + 1 for a in (0, 1)]
    expected = np.zeros((C, *sizes))
    for i, j in np.ndindex(*sizes):
        rows, columns = (
            slice(p * s, p * s + (k - 1) * d + 1, d)
            for p, s, k, d in zip((i, j), layer.strides, layer.kernel, layer.dilations, strict=True)
        )
        window = padded[:, rows, columns].reshape(C, -1)
        if layer.kind == "max":
            expected[:, i, j] = np.nanmax(window, 1)
        else:
            expected[:, i, j] = np.nansum(window, 1) / (window.shape[1] if layer.counts_padding else (~np.isnan(window[0])).sum())
    room = Room()
    source, target = room.add(x.shape, layouts[0], margins, x), room.add(expected.shape, layouts[1], (1, 0, 2, 1))
    room.run(planned(layer, source, target))
    close(room.grid(target), expected)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), seed=st.integers(0, 99))
def test_pools(data: st.DataObject, seed: int) -> None:
    kernel, strides = (data.draw(st.tuples(st.integers(1, 3), st.integers(1, 4))) for _ in range(2))
    pads = tuple(data.draw(st.integers(0, kernel[a % 2] - 1)) for a in range(4))
    dilations = (1, 1) if any(pads) else data.draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    H, W = (
        (kernel[a] - 1) * dilations[a] + 1 + data.draw(st.integers(0, 4) if a == 0 else st.sampled_from([0, 1, 4, 17, 40])) for a in (0, 1)
    )
    layer = Pool(
        name="pool",
        inputs=("x",),
        output="y",
        kind=data.draw(st.sampled_from(["max", "average"])),
        kernel=kernel,
        strides=strides,
        pads=pads,  # type: ignore[arg-type]
        dilations=dilations,
        counts_padding=data.draw(st.booleans()),
    )
    x = numbers((data.draw(st.sampled_from([1, 3, 16, 21, 83])), H, W), seed)
    check_pool(layer, x, (data.draw(LAYOUTS), data.draw(LAYOUTS)), data.draw(MARGINS))


@pytest.mark.parametrize("kind", ["max", "average"])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_pools_of_wide_rows(kind: str, stride: int) -> None:
    """As vectors of places, but for those at the borders, whose windows hold padding."""
    for width in (7, 16, 40, 61):
        layer = Pool(name="pool", inputs=("x",), output="y", kind=kind, kernel=(3, 3), strides=(stride, stride), pads=(1, 1, 1, 1))
        check_pool(layer, numbers((3, 6, width), width) - 9, ("NCHW", "NCHW"), (1, 1, 1, 1))


@settings(max_examples=40, deadline=None)
@given(
    box=st.tuples(st.sampled_from([1, 3, 16, 17, 35, 150]), st.integers(1, 5), st.sampled_from([1, 2, 16, 19, 33])),
    layouts=st.tuples(LAYOUTS, LAYOUTS),
    margins=st.tuples(MARGINS, MARGINS),
    step=st.sampled_from([(1, 1, 1), (1, 1, 1), (2, 1, 1), (1, 3, 2)]),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 99),
)
def test_copies(box: Any, layouts: tuple[str, str], margins: Any, step: Any, dtype: DType, seed: int) -> None:
    check_copy(box, layouts, margins, seed, dtype, step)


def test_a_copy_converts_nothing() -> None:
    room, box = Room(), (1, 2, 3)
    source, target = (room.add(box, "NCHW", (0, 0, 0, 0), None, np.dtype(name)) for name in ("uint8", "int8"))
    with pytest.raises(TypeError, match="a copy of uint8 to int8"):
        copies.plan(source, target, box)


@settings(max_examples=40, deadline=None)
@given(
    box=st.tuples(st.sampled_from([1, 3, 16, 17, 35, 150]), st.integers(1, 5), st.sampled_from([1, 2, 16, 19, 33])),
    layouts=st.tuples(LAYOUTS, LAYOUTS),
    margins=st.tuples(MARGINS, MARGINS),
    seed=st.integers(0, 99),
)
def test_means(box: tuple[int, int, int], layouts: tuple[str, str], margins: Any, seed: int) -> None:
    x = numbers(box, seed)
    room = Room()
    source, target = room.add(box, layouts[0], margins[0], x), room.add((box[0], 1, 1), layouts[1], (0, 0, 0, 0))
    room.run(planned(Mean(name="mean", inputs=("x",), output="y"), source, target))
    close(room.grid(target)[:, 0, 0], x.mean((1, 2), dtype=np.float64))


def check_map(function: str, box: tuple[int, int, int], layout: str, margins: Any, low: float, high: float, seed: int) -> None:
    x, z = 4 * numbers(box, seed), numbers(box if function != "scale" else (box[0], 1, 1), seed + 1)
    scale, shift = numbers((2, box[0]), seed + 2)
    wide = x.astype(np.float64)
    hard = np.clip(0.3 * wide + 0.4, 0, 1)
    expected = {
        "identity": wide,
        "affine": wide * scale[:, None, None] + shift[:, None, None],
        "add": wide + z,
        "multiply": wide * z,
        "scale": wide * z,
        "hardsigmoid": hard,
        "hardswish": wide * hard,
        "sigmoid": 1 / (1 + np.exp(-wide)),
        "silu": wide / (1 + np.exp(-wide)),
    }[function]
    two = function in ("add", "multiply", "scale")
    layer = Map(
        name="map",
        inputs=("x", "z") if two else ("x",),
        output="y",
        function=function,
        low=low,
        high=high,
        alpha=0.3,
        beta=0.4,
        scale=scale if function == "affine" else None,
        shift=shift if function == "affine" else None,
    )
    room = Room()
    source, target = room.add(box, layout, margins, x), room.add(box, layout, (1, 2, 0, 1))
    other = room.add(z.shape, layout, (0, 1, 0, 0) if function != "scale" else (0, 0, 0, 0), z) if two else None
    room.run(planned(layer, source, *([other] if other else []), target))
    close(room.grid(target), np.clip(expected, low, high))


FUNCTIONS = ["identity", "affine", "add", "multiply", "scale", "hardsigmoid", "hardswish", "sigmoid", "silu"]


@settings(max_examples=80, deadline=None)
@given(
    function=st.sampled_from(FUNCTIONS),
    box=st.tuples(st.sampled_from([1, 3, 16, 21, 83]), st.integers(1, 4), st.sampled_from([1, 5, 16, 19])),
    layout=LAYOUTS,
    margins=MARGINS,
    bounds=st.sampled_from([(-np.inf, np.inf), (0.0, np.inf), (0.0, 0.5), (-0.25, 0.75)]),
    seed=st.integers(0, 99),
)
def test_maps(function: str, box: tuple[int, int, int], layout: str, margins: Any, bounds: tuple[float, float], seed: int) -> None:
    check_map(function, box, layout, margins, *bounds, seed)


def test_sigmoid_is_exact_enough_everywhere() -> None:
    x = np.linspace(-120, 120, 16 * 3001, dtype=np.float32).reshape(16, 3001, 1)
    layer = Map(name="map", inputs=("x",), output="y", function="sigmoid")
    room = Room()
    source, target = room.add(x.shape, "NHWC", (0, 0, 0, 0), x), room.add(x.shape, "NHWC", (0, 0, 0, 0))
    room.run(planned(layer, source, target))
    expected = 1 / (1 + np.exp(-x.astype(np.float64)))
    np.testing.assert_allclose(room.grid(target), expected, rtol=1e-6, atol=1e-37)
    y = room.grid(target)
    assert ((y >= np.finfo(np.float32).tiny) | (y == 0)).all(), "subnormal numbers are slow"
    assert (y[x < -88] == 0).all(), "-inf * sigmoid(-inf) is no number"


@pytest.mark.parametrize("function", ["identity", "sigmoid", "silu", "hardswish"])
@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_maps_keep_nan_and_may_write_over_their_input(function: str, layout: str) -> None:
    x = 4 * numbers((17, 3, 21), 0)
    x[3, 1, 20] = NAN
    results = []
    for over in (False, True):
        room = Room()
        source = room.add(x.shape, layout, (0, 1, 0, 0), x)
        target = source if over else room.add(x.shape, layout, (0, 0, 0, 0))
        layer = Map(name="map", inputs=("x",), output="y", function=function, low=-1.0, high=3.0)
        room.run(planned(layer, source, target))
        results.append(room.grid(target).copy())
    np.testing.assert_array_equal(*results)
    np.testing.assert_array_equal(np.isnan(results[0]), np.isnan(x))


def check_conv(kernel: Any, shape: ConvShape, density: float, mask_density: float | None, residual: bool, layouts: Any, seed: int) -> None:
    random = np.random.default_rng(seed)
    x = random.standard_normal((shape.channels, shape.height, shape.width), np.float32)
    w = random.standard_normal((shape.filters, shape.channels // shape.groups, *shape.kernel), np.float32)
    w *= random.random(w.shape) < density
    mask = None if mask_density is None else random.random((shape.channels, *shape.output)) < mask_density
    bias = random.standard_normal(shape.filters, np.float32)
    size = (shape.filters, *shape.output)
    r = random.standard_normal(size, np.float32)
    expected = masked_conv2d(x[None], w, bias, mask, shape.strides, shape.pads, shape.dilations, shape.groups)[0] + (r if residual else 0)
    room = Room()
    source, target = room.add(x.shape, layouts[0], shape.pads, x), room.add(size, layouts[1], (1, 0, 0, 2))
    other = room.add(size, layouts[1], (0, 1, 1, 0), r) if residual else None
    assert kernel.supports(shape, w, mask) is None
    room.run(kernel.plan(shape, w, mask, bias, source, target, Epilogue(low=-0.5, high=2.0, residual=other)))
    close(room.grid(target), np.clip(expected, -0.5, 2.0))


@settings(max_examples=60, deadline=None)
@given(data=st.data(), density=st.sampled_from([0.0, 0.4, 1.0]), mask=st.sampled_from([None, 0.0, 0.5]), seed=st.integers(0, 99))
def test_plain_convolutions(data: st.DataObject, density: float, mask: float | None, seed: int) -> None:
    groups = data.draw(st.sampled_from([1, 1, 2, 3]))
    kernel, strides, dilations = (data.draw(st.tuples(st.integers(1, high), st.integers(1, high))) for high in (3, 2, 2))
    pads = data.draw(MARGINS)
    least = [max(1, dilations[a] * (kernel[a] - 1) + 1 - pads[a] - pads[a + 2]) for a in (0, 1)]
    shape = ConvShape(
        channels=groups * data.draw(st.integers(1, 3)),
        filters=groups * data.draw(st.sampled_from([1, 2, 17])),
        height=least[0] + data.draw(st.integers(0, 4)),
        width=least[1] + data.draw(st.integers(0, 4)),
        kernel=kernel,
        strides=strides,
        pads=pads,
        dilations=dilations,
        groups=groups,
    )
    check_conv(plain, shape, density, mask, data.draw(st.booleans()), (data.draw(LAYOUTS), data.draw(LAYOUTS)), seed)


@settings(max_examples=40, deadline=None)
@given(
    box=st.tuples(st.sampled_from([1, 5, 33]), st.integers(1, 3), st.integers(1, 3)),
    filters=st.sampled_from([1, 10, 32, 70]),
    density=st.sampled_from([0.0, 0.1, 1.0]),
    residual=st.booleans(),
    pads=MARGINS,
    layouts=st.tuples(LAYOUTS, LAYOUTS),
    seed=st.integers(0, 99),
)
def test_linear_layers(box: Any, filters: int, density: float, residual: bool, pads: Any, layouts: Any, seed: int) -> None:
    kernel = (box[1] + pads[0] + pads[2], box[2] + pads[1] + pads[3])
    shape = ConvShape(channels=box[0], filters=filters, height=box[1], width=box[2], kernel=kernel, pads=pads)
    check_conv(linear, shape, density, None, residual, layouts, seed)


def check_permutation(box: tuple[int, int, int], layout: str, margins: Any, seed: int, dtype: DType = F32) -> None:
    x, order = any_numbers(box, dtype, seed), np.random.default_rng(seed).permutation(box[0])
    room = Room()
    source, target = room.add(box, layout, margins[0], x, dtype), room.add(box, layout, margins[1], None, dtype)
    room.run(planned(Permute(name="permute", inputs=("x",), output="y", order=order), source, target))
    np.testing.assert_array_equal(room.grid(target), x[order])


@settings(max_examples=60, deadline=None)
@given(
    box=st.tuples(st.sampled_from([1, 5, 16, 40, 64]), st.integers(1, 5), st.sampled_from([1, 3, 16, 19])),
    layout=LAYOUTS,
    margins=st.tuples(MARGINS, MARGINS),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 99),
)
def test_permutations(box: Any, layout: str, margins: Any, dtype: DType, seed: int) -> None:
    check_permutation(box, layout, margins, seed, dtype)


UNCOMPILED = """
import numba
assert numba.config.DISABLE_JIT
from test_simple_kernels import *
for layout in ("NHWC", "NCHW"):
    for dtype in DTYPES:
        check_permutation((21, 3, 7), layout, ((0, 1, 2, 0), (1, 0, 0, 1)), 1, dtype)
        for other in ("NHWC", "NCHW"):
            check_copy((17, 2, 18), (layout, other), ((0, 1, 0, 1), (1, 0, 0, 2)), 0, dtype)
    for function in FUNCTIONS:
        check_map(function, (17, 2, 3), layout, (0, 1, 2, 0), -0.5, 0.5, 3)
    for kind in ("max", "average"):
        layer = Pool(name="p", inputs=("x",), output="y", kind=kind, kernel=(2, 3), strides=(1, 2), pads=(1, 0, 0, 2))
        check_pool(layer, numbers((5, 4, 6), 1), (layout, layout), (0, 0, 1, 0))
    shape = ConvShape(channels=4, filters=6, height=4, width=3, kernel=(2, 2), pads=(1, 0, 0, 1), groups=2)
    check_conv(plain, shape, 0.5, 0.5, True, (layout, layout), 0)
    shape = ConvShape(channels=5, filters=35, height=2, width=1, kernel=(2, 1))
    check_conv(linear, shape, 0.5, None, True, (layout, layout), 0)
test_means.hypothesis.inner_test((17, 2, 18), ("NHWC", "NCHW"), ((0, 1, 0, 1), (1, 0, 0, 2)), 0)
test_means.hypothesis.inner_test((17, 2, 18), ("NCHW", "NHWC"), ((0, 1, 0, 1), (1, 0, 0, 2)), 0)
"""


def test_uncompiled() -> None:
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(here.parents[1]), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", UNCOMPILED], env={**os.environ, "NUMBA_DISABLE_JIT": "1", "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_a_tensor_that_is_too_large_is_refused() -> None:
    with pytest.raises(RuntimeError, match="larger than the engine allows"):
        memory.geometry("NHWC", (1 << 15, 1 << 15, 1), (0, 0, 0, 0))
