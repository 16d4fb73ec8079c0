"""The integers that stand for real numbers.

    activations   x = s (q - z)     q = clip(round(x / s) + z, 0, 255)    s = (high - low) / 255, z = round(-low / s), for a tensor
    weights       w = s_f q         q = round(w / s_f), |q| <= 64         s_f = max |w_f| / 64, for a filter
    bias          b = s s_f q       q = round(b / (s s_f)), int32         so that it joins the sum of products of the two above

Round is half to even, as ONNX's QuantizeLinear rounds (Jacob et al. 2018, "Quantization and training of neural networks for efficient
integer-arithmetic-only inference", eq. 1). Zero is always a number of the grid: margins, dropped blocks and dropped weights stay exactly
zero. Weights go to 64, not 127: two products, at most 2 * 255 * 64 = 32,640, fit sixteen bits, and x86 CPUs that add pairs in sixteen bits
give the integers of all others.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LARGEST_ACTIVATION = 255
LARGEST_WEIGHT = 64
_LARGEST_BIAS = 2.0**30
"""Half of int32's range: the rest is left to the sum of products."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Scale and zero point of a tensor of activations."""

    scale: np.float32
    zero_point: np.uint8

    @classmethod
    def of(cls, low: float, high: float) -> "Grid":
        """The grid of the values between `low` and `high`, and of zero."""
        low, high = min(float(low), 0.0), max(float(high), 0.0)
        scale = np.float32((high - low) / LARGEST_ACTIVATION)
        if not scale > 0:  # all zeros, or too small for a float
            return cls(scale=np.float32(1), zero_point=np.uint8(0))
        return cls(scale=scale, zero_point=np.uint8(np.clip(np.rint(-low / scale), 0, LARGEST_ACTIVATION)))

    def integers(self, x: NDArray[np.float32]) -> NDArray[np.uint8]:
        """QuantizeLinear."""
        return np.clip(np.rint(x / self.scale) + self.zero_point, 0, LARGEST_ACTIVATION).astype(np.uint8)

    def reals(self, q: NDArray[np.uint8]) -> NDArray[np.float32]:
        """DequantizeLinear."""
        return (q.astype(np.int32) - self.zero_point).astype(np.float32) * self.scale


def weight_scales(weights: NDArray[np.float32], bias: NDArray[np.float32] | None, scale: np.float32) -> NDArray[np.float32]:
    """s_f[F] of weights[F,...] behind activations of `scale`; larger where the bias would not fit otherwise (a filter of zeros)."""
    scales = np.abs(weights.reshape(len(weights), -1)).max(1, initial=0) / LARGEST_WEIGHT
    if bias is not None:
        scales = np.maximum(scales, np.abs(bias) / (np.float64(scale) * _LARGEST_BIAS))
    scales = scales.astype(np.float32)
    return np.where(scales > np.finfo(np.float32).tiny, scales, np.float32(1))


def integer_weights(weights: NDArray[np.float32], scales: NDArray[np.float32]) -> NDArray[np.int8]:
    """q of weights[F,...]: zeros stay zeros."""
    spread = scales.reshape(-1, *[1] * (weights.ndim - 1))
    return np.clip(np.rint(weights / spread), -LARGEST_WEIGHT, LARGEST_WEIGHT).astype(np.int8)


def integer_bias(bias: NDArray[np.float32], scales: NDArray[np.float32]) -> NDArray[np.int32]:
    """q of bias[F] for scales[F], which are s s_f."""
    return np.clip(np.rint(bias / scales.astype(np.float64)), -(2.0**31), 2.0**31 - 1).astype(np.int32)
