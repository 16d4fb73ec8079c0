"""How far an accuracy that was measured on n samples may be from that on all there could be (Wilson, 1927).

(p + z^2/2n  +-  z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)        z = 1.96 for 95 %
"""

from collections.abc import Mapping
from math import sqrt
from typing import Any

Z = 1.959964


def wilson(share: float, samples: int) -> tuple[float, float]:
    """The two ends, from 0 to 1, of the interval that holds the true share in 95 % of such measurements. samples: at least 1."""
    square = Z * Z / samples
    middle, half = share + square / 2, Z * sqrt(share * (1 - share) / samples + square / (4 * samples))
    return max((middle - half) / (1 + square), 0.0), min((middle + half) / (1 + square), 1.0)


def interval(accuracy: Mapping[str, Any], value: float) -> tuple[float, float] | None:
    """Of `value`, one of the accuracies in a manifest or of an int8 file; None where it is no share of samples that are right, which a
    user's metric need not be, or where nobody counted them."""
    counted = "unit" not in accuracy and accuracy["samples"] and 0 <= value <= 1
    return wilson(value, accuracy["samples"]) if counted else None


def between(ends: tuple[float, float] | None) -> str:
    """In per cent, empty for None."""
    return f"{100 * ends[0]:.1f} - {100 * ends[1]:.1f}%" if ends else ""
