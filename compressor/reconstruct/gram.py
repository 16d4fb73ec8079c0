"""What a refit has to know of a layer's inputs and outputs, summed over the samples: H = X~ X~^T and G = X~ Y^T (see `refit`).

    X~[(c,u,v), (n,p)] = M[c,p] * b[n,c,p,u,v],    Y[f, (n,p)] = y[n,f,p]

b are the patches of the padded input and M the block mask. Block masks are alike for all filters, so that one matrix serves them all; a
grouped layer has one for each group. A layer with a bias has a last row of ones, of which the bias is the weight.
"""

from itertools import product

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fineprune.calibrate.layers import block_mask_of
from fineprune.common.processes import Group
from fineprune.ops.geometry import Conv
from fineprune.ops.masked_conv import explicit_padding


def patches(conv: nn.Conv2d, x: Tensor, positions: Tensor) -> Tensor:
    """X~ [groups, d, N*Q] of inputs x[N,C,H,W] at `positions`, int64 [Q] of the oh*ow of the output; d counts the bias."""
    x, padding = explicit_padding(conv, x)
    x = F.pad(x, (padding[1], padding[1], padding[0], padding[0]))
    (kh, kw), channels, samples, width = conv.kernel_size, x.shape[1], len(x), x.shape[3]
    _, ow = Conv.of(conv.stride, (0, 0), conv.dilation, conv.groups).output(x.shape[2:], (kh, kw))
    corners = positions // ow * (conv.stride[0] * width) + positions % ow * conv.stride[1]
    mask = block_mask_of(conv)
    kept = None if mask is None else mask.flatten(1)[:, positions].to(x.dtype)[:, None]
    rows = channels // conv.groups * kh * kw
    columns = x.new_ones(conv.groups, rows + (conv.bias is not None), samples * len(positions))
    by_tap = columns[:, :rows].view(conv.groups, channels // conv.groups, kh * kw, samples, len(positions))
    planes = x.transpose(0, 1).flatten(2)
    for tap, (u, v) in enumerate(product(range(kh), range(kw))):
        values = planes.index_select(2, corners + u * conv.dilation[0] * width + v * conv.dilation[1])
        by_tap[:, :, tap] = (values if kept is None else values * kept).view(by_tap[:, :, tap].shape)
    return columns


def outputs_at(conv: nn.Conv2d, y: Tensor, positions: Tensor) -> Tensor:
    """Y [groups, F/groups, N*Q] of outputs y[N,F,oh,ow]."""
    return y.flatten(2).index_select(2, positions).transpose(0, 1).reshape(conv.groups, -1, len(y) * len(positions))


class Gram:
    """H [groups,d,d] and G [groups,d,F/groups]: products of a batch in float32, sums in float64 on the CPU."""

    def __init__(self, conv: nn.Conv2d) -> None:
        inputs = conv.weight[0].numel() + (conv.bias is not None)
        self.inputs = torch.zeros(conv.groups, inputs, inputs, dtype=torch.float64)
        self.products = torch.zeros(conv.groups, inputs, conv.out_channels // conv.groups, dtype=torch.float64)

    def add(self, columns: Tensor, wanted: Tensor) -> None:
        """X~ [groups,d,n] and Y [groups,F/groups,n] of one batch."""
        self.products += (columns @ wanted.transpose(1, 2)).cpu()
        if columns.is_cuda:
            self.inputs += (columns @ columns.transpose(1, 2)).cpu()
            return
        for total, group in zip(self.inputs, columns.numpy(), strict=True):
            total += torch.from_numpy(group @ group.T)  # numpy knows that this is symmetric: half the work

    def total(self, group: Group) -> "Gram":
        """The sums of all processes."""
        self.inputs, self.products = group.total(self.inputs), group.total(self.products)
        return self
