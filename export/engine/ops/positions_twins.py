"""Numpy twins of the vector operations in positions_simd.py, which stand for them with NUMBA_DISABLE_JIT=1."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fineprune.ops.simd import LANES

OFFSET_UNIT = 2
"""Floats that an offset of a patch vector counts: eight bytes, the largest factor of an x86 address, so that 16 bits reach 512 KiB."""


def pointer(array: NDArray) -> NDArray:
    return array


def put(array: NDArray, position: int, value: Any) -> None:
    array[position] = value


def at(array: NDArray, position: int) -> Any:
    return int(array[position]) if array.dtype.kind == "i" else array[position]


def tile_broadcast(array: NDArray, start: int, index: NDArray, position: int, rows: int, vectors: int) -> NDArray:
    return np.repeat(array[start + index[position : position + rows]], vectors * LANES).reshape(rows, vectors, LANES)


def _lines(array: NDArray, starts: NDArray, vectors: int) -> NDArray:
    return np.stack([array[start : start + vectors * LANES] for start in starts]).reshape(-1, vectors, LANES)


def tile_load_rows(array: NDArray, start: int, stride: int, index: NDArray, position: int, rows: int, vectors: int) -> NDArray:
    return _lines(array, start + index[position : position + rows] * stride, vectors)


def tile_store_rows(tile: NDArray, array: NDArray, start: int, stride: int, index: NDArray, position: int) -> None:
    for row, number in zip(tile, index[position : position + len(tile)], strict=True):
        array[start + number * stride : start + number * stride + row.size] = row.reshape(-1)


def tile_add_patches(
    tile: NDArray, weights: NDArray, weight: int, patches: NDArray, base: int, index: NDArray, half: int, sharing: int
) -> NDArray:
    offsets = index.view(np.uint16)[half : half + len(tile) // sharing].astype(np.int64) * OFFSET_UNIT
    lines = _lines(patches, base + np.repeat(offsets, sharing), tile.shape[1])
    return tile + weights[weight : weight + len(tile), None, None] * lines


def pack_line(array: NDArray, start: int, jump: int, limit: int, segment: int, stride: int) -> NDArray:
    starts = [start, *(min(start + k * jump, limit) for k in range(1, LANES // segment))]
    return np.concatenate([array[begin : begin + segment * stride : stride] for begin in starts]).reshape(1, 1, LANES)


def tile_keep(tile: NDArray, bits: int) -> NDArray:
    return np.where(bits >> np.arange(LANES) & 1, tile, np.float32(0))


def tile_clip(tile: NDArray, low: np.float32, high: np.float32) -> NDArray:
    raised = np.where(tile < low, low, tile)
    return np.where(raised > high, high, raised)


def _map_lines(
    tile: NDArray, start: int, channel: int, stride: int, index: NDArray, record: int, lanes: int
) -> Iterator[tuple[int, int, NDArray, NDArray]]:
    """(row, vector, positions, lanes) of the numbers that are there."""
    for row, vector in np.ndindex(*tile.shape[:2]):
        chosen = np.flatnonzero(int(index[lanes + vector]) >> np.arange(LANES) & 1)
        yield row, vector, start + int(index[record + row]) * channel + vector * stride + chosen, chosen


def tile_add_maps(tile: NDArray, array: NDArray, *where: Any) -> NDArray:
    tile = tile.copy()
    for row, vector, positions, lanes in _map_lines(tile, *where):
        tile[row, vector, lanes] += array[positions]
    return tile


def tile_store_maps(tile: NDArray, array: NDArray, *where: Any) -> None:
    for row, vector, positions, lanes in _map_lines(tile, *where):
        array[positions] = tile[row, vector, lanes]


def tile_store(tile: NDArray, array: NDArray, start: int) -> None:
    array[start : start + LANES] = tile.reshape(-1)
