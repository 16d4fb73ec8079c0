"""Second moments of a layer's inputs: the Hessian of half the squared error of a filter's output in its weights.

    H[(c,u,v),(c',u',v')] = sum over samples, positions of M[c,p] b[c,p,u,v] * M[c',p] b[c',p,u',v'],    c, c' of one group

b are the patches of the padded input, M is the block mask: it is alike for all filters, so that one matrix serves them all. H is a sum
over samples: it streams and adds, and needs no labels. Some positions stand for all where that leaves samples enough. Where the matrices
of a network would take too much memory, input channels fall into blocks, whole quads each, and H has only what lies within a block.
"""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import product
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from fineprune.ops.geometry import Conv

from .convolutions import ConvSite

MEMORY = 512 << 20
"""Bytes that the matrices of a network may take."""
COLUMNS = 64
"""Samples of a layer's inputs for each row of its matrix: more are not needed."""
_FEW = 1 << 16
"""Samples that cost nothing worth saving."""
_GOLDEN = 0.6180339887498949


def block_limit(sites: Sequence[ConvSite], most: int | None = None) -> int:
    """The largest number of rows of a block, at most `most`, so that the matrices of all layers fit."""

    def needed(limit: int) -> int:
        return sum(8 * site.in_channels * site.taps * min(limit, _inputs(site)) for site in sites)

    largest = max(map(_inputs, sites))
    return max(1, bisect_right(range(1, 1 + min(largest, most or largest)), MEMORY, key=needed))


def moments_shape(site: ConvSite, limit: int) -> tuple[int, int, int, int]:
    """The shape [groups,blocks,size,size] of a layer's H in blocks of at most `limit` rows, or of one quad of channels."""
    channels = per_block = site.in_channels // site.groups
    if limit < _inputs(site):
        quads = -(-channels // 4)
        blocks = -(-quads // max(1, limit // (4 * site.taps)))
        per_block = min(channels, 4 * -(-quads // blocks))
    return site.groups, -(-channels // per_block), per_block * site.taps, per_block * site.taps


def _inputs(site: ConvSite) -> int:
    return site.in_channels // site.groups * site.taps


def positions_taken(positions: int, samples: int, rows: int, columns: int = COLUMNS) -> int:
    """How many positions of each sample make up `columns` samples for each of `rows`: all, where they are few."""
    return min(positions, -(-max(columns * rows, _FEW) // samples))


def spread(indices: Tensor, taken: int, positions: int) -> Tensor:
    """int64 [N,taken]: positions of the samples at `indices` of the data set, equally far apart and of each sample others."""
    if taken == positions:
        return torch.arange(positions).expand(len(indices), -1)
    first = indices.double()[:, None] * _GOLDEN
    return ((first + torch.arange(taken) / taken).frac() * positions).long().clamp_max(positions - 1)


def patches(x: Tensor, kernel: tuple[int, int], conv: Conv, mask: Tensor | None, at: Tensor, *, constant: bool = False) -> Tensor:
    """M * b [groups,d,N*Q] of inputs x[N,C,H,W] under a block mask, bool [C,oh,ow], at positions int64 [Q] or [N,Q] of the output.

    d runs over (c,u,v); with `constant` there is a last row of ones, of which the bias is the weight.
    """
    x = F.pad(x, (conv.padding[1], conv.padding[1], conv.padding[0], conv.padding[0]))
    (kh, kw), (samples, channels, height, width) = kernel, x.shape
    _, ow = Conv.of(conv.stride, (0, 0), conv.dilation, conv.groups).output((height, width), (kh, kw))
    at = at.expand(samples, -1)
    corners = at // ow * (conv.stride[0] * width) + at % ow * conv.stride[1]
    corners = (corners + torch.arange(samples, device=x.device)[:, None] * (height * width)).flatten()
    kept = None if mask is None else mask.flatten(1)[:, at.flatten()].to(x.dtype)
    rows = channels // conv.groups * kh * kw
    columns = x.new_ones(conv.groups, rows + constant, len(corners))
    by_tap = columns[:, :rows].view(conv.groups, -1, kh * kw, len(corners))
    planes = x.transpose(0, 1).flatten(1)
    for tap, (u, v) in enumerate(product(range(kh), range(kw))):
        values = planes.index_select(1, corners + (u * conv.dilation[0] * width + v * conv.dilation[1]))
        by_tap[:, :, tap] = (values if kept is None else values.mul_(kept)).view(by_tap[:, :, tap].shape)
    return columns


def add_moments(total: Tensor, columns: Tensor) -> None:
    """Add H of columns [groups,d,n] to `total` [groups,blocks,size,size], float64 on the CPU."""
    for of_group, rows in zip(total, columns, strict=True):
        for of_block, some in zip(of_group, rows.split(total.shape[2]), strict=True):
            of_block[: len(some), : len(some)] += _square(some.numpy()) if some.device.type == "cpu" else (some @ some.T).cpu()


def _square(rows: NDArray[Any]) -> Tensor:
    return torch.from_numpy(rows @ rows.T)  # numpy knows that this is symmetric: half the work
