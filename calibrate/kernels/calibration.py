"""From tensors to the kernels of calibration: ranking the blocks of each sample, and convolving each sample under its own mask."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from ...common.simd import LANES
from ..geometry import Conv
from .backend import flat
from .layout import Map
from .per_sample import pack_weights, per_sample_kernel, plane_size
from .ranking import NORMS, rank_blocks
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

    _share(samples, share)
    return y.permute(0, 3, 1, 2)


def rank(
    x: Tensor, kernel: Sequence[int], conv: Conv, norm: str, keep: int, field: Tensor, offsets: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """mask[N,C,oh,ow] (bool) of the `keep` best blocks of each channel of each sample of x[N,C,H,W]; over the samples the sum of the mask
    (int64) and that of the scores (float32). Ties go to the larger field[offsets[n] + c*oh*ow + p]."""
    samples, channels = x.shape[:2]
    oh, ow = conv.output(x.shape[2:], kernel)
    mask = torch.empty(samples, oh, ow, channels, dtype=torch.bool)
    count = threads_for(samples)
    sums = torch.zeros(2, count, oh, ow, channels)
    sizes = Map(x.shape[2], x.shape[3], channels), Map(oh, ow, channels)
    geometry = (kernel[0], kernel[1]), *conv[:3]
    padded = (x.shape[2] + 2 * conv.padding[0]) * (x.shape[3] + 2 * conv.padding[1])
    room = padded * LANES, *(2 * [-(-oh * ow // 4) * 4 * LANES])
    source, marks = flat(x), mask.view(torch.uint8).view(-1).numpy()
    ties = field.to(torch.float32).numpy(), offsets.numpy()

    def share(first: int, last: int, part: int) -> None:
        totals = sums[0, part].view(-1).numpy(), sums[1, part].view(-1).numpy()
        rank_blocks(source, *sizes, *geometry, NORMS[norm], keep, *ties, first, last, marks, *totals, *scratch(*room))

    _share(samples, share)
    frequency, total = sums.sum(1).permute(0, 3, 1, 2)
    return mask.permute(0, 3, 1, 2), frequency.to(torch.int64), total


def _packed(weight: Tensor, filters: int, lanes: int) -> Tensor:
    """weight[F,C,kh,kw] as [blocks, C, taps, lanes] of `filters` filters, those that F lacks being zeros."""
    weight = weight.detach().contiguous()
    if filters > weight.shape[0]:
        weight = torch.cat([weight, weight.new_zeros(filters - weight.shape[0], *weight.shape[1:])])
    packed = torch.empty(weight.numel())
    pack_weights(weight.view(-1).numpy(), filters, weight[0].numel(), lanes, packed.numpy())
    return packed


def _share(samples: int, share: Callable[[int, int, int], None]) -> None:
    """Call share(first sample, last, number of the share) in as many threads as torch would use."""
    count = threads_for(samples)
    bounds = [samples * part // count for part in range(count + 1)]
    run_shares([partial(share, bounds[part], bounds[part + 1], part) for part in range(count)])
