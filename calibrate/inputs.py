"""What single blocks add to a layer's outputs, squared and summed over samples: the output error when one is dropped.

    E[c,p] = sum over samples of sum_f ( sum_{u,v} w[f,c,u,v] * b[c,p,u,v] )^2 = tr( W_c^T W_c E[b b^T] )

It streams and adds, and needs no labels.
"""

import torch
from torch import Tensor

from fineprune.ops.masked_conv_torch import masked_patches

from .taylor import Geometry


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
