"""Algorithm 8 stage 1 of one layer: scores of blocks, each sample's top K of each channel, and how often each block is among them.

The lanes of a vector are 16 rows, a row being one channel of one sample; all of them are searched at once. The K-th largest score is found
by halving the interval of float32 numbers that it lies in (as integers, non-negative ones are in order): some 15 comparisons a score,
without branches. Where more scores equal it than there is room for, the tie-breaking field decides between them, found in the same way.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fineprune.ops.jit import Compiler
from fineprune.ops.keeper import Keeper
from fineprune.ops.kernels import jit as kernels
from fineprune.ops.kernels.layout import Map
from fineprune.ops.kernels.simd import halve, tile_add, tile_count, tile_row_sums, tile_store_bytes, tile_where
from fineprune.ops.simd import LANES, tile_load, tile_store, tile_zeros, transpose

jit = Compiler(Keeper("ranking", Path(__file__).parent, Path(kernels.__file__).parent)).jit_cached

L2, L1, APOZ = 0, 1, 2
NORMS = {"l2": L2, "l1": L1, "apoz": APOZ}
"""Kinds of scores (fineprune.calibrate.frequency.Norm)."""
INFINITY_BITS = 0x7F800000


@jit
def rank_blocks(
    x: NDArray,
    size: Map,
    out: Map,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    norm: int,
    keep: int,
    field: NDArray,
    offsets: NDArray,
    first: int,
    last: int,
    mask: NDArray,
    frequency: NDArray,
    total: NDArray,
    values: NDArray,
    scores: NDArray,
    keys: NDArray,
) -> None:
    """For samples first..last-1 of x[N,H,W,C]: mask[N,oh,ow,C] (1: among the `keep` best of oh*ow) and its sum, and that of the scores.

    Sample n breaks ties by field[offsets[n] + c*oh*ow + p], the larger wins. frequency and total [oh*ow,C] are added to. Room is wanted for
    16 rows: values of the padded input, scores and keys of oh*ow rounded up to a multiple of 4.
    """
    channels, positions = size.channels, out.height * out.width
    width = size.width + 2 * padding[1]
    values[:] = 0
    scores[positions * LANES :] = -1  # below every limit
    counts, limits, wanted = np.empty(LANES, np.float32), np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    places = np.zeros(LANES, np.int64)
    for row in range(0, (last - first) * channels, LANES):
        lanes = min(LANES, (last - first) * channels - row)
        sample, channel = first + row // channels, row % channels
        together = channel + LANES <= channels
        _load(x, size, sample, channel, lanes, together, padding, values, width)
        _measure(values, norm)
        _score(values, width, out, kernel, stride, dilation, norm == L2, scores)
        _add(scores, positions, total, sample, channel, lanes, together, channels)
        wanted[:] = keep
        _limits(scores, wanted, limits, counts)
        for lane in range(lanes):
            places[lane] = offsets[sample + (channel + lane) // channels] + (channel + lane) % channels * positions
        _break_ties(scores, wanted, limits, field, places, positions, keys, counts)
        _mark(scores, limits, positions, sample, channel, lanes, together, channels, mask, frequency)


@jit
def _load(
    x: NDArray, size: Map, sample: int, channel: int, lanes: int, together: bool, padding: tuple[int, int], out: NDArray, width: int
) -> None:
    """16 rows side by side, inside a border of zeros."""
    for i in range(size.height):
        target = ((i + padding[0]) * width + padding[1]) * LANES
        if together:
            source = (sample * size.height + i) * size.width * size.channels + channel
            for j in range(size.width):
                tile_store(tile_load(x, source + j * size.channels, 0, 1, 1), out, target + j * LANES, 0)
        else:
            for lane in range(lanes):
                n, c = sample + (channel + lane) // size.channels, (channel + lane) % size.channels
                source = (n * size.height + i) * size.width * size.channels + c
                for j in range(size.width):
                    out[target + j * LANES + lane] = x[source + j * size.channels]


@jit
def _measure(values: NDArray, norm: int) -> None:
    """Replace numbers by what a score sums."""
    if norm == L2:
        for k in range(len(values)):
            values[k] = values[k] * values[k]
    elif norm == L1:
        for k in range(len(values)):
            values[k] = abs(values[k])
    else:
        for k in range(len(values)):
            values[k] = np.float32(values[k] != 0)


@jit
def _score_tile(
    tile: Any,
    values: NDArray,
    start: int,
    step: int,
    scores: NDArray,
    position: int,
    kernel: tuple[int, int],
    line: int,
    dilation: int,
) -> None:
    """Scores of neighbours."""
    for u in range(kernel[0]):
        for v in range(kernel[1]):
            tile = tile_add(tile, values, start + (u * line + v * dilation) * LANES, step)
    tile_store(tile, scores, position * LANES, LANES)


@jit
def _score(
    values: NDArray,
    width: int,
    out: Map,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
    root: bool,
    scores: NDArray,
) -> None:
    """Sums over blocks, in the order of torch's pooling so that equal scores stay equal."""
    tiled, step, line = out.width // 4 * 4, stride[1] * LANES, dilation[0] * width
    plain = kernel == (3, 3) and step == LANES and dilation[1] == 1
    for i in range(out.height):
        start, position = i * stride[0] * width * LANES, i * out.width
        for j in range(0, tiled, 4):
            if plain:  # what is constant is compiled into loads that neighbours share
                _score_tile(tile_zeros(4, 1), values, start + j * LANES, LANES, scores, position + j, (3, 3), line, 1)
            else:
                _score_tile(tile_zeros(4, 1), values, start + j * step, step, scores, position + j, kernel, line, dilation[1])
        for j in range(tiled, out.width):
            _score_tile(tile_zeros(1, 1), values, start + j * step, step, scores, position + j, kernel, line, dilation[1])
    if root:
        for k in range(out.height * out.width * LANES):
            scores[k] = np.sqrt(scores[k])


@jit
def _limits(scores: NDArray, wanted: NDArray, limits: NDArray, counts: NDArray) -> None:
    """limits[lane]: the largest number that at least `wanted` scores of the lane reach; counts: how many reach it."""
    low, high = np.zeros(LANES, np.int32), np.full(LANES, INFINITY_BITS + 1, np.int32)
    bits = limits.view(np.int32)
    bits[:] = 1  # first of all, because often the smallest scores that are kept are zeros
    _count(scores, limits, counts)
    while halve(low, high, bits, counts, wanted):
        _count(scores, limits, counts)
    _count(scores, limits, counts)


@jit
def _count(scores: NDArray, limits: NDArray, counts: NDArray) -> None:
    """counts[lane]: scores of the lane that reach its limit. There is a multiple of 4 of them."""
    tile = tile_zeros(4, 1)
    for p in range(0, len(scores), 4 * LANES):
        tile = tile_count(tile, scores, p, LANES, limits)
    tile_row_sums(tile, counts, 0)


@jit
def _add(scores: NDArray, positions: int, total: NDArray, sample: int, channel: int, lanes: int, together: bool, channels: int) -> None:
    """Add up the scores of 16 rows."""
    if together:
        for p in range(positions):
            place = p * channels + channel
            tile_store(tile_add(tile_load(total, place, 0, 1, 1), scores, p * LANES, 0), total, place, 0)
    else:
        for lane in range(lanes):
            for p in range(positions):
                total[p * channels + (channel + lane) % channels] += scores[p * LANES + lane]


@jit
def _mark(
    scores: NDArray,
    limits: NDArray,
    positions: int,
    sample: int,
    channel: int,
    lanes: int,
    together: bool,
    channels: int,
    mask: NDArray,
    frequency: NDArray,
) -> None:
    """Write which of 16 rows reach the limits to the mask, and count them."""
    if together:
        start = sample * positions * channels
        for p in range(positions):
            row, place = p * LANES, p * channels + channel
            tile_store_bytes(tile_count(tile_zeros(1, 1), scores, row, 0, limits), mask, start + place)
            tile_store(tile_count(tile_load(frequency, place, 0, 1, 1), scores, row, 0, limits), frequency, place, 0)
    else:
        for lane in range(lanes):
            n, c = sample + (channel + lane) // channels, (channel + lane) % channels
            for p in range(positions):
                reached = scores[p * LANES + lane] >= limits[lane]
                mask[(n * positions + p) * channels + c] = reached
                frequency[p * channels + c] += np.float32(reached)


@jit
def _break_ties(
    scores: NDArray, wanted: NDArray, limits: NDArray, field: NDArray, places: NDArray, positions: int, keys: NDArray, counts: NDArray
) -> None:
    """Where more scores of a lane reach its limit than are wanted, those decide that equal it: exchange all scores for keys, which say at
    once that a block is kept (infinite), dropped (negative) or what its field is, and find their limits."""
    tied = counts > wanted
    if not tied.any():
        return
    _spread_field(field, places, positions, keys)
    shared, dropped, kept = np.where(tied, limits, np.float32(np.inf)), np.full(LANES, -1, np.float32), np.full(LANES, np.inf, np.float32)
    limits.view(np.int32)[:] += tied
    for k in range(0, positions * LANES, LANES):
        key = tile_where(tile_load(keys, k, 0, 1, 1), scores, k, 0, shared, tile_load(dropped, 0, 0, 1, 1))
        tile_store(tile_where(tile_load(kept, 0, 0, 1, 1), scores, k, 0, limits, key), scores, k, 0)
    _limits(scores, wanted, limits, counts)


@jit
def _spread_field(field: NDArray, places: NDArray, positions: int, keys: NDArray) -> None:
    """keys[p*LANES + lane] = field[places[lane] + p]."""
    neighbours = positions >= LANES
    for lane in range(LANES):
        neighbours &= places[lane] == places[0] + lane * positions
    if neighbours:
        for p in range(0, positions, LANES):
            first = min(p, positions - LANES)
            transpose(field, places[0] + first, positions, keys, first * LANES, LANES)
    else:
        for lane in range(LANES):
            for p in range(positions):
                keys[p * LANES + lane] = field[places[lane] + p]
