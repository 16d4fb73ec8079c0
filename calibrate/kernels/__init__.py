"""The masked convolution of batches of float32 on the CPU: Numba kernels with the samples of a batch in the SIMD lanes (README.md).

Numba is imported by the first convolution that needs it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..geometry import Conv

SMALLEST_BATCH = 24
"""The kernels work on 64 or 128 samples at a time; below this, most of the lanes would idle."""


def cover(x: Tensor, weight: Sequence[int], mask: Tensor, conv: Conv) -> bool:
    """Whether the kernels take this convolution, by a tensor of its batch and the shape [F,C/groups,kh,kw] of its weight."""
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and mask.dim() == 3
        and conv.groups == 1
        and weight[1] > 1
        and tuple(weight[2:]) != (1, 1)
        and x.shape[0] >= SMALLEST_BATCH
    )


def forward(x: Tensor, weight: Tensor, mask: Tensor, weight_mask: Tensor | None, conv: Conv) -> Tensor:
    """y[N,F,oh,ow], channels last, of x[N,C,H,W] and weight[F,C,kh,kw] under mask[C,oh,ow]."""
    from .backend import forward

    return forward(x, weight, mask, weight_mask, conv)


def input_grad(grad: Tensor, weight: Tensor, mask: Tensor, weight_mask: Tensor | None, conv: Conv, size: Sequence[int]) -> Tensor:
    """Gradient in x[N,C,*size], channels last, from that in y."""
    from .backend import input_grad

    return input_grad(grad, weight, mask, weight_mask, conv, size)


def weight_grad(grad: Tensor, x: Tensor, mask: Tensor, weight_mask: Tensor | None, conv: Conv, kernel: Sequence[int]) -> Tensor:
    """Gradient in weight[F,C,*kernel] from that in y; zero where weight_mask is False."""
    from .backend import weight_grad

    return weight_grad(grad, x, mask, weight_mask, conv, kernel)
