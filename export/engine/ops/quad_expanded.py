"""Kernel "quad_expanded": "quad_filters" for CPUs that spread numbers over the lanes of a mask as they load them (AVX-512).

    s[f,p] = bias[f] + sum over the quads that one of LANES filters keeps of  w[f,c,u,v,0:4] . x[c, p + offset(u,v), 0:4]       int32, exact

Of the LANES weight quads of an entry only those that are not zero lie in memory, with a bit for each: what a mask drops saves no product,
but it need not be fetched. Large layers on small maps do little else than fetch weights. A work item is LANES filters at a tile
of up to four runs of positions that follow each other in a row, so that a tile has four addresses.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fineprune.ops.simd import LANES, at, pointer, tile_store
from fineprune.ops.simd.quads import bits_set, tile_add_expanded, tile_same_words, words
from fineprune.ops.simd.registers import HOST

from ..ir.conv import Op, View
from ..ir.costs import Counts
from ..ir.network import kernel
from ..ir.record import INT, Record, laid_out
from ..jit import jit
from .quad_filters import finish, lists, sets_of
from .quad_results import FIELDS, biases, constants, facts, part

if TYPE_CHECKING:
    from .quads import QuadConv

USABLE = HOST.masks
_RUNS, _MOST = (4, 2, 1), 4
"""Positions of a run, and runs of a tile: sixteen sums; each size is compiled."""
_META = Record(
    sets=INT, filters=INT, run=INT, tiles=INT, entries=INT, firsts=INT, bias=INT, x=INT, places=INT, offsets=INT, weights=INT, **FIELDS
)
"""sets: of LANES filters; run: its positions; tiles, entries, firsts, bias, x, places, offsets, weights: positions in index of the bounds
of tiles, in runs, and of lists, of the first weight of each list, of biases, of the first tap of each run, of its place in y (and in a
residual), of the offset and bits of each entry, and of the weights."""
_fields = _META.fields


def _run(width: int) -> int:
    return next(run for run in _RUNS if width % run == 0)


def counts(conv: "QuadConv", height: int, width: int) -> Counts:
    """What it comes to."""
    sets, entries = sets_of(conv)
    tiles = -(-height * width // (_run(width) * _MOST))
    return {
        "quad_expanded.operation": 1,
        "quad_expanded.product": entries * height * width,
        "quad_expanded.entry": entries * tiles,
        "quad_expanded.result": sets * height * width,
        "quad_expanded.item": sets * tiles,
        "quad_weights.line": (2 * entries + int(conv.weights.any(-1).sum())) / LANES,
    }


def plan(conv: "QuadConv", x: View, residual: View | None, y: View) -> Op:
    """Its index has the parts that `_META` names."""
    bounds, places, found = lists(conv, LANES)
    run, sets, weights = _run(y.width), len(bounds) - 1, words(found)
    runs, kept = y.height * y.width // run, weights != 0
    tiles = -(-runs // _MOST)
    offsets = places @ np.array([x.channel_stride, conv.dilations[0] * x.row_stride, conv.dilations[1]])
    rows, columns = np.divmod(np.arange(runs) * run, y.width)
    index, starts = laid_out(
        tiles=np.arange(tiles + 1) * runs // tiles,
        entries=2 * bounds,
        firsts=np.cumsum([0, *kept.sum(1)])[bounds],
        bias=biases(conv, sets * LANES),
        x=x.at(0, -conv.pads[0], -conv.pads[1]) + rows * x.row_stride + columns,
        places=rows * y.row_stride + columns,
        offsets=np.stack([offsets, kept @ (1 << np.arange(LANES))], 1).reshape(-1),
        weights=weights[kept],
    )
    return Op(
        kernel="quad_expanded",
        meta=_META.pack(sets=sets, filters=len(conv.weights), run=run, **starts, **facts(conv, y, residual)),
        index=index,
        constants=constants(conv, sets * LANES),
        costs=np.tile(16.0 + np.diff(bounds), tiles),
        scratch=_RUNS[0] * _MOST * LANES + LANES,
    )


def _summed(run: int, runs: int) -> Callable[..., None]:
    """Sums of LANES filters at so many runs, or at fewer."""
    smaller, positions = _summed(run, runs - 1) if runs > 1 else None, run * runs

    @jit
    def set_sums(n: int, arena: Any, index: Any, places: int, entry: int, end: int, weights: int, bias: int, scratch: int) -> None:
        if smaller is not None and n < runs:
            smaller(n, arena, index, places, entry, end, weights, bias, scratch)
        else:
            sums = tile_same_words(index, bias, positions)
            for e in range(entry, end, 2):
                sums = tile_add_expanded(sums, arena, index, places, e, weights, run)
                weights += bits_set(index, e + 1)
            tile_store(sums, arena, scratch, LANES)

    return set_sums


_fours, _twos, _ones = (_summed(run, _MOST) for run in _RUNS)


@kernel("quad_expanded")
def run(first: int, last: int, scratch: int, arena: NDArray, constants: NDArray, index: NDArray, meta: NDArray, op: int) -> None:
    """Kernel "quad_expanded"."""
    m = _fields(meta, op)
    memory, numbers, size = pointer(arena), pointer(index), m.run
    for item in range(first, last):
        k, begin, n = part(m, index, item)
        bound, x, bias = m.index + m.entries + k, m.index + m.x + begin, m.index + m.bias + k * LANES
        entry, end = m.index + m.offsets + np.int64(index[bound]), m.index + m.offsets + np.int64(index[bound + 1])
        weights = m.index + m.weights + np.int64(index[m.index + m.firsts + k])
        if size == _RUNS[0]:
            _fours(n, memory, numbers, x, entry, end, weights, bias, scratch)
        elif size == _RUNS[1]:
            _twos(n, memory, numbers, x, entry, end, weights, bias, scratch)
        else:
            _ones(n, memory, numbers, x, entry, end, weights, bias, scratch)
        for p in range(n * size):
            place = int(at(numbers, m.index + m.places + begin + p // size)) + p % size
            finish(m, place, k, scratch + p * LANES, scratch + n * size * LANES, arena, constants)
