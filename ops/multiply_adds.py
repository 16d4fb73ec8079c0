"""Multiply-adds of a convolution for a sample: sum over input channels c of |M_c| * nnz(W[:,c]), W[:,c] over the filters of c's group."""

from collections.abc import Sequence
from math import prod

import numpy as np
from numpy.typing import NDArray


def per_block(weight_shape: Sequence[int], groups: int) -> int:
    """What one input channel takes at one output position; weight_shape [F, C/groups, ...], one or more axes of the kernel."""
    filters, _, *kernel = weight_shape
    return filters // groups * prod(kernel)


def multiply_adds(
    weight_shape: Sequence[int], positions: int, groups: int, *, blocks: NDArray | None = None, weights: NDArray | None = None
) -> int:
    """What is kept of the convolution with weights [F, C/groups, ...] and so many output positions.

    blocks: [C, ...], nonzero where a channel is kept at a position; weights: of weight_shape, nonzero where a weight is kept. None: all.
    """
    filters, per_group, *_ = weight_shape
    uses = np.full(per_group * groups, positions) if blocks is None else np.count_nonzero(blocks.reshape(len(blocks), -1), axis=1)
    if weights is None:
        return int(uses.sum()) * per_block(weight_shape, groups)
    taps = np.count_nonzero(weights.reshape(groups, filters // groups, per_group, -1), axis=(1, 3)).reshape(-1)
    return int((taps * uses).sum())
