"""The masked convolution of float32 on the CPU: Numba kernels (README.md).

Numba is imported by the first convolution that needs it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..geometry import Conv

SMALLEST_BATCH = 24
"""The kernels of a shared mask work on 64 or 128 samples at a time; below this, most of the lanes would idle."""


def cover(x: Tensor, weight: Sequence[int], mask: Tensor, conv: Conv) -> bool:
    """Whether the kernels take this convolution and its gradients, by a tensor of its batch and the shape [F,C/groups,kh,kw]
    of its weight."""
    return suit(x) and mask.dim() == 3 and _dense_taps(weight, conv) and x.shape[0] >= SMALLEST_BATCH


def cover_forward(x: Tensor, weight: Sequence[int], mask: Tensor, conv: Conv) -> bool:
    """Whether the kernels take this convolution, of which no gradient may be wanted."""
    return cover(x, weight, mask, conv) or (suit(x) and mask.dim() == 4 and _dense_taps(weight, conv))


def suit(x: Tensor) -> bool:
    """Whether the kernels take a tensor at all."""
    return x.device.type == "cpu" and x.dtype == torch.float32


def _dense_taps(weight: Sequence[int], conv: Conv) -> bool:
    return conv.groups == 1 and weight[1] > 1 and tuple(weight[2:]) != (1, 1)


def forward(x: Tensor, weight: Tensor, mask: Tensor, weight_mask: Tensor | None, conv: Conv) -> Tensor:
    """y[N,F,oh,ow], channels last, of x[N,C,H,W] and weight[F,C,kh,kw] under mask[C,oh,ow] or [N,C,oh,ow]."""
    if mask.dim() == 4:
        from . import per_sample_backend

        return per_sample_backend.forward(x, weight, mask, conv)
    from .backend import forward

    return forward(x, weight, mask, weight_mask, conv)


def backward(
    grad: Tensor, x: Tensor, weight: Tensor, mask: Tensor, weight_mask: Tensor | None, conv: Conv, wanted: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients in x[N,C,H,W], channels last, and in weight[F,C,kh,kw], zero where weight_mask is False; None where not wanted."""
    from .backend import backward

    return backward(grad, x, weight, mask, weight_mask, conv, wanted)
