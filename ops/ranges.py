"""Which values of a tensor the 256 numbers of its grid reach; what lies outside is cut off.

    minmax        [min x, max x] over the calibration images
    percentile    [quantile 1 - p, quantile p], p = 0.9999
    mse           [a min x, a max x] with the a of 0.2, 0.21, ..., 1 that makes sum (x - x')^2 least, x' = x on the grid

All of a histogram of 2,048 equal bins, whose centres stand for the values. Zero always belongs to the range. (Nagel et al. 2021, "A white
paper on neural network quantization", section 3.1.)
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fineprune.common.errors import RunError

from .grids import Grid

BINS = 2048
PERCENTILE = 0.9999
_SHARES = np.linspace(0.2, 1, 81)


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """counts[BINS] of a tensor's values in equal bins between `low` and `high`."""

    low: float
    high: float
    counts: NDArray[np.int64]

    @property
    def centres(self) -> NDArray[np.float32]:
        """The middle of each bin."""
        return (self.low + (np.arange(len(self.counts)) + 0.5) * (self.high - self.low) / len(self.counts)).astype(np.float32)


def histograms(passes: Callable[[str], Iterable[Mapping[str, NDArray[np.float32]]]]) -> dict[str, Histogram]:
    """Of named tensors, in two passes over the same values, a batch of each at a time: the ends first, then the bins between them.

    passes: starts a pass, of that description. RunError where values are not finite.
    """
    ends: dict[str, tuple[float, float]] = {}
    for tensors in passes("ranges"):
        for name, x in tensors.items():
            low, high = ends.get(name, (np.inf, -np.inf))
            ends[name] = np.minimum(low, float(x.min())), np.maximum(high, float(x.max()))  # which keep a NaN
    if broken := [name for name, both in ends.items() if not np.isfinite(both).all()]:
        raise RunError(f"{broken[0]} is not finite (NaN or Inf) on the calibration images, so it has no int8 grid; leave int8 out")
    counts = {name: np.zeros(BINS, np.int64) for name in ends}
    for tensors in passes("histograms"):
        for name, x in tensors.items():
            low, high = ends[name]
            counts[name] += np.histogram(x, BINS, (low, high if high > low else low + 1))[0]
    return {name: Histogram(low=low, high=high, counts=counts[name]) for name, (low, high) in ends.items()}


def minmax(histogram: Histogram) -> tuple[float, float]:
    """All values."""
    return histogram.low, histogram.high


def percentile(histogram: Histogram) -> tuple[float, float]:
    """All but one value of ten thousand at either end."""
    reached = np.cumsum(histogram.counts) / max(1, histogram.counts.sum())
    width = (histogram.high - histogram.low) / len(histogram.counts)
    low, high = np.searchsorted(reached, [1 - PERCENTILE, PERCENTILE])
    return histogram.low + float(low) * width, histogram.low + float(high + 1) * width


def mse(histogram: Histogram) -> tuple[float, float]:
    """Both ends drawn in by the share that makes the squared error least: outliers are cut, and the others get a finer grid."""
    x, low, high = histogram.centres, min(histogram.low, 0.0), max(histogram.high, 0.0)

    def error(share: float) -> float:
        grid = Grid.of(share * low, share * high)
        return float((histogram.counts * (x - grid.reals(grid.integers(x))).astype(np.float64) ** 2).sum())

    best = min(_SHARES[::-1], key=error)
    return float(best) * low, float(best) * high


RANGES: Mapping[str, Callable[[Histogram], tuple[float, float]]] = {"minmax": minmax, "percentile": percentile, "mse": mse}
RANGES_DEFAULT = "mse"
