"""Kernel "quad_shared": "quad_positions" for CPUs with registers for four filters' sums, which share what they load (AVX-512).

    s[f,p] = bias[f] + sum over the quads that filter f keeps of  w[f,c,u,v,0:4] . x[c, p + offset(u,v), 0:4]           int32, exact

Where one instruction multiplies a quad, loading it takes as long, or twice as long where it crosses a cache line. So a quad that two of
four filters keep is loaded once for both: there is a list for each filter and for each two of them, and a quad that three keep is in two.
A work item is four filters at a tile of positions, as in "quad_positions".
"""

from collections.abc import Callable
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fineprune.ops.simd import LANES, at, pointer, tile_store
from fineprune.ops.simd.quads import HOST, VNNI512, split, tile_add_shared, tile_row_words, words

from ..ir.conv import Op, View
from ..ir.costs import Counts
from ..ir.network import kernel
from ..ir.record import INT, Record, laid_out
from ..jit import jit, jit_merged
from .margins import word_of
from .quad_positions import FILTERS, finish, lanes_of, single
from .quad_results import FIELDS, biases, constants, facts, part

if TYPE_CHECKING:
    from .quads import QuadConv

USABLE = HOST == VNNI512
_MOST = 6
"""Vectors of a tile: sums of four filters in 24 registers; each size is compiled."""
_SHARING = (*((f, f) for f in range(FILTERS)), *combinations(range(FILTERS), 2))
"""Filters of each list."""
_META = Record(x=INT, sets=INT, filters=INT, tiles=INT, entries=INT, bias=INT, bits=INT, word=INT, lists=INT, **FIELDS)
"""As in "quad_positions", but entries are the bounds of len(_SHARING) lists a set, and tiles bounds in vectors."""
_fields = _META.fields


def _patterns(kept: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """[lists, ...]: which lists have a quad, of which filters keep it [FILTERS, ...]: pairs first, and what is left by itself."""
    left, pairs = kept.copy(), []
    for a, b in _SHARING[FILTERS:]:
        pairs.append(left[a] & left[b])
        left[[a, b]] &= ~pairs[-1]
    return np.concatenate([left, np.stack(pairs)])


def _kept(conv: "QuadConv") -> NDArray[np.bool_]:
    """[FILTERS, sets, C, kh, kw]: quads that filters keep."""
    kept = np.pad(conv.weights.any(-1), ((0, -len(conv.weights) % FILTERS), (0, 0), (0, 0), (0, 0)))
    return np.moveaxis(kept.reshape(-1, FILTERS, *kept.shape[1:]), 1, 0)


def _tiles(line: int) -> NDArray[np.int64]:
    """Bounds of tiles, in vectors: as few as possible, of about one size."""
    vectors = -(-line // LANES)
    count = -(-vectors // _MOST)
    return np.arange(count + 1) * vectors // count


def counts(conv: "QuadConv", height: int, width: int) -> Counts:
    """What it comes to, on rows that are a column apart."""
    line = (height - 1) * (width + 1) + width
    kept, vectors, tiles = _kept(conv), -(-line // LANES), len(_tiles(line)) - 1
    loads, sets = int(_patterns(kept).sum()), kept.shape[1]
    return {
        "quad_shared.operation": 1,
        "quad_shared.product": int(kept.sum()) * vectors,
        "quad_shared.load": loads * vectors,
        "quad_shared.entry": loads * tiles,
        "quad_shared.result": sets * vectors,
        "quad_shared.item": sets * tiles,
        "quad_weights.line": (loads + int(kept.sum())) / LANES,
    }


def _lists(conv: "QuadConv", steps: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(bounds of the lists [sets * lists + 1], offsets and weights of their entries)."""
    shared = _patterns(_kept(conv))
    sizes, found = [0], list[NDArray[np.int64]]()
    for k in range(shared.shape[1]):
        for filters, there in zip(_SHARING, shared[:, k], strict=True):
            places = np.argwhere(there)
            if len(places):
                rows, fours = split(conv.weights[FILTERS * k + np.unique(filters)][:, there].transpose(1, 0, 2))  # [entries, filters, 4]
                found.append(np.concatenate([(places @ steps)[rows, None], words(fours)], 1).reshape(-1))
            sizes.append(found[-1].size if len(places) else 0)
    return np.cumsum(sizes), np.concatenate([*found, np.zeros(0, np.int64)])


def plan(conv: "QuadConv", x: View, residual: View | None, y: View) -> Op:
    """Its index has the parts that `_META` names."""
    sets = -(-len(conv.weights) // FILTERS)
    bounds, lists = _lists(conv, np.array([x.channel_stride, conv.dilations[0] * x.row_stride, conv.dilations[1]]))
    line = (y.height - 1) * y.row_stride + y.width
    tiles = _tiles(line)
    index, starts = laid_out(
        tiles=tiles,
        entries=bounds,
        bias=biases(conv, sets * FILTERS),
        bits=lanes_of(line, y.row_stride, y.width),
        word=np.array([word_of(conv.zero)]),
        lists=lists,
    )
    work = 16.0 + np.diff(bounds[:: len(_SHARING)])
    return Op(
        kernel="quad_shared",
        meta=_META.pack(
            x=x.at(0, -conv.pads[0], -conv.pads[1]), sets=sets, filters=len(conv.weights), **starts, **facts(conv, y, residual)
        ),
        index=index,
        constants=constants(conv, sets * FILTERS),
        costs=(np.diff(tiles)[:, None] * work).reshape(-1),
        scratch=FILTERS * _MOST * LANES + LANES,
    )


def _adding(number: int) -> Callable[..., Any]:
    """Adds the products of list `number` and of those behind it to the sums of a set."""
    (first, second), rest = _SHARING[number], _adding(number + 1) if number + 1 < len(_SHARING) else None
    size = 2 if first == second else 3

    @jit_merged
    def add(total: NDArray, arena: Any, x: int, index: Any, bounds: int, lists: int) -> NDArray:
        for e in range(lists + at(index, bounds), lists + at(index, bounds + 1), size):
            total = tile_add_shared(total, arena, x + at(index, e), index, e + 1, first, second)
        return total if rest is None else rest(total, arena, x, index, bounds + 1, lists)

    return add


_all_lists = _adding(0)


def _summed(vectors: int) -> Callable[..., None]:
    """Sums of a set at so many vectors, or at fewer."""
    smaller = _summed(vectors - 1) if vectors > 1 else None

    @jit
    def set_sums(n: int, arena: Any, x: int, index: Any, bounds: int, lists: int, bias: int, scratch: int) -> None:
        if smaller is not None and n < vectors:
            smaller(n, arena, x, index, bounds, lists, bias, scratch)
        else:
            total = _all_lists(tile_row_words(index, bias, FILTERS, vectors), arena, x, index, bounds, lists)
            tile_store(total, arena, scratch, vectors * LANES)

    return set_sums


_sums = _summed(_MOST)


@kernel("quad_shared")
def run(first: int, last: int, scratch: int, arena: NDArray, constants: NDArray, index: NDArray, meta: NDArray, op: int) -> None:
    """Kernel "quad_shared"."""
    m = _fields(meta, op)
    memory, numbers = pointer(arena), pointer(index)
    for item in range(first, last):
        k, begin, n = part(m, index, item)
        start = begin * LANES
        bounds, bias = m.index + m.entries + k * len(_SHARING), m.index + m.bias + k * FILTERS
        _sums(n, memory, m.x + start, numbers, bounds, m.index + m.lists, bias, scratch)
        if m.reals == 0:
            finish(m, n * LANES, start, k, scratch, arena, constants, index)
        else:
            single(m, n * LANES, k, scratch, arena, constants)
