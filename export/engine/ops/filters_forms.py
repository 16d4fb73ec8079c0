"""What a convolution is expected to cost in each form of the kernel "filters", and where its positions are cut into blocks."""

from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fineprune.ops.simd import LANES
from fineprune.ops.simd.registers import CACHES

from ..ir import costs
from ..ir.conv import ConvShape
from ..ir.costs import Counts
from .filters_costs import ALONE, ENTRY, KEPT_ENTRY, LISTED
from .filters_run import COUNT, DEPTHWISE, KEPT, MODE, OWN, PASS, TILES, WIDEST
from .filters_tiles import Form, block

_FLOAT = 4
SUMS = CACHES.first * 4 // 3 // _FLOAT
"""Floats of the sums of a block of positions, of which only some wait in the first-level cache for another pass. Among more positions more
are alike."""
LEAST_SLOTS = 16
"""Slots of a block, where there are as many positions."""
ITEMS_WANTED, ITEMS_WITH_PASSES = 4, 2
"""Work items of an operation at least, where it has enough positions, so that threads find about equal shares; and where each block has
passes of its own for channels, which make more blocks dearer."""
PASS_WEIGHTS = CACHES.first // 2 // _FLOAT
"""Floats of weights that a pass may take: they have to stay in the first-level cache, too."""
CACHED_WEIGHTS = CACHES.second // _FLOAT
"""Weights of a convolution that stay in the caches between uses; more are prefetched."""
NEAREST = CACHES.first * 2 // 3 // _FLOAT
"""Activations that stay in the first-level cache."""
NEAR = CACHES.second // 2 // _FLOAT
"""Activations that stay in the second-level cache between two layers, beside what else these need."""
SAMPLES = 2
"""Blocks that stand for all in an expectation."""


def forms(shape: ConvShape) -> Iterator[Form]:
    """Those to choose from."""
    if shape.depthwise:
        yield panel_form(DEPTHWISE)
        return
    for vectors in TILES:
        if vectors == 1 or (vectors // 2) * LANES < shape.filters:
            yield panel_form(vectors)


def panel_form(vectors: int) -> Form:
    """That of a panel, which may be narrower than others of its operation."""
    return Form(vectors, 1 if vectors == DEPTHWISE else TILES[vectors][0])


def taps_of(shape: ConvShape, weights: NDArray, form: Form) -> NDArray:
    """[C] taps of a channel, on the average over the panels that use it."""
    taps = np.array([taps for _, taps in _panels(shape, weights, form.vectors)])
    total: NDArray = taps.sum(0) / np.maximum(1, (taps > 0).sum(0))
    return total


def bounds(shape: ConvShape, kept: NDArray, form: Form) -> NDArray:
    """Where to cut the positions into blocks of about equal work; kept: bool [C,positions]."""
    positions, vectors = kept.shape[1], -(-shape.filters // LANES)
    width = max(form.vectors, 1)
    most = SUMS // (width * LANES)
    items = ITEMS_WANTED if kept.all() else ITEMS_WITH_PASSES
    wanted = min(-(-items * width // vectors), positions // LEAST_SLOTS)
    count = max(1, wanted, -(-positions // most))
    work = np.cumsum(kept.sum(0) + len(kept) / 16)
    ends = np.searchsorted(work, work[-1] * np.arange(1, count) / count) + 1
    cuts = np.unique([0, *np.minimum(-(-ends // form.tile) * form.tile, positions), positions])
    return np.concatenate([*(_evenly(first, last, most, form.tile) for first, last in pairwise(cuts)), [positions]])


def _evenly(first: int, last: int, most: int, tile: int) -> NDArray:
    """Where parts of about at most so many positions begin, in whole tiles."""
    parts = -(-(last - first) // most)
    return np.arange(first, last, -(-(last - first) // (parts * tile)) * tile)


def pass_seconds(steps: NDArray, index: NDArray, vectors: int) -> float:
    """Expected time of the passes of a work item, for a panel of so many vectors."""
    counts: defaultdict[str, float] = defaultdict(float)
    tile = panel_form(vectors).tile
    for step in steps.reshape(-1, PASS):
        whole, part = _entries(step, index, tile)
        count, own = int(step[COUNT]), bool(step[MODE] & OWN)
        slots = tile if own else count
        counts["filters.list"] += count // tile if own else 1
        counts["filters.sums"] += count
        counts["filters.sum"] += count * max(vectors, 1)
        counts[ENTRY[vectors]] += slots * whole
        if part:
            counts[KEPT_ENTRY[vectors]] += slots * part
    return costs.seconds(counts)


def pace(weights: int, steps: NDArray, index: NDArray, vectors: int) -> int:
    """At which the passes of a work item fetch so many weights evenly."""
    fetches = max(vectors, 1) * sum(sum(_entries(step, index, panel_form(vectors).tile)) for step in steps.reshape(-1, PASS))
    return -(-weights // max(1, fetches))


def _entries(step: NDArray, index: NDArray, tile: int) -> tuple[int, int]:
    """Those that the tiles of a pass go through, one tile after another: kept by all slots, and by some."""
    mode, first, last, _, count = step
    if not mode & OWN:
        return (last - first) // 2, 0
    sizes = np.diff(np.r_[first, index[last : last + 2 * (count // tile)]])
    return sizes[::2].sum() // 2, sizes[1::2].sum() // KEPT


def useful(shape: ConvShape, weights: NDArray, mask: NDArray | None) -> NDArray:
    """The weights, without those that meet only padding and dropped activations."""
    inside = np.ones((1, 1), np.float32)
    for n, size, taps, stride, dilation, pad in zip(
        shape.output, (shape.height, shape.width), shape.kernel, shape.strides, shape.dilations, shape.pads[:2], strict=True
    ):
        places = np.arange(n)[:, None] * stride + np.arange(taps) * dilation - pad
        inside = np.kron(inside, (places >= 0) & (places < size))
    kept = np.ones((1, len(inside)), bool) if mask is None else mask.reshape(len(mask), -1)
    met = np.broadcast_to(kept @ inside > 0, (shape.channels, inside.shape[1]))
    if met.all():
        return weights
    grouped = weights.reshape(shape.groups, -1, *weights.shape[1:])
    result: NDArray = np.where(met.reshape(shape.groups, 1, *weights.shape[1:]), grouped, np.float32(0)).reshape(weights.shape)
    return result


def counts(shape: ConvShape, weights: NDArray, kept: NDArray, form: Form) -> Counts:
    """What a convolution comes to; kept: bool [C,positions]."""
    positions, vectors = kept.shape[1], -(-shape.filters // LANES)
    found: defaultdict[str, float] = defaultdict(float)
    found["filters.operation"] = 1
    found["filters.result"] = positions * vectors
    if form.vectors == DEPTHWISE:
        found["depthwise.result"] = vectors * positions
        found["depthwise.entry"] = vectors * positions * weights[0].size
        found["depthwise.mask"] = 0 if kept.all() else vectors * positions
        found["depthwise.line"] = vectors * shape.height * shape.width
        return found
    sampled: dict[int, _Sampled] = {}
    near = shape.channels * shape.height * shape.width <= NEAREST
    for width, taps in _panels(shape, weights, form.vectors):
        if width not in sampled:
            sampled[width] = _sampled(shape, weights, kept, form, width)
        slots = sampled[width]
        used, more_parts = taps > 0, taps.sum() * width * LANES // PASS_WEIGHTS
        sums = float(slots.left_over @ used) + more_parts * positions
        found[ENTRY[width]] += float(slots.together @ taps)
        found[KEPT_ENTRY[width]] += float(slots.partly @ taps)
        found[ALONE[width]] += float(slots.alone @ taps)
        found[LISTED[width]] += float(slots.left_over @ taps)
        found["filters.place"] += float(slots.partly @ used)
        found["filters.sums"] += sums
        found["filters.sum"] += sums * width
        found["filters.pass"] += float(slots.passes @ used)
        found["filters.list"] += (1 + more_parts) * slots.tiles
        found["filters.item"] += slots.items
        found["filters.line"] += 0 if near else _lines(used) * min(shape.height * shape.width, positions * weights[0, 0].size)
        if shape.kernel == (1, 1) and width < WIDEST and not kept.all() and shape.channels * positions > NEAR:
            found["filters.scattered"] += shape.channels * positions / LANES
        found["filters.weight"] += float(taps.sum() * width * LANES)
        if weights.size > CACHED_WEIGHTS:
            found["filters.weight.far"] += float(taps.sum() * width * LANES)
    return found


class _Sampled(NamedTuple):
    """Of a panel: [C] times that a slot goes through a channel with a tile that keeps it, with one that keeps it in part, alone, and
    without a tile; [C] passes of channels; tiles; work items."""

    together: NDArray
    partly: NDArray
    alone: NDArray
    left_over: NDArray
    passes: NDArray
    tiles: float
    items: int


def _sampled(shape: ConvShape, weights: NDArray, kept: NDArray, form: Form, width: int) -> _Sampled:
    """Of a panel of `width` vectors."""
    cuts, taps = bounds(shape, kept, form), taps_of(shape, weights, form)
    chosen = np.unique(np.linspace(0, len(cuts) - 2, SAMPLES).round().astype(int))
    sums = np.zeros((5, len(kept)))
    tiles, seen = 0, 0.0
    for k in chosen:
        part = kept[:, cuts[k] : cuts[k + 1]]
        made = block(part, 0, panel_form(width), taps)
        rest, tile = made.rest.sum(1), made.form.tile
        single, whole = (np.diff(made.cuts) == 1) & (tile > 1), made.drops == 0
        slots = np.where(single, 0, tile)  # a tile takes as long with slots missing
        sums += [slots @ (made.together & whole), slots @ (made.together & ~whole), single @ made.together, rest, rest > 0]
        tiles += len(made.cuts) - 1
        seen += float(part.sum())
    together, partly, alone, left_over, passes = sums * kept.sum() / max(1, seen)
    items = len(cuts) - 1
    return _Sampled(together, partly, alone, left_over, passes, tiles=tiles * items / len(chosen), items=items)


def _lines(used: NDArray) -> int:
    """Vectors of channels of which any is used."""
    return int(np.logical_or.reduceat(used, np.arange(0, len(used), LANES)).sum())


def _panels(shape: ConvShape, weights: NDArray, vectors: int) -> Iterator[tuple[int, NDArray]]:
    """Vectors of each panel, and [C] its entries."""
    filters, per_group = shape.filters // shape.groups, shape.channels // shape.groups
    used = (weights != 0).reshape(shape.filters, per_group, -1)
    for first in range(0, shape.filters, vectors * LANES):
        last = min(first + vectors * LANES, shape.filters)
        taps = np.zeros(shape.channels, int)
        for group in range(first // filters, (last - 1) // filters + 1):
            own = used[max(first, group * filters) : min(last, (group + 1) * filters)]
            taps[group * per_group : (group + 1) * per_group] = own.any(0).sum(1)
        yield min(v for v in TILES if v * LANES >= last - first), taps
