"""Block scores and the per-sample masks of FFP stage 1 (Algorithm 8, thesis eq. 5.4-5.5; methods.md section 1).

score[n,c,i,j] = || b[n,c,i,j] ||_2 = sqrt( sum_{u,v} x_pad[n,c, i*s+u*d, j*s+v*d]^2 )     (a depthwise box sum)
mask[n,c]      = top K of score[n,c]           freq[c] += sum_n mask[n,c]

Other readings (`Reading`): softmax of a channel's scores before anything else, and the top K of all blocks of the layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from fineprune.ops.geometry import Conv

from . import kernels

Norm = Literal["l2", "l1", "apoz"]
Within = Literal["channel", "layer"]
NORMS: tuple[str, ...] = get_args(Norm)


def block_norms(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], norm: Norm = "l2"
) -> Tensor:
    """Score of every block of x[N,C,H,W] -> [N,C,oh,ow].

    l2 and l1 are norms of the block; apoz counts its non-zeros (the complement of the average percentage of zeros).
    """
    values = {"l2": x.square, "l1": x.abs, "apoz": lambda: (x != 0).to(x.dtype)}[norm]()
    sums = _box_sum(values, kernel, stride, padding, dilation)
    return sums.clamp_min_(0).sqrt_() if norm == "l2" else sums


def top_k_mask(scores: Tensor, keep: int) -> Tensor:
    """True at the `keep` largest of the last axis: scores[..., P] -> bool [..., P], exactly `keep` in every row."""
    size = scores.shape[-1]
    if keep >= size:
        return torch.ones_like(scores, dtype=torch.bool)
    few_kept = keep <= size // 2
    chosen = scores.topk(keep if few_kept else size - keep, dim=-1, largest=few_kept, sorted=False).indices
    return torch.full_like(scores, not few_kept, dtype=torch.bool).scatter_(-1, chosen, few_kept)


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How scores of a sample are ranked."""

    softmax: bool = False
    """Whether those of a channel go through a softmax over its positions first."""
    within: Within = "channel"
    """What the top K are of."""

    def blocks(self, channels: int, positions: int) -> int:
        """How many blocks are ranked together."""
        return positions if self.within == "channel" else channels * positions


PLAIN = Reading()


class Choice(NamedTuple):
    """What stage 1 finds in a batch: mask[N,C,oh,ow] (bool), its sum frequency[C,oh,ow] (int64), the sum of the scores norm[C,oh,ow]."""

    mask: Tensor
    frequency: Tensor
    norm: Tensor


def choose_blocks(
    x: Tensor, kernel: Sequence[int], conv: Conv, norm: Norm, keep: int, ties: "TieBreaker", indices: Tensor, reading: Reading = PLAIN
) -> Choice:
    """The `keep` best blocks of each channel (or of the layer) of every sample of x[N,C,H,W]; indices[N]: its places in the data set."""
    if reading == PLAIN and kernels.cover_rank(x, ties.field):
        return Choice(*kernels.rank(x, kernel, conv, norm, keep, ties.numbers, ties.offsets(indices)))
    return choose(block_norms(x, kernel, conv.stride, conv.padding, conv.dilation, norm), keep, ties, indices, reading)


def choose(scores: Tensor, keep: int, ties: "TieBreaker", indices: Tensor, reading: Reading = PLAIN) -> Choice:
    """The same of scores[N,C,oh,ow], none below 0."""
    flat = scores.flatten(2)
    if reading.softmax:
        flat = flat.softmax(2)
    keys = ties.apply(flat, indices)
    rows = keys if reading.within == "channel" else keys.flatten(1)
    mask = top_k_mask(rows, keep).view_as(scores)
    return Choice(mask, mask.sum(0), flat.view_as(scores).sum(0))


class TieBreaker:
    """Seeded random order among blocks of one layer that score alike (all-zero blocks, flat backgrounds, equal APoZ counts).

    Without it the first positions would win every tie. The order is a pure function of (seed, layer, sample index), so statistics
    do not depend on how samples are batched: one random field per layer, rotated by an offset drawn from the sample's index.
    """

    def __init__(self, size: int, *, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self._size, self._period = size, max(size, 1 << 16)  # a short field would have too few rotations to favour no position
        field = torch.randperm(self._period, generator=generator)
        self.field = torch.cat([field, field[:size]])
        self.numbers = self.field.float()  # for the kernels, as long as they are exact
        self._salt = int(torch.randint(1 << 30, (1,), generator=generator))

    def offsets(self, indices: Tensor) -> Tensor:
        """Where in `field` the numbers of samples begin that have these places in the data set."""
        return (indices * 2654435761 + self._salt) % self._period

    def apply(self, scores: Tensor, indices: Tensor) -> Tensor:
        """int64 keys, all different, that sort as scores[N,C,P] >= 0 do; indices[N] are the samples' places in the data set."""
        # Read as integers, the bits of non-negative floats rise with their value; the lower half then has room for the field.
        keys = scores.float().contiguous().view(torch.int32).long().bitwise_left_shift_(32)
        field = self.field.to(scores.device)
        for row, offset in zip(keys.flatten(1), self.offsets(indices).tolist(), strict=True):
            row |= field[offset : offset + self._size]
        return keys


def _box_sum(x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]) -> Tensor:
    padded = F.pad(x, (padding[1], padding[1], padding[0], padding[0])) if any(padding) else x
    if tuple(kernel) == (1, 1):
        return padded[:, :, :: stride[0], :: stride[1]].clone()
    if tuple(dilation) == (1, 1):
        return F.avg_pool2d(padded, tuple(kernel), tuple(stride), divisor_override=1)
    channels = x.shape[1]
    ones = torch.ones(channels, 1, *kernel, dtype=x.dtype, device=x.device)
    return F.conv2d(padded, ones, None, tuple(stride), 0, tuple(dilation), channels)
