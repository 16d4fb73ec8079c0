"""How long the kernel "positions" takes: a sum of counts times nanoseconds. How it was fitted, and how good it is: docs/notes/kernels.md.

Which taps filters share decides between the dearest counts, so that a sample of the filters is paired as the plan will pair them all.
"""

import numpy as np
from numpy.typing import NDArray

from ..ir.conv import ConvShape
from .positions_plan import BLOCK_LINES, DROPPED, MASKED, MOST_FILTERS, WHOLE, Tiling, channel_lines, channel_states, pairs, tiling
from .positions_simd import LANES

PAIR_NS = {8: 0.240, 7: 0.240, 4: 0.261, 1: 0.350}
"""Two multiply-adds of a vector that two filters share, by vectors of a tile (Zen 5, 512-bit vectors, one thread)."""
SINGLE_NS = {8: 0.307, 7: 0.307, 4: 0.308, 1: 0.420}
"""Two multiply-adds of vectors of their own."""
PACK_NS, PACK_PART_NS, PACK_STEP_NS, JOB_NS = {WHOLE: 0.50, MASKED: 0.35}, 0.46, 0.23, 2.3
"""A packed vector, each further segment of it, each further step between columns, and a run of packed vectors."""
SUM_NS, OUTPUT_NS, OUTPUT_PART_NS = 0.64, 0.77, 0.27
"""A vector of sums stored and loaded again, an output vector (one in two has a residual, 0.47), and each further segment of it."""
ENTRY_BYTES, CACHED_BYTES, BYTE_NS = 6, 1 << 18, 0.025
"""A kept weight with its offset; what of them is taken to lie near from the run before; a byte of the rest, which comes from further away
within a network than in the layers of the fit."""
NEAR_BYTES, ACTIVATION_BYTE_NS = 96 << 10, 0.03
"""What of a layer's input, and of its output, lies near within a network; a byte of the rest."""
FIXED_NS = 100.0


def estimate(shape: ConvShape, weights: NDArray, mask: NDArray | None) -> float:
    """Expected seconds of a run on one thread."""
    kept = weights != 0
    t = tiling(shape, shape.output[1], kept.sum() / shape.filters, mask is not None)
    used = kept.reshape(shape.groups, -1, *kept.shape[1:]).any(1).reshape(shape.channels, *shape.kernel)
    states = channel_states(mask, used.any((1, 2)), t, shape)
    lines = {state: channel_lines(shape, t, used.any(0), state == MASKED) for state in (WHOLE, MASKED)}
    counts = {state: int((states == state).sum()) for state in lines}
    packed = {state: counts[state] * lines[state].count for state in lines}
    every = sum(packed.values())
    jobs = sum(counts[state] * len(lines[state].runs) for state in lines)
    per_channel = kept.reshape(shape.groups, -1, *kept.shape[1:]).sum((1, 3, 4)).reshape(-1)
    entries = float((states != DROPPED).sum(0) @ per_channel)
    shared, single = _per_weight(kept, t, max(1, BLOCK_LINES // max(1, lines[WHOLE].count)))
    blocks = max(1.0, np.ceil(every / t.tiles / shape.groups / BLOCK_LINES))
    outputs, parts = shape.filters * t.tiles * t.vectors, LANES // t.segment
    activations = shape.channels * shape.height * shape.width, shape.filters * shape.output[0] * shape.output[1]
    nanoseconds = (
        FIXED_NS
        + entries * t.vectors * (shared * PAIR_NS[t.vectors] + single * SINGLE_NS[t.vectors])
        + sum(packed[state] * PACK_NS[state] for state in packed)
        + every * ((parts - 1) * PACK_PART_NS + (shape.strides[1] - 1) * PACK_STEP_NS)
        + jobs * JOB_NS
        + outputs * (OUTPUT_NS + (parts - 1) * OUTPUT_PART_NS + (blocks - 1) * SUM_NS)
        + max(0.0, float(kept.sum()) * ENTRY_BYTES - CACHED_BYTES) * BYTE_NS
        + sum(max(0.0, 4.0 * size - NEAR_BYTES) for size in activations) * ACTIVATION_BYTE_NS
    )
    return 1e-9 * nanoseconds


def _per_weight(kept: NDArray, t: Tiling, channels: int) -> tuple[float, float]:
    """(taps that a pair of filters shares, pairs of single taps), each per kept weight, in a sample of filters and channels."""
    sample = kept[:MOST_FILTERS, :channels].reshape(min(len(kept), MOST_FILTERS), -1)
    if not sample.any():
        return 0.0, 0.5
    found = pairs(sample)
    shared = [int(sample[pair].all(0).sum()) if len(pair) == 2 else 0 for pair in found]
    longest = [int(sample[pair].sum(1).max()) for pair in found]
    return sum(shared) / sample.sum(), (sum(longest) - sum(shared)) / sample.sum()
