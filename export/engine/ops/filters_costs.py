"""What the parts of the kernel "filters" cost, in cycles; measured on one core of a Zen 5 with AVX-512."""

from numpy.typing import NDArray

from .filters_run import DEPTHWISE
from .filters_simd import REGISTERS

PER_ENTRY = {DEPTHWISE: 0.85, **({1: 0.65, 2: 1.0, 4: 2.05} if REGISTERS >= 32 else {1: 1.05, 2: 2.25})}
"""An entry at a slot of a whole tile, by the vectors of the panel; for CPUs with fewer registers measured with AVX2 on the same."""
PER_KEPT = {1: 1.1, 2: 1.2, 4: 2.15} if REGISTERS >= 32 else {1: 1.4, 2: 2.5}
"""An entry at a slot, by the vectors of the panel, in a tile in which some slots drop it; for CPUs with fewer registers
guessed, not measured."""
PER_PLACE = 0.3
"""Loading a place of a slot in such a tile, once for the taps of a channel."""
PER_RESULT, PER_WEIGHT = 2.0, 0.25
"""A vector of results; a weight that comes from memory: 0.15 for the layer itself, the rest for what it drives out of the caches."""
PER_PASS, PER_LIST = 36.0, 20.0
"""A pass of a channel; the pass of all slots, or its part for a tile."""
PER_DEPTHWISE_RESULT, PER_DEPTHWISE_LINE, PER_DEPTHWISE_MASK = 1.0, 1.5, 1.0
"""Of depthwise convolutions: a vector of results, beyond PER_RESULT; a vector of x; a vector of results under a mask."""
PER_SCATTERED = 38.0
"""A vector of x that comes from beyond the second-level cache, where masks scatter the positions of a tile and 1x1 kernels of few
filters give no time to wait for it."""
LISTED = 1.1
"""An entry at a slot of a list, whose last tiles may be smaller, against one of a whole tile."""
PER_SUM, PER_SUM_VECTOR = 2.5, 0.6
"""Loading and storing the sums of a slot, and each of its vectors."""


def left_over_cycles(vectors: int, taps: NDArray) -> NDArray:
    """Channels with so many taps at a slot, in passes of their own."""
    return taps * LISTED * PER_ENTRY[vectors] + PER_SUM + PER_SUM_VECTOR * vectors
