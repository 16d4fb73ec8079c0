"""Which input channels of a convolution its weight mask keeps and drops together."""

import numpy as np
from numpy.typing import NDArray


def alike(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """int64 [C]: channels of mask[F,C,...] with the same number are masked alike, at every tap of every filter."""
    columns = np.packbits(mask.swapaxes(0, 1).reshape(mask.shape[1], -1), axis=1)
    return np.unique(columns, axis=0, return_inverse=True)[1].reshape(-1)


def aligned_order(mask: NDArray[np.bool_], size: int) -> NDArray[np.int64] | None:
    """An order int64 [C] of the channels of mask[F,C,...] in which every `size` that follow each other are masked alike, or None.

    Where `size` does not divide C, the last ones are fewer.
    """
    of = alike(mask)
    whole, rest = [], []
    for kind in dict.fromkeys(of.tolist()):
        channels = np.flatnonzero(of == kind)
        split = len(channels) // size * size
        whole.extend(channels[:split].reshape(-1, size).tolist())
        rest.append(channels[split:].tolist())
    left = [channels for channels in rest if channels]
    if len(left) > (len(of) % size > 0):
        return None
    return np.array([channel for group in sorted(whole) + left for channel in group], np.int64)


def grouped_order(mask: NDArray[np.bool_], size: int) -> NDArray[np.int64]:
    """An order int64 [C] of the channels of mask[F,C,...] in which groups of `size` that follow each other keep little together.

    Greedily: each group begins with the channel that keeps most of those left, and takes those that add least to it. Where groups of
    channels are masked alike, they are found.
    """
    columns = mask.swapaxes(0, 1).reshape(mask.shape[1], -1).astype(np.float32)
    sizes, free, order = columns.sum(1), np.ones(len(columns), bool), list[int]()
    for start in range(0, len(columns), size):
        group, union = list[int](), np.zeros(columns.shape[1], np.float32)
        for _ in range(min(size, len(columns) - start)):
            adds = sizes - columns @ union if group else -sizes
            best = int(np.argmin(np.where(free, adds, np.inf)))
            free[best] = False
            group.append(best)
            np.maximum(union, columns[best], out=union)
        order += sorted(group)
    return np.array(order, np.int64)
