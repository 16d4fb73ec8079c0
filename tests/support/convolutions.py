"""A masked convolution of one sample with what follows it, and what the naive loop makes of it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fineprune.export.engine.ir.conv import ConvShape
from support import reference


@dataclass
class Problem:
    shape: ConvShape
    x: NDArray
    weights: NDArray
    mask: NDArray | None
    bias: NDArray
    residual: NDArray | None
    low: float
    high: float

    def expected(self) -> NDArray:
        s = self.shape
        y = reference.masked_conv2d(self.x[None], self.weights, self.bias, self.mask, s.strides, s.pads, s.dilations, s.groups)[0]
        return np.clip(y if self.residual is None else y + self.residual, self.low, self.high)
