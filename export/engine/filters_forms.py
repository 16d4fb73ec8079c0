"""What a convolution is expected to cost in each form of the kernel "filters", and where its positions are cut into blocks."""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ...common.simd import LANES
from .conv import ConvShape
from .filters_run import COUNT, DEPTHWISE, ENTRIES, ENTRIES_END, PASS, TILES
from .filters_tiles import Form, block

SUMS = 4096
"""Floats of the sums of a block of positions: they have to stay in the first-level cache."""
COPIES = 2**14
"""Floats of the copies of a block: they have to stay in the second-level cache."""
LEAST_SLOTS = 16
"""Slots of a block, where there are as many positions."""
ITEMS_WANTED, ITEMS_WITH_PASSES = 4, 2
"""Work items of an operation at least, where it has enough positions, so that threads find about equal shares; and where each block has
passes of its own for channels, which make more blocks dearer."""
PASS_WEIGHTS = 6144
"""Floats of weights that a pass may take: they have to stay in the first-level cache, too."""
CACHED_WEIGHTS = 2**18
"""Weights of a convolution that stay in the caches between uses; more are prefetched."""

PER_ENTRY = {
    (DEPTHWISE, 1): 0.8,
    **{(1, 8): 0.69, (1, 4): 0.95, (1, 1): 2.6},
    **{(2, 8): 1.05, (2, 4): 1.15, (2, 1): 3.0},
    **{(4, 4): 2.05, (4, 2): 2.35, (4, 1): 3.6},
    **{(1, 6): 1.05, (1, 2): 2.0, (2, 2): 2.25},
}
"""Cycles of an entry at a slot, by the vectors of the panel and the slots of a tile; these and the next were measured with AVX-512 (Zen 5),
the last line, of the tiles for CPUs with fewer registers, with AVX2 on the same."""
PER_RESULT, PER_COPY, PER_WEIGHT = 2.0, 4.5, 0.6
"""Cycles of a vector of results; of a vector of activations that is copied; of a weight that comes from memory."""
PER_PASS, PER_LIST = 36.0, 20.0
"""Cycles of a pass of a channel; of one over a tile."""
PER_SUM, PER_SUM_VECTOR = 2.5, 0.6
"""Cycles of loading and storing the sums of a slot, and of each of its vectors."""
PATCHES, PER_LINE = 3 * 2**12, 20.0
"""Activations of a block that the first-level cache holds, in floats; cycles, for each panel, of a vector of x where there are more, as the
passes of a mask then fetch them again and again."""
SAMPLES = 2
"""Blocks that stand for all in an expectation."""


def forms(shape: ConvShape, mask: NDArray | None) -> Iterator[Form]:
    """Those to choose from."""
    if shape.groups == shape.channels == shape.filters > 1:
        yield Form(DEPTHWISE, 1, 1)
        return
    for vectors, rows in TILES.items():
        if vectors == 1 or (vectors // 2) * LANES < shape.filters:
            yield Form(vectors, rows[0], rows[0])
            if mask is not None and shape.kernel == (1, 1):
                # Wider kernels have enough entries for a channel; copying their patches takes longer than it saves.
                yield from (Form(vectors, tile, 1) for tile in dict.fromkeys(rows))


def bounds(shape: ConvShape, kept: NDArray, form: Form) -> NDArray:
    """Where to cut the positions into blocks of about equal work, whose sums and copies fit the caches; kept: bool [C,positions]."""
    positions, vectors = kept.shape[1], -(-shape.filters // LANES)
    width = max(form.vectors, 1)
    most = SUMS // (width * LANES)
    if form.copies:
        most = min(most, max(LEAST_SLOTS, COPIES // copied(shape)))
    items = ITEMS_WANTED if form.copies or kept.all() else ITEMS_WITH_PASSES
    wanted = min(-(-items * width // vectors), positions // LEAST_SLOTS)
    count = max(1, wanted, -(-positions // most))
    work = np.cumsum(kept.sum(0) + len(kept) / 16)
    ends = np.searchsorted(work, work[-1] * np.arange(1, count) / count) + 1
    cuts = np.unique([0, *np.minimum(-(-ends // form.tile) * form.tile, positions), positions])
    parts = [np.arange(first, last, max(form.tile, most // form.tile * form.tile)) for first, last in pairwise(cuts)]
    return np.concatenate([*parts, [positions]])


def copied(shape: ConvShape) -> int:
    """Floats of the copy of a position of x."""
    return -(-shape.channels // LANES) * LANES


def copy_cycles(shape: ConvShape, positions: int) -> float:
    """Expected time of copying so many positions."""
    return positions * copied(shape) / LANES * PER_COPY


def pass_cycles(steps: NDArray, form: Form, vectors: int) -> float:
    """Expected time of the passes of a work item, for a panel of so many vectors."""
    steps = steps.reshape(-1, PASS)
    entries = (steps[:, ENTRIES_END] - steps[:, ENTRIES]) // 2
    slots = steps[:, COUNT] * (entries * _entry(form, vectors) + PER_SUM + PER_SUM_VECTOR * max(vectors, 1))
    return float(slots.sum() + PER_LIST * len(steps))


def _entry(form: Form, vectors: int) -> float:
    return PER_ENTRY.get((vectors, form.tile)) or PER_ENTRY[vectors, TILES[vectors][0]]


def expected_cycles(shape: ConvShape, weights: NDArray, kept: NDArray, form: Form) -> float:
    """Expected time of a convolution; kept: bool [C,positions]."""
    positions, vectors = kept.shape[1], -(-shape.filters // LANES)
    total = PER_PASS + PER_RESULT * positions * vectors
    if form.vectors == DEPTHWISE:
        return total + positions * vectors * weights[0].size * PER_ENTRY[DEPTHWISE, 1]
    together, left_over, passes, lists = _sampled(shape, kept, form)
    exact = form.tile > 1 and not form.copies and not kept.all()
    again = exact and shape.channels * min(positions, SUMS // (form.vectors * LANES)) > PATCHES
    for width, taps in _panels(shape, weights, form.vectors):
        used, sums = taps > 0, PER_SUM + PER_SUM_VECTOR * width
        more_parts = taps.sum() * width * LANES // PASS_WEIGHTS
        total += float((together + left_over) @ taps * _entry(form, width) + left_over @ used * sums + passes @ used * PER_PASS)
        total += (1 + more_parts) * lists * PER_LIST + more_parts * positions * sums
        if again:
            total += shape.channels * shape.height * shape.width / LANES * PER_LINE
        if weights.size > CACHED_WEIGHTS:
            total += float(taps.sum() * width * LANES * PER_WEIGHT)
    return total + form.copies * copy_cycles(shape, positions)


def _sampled(shape: ConvShape, kept: NDArray, form: Form) -> tuple[NDArray, NDArray, NDArray, float]:
    """[C] times that a slot goes through a channel with its tile, and without; [C] passes of channels; passes of tiles."""
    cuts = bounds(shape, kept, form)
    chosen = np.unique(np.linspace(0, len(cuts) - 2, SAMPLES).round().astype(int))
    sums = np.zeros((3, len(kept)))
    lists, seen = 0.0, 0.0
    for k in chosen:
        part = kept[:, cuts[k] : cuts[k + 1]]
        made = block(part, 0, form)
        sizes = np.diff(np.arange(0, part.shape[1], form.tile), append=part.shape[1])
        rest = made.rest.sum(1)
        sums += [sizes @ made.common, rest, rest > 0]
        lists += 1 + float((made.common[1:] != made.common[:-1]).any(1).sum())
        seen += float(part.sum())
    scale = kept.sum() / max(1, seen)
    return sums[0] * scale, sums[1] * scale, sums[2] * scale, lists * (len(cuts) - 1) / len(chosen)


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
