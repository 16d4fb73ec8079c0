"""The convolution of each sample under its own mask (calibration), filters in the SIMD lanes.

    y[n,f,p] = sum_c M[n,c,p] * ( sum_t w[f,c,t] * x[n,c,p+t] )

What a block contributes to a tile of positions x filters is summed in registers; one more multiply-add by M takes it or leaves it. So the
masks, which share nothing from sample to sample and from position to position, cost kh*kw+1 instead of kh*kw multiply-adds and no branch.
"""

from collections.abc import Callable
from functools import cache

import numpy as np
from numpy.typing import NDArray

from ..simd import LANES, tile_add_scaled, tile_load, tile_store, tile_zeros, transpose
from .jit import jit
from .layout import Map
from .simd import tile_add_scaled_tile, tile_load_bytes, tile_store_first


@jit
def plane_size(rows: int, columns: int) -> int:
    """Numbers from one plane to the next: not a power of two, so that planes do not compete for lines of the cache."""
    return rows * columns + LANES


@cache
def per_sample_kernel(rows: int, vectors: int, kernel: tuple[int, int], stride: int, dilation: int) -> Callable[..., None]:
    """Tiles of `rows` neighbouring positions x `vectors` vectors of filters."""
    height, width, lanes = *kernel, vectors * LANES

    @jit
    def forward(
        x: NDArray,
        weights: NDArray,
        masks: NDArray,
        y: NDArray,
        first: int,
        last: int,
        at_once: int,
        x_planes: NDArray,
        kept: NDArray,
        y_tiles: NDArray,
        x_size: Map,
        y_size: Map,
        stride_h: int,
        padding: tuple[int, int],
        dilation_h: int,
        xp: Map,
        yp: Map,
        channel_block: int,
    ) -> None:
        """y[N,oh,ow,F] for samples first..last-1."""
        channels = x_size.channels
        blocks = yp.channels // lanes
        x_plane, mask_plane = plane_size(xp.height, xp.width), plane_size(yp.height, yp.width)
        x_area, mask_area, y_area = x_plane * channels, mask_plane * channels, yp.height * yp.width * yp.channels
        part = np.empty(2 * LANES * LANES, np.float32)
        x_planes[: at_once * x_area] = 0
        kept[: at_once * mask_area] = 0
        line = dilation_h * xp.width
        direct = yp.width == y_size.width and yp.channels == y_size.channels
        for start in range(first, last, at_once):
            samples = min(at_once, last - start)
            for n in range(samples):
                _spread(x, start + n, x_size, x_planes, n * x_area, *padding, xp.height, xp.width, part)
                _spread_bytes(
                    masks, start + n, Map(y_size.height, y_size.width, channels), kept, n * mask_area, 0, 0, yp.height, yp.width, part
                )
            out = y if direct else y_tiles
            origin = start * y_area if direct else 0
            for block in range(blocks):
                for c_first in range(0, channels, channel_block):
                    c_last = min(c_first + channel_block, channels)
                    for n in range(samples):
                        for i in range(yp.height):
                            for j in range(0, yp.width, rows):
                                at_y = origin + n * y_area + (i * yp.width + j) * yp.channels + block * lanes
                                patch = n * x_area + i * stride_h * xp.width + j * stride + c_first * x_plane
                                at_mask = n * mask_area + i * yp.width + j + c_first * mask_plane
                                tile = tile_load(out, at_y, yp.channels, rows, vectors) if c_first else tile_zeros(rows, vectors)
                                w = (block * channels + c_first) * height * width * lanes
                                for _ in range(c_first, c_last):
                                    products = tile_zeros(rows, vectors)
                                    for u in range(height):
                                        for v in range(width):
                                            products = tile_add_scaled(
                                                products,
                                                x_planes,
                                                patch + u * line + v * dilation,
                                                stride,
                                                weights,
                                                w + (u * width + v) * lanes,
                                            )
                                    tile = tile_add_scaled_tile(tile, kept, at_mask, 1, products)
                                    w += height * width * lanes
                                    patch += x_plane
                                    at_mask += mask_plane
                                tile_store(tile, out, at_y, yp.channels)
            if not direct:
                for n in range(samples):
                    _crop(y_tiles, n * y_area, yp, y, start + n, y_size)

    return forward


def _spreading(of_bytes: bool) -> Callable[..., None]:
    """Copying a sample of bytes or of float32 numbers."""

    @jit
    def spread(
        source: NDArray, sample: int, size: Map, out: NDArray, start: int, top: int, left: int, rows: int, columns: int, part: NDArray
    ) -> None:
        """A sample [height, width, channels] into planes [channels, rows, columns] from row `top` and column `left` on."""
        plane, channels = plane_size(rows, columns), size.channels
        if size.width == columns and size.height <= rows and top == left == 0:  # without a border all pixels of a plane are successive
            size, columns = Map(1, size.height * columns, channels), size.height * columns
        height, width = min(size.height, rows - top), min(size.width, columns - left)
        origin = sample * size.height * size.width * channels
        if channels < LANES or size.height * size.width < LANES:
            for c in range(channels):
                for i in range(height):
                    line, to = origin + i * size.width * channels + c, start + c * plane + (i + top) * columns + left
                    for j in range(width):
                        out[to + j] = np.float32(source[line + j * channels])
            return
        # 16 successive pixels of 16 channels at a time.
        for pixel in range(0, size.height * size.width, LANES):
            first = min(pixel, size.height * size.width - LANES)
            for block in range(0, channels, LANES):
                c = min(block, channels - LANES)
                line = origin + first * channels + c
                if of_bytes:
                    for k in range(LANES):
                        tile_store(tile_load_bytes(source, line + k * channels), part, (LANES + k) * LANES, 0)
                    transpose(part, LANES * LANES, LANES, part, 0, LANES)
                else:
                    transpose(source, line, channels, part, 0, LANES)
                done = 0
                while done < LANES:
                    i, j = (first + done) // size.width, (first + done) % size.width
                    run = min(LANES - done, size.width - j)
                    to = start + c * plane + (i + top) * columns + left + j
                    if i < height:
                        for k in range(LANES):
                            tile_store_first(tile_load(part, k * LANES + done, 0, 1, 1), out, to + k * plane, min(run, width - j))
                    done += run

    return spread


_spread, _spread_bytes = _spreading(False), _spreading(True)


@jit
def pack_weights(weight: NDArray, filters: int, count: int, lanes: int, out: NDArray) -> None:
    """weight[filters, count], filters being a multiple of lanes, to out[filters/lanes, count, lanes]."""
    for block in range(0, filters, LANES):
        source, to = block * count, block // lanes * lanes * count + block % lanes
        if count >= LANES:
            for k in range(0, count, LANES):
                first = min(k, count - LANES)
                transpose(weight, source + first, count, out, to + first * lanes, lanes)
        else:
            for k in range(count):
                for f in range(LANES):
                    out[to + k * lanes + f] = weight[source + f * count + k]


@jit
def _crop(source: NDArray, start: int, tiles: Map, y: NDArray, sample: int, size: Map) -> None:
    for i in range(size.height):
        for j in range(size.width):
            begin = start + (i * tiles.width + j) * tiles.channels
            to = ((sample * size.height + i) * size.width + j) * size.channels
            for f in range(size.channels):
                y[to + f] = source[begin + f]
