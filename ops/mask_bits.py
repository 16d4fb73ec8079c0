"""Masks as bits, row-major, a bit an element, padded with zeros to whole bytes.

Element 8*b + k is bit k of byte b, 0 the least significant: so in ONNX files and in the engine. The bundles' masks.safetensors count from
the most significant bit, numpy's habit, which their format keeps.
"""

from collections.abc import Sequence
from math import prod
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Order = Literal["little", "big"]
BUNDLE: Order = "big"


def size(elements: int) -> int:
    """Bytes of so many elements."""
    return -(-elements // 8)


def pack(mask: NDArray, order: Order = "little") -> NDArray[np.uint8]:
    """uint8 [size(elements)]; nonzero elements are kept."""
    return np.packbits(np.asarray(mask, bool).reshape(-1), bitorder=order)


def unpack(bits: NDArray, shape: Sequence[int], order: Order = "little") -> NDArray[np.bool_]:
    """bool of `shape`: the inverse of `pack`."""
    return np.unpackbits(np.asarray(bits, np.uint8), count=prod(shape), bitorder=order).astype(bool).reshape(tuple(shape))
