"""The kernel with positions in the lanes against the naive loop: geometries, masks, views, work items; uncompiled and on other CPUs."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fineprune.export.engine.ir.conv import ConvShape, Epilogue, Op, View
from fineprune.export.engine.ops import positions, positions_plan
from fineprune.ops.simd import LANES
from fineprune.ops.simd.registers import AVX2, AVX512, NEON
from support.convolutions import Problem
from support.tolerances import FLOAT32

SENTINEL = 12345.0


def problem(
    shape: ConvShape, density: float = 0.4, mask_density: float | None = None, residual: bool = False, clip: bool = False, seed: int = 0
) -> Problem:
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(shape.filters, shape.channels // shape.groups, *shape.kernel))
    weights *= rng.random(weights.shape) < density
    return Problem(
        shape,
        rng.normal(size=(shape.channels, shape.height, shape.width)).astype(np.float32),
        weights.astype(np.float32),
        None if mask_density is None else rng.random((shape.channels, *shape.output)) < mask_density,
        rng.normal(size=shape.filters).astype(np.float32),
        rng.normal(size=(shape.filters, *shape.output)).astype(np.float32) if residual else None,
        -0.5 if clip else -np.inf,
        0.7 if clip else np.inf,
    )


class Arena:
    """Tensors in an array of NaN: what a kernel should not have read shows in its outputs."""

    def __init__(self) -> None:
        self.data = np.full(2 * LANES, np.nan, np.float32)

    def add(self, channels: int, height: int, width: int, margins: tuple[int, int, int, int]) -> View:
        top, left, bottom, right = margins
        row = left + width + right
        rows = top + height + bottom
        view = View(
            start=len(self.data) + top * row + left,
            channels=channels,
            height=height,
            width=width,
            channel_stride=rows * row + 3,
            row_stride=row,
            pixel_stride=1,
            margins=margins,
        )
        whole = np.full((channels, rows * row + 3), np.nan, np.float32)
        whole[:, : rows * row] = 0
        self.data = np.concatenate([self.data, whole.reshape(-1), np.full(2 * LANES, np.nan, np.float32)])
        return view

    def elements(self, view: View) -> NDArray:
        strides = (4 * view.channel_stride, 4 * view.row_stride, 4)
        return np.lib.stride_tricks.as_strided(self.data[view.start :], (view.channels, view.height, view.width), strides)


def planned(
    p: Problem, margins: tuple[int, int, int, int] = (1, 2, 1, 0), form: positions_plan.Tiling | None = None
) -> tuple[Op, Arena, View]:
    arena, s = Arena(), p.shape
    x = arena.add(s.channels, s.height, s.width, tuple(max(a, b) for a, b in zip(s.pads, margins, strict=True)))  # type: ignore[arg-type]
    y = arena.add(s.filters, *s.output, margins)
    residual = None if p.residual is None else arena.add(s.filters, *s.output, (0, 1, 0, 1))
    arena.elements(x)[:] = p.x
    arena.elements(y)[:] = SENTINEL
    if residual is not None:
        arena.elements(residual)[:] = p.residual
    epilogue = Epilogue(low=p.low, high=p.high, residual=residual)
    return positions.plan(s, p.weights, p.mask, p.bias, x, y, epilogue, form), arena, y


def execute(op: Op, data: NDArray, items: list[tuple[int, int]]) -> NDArray:
    whole = np.concatenate([data, np.full(op.scratch, np.nan, np.float32)])
    for first, last in items:
        whole[len(data) :] = np.nan
        positions.run(first, last, len(data), whole, op.constants, op.index, op.meta, 0)
    return whole[: len(data)]


def check(p: Problem) -> None:
    assert positions.supports(p.shape, p.weights, p.mask) is None
    op, arena, y = planned(p)
    before = arena.data.copy()
    arena.data = execute(op, arena.data, [(0, len(op.costs))])
    np.testing.assert_allclose(arena.elements(y), p.expected(), rtol=FLOAT32[0], atol=FLOAT32[1])
    arena.elements(y)[:] = SENTINEL
    np.testing.assert_array_equal(arena.data, before, "something outside of the outputs has changed")


@st.composite
def shapes(draw: st.DrawFn) -> ConvShape:
    kernel = draw(st.sampled_from([(3, 3), (3, 3), (1, 1), (2, 3), (5, 1), (1, 4), (5, 5)]))
    strides, dilations = (draw(st.tuples(st.integers(1, high), st.integers(1, high))) for high in (3, 2))
    pads = draw(st.tuples(*[st.integers(0, 2)] * 4))
    least = [max(1, dilations[a] * (kernel[a] - 1) + 1 - pads[a] - pads[a + 2]) for a in (0, 1)]
    groups, inputs, outputs = draw(
        st.sampled_from([(1, 3, 5), (1, 17, 9), (1, 1, 1), (1, 6, 36), (2, 3, 3), (3, 2, 1), (5, 1, 1), (4, 1, 2)])
    )
    return ConvShape(
        channels=groups * inputs,
        filters=groups * outputs,
        height=least[0] + draw(st.sampled_from([0, 1, 6, 15])),
        width=least[1] + draw(st.sampled_from([0, 2, 7, 13, 20])),
        kernel=kernel,
        strides=strides,
        pads=pads,
        dilations=dilations,
        groups=groups,
    )


@settings(max_examples=40, deadline=None)
@given(
    shapes(),
    st.sampled_from([0.0, 0.1, 0.4, 1.0]),
    st.sampled_from([None, 0.0, 0.5, 0.9, 1.0]),
    st.booleans(),
    st.booleans(),
    st.integers(0, 99),
)
def test_equals_the_naive_loop(shape: ConvShape, density: float, mask_density: float | None, residual: bool, clip: bool, seed: int) -> None:
    check(problem(shape, density, mask_density, residual, clip, seed))


SIZES = {
    "32x32": (3, 5, 32, 3, 1),
    "strips of 8": (20, 17, 8, 3, 1),
    "7x7": (40, 18, 7, 3, 1),
    "14x14": (20, 9, 14, 3, 1),
    "28x28 in strips of 4": (3, 4, 28, 3, 1),
    "4x4": (70, 20, 4, 3, 1),
    "one position": (70, 9, 1, 1, 1),
    "stride 2": (5, 7, 32, 3, 2),
    "pointwise, many blocks": (90, 3, 14, 1, 1),
    "pointwise, many tiles": (3, 5, 23, 1, 1),
}


@pytest.mark.parametrize("masked", [False, True], ids=["", "masked"])
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES.keys())
def test_layers_of_networks(size: tuple[int, int, int, int, int], masked: bool) -> None:
    channels, filters, side, kernel, stride = size
    pad = kernel // 2
    shape = ConvShape(
        channels=channels, filters=filters, height=side, width=side, kernel=(kernel,) * 2, strides=(stride,) * 2, pads=(pad,) * 4
    )
    check(problem(shape, 0.3, 0.6 if masked else None, residual=True, clip=True))


def test_a_pointwise_convolution_is_one_run_of_positions() -> None:
    """Unless output and residual have rows of different lengths in memory."""
    p = problem(ConvShape(channels=5, filters=6, height=14, width=14, kernel=(1, 1)), 0.5, residual=True)
    for form in positions_plan.tilings(p.shape, 16):
        op, arena, y = planned(p, form=form)
        tables = positions.kernel.META.view(op.meta).tables
        assert (tables.pieces > tables.tile_pieces) == (form.pitch > 0)
        arena.data = execute(op, arena.data, [(0, len(op.costs))])
        np.testing.assert_allclose(arena.elements(y), p.expected(), rtol=FLOAT32[0], atol=FLOAT32[1])
    assert form.pitch
    op, arena, y = planned(p, margins=(0, 3, 0, 4))
    tables = positions.kernel.META.view(op.meta).tables
    assert tables.pieces == tables.tile_pieces
    arena.data = execute(op, arena.data, [(0, len(op.costs))])
    np.testing.assert_allclose(arena.elements(y), p.expected(), rtol=FLOAT32[0], atol=FLOAT32[1])


SMALL = ConvShape(channels=9, filters=40, height=9, width=20, kernel=(3, 3), pads=(1, 1, 1, 1))


def test_work_items_are_independent() -> None:
    p = problem(SMALL, 0.4, 0.7, residual=True)
    op, arena, _ = planned(p)
    count = len(op.costs)
    assert count >= 4
    whole = execute(op, arena.data, [(0, count)])
    np.testing.assert_array_equal(execute(op, arena.data, [(k, k + 1) for k in reversed(range(count))]), whole)
    np.testing.assert_array_equal(execute(op, arena.data, [(1, count), (0, 1)]), whole)


def test_a_masked_block_is_not_touched() -> None:
    """An infinite activation under masked blocks only leaves no trace; nor does one that only dropped weights would read."""
    p = problem(SMALL, 0.6, 1.0)
    assert p.mask is not None
    p.mask[2, 3:6, 5:8] = False
    p.weights[:, 5] = 0
    p.weights[7] = 0
    expected = p.expected()
    p.x[2, 4, 6] = np.inf
    p.x[5] = np.nan
    op, arena, y = planned(p)
    arena.data = execute(op, arena.data, [(0, len(op.costs))])
    np.testing.assert_allclose(arena.elements(y), expected, rtol=FLOAT32[0], atol=FLOAT32[1])


def test_channels_masked_in_a_whole_tile_cost_nothing() -> None:
    shape = ConvShape(channels=8, filters=6, height=32, width=32, kernel=(3, 3), pads=(1, 1, 1, 1))
    p = problem(shape, 0.5, 1.0)
    assert p.mask is not None
    p.mask[2:, :16] = False
    op, _, _ = planned(p)
    costs = np.asarray(op.costs).reshape(2, 2, -1).sum((1, 2))  # [halves of the map, strips, items]: so threads get rows of their own
    assert costs[0] < 0.5 * costs[1]
    check(p)


def test_variants_share_a_list_where_there_would_be_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    p = problem(SMALL, 0.5, 0.9)
    assert p.mask is not None
    p.mask[1, :, :16] = False
    p.mask[2, :, 16:] = False
    p.mask[3] = False
    p.mask[4] = True
    states = positions_plan.channel_states(p.mask, np.ones(9, bool), positions_plan.tilings(SMALL, 20)[0], SMALL)
    kinds, _ = positions_plan.variants(states, 100)
    assert len(kinds) > 1
    monkeypatch.setattr(positions_plan, "VARIANT_ENTRIES", 0)
    (common,), of_tile = positions_plan.variants(states, 100)
    assert not of_tile.any()
    assert common[3] == positions_plan.DROPPED
    assert common[4] == positions_plan.WHOLE
    assert set(common[[1, 2]]) == {positions_plan.MASKED}
    check(p)


@given(
    st.lists(
        st.sampled_from([0, 1, 8, 300, *(positions_plan.BLOCK_LINES + k for k in (-1, 0, 1)), 1000, positions._MOST_LINES]),
        min_size=1,
        max_size=12,
    )
)
def test_offsets_reach_all_patches_of_a_block(lines: list[int]) -> None:
    shape = ConvShape(channels=len(lines), filters=3, height=9, width=9, kernel=(3, 3))
    parts = positions_plan.blocks(shape, np.array(lines))
    assert [c for part in parts for c in part.channels] == list(np.flatnonzero(lines))
    for part in parts:
        assert positions_plan.offsets_of(sum(lines[c] for c in part.channels)) < 1 << 16


def test_tiles_fit_the_registers() -> None:
    """Sixteen sums where they fit; else of one filter, or of several in a vector of few positions."""
    assert positions.kernel.tiles(AVX512) == {8: 2, 7: 2, 4: 4, 1: 8}
    assert positions.kernel.tiles(AVX2) == positions.kernel.tiles(NEON) == {7: 1, 4: 1, 1: 4}


def test_similar_filters_meet() -> None:
    rng = np.random.default_rng(3)
    kinds = rng.random((6, 40)) < 0.4
    pairs = positions_plan.pairs(np.concatenate([kinds, kinds[::-1], kinds[:1]]))
    assert sorted(tuple(sorted(pair)) for pair in pairs if len(pair) == 2 and 0 not in pair and 12 not in pair) == [
        (k, 11 - k) for k in range(1, 6)
    ]
    assert sorted(k for pair in pairs for k in pair) == list(range(13))


def test_refuses_views_it_cannot_read() -> None:
    p = problem(SMALL)
    view = View(start=0, channels=9, height=9, width=20, channel_stride=180, row_stride=20, pixel_stride=1)
    with pytest.raises(ValueError, match="smaller than the padding"):
        positions.plan(SMALL, p.weights, None, p.bias, view, view, Epilogue())
    view = View(start=0, channels=9, height=9, width=20, channel_stride=1, row_stride=320, pixel_stride=16, margins=(1, 1, 1, 1))
    with pytest.raises(ValueError, match="wants NCHW"):
        positions.plan(SMALL, p.weights, None, p.bias, view, view, Epilogue())


def test_what_it_leaves_to_others() -> None:
    empty = ConvShape(channels=1, filters=1, height=2, width=2, kernel=(3, 3))
    assert "no output" in str(positions.supports(empty, np.zeros((1, 1, 3, 3), np.float32), None))
    huge = ConvShape(channels=1, filters=1, height=300, width=300, kernel=(99, 99))
    assert "too large" in str(positions.supports(huge, np.zeros((1, 1, 99, 99), np.float32), np.ones((1, 202, 202), bool)))


def test_the_estimate_knows_what_takes_longer() -> None:
    def estimate(density: float, mask: NDArray | None = None, filters: int = 32) -> float:
        shape = ConvShape(channels=32, filters=filters, height=16, width=16, kernel=(3, 3), pads=(1, 1, 1, 1))
        return positions.estimate(shape, problem(shape, density).weights, mask)

    half = np.ones((32, 16, 16), bool)
    half[:16] = False
    assert 1.5 < estimate(1.0) / estimate(0.5) < 2.2
    assert 1.5 < estimate(0.3, filters=64) / estimate(0.3) < 2.2
    assert estimate(0.3, half) < 0.7 * estimate(0.3)


ELSEWHERE = """
import numba
from fineprune.export.engine.ir.conv import ConvShape
from test_positions import check, problem
for side, kernel, stride in ((8, 3, 1), (5, 1, 1), (9, 3, 2), (7, 2, 3), (17, 3, 1), (3, 3, 2)):
    sizes = dict(channels=4, filters=6, height=side, width=side, groups=2)
    shape = ConvShape(**sizes, kernel=(kernel,) * 2, strides=(stride,) * 2, pads=(1, 1, 1, 1))
    check(problem(shape, 0.5, 0.7, residual=True, clip=True))
"""


def elsewhere(**variables: str) -> None:
    here = Path(__file__).parent
    environment = {**os.environ, **variables, "PYTHONPATH": os.pathsep.join([str(here), str(here.parents[1]), *sys.path])}
    done = subprocess.run([sys.executable, "-c", ELSEWHERE], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_uncompiled() -> None:
    """The kernel is plain Python over numpy twins of the vector operations."""
    elsewhere(NUMBA_DISABLE_JIT="1")


@pytest.mark.slow
@pytest.mark.parametrize("cpu", ["haswell", "x86-64"])
def test_narrower_vectors(cpu: str) -> None:
    elsewhere(NUMBA_CPU_NAME=cpu, NUMBA_CPU_FEATURES="")
