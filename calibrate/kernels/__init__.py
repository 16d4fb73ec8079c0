"""Ranking the blocks of each sample with Numba's help (ranking.py): tensors in, tensors out. Numba is imported by the first call."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fineprune.ops import kernels
from fineprune.ops.geometry import Conv

LARGEST_FIELD = 1 << 24
"""Whole numbers below this are exact in float32."""


def cover_rank(x: Tensor, field: Tensor) -> bool:
    """Whether `rank` takes this input and this field of whole numbers."""
    return kernels.suit(x) and len(field) <= LARGEST_FIELD


def rank(
    x: Tensor, kernel: Sequence[int], conv: Conv, norm: str, keep: int, field: Tensor, offsets: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """mask[N,C,oh,ow] (bool) of the `keep` best blocks of each channel of each sample of x[N,C,H,W]; over the samples the sum of the mask
    (int64) and that of the scores (float32). Ties go to the larger field[offsets[n] + c*oh*ow + p]."""
    from fineprune.ops.kernels.backend import flat
    from fineprune.ops.kernels.layout import Map
    from fineprune.ops.kernels.per_sample_backend import share_samples
    from fineprune.ops.kernels.threads import scratch, threads_for
    from fineprune.ops.simd import LANES

    from .ranking import NORMS, rank_blocks

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

    share_samples(samples, share)
    frequency, total = sums.sum(1).permute(0, 3, 1, 2)
    return mask.permute(0, 3, 1, 2), frequency.to(torch.int64), total
