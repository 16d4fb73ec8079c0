"""Eight-bit grids as the engine computes on them: real number = scale * (q - zero).

Activations are uint8 within the engine. A file's int8 ones are the same numbers with q and zero 128 higher.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SIGNED = 128
"""What is added to an int8 number, and its zero point, to make it a uint8 one."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Of a tensor of uint8."""

    scale: np.float32
    zero: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Integers:
    """A constant that a file holds as integers: real numbers values * scales along `axis` (one scale: of all); zero points are subtracted
    already. values: int64 [...], scales: float32 [n] or [1]."""

    values: NDArray[np.int64]
    scales: NDArray[np.float32]
    axis: int = 0
