"""From tensors to the kernel that convolves each sample under its own mask, as calibration does."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ..geometry import Conv
from ..simd import LANES
from .backend import flat
from .layout import Map
from .per_sample import pack_weights, per_sample_kernel, plane_size
from .threads import run_shares, scratch, threads_for

CHUNK_BYTES = 1 << 19
"""Size of the buffers of the samples that share what is loaded of the weights: half of a second-level cache."""
WEIGHT_BYTES = 1 << 14
"""Size of the weights that a tile passes over at a time: they should stay in the first-level cache."""


def forward(x: Tensor, weight: Tensor, mask: Tensor, conv: Conv) -> Tensor:
    """y[N,F,oh,ow], channels last, of x[N,C,H,W] and weight[F,C,kh,kw] under mask[N,C,oh,ow]."""
    samples, channels, filters, kernel = x.shape[0], x.shape[1], weight.shape[0], (weight.shape[2], weight.shape[3])
    oh, ow = conv.output(x.shape[2:], kernel)
    rows, vectors = (8, 1) if ow > 4 else (4, 2)
    columns, lanes = -(-ow // rows) * rows, vectors * LANES
    tiles = Map(oh, columns, -(-filters // lanes) * lanes)
    reach = [(n - 1) * conv.stride[a] + (kernel[a] - 1) * conv.dilation[a] + 1 for a, n in enumerate((oh, columns))]
    planes = Map(reach[0], reach[1], channels)
    weights = _packed(weight, tiles.channels, lanes)
    y = x.new_empty(samples, oh, ow, filters)
    arrays = flat(x), weights.numpy(), flat(mask.view(torch.uint8)), y.view(-1).numpy()
    sizes = Map(x.shape[2], x.shape[3], channels), Map(oh, ow, filters)
    areas = [plane_size(planes.height, planes.width) * channels, plane_size(oh, columns) * channels, oh * columns * tiles.channels]
    at_once = max(1, CHUNK_BYTES // (4 * sum(areas)))
    block = max(1, WEIGHT_BYTES // (4 * lanes * kernel[0] * kernel[1]))
    convolve = per_sample_kernel(rows, vectors, kernel, conv.stride[1], conv.dilation[1])

    def share(first: int, last: int, _: int) -> None:
        room = scratch(*(min(at_once, last - first) * area for area in areas))
        convolve(
            *arrays,
            first,
            last,
            min(at_once, last - first),
            *room,
            *sizes,
            conv.stride[0],
            conv.padding,
            conv.dilation[0],
            planes,
            tiles,
            block,
        )

    share_samples(samples, share)
    return y.permute(0, 3, 1, 2)


def _packed(weight: Tensor, filters: int, lanes: int) -> Tensor:
    """weight[F,C,kh,kw] as [blocks, C, taps, lanes] of `filters` filters, those that F lacks being zeros."""
    weight = weight.detach().contiguous()
    if filters > weight.shape[0]:
        weight = torch.cat([weight, weight.new_zeros(filters - weight.shape[0], *weight.shape[1:])])
    packed = torch.empty(weight.numel())
    pack_weights(weight.view(-1).numpy(), filters, weight[0].numel(), lanes, packed.numpy())
    return packed


def share_samples(samples: int, share: Callable[[int, int, int], None]) -> None:
    """Call share(first sample, last, number of the share) in as many threads as torch would use."""
    count = threads_for(samples)
    bounds = [samples * part // count for part in range(count + 1)]
    run_shares([partial(share, bounds[part], bounds[part + 1], part) for part in range(count)])
