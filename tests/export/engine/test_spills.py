"""Sums stay in the registers over the inner loops of the kernels: read in what LLVM emits for AVX-512, AVX2 and NEON, on any machine."""

import os
import re
import subprocess
import sys
from collections.abc import Callable

import inner_loops as inner_loops_module
import pytest
from inner_loops import TARGETS, Loop, emit, inner_loops, machine_of

from fineprune.export.engine.ir.kernel import Kernel
from fineprune.export.engine.jit import COMPILER
from fineprune.export.engine.ops import filters_run, filters_simd, linear, positions_kernel
from fineprune.export.engine.ops.positions_simd import tile_add_patches
from fineprune.ops.simd import LANES, pointer, tile_load, tile_store
from fineprune.ops.simd.registers import AVX2, AVX512, NEON, Registers
from fineprune.ops.simd.vectors import floats, ints, longs

KINDS = [AVX512, AVX2, NEON]
ALL = 1 << 40
TALLEST = [(kind, max(positions_kernel.tiles(kind).items())) for kind in KINDS]
PATCHES = [
    (kind, *tile, sharing) for kind in KINDS for tile in positions_kernel.tiles(kind).items() for sharing in (1, 2) if sharing <= tile[1]
]
ROWS = [(kind, vectors, rows[0]) for kind in KINDS for vectors, rows in filters_run.tiles(kind).items()]


def name(value: object) -> str:
    return value.name if isinstance(value, Registers) else str(value)


def loops(function: Callable[..., int], kind: Registers) -> list[Loop]:
    """Inner loops with multiply-adds of a function of integers, which may be addresses."""
    target = TARGETS[kind.name]
    return [loop for loop in inner_loops(emit(COMPILER.language(function, machine_of(target)), target)) if loop.multiply_adds]


def sums(kind: Registers, vectors: int, rows: int) -> int:
    """Registers that a tile takes."""
    return vectors * rows * LANES // kind.floats


def patches(vectors: int, rows: int, sharing: int) -> Callable[..., int]:
    """The loop of the kernel "positions"."""
    size, step = vectors * LANES, rows // sharing

    def entry(arena: int, constants: int, index: int, count: int, weight: int, half: int, base: int, out: int) -> int:
        x, w, offsets = pointer(floats(arena, ALL)), pointer(floats(constants, ALL)), pointer(ints(index, ALL))
        tile = tile_load(x, out, size, rows, vectors)
        for _ in range(count):
            tile = tile_add_patches(tile, w, weight, x, base, offsets, half, sharing)
            weight, half = weight + rows, half + step
        tile_store(tile, x, out, size)
        return 0

    return entry


@pytest.mark.parametrize(("kind", "vectors", "rows", "sharing"), PATCHES, ids=name)
def test_patches(kind: Registers, vectors: int, rows: int, sharing: int) -> None:
    found = loops(patches(vectors, rows, sharing), kind)
    assert found
    for loop in found:
        assert loop.multiply_adds % sums(kind, vectors, rows) == 0
        assert loop.spills == 0


@pytest.mark.parametrize(
    ("kernel", "target", "products"),
    [
        ("quad_positions", "avx512vnni", 12),
        ("quad_positions", "dotprod", 24),
        ("quad_filters", "avx2", 10),
        ("quad_shared", "avx512vnni", 12),
        ("quad_expanded", "avx512vnni", 16),
        ("quad_blocks", "avx2", 12),
    ],
)
def test_integers(kernel: str, target: str, products: int) -> None:
    """In a process of its own, which is told of another CPU: an instruction of VNNI is none for this one. Only sums count, not what
    becomes of them."""
    run = [sys.executable, inner_loops_module.__file__, kernel, "--target", target]
    output = subprocess.run(run, capture_output=True, text=True, check=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
    found = [re.match(r".*: \d+ instructions, (\d+) integer multiply-adds, (\d+) spills", line) for line in output.stdout.splitlines()]
    loops = [(int(match[1]), int(match[2])) for match in found if match]
    assert max(count for count, _ in loops) >= products
    assert not any(spills for _, spills in loops)


@pytest.mark.parametrize("kind", [AVX2, NEON], ids=name)
def test_more_sums_would_spill(kind: Registers) -> None:
    assert any(loop.spills for loop in loops(patches(8, 2, 2), kind))


@pytest.mark.parametrize(("kind", "tile"), TALLEST, ids=name)
def test_the_whole_of_positions(kind: Registers, tile: tuple[int, int]) -> None:
    """With what else a tile needs registers for, beside its loops."""
    multiply, fields = positions_kernel._multiplier(*tile), positions_kernel._fields

    def entry(
        arena: int, constants: int, index: int, meta: int, block: int, begin: int, end: int, patches: int, strip: int, top: int
    ) -> int:
        x, w, offsets = pointer(floats(arena, ALL)), pointer(floats(constants, ALL)), pointer(ints(index, ALL))
        multiply(x, w, offsets, fields(longs(meta, ALL), 0), block, begin, end, patches, strip, top)
        return 0

    found = loops(entry, kind)
    assert {loop.multiply_adds % sums(kind, *tile) for loop in found} == {0}  # LLVM may unroll them
    assert not any(loop.spills for loop in found)


@pytest.mark.parametrize(("kind", "vectors", "rows"), ROWS, ids=name)
def test_filters(kind: Registers, vectors: int, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filters_simd, "HOST", kind)
    tiles = filters_run._own(rows, vectors)

    def entry(
        at: int, stop: int, mode: int, base: int, first: int, ends: int, weights: int, bias: int, sums: int, x: int, zeros: int, y: int,
        residual: int, tables: int, slots: int, ahead: int, pace: int, arena: int, constants: int, index: int,
    ) -> int:  # fmt: skip
        a, c, i = floats(arena, ALL), floats(constants, ALL), ints(index, ALL)
        return tiles(
            at, stop, mode, base, first, ends, weights, bias, sums, x, zeros, y, residual, tables, slots, ahead, pace, a, c, i, c[0], c[1]
        )  # fmt: skip

    found = loops(entry, kind)
    assert len(found) >= 4  # entries that all slots keep, and those that some drop, each with and without fetching weights
    assert not any(loop.spills for loop in found)


@pytest.mark.parametrize("kind", KINDS, ids=name)
def test_depthwise(kind: Registers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filters_simd, "HOST", kind)
    tiles = filters_run._tiles(filters_run.tiles(kind)[1][0], 1, filters_simd.add_channels)

    def entry(
        at: int, stop: int, mode: int, first: int, last: int, weights: int, bias: int, sums: int, x: int, y: int, residual: int,
        tables: int, slots: int, arena: int, constants: int, index: int,
    ) -> int:  # fmt: skip
        a, c, i = floats(arena, ALL), floats(constants, ALL), ints(index, ALL)
        return tiles(at, stop, mode, first, last, weights, bias, sums, x, y, residual, tables, slots, a, c, i, c[0], c[1])

    found = loops(entry, kind)
    assert found
    assert not any(loop.spills for loop in found)


@pytest.mark.parametrize("kind", KINDS, ids=name)
def test_linear(kind: Registers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "_SUMS", linear.sums(kind))
    found = loops(Kernel("linear", linear.run.run).entry.function, kind)
    assert any(loop.multiply_adds % (linear.sums(kind) * linear.BLOCK // kind.floats) == 0 for loop in found)
    assert not any(loop.spills for loop in found)
