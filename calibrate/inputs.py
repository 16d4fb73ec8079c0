"""What a layer's output error depends on, summed over samples: products of its input patches, and the outputs of single blocks.

    H[(u,v,c),(u',v',c')] = sum over samples, positions of M[c,p] b[c,p,u,v] * M[c',p] b[c',p,u',v'],   c, c' of one group
    E[c,p]                = sum over samples of sum_f ( sum_{u,v} w[f,c,u,v] * b[c,p,u,v] )^2

H is the Hessian of half the squared error of one filter's output in its weights. E is that of all filters when block (c,p) is dropped:
tr(W_c^T W_c E[b b^T]), without a matrix for each position. Both are sums over samples: they stream and add, and need no labels.
"""

import torch
from torch import Tensor

from fineprune.ops.masked_conv_torch import masked_patches

from .taylor import Geometry


def input_products(x: Tensor, mask: Tensor | None, kernel: tuple[int, int], geometry: Geometry, groups: int) -> Tensor:
    """H of x[N,C,H,W] under a block mask (bool [C,oh,ow] or None) -> [groups,d,d] float64 on the CPU, d = kh*kw*C/groups."""
    size = kernel[0] * kernel[1] * x.shape[1] // groups
    total = torch.zeros(groups, size, size, dtype=torch.float64)
    for _, patches in masked_patches(x, mask, kernel, geometry, groups):
        total += torch.bmm(patches.transpose(1, 2), patches).to("cpu", torch.float64)
    return total


def block_outputs(x: Tensor, weight: Tensor, geometry: Geometry, groups: int, size: tuple[int, int]) -> Tensor:
    """E of x[N,C,H,W] with weight[F,C/groups,kh,kw] and outputs of oh x ow (size) -> [C,oh,ow] float64 on the CPU."""
    per_group, kernel = weight.shape[1], (weight.shape[2], weight.shape[3])
    taps = kernel[0] * kernel[1]
    by_channel = weight.view(groups, -1, per_group, taps).transpose(1, 2)  # W_c [F/groups,taps] of every channel
    squares = by_channel.transpose(2, 3) @ by_channel
    total = torch.zeros(groups, size[0] * size[1], per_group, dtype=torch.float64)
    for _, patches in masked_patches(x, None, kernel, geometry, groups):
        blocks = patches.unflatten(2, (taps, per_group)).permute(0, 3, 1, 2)  # [groups,C/groups,samples*positions,taps]
        error = torch.einsum("gcnt,gcnt->gnc", blocks @ squares, blocks)
        total += error.unflatten(1, (-1, size[0] * size[1])).sum(1).to("cpu", torch.float64)
    return total.permute(0, 2, 1).reshape(groups * per_group, *size)
