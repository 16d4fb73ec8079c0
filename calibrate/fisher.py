"""Block-diagonal empirical Fisher matrices of weights (Singh and Alistarh, arXiv 2004.14340; Kurtic et al., arXiv 2203.07259).

    F_B = sum over mini-batches of g_B g_B^T,        g_B = gradient of the summed loss of MINI_BATCH samples in the weights of block B

The sources keep F^-1 and update it gradient by gradient (Woodbury); the sum itself is as large, and sums stream, add and resume. Who
inverts it adds the dampening. A block is consecutive weights of one filter in the order (c // 4, u, v, c % 4), so that the four channels
of a quad are in one block; what is missing to whole quads and blocks is filled with zeros.
"""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from fineprune.ops import masked_conv_torch
from fineprune.ops.geometry import Conv

from .convolutions import ConvSite

MINI_BATCH = 16
"""Samples of one gradient."""
BLOCK = 50
"""Weights of a block, at most."""
MEMORY = 512 << 20
"""Bytes that the matrices of a network may take: blocks of more weights than that allows are made smaller, down to a quad."""


def block_limit(sites: Iterable[ConvSite]) -> int:
    """The largest number of weights of a block."""
    weights = sum(site.out_channels * site.in_channels // site.groups * site.taps for site in sites)
    return max(4, min(BLOCK, MEMORY // (8 * max(1, weights))))


def to_blocks(values: Tensor, limit: int) -> Tensor:
    """Values of weights [...,C,kh,kw] as blocks of equal size [...,blocks,size], size <= limit where that holds a quad."""
    channels, *kernel = values.shape[-3:]
    quad, quads, blocks, size = _layout(channels, kernel, limit)
    padded = F.pad(values, (0, 0, 0, 0, 0, -channels % quad))
    rows = padded.unflatten(-3, (-1, quad)).movedim(-3, -1).flatten(-4)
    return F.pad(rows, (0, blocks * size - quads * quad)).unflatten(-1, (blocks, size))


def from_blocks(blocks: Tensor, channels: int, kernel: tuple[int, int]) -> Tensor:
    """The inverse of `to_blocks`: [...,blocks,size] -> [...,C,kh,kw]."""
    quad = min(4, channels)
    rows = blocks.flatten(-2)[..., : -(-channels // quad) * quad * kernel[0] * kernel[1]]
    return rows.unflatten(-1, (-1, *kernel, quad)).movedim(-1, -3).flatten(-4, -3)[..., :channels, :, :]


def _layout(channels: int, kernel: Iterable[int], limit: int) -> tuple[int, int, int, int]:
    """Channels of a quad, quads of a filter, blocks of a filter, weights of a block."""
    quad = min(4, channels)
    quads = -(-channels // quad)
    for extent in kernel:
        quads *= extent
    blocks = -(-quads // max(1, limit // quad))
    return quad, quads, blocks, -(-quads // blocks) * quad


def fisher_shape(site: ConvSite, limit: int) -> tuple[int, int, int, int]:
    """The shape [F,blocks,size,size] of a layer's matrices."""
    _, _, blocks, size = _layout(site.in_channels // site.groups, site.kernel, limit)
    return site.out_channels, blocks, size, size


def fisher_blocks(x: Tensor, grad: Tensor, weight: Tensor, masks: tuple[Tensor | None, Tensor | None], conv: Conv, limit: int) -> Tensor:
    """The sum over the mini-batches of x[N,C,H,W] with grad[N,F,oh,ow] -> [F,blocks,size,size] float64 on the CPU.

    masks: of blocks bool [C,oh,ow] and of weights [F,C/groups,kh,kw], or None; weights that are dropped have no gradient.
    """
    of_blocks, of_weights = masks
    gradients = []
    for some, output in zip(x.split(MINI_BATCH), grad.contiguous().split(MINI_BATCH), strict=True):
        if of_blocks is None:
            gradient = masked_conv_torch.dense_weight_grad(output, some, conv, weight.shape)
        else:
            gradient = masked_conv_torch.weight_grad(output, some, of_blocks, conv, weight.shape[2:])
        gradients.append(gradient if of_weights is None else gradient * of_weights)
    columns = to_blocks(torch.stack(gradients, -1).movedim(-1, 0), limit).movedim(0, -1).to("cpu", torch.float64)
    return columns @ columns.transpose(-1, -2)
