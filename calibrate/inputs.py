"""What single blocks add to a layer's outputs, squared and summed over samples: the output error when one is dropped.

    E[c,p] = sum over samples of sum_f ( sum_{u,v} w[f,c,u,v] * b[c,p,u,v] )^2 = sum over samples of | R_c b[c,p] |^2

R_c is the square root of W_c^T W_c (of its QR decomposition), with no more rows than taps. E streams and adds, and needs no labels.
"""

import torch
from torch import Tensor

from fineprune.ops.geometry import Conv

from .moments import patches


def block_outputs(x: Tensor, weight: Tensor, conv: Conv, positions: int) -> Tensor:
    """E of x[N,C,H,W] with weight[F,C/groups,kh,kw] at all `positions` of the output -> [C,positions] float64 on the CPU."""
    by_channel = weight.flatten(2).unflatten(0, (conv.groups, -1)).transpose(1, 2).flatten(0, 1)  # W_c [F/groups,taps] of every channel
    root = torch.linalg.qr(by_channel, mode="r").R
    columns = patches(x, (weight.shape[2], weight.shape[3]), conv, None, torch.arange(positions, device=x.device))
    columns = columns.view(len(root), root.shape[2], -1)
    return (root @ columns).square_().sum(1).unflatten(1, (len(x), positions)).sum(1).to("cpu", torch.float64)
