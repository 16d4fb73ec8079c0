"""Feature-aware weight importance (Algorithm 9, thesis eq. 5.8-5.9; methods.md section 2) and groups of similar filters.

    S[c,u,v] = sum over data d and positions n of M[c,n] * b[d,c,n,u,v]       WIS[f,c,u,v] = w[f,c,u,v] * S[c,u,v]

WIS factorises, so one small sum per layer serves every filter. The magnitude form sums |M*b|.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from fineprune.ops.geometry import output_size


def tap_sums(
    input_sum: Tensor, mask: Tensor | None, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> Tensor:
    """S[C,kh,kw] from the sum over data of the layer's input (or of its magnitude) [C,H,W] and the FFP mask bool [C,oh,ow] or None."""
    padded = F.pad(input_sum, (padding[1], padding[1], padding[0], padding[0]))
    oh, ow = output_size(input_sum.shape[1:], kernel, stride, padding, dilation)
    weight = torch.ones((), dtype=padded.dtype) if mask is None else mask.to(padded.device, padded.dtype)
    sums = padded.new_zeros(padded.shape[0], *kernel)
    for u in range(kernel[0]):
        for v in range(kernel[1]):
            rows = slice(u * dilation[0], u * dilation[0] + (oh - 1) * stride[0] + 1, stride[0])
            columns = slice(v * dilation[1], v * dilation[1] + (ow - 1) * stride[1] + 1, stride[1])
            sums[:, u, v] = (padded[:, rows, columns] * weight).sum((1, 2))
    return sums


def group_filters(weight: Tensor, lanes: int, groups: int = 1) -> Tensor:
    """Assign filters to groups of at most `lanes` so that similar ones meet: weight[F,C/groups,kh,kw] -> int64 [F] in range(Q).

    Greedy: the first free filter and the free ones of nearest magnitude pattern (cosine of |w|) form a group. A group never
    crosses a convolution group, since filters of different groups read different channels.
    """
    per_group = weight.shape[0] // groups
    pattern = F.normalize(weight.detach().abs().double().flatten(1).cpu(), dim=1)
    assignment = torch.empty(weight.shape[0], dtype=torch.int64)
    count = 0
    for start in range(0, weight.shape[0], per_group):
        similarity = pattern[start : start + per_group] @ pattern[start : start + per_group].T
        free = torch.ones(per_group, dtype=torch.bool)
        while free.any():
            first = int(free.nonzero()[0])
            order = similarity[first].masked_fill(~free, -1).argsort(descending=True, stable=True)
            chosen = order[: min(lanes, int(free.sum()))]
            assignment[start + chosen] = count
            free[chosen] = False
            count += 1
    return assignment
