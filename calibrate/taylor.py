"""First-order (Taylor) scores of blocks and of weights (methods.md section 1b).

Dropping block (c,n) changes the loss of sample d, to first order, by the inner product of the block's contribution with
the gradient g[d,f,n] = d loss_d / d y[d,f,n]:

    t[d,c,n]     = sum_{u,v} b[d,c,n,u,v] * sum_f w[f,c,u,v] * g[d,f,n]          T[c,n]     = sum_d t[d,c,n]^2

and dropping the tap (u,v) of channel c for a set F' of filters, the FFP masks M being on, by

    t[d,F',c,u,v] = sum_{f in F'} w[f,c,u,v] * sum_n g[d,f,n] M[c,n] b[d,c,n,u,v]  T[F',c,u,v] = sum_d t[d,F',c,u,v]^2

Both are sums over samples: they stream and add.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fineprune.ops.masked_conv_torch import masked_patches, weight_matrix

Geometry = tuple[Sequence[int], Sequence[int], Sequence[int]]
"""(stride, padding, dilation), each (vertical, horizontal)."""


def block_taylor(x: Tensor, grad: Tensor, weight: Tensor, geometry: Geometry, groups: int) -> Tensor:
    """T summed over the samples of x[N,C,H,W] with grad[N,F,oh,ow] and weight[F,C/groups,kh,kw] -> [C,oh,ow] float64 on the CPU."""
    oh, ow = grad.shape[2:]
    per_group = weight.shape[1]
    total = torch.zeros(groups, oh * ow, per_group, dtype=torch.float64)
    for changes in _block_changes(x, grad, weight, geometry, groups):
        total += changes.square().sum(1).to("cpu", torch.float64)
    return total.permute(0, 2, 1).reshape(groups * per_group, oh, ow)


def block_changes(x: Tensor, grad: Tensor, weight: Tensor, geometry: Geometry, groups: int) -> Tensor:
    """t of every sample [N,C,oh,ow], of the same."""
    parts = list(_block_changes(x, grad, weight, geometry, groups))
    return torch.cat(parts, 1).permute(1, 0, 3, 2).reshape(len(x), -1, *grad.shape[2:])


def _block_changes(x: Tensor, grad: Tensor, weight: Tensor, geometry: Geometry, groups: int) -> Iterator[Tensor]:
    """t [groups,n,oh*ow,C/groups] of some samples after the other."""
    positions = grad.shape[2] * grad.shape[3]
    kernel, per_group = weight.shape[2:], weight.shape[1]
    transposed = weight_matrix(weight, groups).transpose(1, 2).contiguous()
    grad_nhwc = _grad_nhwc(grad, groups)
    for rows, patches in masked_patches(x, None, kernel, geometry, groups):
        pulled_back = torch.bmm(grad_nhwc[rows].flatten(0, 2).transpose(0, 1), transposed)
        yield patches.mul_(pulled_back).unflatten(2, (-1, per_group)).sum(2).unflatten(1, (-1, positions))


_PRODUCT_BYTES = 32 << 20
"""Per-sample weight gradients formed at a time: as large as the weights each, 10 MB in a wide layer."""


class TapTaylor(NamedTuple):
    """T of weights, float64 on the CPU: of one filter [F,C/g,kh,kw], of a group of filters [Q,C/g,kh,kw], of all filters [C,kh,kw]."""

    kernel: Tensor
    group: Tensor
    channel: Tensor


def tap_taylor(
    x: Tensor, grad: Tensor, weight: Tensor, mask: Tensor | None, geometry: Geometry, groups: int, assignment: Tensor
) -> TapTaylor:
    """T of every tap under the FFP mask (bool [C,oh,ow] or None), summed over the samples of x.

    assignment[F] (int64, in range(Q)) names each filter's group of filters; every convolution group has Q/groups of them, numbered
    in the order of the convolution groups (as `group_filters` does).
    """
    filters, per_group, *kernel = weight.shape
    taps, positions = kernel[0] * kernel[1], grad.shape[2] * grad.shape[3]
    matrix = weight_matrix(weight, groups)
    grad_nhwc = _grad_nhwc(grad, groups)
    # Numbered within its convolution group: a depthwise layer has as many groups of filters as channels, each of one.
    numbers = assignment.view(groups, filters // groups)
    members = torch.nn.functional.one_hot(numbers - numbers.amin(1, keepdim=True)).to(weight.device, weight.dtype)
    by_kernel = torch.zeros(matrix.shape, dtype=torch.float64)
    by_channel = torch.zeros(matrix.shape[:2], dtype=torch.float64)
    by_group = torch.zeros(*matrix.shape[:2], members.shape[2], dtype=torch.float64)
    at_once = max(1, _PRODUCT_BYTES // (matrix.numel() * matrix.element_size()))
    for rows, patches in masked_patches(x, mask, kernel, geometry, groups):
        outer = grad_nhwc[rows].flatten(1, 2).permute(2, 0, 1, 3)
        features = patches.unflatten(1, (-1, positions)).transpose(2, 3)
        for some, gradients in zip(features.split(at_once, dim=1), outer.split(at_once, dim=1), strict=True):
            per_sample = torch.matmul(some, gradients)
            per_sample *= matrix[:, None]
            by_kernel += per_sample.square().sum(1).to("cpu", torch.float64)
            by_channel += per_sample.sum(3).square().sum(1).to("cpu", torch.float64)
            by_group += torch.matmul(per_sample, members[:, None]).square().sum(1).to("cpu", torch.float64)

    def unflatten(scores: Tensor) -> Tensor:
        return scores.unflatten(1, (*kernel, per_group))

    return TapTaylor(
        kernel=unflatten(by_kernel).permute(0, 4, 3, 1, 2).flatten(0, 1).contiguous(),
        group=unflatten(by_group).permute(0, 4, 3, 1, 2).flatten(0, 1).contiguous(),
        channel=by_channel.unflatten(1, (taps, per_group)).permute(0, 2, 1).reshape(-1, *kernel).contiguous(),
    )


def _grad_nhwc(grad: Tensor, groups: int) -> Tensor:
    return grad.permute(0, 2, 3, 1).contiguous().unflatten(3, (groups, -1))
