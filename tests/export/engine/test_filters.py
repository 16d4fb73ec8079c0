"""The kernel with filters in the lanes against the naive loop: geometries, masks, views, work items; uncompiled too."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fineprune.export.engine.ir.conv import CONSTANTS, INDEX, ConvShape, Epilogue, Op, View
from fineprune.export.engine.ops import filters, filters_forms, filters_plan
from fineprune.export.engine.ops.filters_run import (
    COUNT,
    DEPTHWISE,
    ENTRIES,
    ENTRIES_END,
    FIRST_PASS,
    ITEM,
    KEPT,
    LAST_PASS,
    LIST,
    META,
    MODE,
    OWN,
    PACE,
    PASS,
    TILES,
    VECTORS,
    WIDEST,
)
from fineprune.export.engine.ops.filters_tiles import Form
from fineprune.ops.simd import LANES
from support.convolutions import Problem
from support.geometries import KINDS, Geometry, geometries
from support.tolerances import FLOAT32

UNTOUCHED = 12345.0
FORMS = [Form(vectors, rows[0]) for vectors, rows in TILES.items()]
PLAIN = ConvShape(channels=5, filters=40, height=7, width=9, kernel=(3, 3), pads=(1, 1, 1, 1))


def problem(
    shape: ConvShape, density: float | None = None, kept: NDArray | float = 1.0, residual: bool = False, clip: bool = False, seed: int = 0
) -> Problem:
    """density: of the FFP mask; kept: mask of the weights, or their density."""
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(shape.filters, shape.channels // shape.groups, *shape.kernel))
    weights = weights / np.sqrt(weights[0].size) * (rng.random(weights.shape) < kept if isinstance(kept, float) else kept)
    return Problem(
        shape,
        rng.normal(size=(shape.channels, shape.height, shape.width)).astype(np.float32),
        weights.astype(np.float32),
        None if density is None else rng.random((shape.channels, *shape.output)) < density,
        rng.normal(size=shape.filters).astype(np.float32),
        rng.normal(size=(shape.filters, *shape.output)).astype(np.float32) if residual else None,
        -0.5 if clip else -np.inf,
        0.7 if clip else np.inf,
    )


class Arena:
    """Tensors in an array of NaN: what a kernel should not have read shows in its outputs. Surplus channels are finite."""

    def __init__(self) -> None:
        self.data = np.full(2 * LANES, np.nan, np.float32)

    def add(self, channels: int, height: int, width: int, margins: tuple[int, int, int, int], nchw: bool = False) -> View:
        top, left, bottom, right = margins
        rows, columns = top + height + bottom, left + width + right
        pixel = 1 if nchw else -(-channels // LANES) * LANES
        size = rows * columns * (channels if nchw else pixel)
        view = View(
            start=len(self.data) + (top * columns + left) * pixel,
            channels=channels,
            height=height,
            width=width,
            channel_stride=rows * columns if nchw else 1,
            row_stride=columns * pixel,
            pixel_stride=pixel,
            margins=margins,
        )
        self.data = np.concatenate([self.data, np.zeros(size, np.float32), np.full(2 * LANES, np.nan, np.float32)])
        return view

    def elements(self, view: View) -> NDArray:
        strides = (4 * view.channel_stride, 4 * view.row_stride, 4 * view.pixel_stride)
        return np.lib.stride_tricks.as_strided(self.data[view.start :], (view.channels, view.height, view.width), strides)


def planned(p: Problem, nchw: bool = False, form: Form | None = None) -> tuple[Op, Arena, View]:
    """form: None: the one that the kernel chooses."""
    arena, s = Arena(), p.shape
    margins = tuple(pad + extra for pad, extra in zip(s.pads, (1, 0, 0, 2), strict=True))
    x = arena.add(s.channels, s.height, s.width, margins, nchw)  # type: ignore[arg-type]
    y = arena.add(s.filters, *s.output, (1, 2, 0, 1))
    arena.elements(x)[:] = p.x
    arena.elements(y)[:] = UNTOUCHED
    residual = None
    if p.residual is not None:
        residual = arena.add(s.filters, *s.output, (0, 1, 0, 0))
        arena.elements(residual)[:] = p.residual
    assert filters.supports(s, p.weights, p.mask) is None
    epilogue = Epilogue(low=p.low, high=p.high, residual=residual)
    if form is None:
        return filters.plan(s, p.weights, p.mask, p.bias, x, y, epilogue), arena, y
    layout = filters_plan.Layout(s, x, y, residual)
    return filters_plan.operation(s, p.weights, p.mask, p.bias, layout, epilogue, form), arena, y


def execute(op: Op, arena: Arena, items: list[tuple[int, int]]) -> None:
    """Run the work items; the operation's numbers lie between those of other operations."""
    scratch = len(arena.data)
    arena.data = np.concatenate([arena.data, np.full(op.scratch, np.nan, np.float32)])
    constants = np.concatenate([np.full(37, np.nan, np.float32), op.constants])
    index, meta = np.concatenate([np.full(11, -(2**31), np.int32), op.index]), np.concatenate([np.zeros(5, np.int64), op.meta])
    meta[5 + CONSTANTS], meta[5 + INDEX] = 37, 11
    for first, last in items:
        filters.run(first, last, scratch, arena.data, constants, index, meta, 5)


def check(p: Problem, nchw: bool = False, form: Form | None = None) -> Op:
    op, arena, y = planned(p, nchw, form)
    margins = arena.data.copy()
    execute(op, arena, [(k, k + 1) for k in range(len(op.costs))][::-1])
    np.testing.assert_allclose(arena.elements(y), p.expected(), rtol=FLOAT32[0], atol=FLOAT32[1])
    pixels = np.lib.stride_tricks.as_strided(
        margins[y.start :], (y.height, y.width, y.pixel_stride), (4 * y.row_stride, 4 * y.pixel_stride, 4)
    )
    pixels[:] = np.lib.stride_tricks.as_strided(arena.data[y.start :], pixels.shape, pixels.strides)
    np.testing.assert_array_equal(arena.data[: len(margins)], margins)
    assert np.isfinite(op.costs).all() and filters.estimate(p.shape, p.weights, p.mask) > 0
    return op


def shape_of(g: Geometry, filters_factor: int = 1, more_padding: tuple[int, int] = (0, 0)) -> ConvShape:
    return ConvShape(
        channels=g.channels,
        filters=g.filters * filters_factor,
        height=g.size[0],
        width=g.size[1],
        kernel=g.kernel,
        strides=g.stride,
        pads=(*g.padding, g.padding[0] + more_padding[0], g.padding[1] + more_padding[1]),
        dilations=g.dilation,
        groups=g.groups,
    )


@st.composite
def shapes(draw: st.DrawFn) -> ConvShape:
    return shape_of(draw(geometries()), draw(st.sampled_from([1, 1, 4, 9])), draw(st.tuples(st.integers(0, 1), st.integers(0, 1))))


@settings(max_examples=20, deadline=None)
@given(
    shapes(),
    st.sampled_from([None, 0.0, 0.3, 0.8, 1.0]),
    st.sampled_from([0.0, 0.3, 1.0]),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.integers(0, 9),
)
def test_any_geometry(shape: ConvShape, density: float | None, kept: float, residual: bool, clip: bool, nchw: bool, seed: int) -> None:
    depthwise = shape.groups == shape.channels == shape.filters > 1
    check(problem(shape, density, kept, residual, clip, seed), nchw and not depthwise)


@pytest.mark.parametrize("kind", KINDS)
def test_kinds(kind: str) -> None:
    check(problem(shape_of(KINDS[kind]), 0.5))


@pytest.mark.parametrize("filters_count", [1, 16, 17, 33, 48, 64, 65, 112, 130])
@pytest.mark.parametrize("density", [None, 0.4])
def test_any_number_of_filters(filters_count: int, density: float | None) -> None:
    check(problem(ConvShape(channels=3, filters=filters_count, height=6, width=5, kernel=(2, 3)), density, 0.7))


@pytest.mark.parametrize("density", [None, 0.1, 0.5, 0.97])
def test_many_passes_and_blocks(density: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """More positions than a block has, and more weights than a pass takes."""
    monkeypatch.setattr(filters_forms, "SUMS", 20 * WIDEST * LANES)
    monkeypatch.setattr(filters_plan, "PASS_WEIGHTS", 30 * WIDEST * LANES)
    monkeypatch.setattr(filters_plan, "CACHED_WEIGHTS", 0)
    op = check(problem(ConvShape(channels=11, filters=64, height=9, width=7, kernel=(3, 3), pads=(1,) * 4), density, residual=True))
    assert len(op.costs) >= 4


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("nchw", [False, True])
def test_tiles_whose_slots_drop_different_channels(form: Form, nchw: bool) -> None:
    """They go through the channels that enough of them keep; what a position drops may be anything."""
    shape = ConvShape(channels=21, filters=80, height=9, width=11, kernel=(2, 2), strides=(2, 1), pads=(0, 1, 1, 0))
    p = problem(shape, 0.7, residual=True)
    assert p.mask is not None
    p.mask[:, 1:3, 3:5] = p.mask[4] = False
    p.x[:, 4, 3], p.x[4] = np.inf, np.nan
    check(p, nchw, form)


def test_no_mask_is_dearer_than_none() -> None:
    """Masks that drop little without structure cost little more than no mask: what a CPU takes to look for the place of each slot."""
    shape = ConvShape(channels=64, filters=256, height=14, width=14, kernel=(1, 1))
    p = problem(shape, 0.9)
    assert filters.estimate(shape, p.weights, p.mask) < 1.4 * filters.estimate(shape, p.weights, None)


@pytest.mark.parametrize(("channels", "side"), [(16, 32), (32, 16), (64, 8), (128, 8), (512, 7)])
def test_work_items_of_about_equal_cost(channels: int, side: int) -> None:
    """Half of the map keeps little: two threads still find equal shares."""
    shape = ConvShape(channels=channels, filters=channels, height=side, width=side, kernel=(3, 3), pads=(1,) * 4)
    p = problem(shape, 0.8)
    assert p.mask is not None
    p.mask[:, side // 2 :] &= np.random.default_rng(1).random((channels, side - side // 2, side)) < 0.2
    for q, least in ((p, 2), (problem(shape), 4)):
        costs = planned(q)[0].costs
        assert len(costs) >= least
        assert min(abs(0.5 - costs[:k].sum() / costs.sum()) for k in range(len(costs))) < 0.06


def test_channels_that_no_position_or_only_some_keep() -> None:
    p = problem(PLAIN, 0.5, residual=True)
    assert p.mask is not None
    p.mask[0], p.mask[1], p.mask[2] = False, True, True
    check(p)


@pytest.mark.parametrize("density", [None, 0.5])
def test_depthwise(density: float | None) -> None:
    shape = ConvShape(channels=37, filters=37, height=6, width=5, kernel=(3, 3), strides=(2, 1), pads=(1,) * 4, groups=37)
    op = check(problem(shape, density, residual=True, clip=True))
    items = op.index[META.view(op.meta).items :].reshape(-1, ITEM)
    assert set(items[:, VECTORS]) == {DEPTHWISE}
    assert len(op.constants) == (1 + 3 + 3 * 9) * LANES, "weights stand there once, whatever the masks"


def group_taps(filters_count: int, channels: int, rng: np.random.Generator) -> NDArray:
    """Filters that share a vector keep the same four of nine taps of a channel."""
    groups = rng.permuted(np.tile(np.arange(9) < 4, (filters_count // LANES, channels, 1)), axis=2)
    return groups.repeat(LANES, 0).reshape(filters_count, channels, 3, 3)


def test_dropped_taps_cost_nothing() -> None:
    """A panel's weights hold exactly the taps that its filters keep: four of nine, whoever shares them."""
    shape, rng = ConvShape(channels=6, filters=64, height=5, width=5, kernel=(3, 3), pads=(1,) * 4), np.random.default_rng(0)
    by_group = group_taps(64, 6, rng)
    by_channel = np.tile(by_group[:1], (64, 1, 1, 1))
    for kept, vectors in ((by_group, 1), (by_channel, WIDEST)):
        op = check(problem(shape, kept=kept), form=Form(vectors, TILES[vectors][0]))
        assert op.index[META.view(op.meta).items + VECTORS] == vectors
        assert len(op.constants) == LANES + 64 + kept.sum()


def weights_used(op: Op) -> list[int]:
    """By the passes of the first work item, one after another; it has one tile."""
    item, used = op.index[META.view(op.meta).items : META.view(op.meta).items + ITEM], []
    for step in op.index[item[FIRST_PASS] : item[LAST_PASS]].reshape(-1, PASS):
        end = step[ENTRIES_END]
        if step[MODE] & OWN:
            middle, last = op.index[end : end + 2]
            used += [*op.index[step[ENTRIES] + 1 : middle : 2], *op.index[middle + 1 : last : KEPT]]
        else:
            used += [*op.index[step[ENTRIES] + 1 : end : 2]]
    return used


def test_weights_of_a_single_tile_are_a_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order of use, without those that no position keeps, and fetched at the pace at which they are used."""
    monkeypatch.setattr(filters_plan, "CACHED_WEIGHTS", 0)
    monkeypatch.setattr(filters_plan, "PASS_WEIGHTS", 100 * WIDEST * LANES)
    rows = TILES[WIDEST][0]
    p = problem(ConvShape(channels=90, filters=130, height=1, width=rows, kernel=(1, 1)), 0.8)
    assert p.mask is not None
    p.mask[[3, 50, 89]] = False
    op = check(p, form=Form(WIDEST, rows))
    used = np.array(weights_used(op))
    assert (used == np.arange(len(used)) * WIDEST * LANES).all()
    assert len(used) == p.mask.any((1, 2)).sum()
    assert op.index[META.view(op.meta).items + PACE] == LANES


def test_weights_of_many_tiles_are_fetched_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filters_plan, "CACHED_WEIGHTS", 0)
    p = problem(ConvShape(channels=40, filters=64, height=2, width=2 * TILES[WIDEST][0], kernel=(1, 1)))
    op = check(p, form=Form(WIDEST, TILES[WIDEST][0]))
    blocks = len(op.costs) // (64 // (WIDEST * LANES))  # an item is a panel of filters and a block of positions
    assert op.index[META.view(op.meta).items + PACE] == LANES // (4 // blocks)


@pytest.mark.parametrize("groups", [1, 2])
def test_weights_that_meet_nothing_are_dropped(groups: int) -> None:
    """Those of channels that no position keeps, and taps that lie in the padding wherever a channel is kept."""
    shape = ConvShape(channels=4, filters=6, height=2, width=3, kernel=(3, 3), pads=(1, 1, 1, 1), groups=groups)
    p = problem(shape, 1.0)
    assert p.mask is not None
    p.mask[1] = False
    p.mask[2, 1:], p.mask[2, :, 1:] = False, False
    check(p)
    met = np.zeros((4, 3, 3), bool)
    met[[0, 3]], met[2, 1:, 1:] = True, True
    mine = met[None] if groups == 1 else met.reshape(2, 2, 3, 3).repeat(3, 0)
    np.testing.assert_array_equal(filters_forms.useful(shape, p.weights, p.mask), np.where(mine, p.weights, 0))
    np.testing.assert_array_equal(filters_forms.useful(shape, p.weights, None), p.weights)


@pytest.mark.parametrize("density", [None, 0.0, 0.2, 0.7, 1.0])
def test_the_kernel_does_exactly_what_masks_keep(density: float | None) -> None:
    shape, rng = ConvShape(channels=9, filters=64, height=11, width=9, kernel=(3, 3), pads=(1,) * 4), np.random.default_rng(0)
    p = problem(shape, density, np.tile(group_taps(16, 9, rng), (4, 1, 1, 1)))
    op = check(p)
    done = 0
    for item in op.index[META.view(op.meta).items :].reshape(-1, ITEM):
        for step in op.index[item[FIRST_PASS] : item[LAST_PASS]].reshape(-1, PASS):
            done += multiply_adds(op, step, TILES[item[VECTORS]][0]) * item[VECTORS] * LANES
    blocks = shape.channels * 99 if p.mask is None else p.mask.sum()
    assert done == blocks * 4 * shape.filters


def multiply_adds(op: Op, step: NDArray, rows: int) -> int:
    """Of a pass, for each filter; slots that stand twice in a tile, and zeros, do not count."""
    slots = op.index[step[LIST] : step[LIST] + step[COUNT]]
    if not step[MODE] & OWN:
        return int((step[ENTRIES_END] - step[ENTRIES]) // 2 * len(set(slots)))
    done, begin = 0, step[ENTRIES]
    for tile in range(len(slots) // rows):
        places = slots[tile * rows : (tile + 1) * rows]
        first = np.array([place not in places[:k] for k, place in enumerate(places)])
        middle, end = op.index[step[ENTRIES_END] + 2 * tile :][:2]
        done += (middle - begin) // 2 * first.sum()
        for where in op.index[middle + 2 : end : KEPT]:
            done += ((op.index[where : where + rows] >= 0) & first).sum()
        begin = end
    return int(done)


def test_an_estimate_falls_with_every_kind_of_mask() -> None:
    shape, rng = ConvShape(channels=32, filters=64, height=8, width=8, kernel=(3, 3), pads=(1,) * 4), np.random.default_rng(0)
    by_group = group_taps(64, 32, rng)
    cases = [problem(shape), problem(shape, kept=by_group), problem(shape, 0.5), problem(shape, 0.5, by_group)]
    for p in cases[2:]:
        p.mask = np.broadcast_to(rng.random((32, 8, 1)) < 0.5, (32, 8, 8))
    dense, fwp, ffp, both = (filters.estimate(shape, p.weights, p.mask) for p in cases)
    assert dense > fwp > both and dense > ffp > both


@pytest.mark.parametrize("form", [None, Form(WIDEST, TILES[WIDEST][0])], ids=str)
def test_work_items_in_any_order_give_the_same(form: Form | None) -> None:
    kernel, pads = ((1, 1), (0,) * 4) if form else ((3, 3), (1,) * 4)
    p = problem(ConvShape(channels=6, filters=80, height=12, width=12, kernel=kernel, pads=pads), 0.4, residual=True)
    results = []
    for reverse in (False, True):
        op, arena, y = planned(p, form=form)
        middle = len(op.costs) // 2
        assert middle
        execute(op, arena, [(middle, len(op.costs)), (0, middle)] if reverse else [(0, len(op.costs))])
        results.append(arena.elements(y).copy())
    np.testing.assert_array_equal(*results)
    np.testing.assert_allclose(results[0], p.expected(), rtol=FLOAT32[0], atol=FLOAT32[1])


def test_infinite_limits_keep_nan() -> None:
    p = problem(PLAIN)
    p.x[0, 3, 3] = np.nan
    p.low = 0.0
    op, arena, y = planned(p)
    execute(op, arena, [(0, len(op.costs))])
    np.testing.assert_array_equal(np.isnan(arena.elements(y)), np.isnan(p.expected()))


def test_margins_narrower_than_the_padding_are_refused() -> None:
    arena, p = Arena(), problem(PLAIN)
    x, y = arena.add(5, 7, 9, (1, 1, 0, 1)), arena.add(40, 7, 9, (0, 0, 0, 0))
    with pytest.raises(ValueError, match="needs margins"):
        filters.plan(PLAIN, p.weights, None, p.bias, x, y, Epilogue())


ELSEWHERE = """
from test_filters import PLAIN, TILES, ConvShape, Form, check, problem
check(problem(PLAIN, 0.5, 0.8, residual=True, clip=True))
check(problem(PLAIN), nchw=True)
check(problem(ConvShape(channels=3, filters=70, height=4, width=4, kernel=(3, 2), strides=(2, 1))))
check(problem(ConvShape(channels=18, filters=20, height=3, width=3, kernel=(1, 1)), 0.7), form=Form(2, TILES[2][0]))
check(problem(ConvShape(channels=18, filters=18, height=4, width=4, kernel=(3, 2), groups=18), 0.5))
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
