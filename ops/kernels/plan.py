"""Which multiply-adds are left: the masks as lists in the order in which the kernels use them."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .convolve import FILTER_TILE, GRAD_BLOCK, WEIGHT_BLOCK


@dataclass(frozen=True)
class Blocks:
    """An FFP mask [C,oh,ow]: the channels kept at position p = i*ow+j are active[starts[p]:starts[p+1]]; the columns j at which channel
    c is kept in output row i are columns[row_starts[i*C+c]:row_starts[i*C+c+1]]."""

    starts: NDArray
    active: NDArray
    row_starts: NDArray
    columns: NDArray


def blocks(mask: NDArray) -> Blocks:
    channels, oh, _ = mask.shape
    active = np.nonzero(mask.reshape(channels, -1).T)[1]
    columns = np.nonzero(mask.transpose(1, 0, 2).reshape(oh * channels, -1))[1]
    return Blocks(
        _starts(mask.sum(0, dtype=np.int32).reshape(-1)),
        active.astype(np.int32),
        _starts(mask.sum(2, dtype=np.int32).T.reshape(-1)),
        columns.astype(np.int32),
    )


@dataclass(frozen=True)
class Entries:
    """Weights in the order of use: entry e of list s, segments[s] <= e < segments[s+1], has the weights positions[e*rows : (e+1)*rows]
    (in the flat weight, -1: zero) and an offset in the band that it is multiplied with."""

    segments: NDArray
    offsets: NDArray
    positions: NDArray


def share_of_filter_tiles(kept: NDArray) -> float:
    """Of the weights that tiles of FILTER_TILE filters hold, those of tiles that are not empty; kept: bool [F,C,kh,kw]."""
    filters = kept.shape[0]
    padded = np.zeros((-(-filters // FILTER_TILE) * FILTER_TILE, *kept.shape[1:]), bool)
    padded[:filters] = kept
    return float(padded.reshape(-1, FILTER_TILE, *kept.shape[1:]).any(1).mean())


def share_of_tap_rows(kept: NDArray) -> float:
    """Of all rows of taps, those that are not empty; kept: bool [F,C,kh,kw]."""
    return float(kept.any(3).mean())


def forward_entries(kept: NDArray, rows: int, tap_offsets: NDArray) -> Entries:
    """kept: bool [F,C,taps]. Lists by (channel, group of `rows` filters); the list of the channel after the last is empty."""
    filters, channels, taps = kept.shape
    groups = -(-filters // FILTER_TILE) * FILTER_TILE // rows
    padded = np.zeros((groups * rows, channels + 1, taps), bool)
    padded[:filters, :channels] = kept
    lists = np.swapaxes(np.logical_or.reduce(padded.reshape(groups, rows, channels + 1, taps), 1), 0, 1)
    c, q, tap = np.nonzero(lists)
    f = q[:, None] * rows + np.arange(rows)
    positions = np.where(f < filters, (f * channels + c[:, None]) * taps + tap[:, None], -1)
    return Entries(_starts(lists.sum(2).reshape(-1)), tap_offsets[tap].astype(np.int32), positions.reshape(-1).astype(np.int32))


def input_grad_entries(kept: NDArray, rows: int, filter_stride: int) -> Entries:
    """kept: bool [F,C,taps]. Lists by (block of filters, channel, group of `rows` successive taps); offsets are those of the filter."""
    filters, channels, taps = kept.shape
    count = -(-filters // GRAD_BLOCK)
    padded = np.zeros((count * GRAD_BLOCK, channels, taps), bool)
    padded[:filters] = kept
    shared = np.logical_or.reduce(padded.reshape(count, GRAD_BLOCK, channels, taps // rows, rows), 4)
    lists = np.moveaxis(shared, 1, 3)
    block, c, tap, f = np.nonzero(lists)
    first = ((block * GRAD_BLOCK + f) * channels + c) * taps + tap * rows
    positions = (first[:, None] + np.arange(rows)).reshape(-1)
    return Entries(_starts(lists.sum(3).reshape(-1)), (f * filter_stride).astype(np.int32), positions.astype(np.int32))


class Tiles(NamedTuple):
    """Weights by (block of filters, channel): tile e, segments[s] <= e < segments[s+1], has `taps` weights of filters[e]; their positions
    in the flat weight (-1: none) and their offsets in the band of x are positions[e*taps : (e+1)*taps] and offsets[...]."""

    filters: NDArray
    offsets: NDArray
    positions: NDArray
    segments: NDArray


def weight_grad_tiles(kept: NDArray, tap_offsets: NDArray) -> tuple[Tiles, Tiles]:
    """Tiles of four taps and tiles of two, which together hold every weight of kept (bool [F,C,taps])."""
    filters, channels, taps = kept.shape
    count = -(-filters // WEIGHT_BLOCK)
    padded = np.zeros((count * WEIGHT_BLOCK, channels, taps), bool)
    padded[:filters] = kept
    lists = padded.reshape(count, WEIGHT_BLOCK, channels, taps).transpose(0, 2, 1, 3)
    rank = lists.cumsum(3, dtype=np.int32) - 1
    total = lists.sum(3, keepdims=True, dtype=np.int32)
    # A last tile of four must not hold fewer than three weights.
    in_fours = np.where(total % 4 > 2, total + 1, total) // 4 * 4
    fours = _tiles(lists & (rank < in_fours), 4, tap_offsets, filters)
    return fours, _tiles(lists & (rank >= in_fours), 2, tap_offsets, filters)


def _tiles(lists: NDArray, size: int, tap_offsets: NDArray, filters: int) -> Tiles:
    """lists: bool [blocks,C,filters of a block,taps]."""
    count, channels, per_block, taps = lists.shape
    counts = lists.sum(3, dtype=np.int32).reshape(-1)
    tiles = -(-counts // size)
    block, c, f, tap = np.nonzero(lists)
    slot = _starts(tiles)[(block * channels + c) * per_block + f] * size + np.arange(len(c)) - _starts(counts)[:-1].repeat(counts)
    slot = slot.astype(np.int64)
    positions = np.full(int(tiles.sum()) * size, -1, np.int32)
    offsets = np.zeros_like(positions)
    positions[slot], offsets[slot] = ((block * per_block + f) * channels + c) * taps + tap, tap_offsets[tap]
    owners = (np.arange(count)[:, None, None] * per_block + np.arange(per_block)).repeat(channels, 1).reshape(-1)
    return Tiles(owners.astype(np.int32).repeat(tiles), offsets, positions, _starts(tiles.reshape(count * channels, per_block).sum(1)))


def _starts(counts: NDArray) -> NDArray:
    starts = np.zeros(len(counts) + 1, np.int32)
    np.cumsum(counts, out=starts[1:])
    return starts
