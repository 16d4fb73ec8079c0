"""How often the kernel "positions" does what costs time (../ir/costs.py). How good the sum is: docs/notes/kernels.md.

Which taps filters share decides between the dearest counts, so that a sample of the filters is paired as the plan will pair them all.
"""

import numpy as np
from numpy.typing import NDArray

from fineprune.ops.simd import LANES
from fineprune.ops.simd.registers import CACHES

from ..ir.conv import ConvShape
from ..ir.costs import Counts
from .positions_plan import BLOCK_LINES, DROPPED, MASKED, MOST_FILTERS, WHOLE, Tiling, channel_lines, channel_states, pairs

ENTRY_BYTES, CACHED_BYTES = 6, CACHES.second // 4
"""A kept weight with its offset; what of them is taken to lie near from the run before: the rest comes from further away within a network
than where a layer is measured by itself."""
NEAR_BYTES = 2 * CACHES.first
"""What of a layer's input, and of its output, lies near within a network."""


def counts(shape: ConvShape, weights: NDArray, mask: NDArray | None, t: Tiling) -> Counts:
    """What a run comes to, on one thread."""
    kept = weights != 0
    used = kept.reshape(shape.groups, -1, *kept.shape[1:]).any(1).reshape(shape.channels, *shape.kernel)
    states = channel_states(mask, used.any((1, 2)), t, shape)
    lines = {state: channel_lines(shape, t, used.any(0), state == MASKED) for state in (WHOLE, MASKED)}
    channels = {state: int((states == state).sum()) for state in lines}
    packed = {state: channels[state] * lines[state].count for state in lines}
    every = sum(packed.values())
    per_channel = kept.reshape(shape.groups, -1, *kept.shape[1:]).sum((1, 3, 4)).reshape(-1)
    entries = float((states != DROPPED).sum(0) @ per_channel)
    shared, single = _per_weight(kept, max(1, BLOCK_LINES // max(1, lines[WHOLE].count))) if t.rows > 1 else (0.0, 0.5)
    blocks = max(1.0, np.ceil(every / t.tiles / shape.groups / BLOCK_LINES))
    outputs, parts = shape.filters * t.tiles * t.vectors, LANES // t.segment
    activations = shape.channels * shape.height * shape.width, shape.filters * shape.output[0] * shape.output[1]
    return {
        "positions.operation": 1,
        f"positions.pair.{t.vectors}": entries * t.vectors * shared,
        f"positions.single.{t.vectors}": entries * t.vectors * single,
        "positions.pack": packed[WHOLE] + (packed[MASKED] if t.pitch else 0),  # runs are packed whole, and masked where they lie
        "positions.pack.masked": packed[MASKED],
        "positions.pack.part": every * (parts - 1),
        "positions.pack.step": every * (shape.strides[1] - 1),
        "positions.job": sum(channels[state] * len(lines[state].runs) for state in lines),
        "positions.output": outputs,
        "positions.output.part": outputs * (parts - 1),
        "positions.sum": outputs * (blocks - 1),
        "positions.weight": float(kept.sum()),
        "positions.weight.byte": max(0.0, float(kept.sum()) * ENTRY_BYTES - CACHED_BYTES),
        "positions.activation.byte": sum(max(0.0, 4.0 * size - NEAR_BYTES) for size in activations),
    }


def _per_weight(kept: NDArray, channels: int) -> tuple[float, float]:
    """(taps that a pair of filters shares, pairs of single taps), each per kept weight, in a sample of filters and channels."""
    sample = kept[:MOST_FILTERS, :channels].reshape(min(len(kept), MOST_FILTERS), -1)
    if not sample.any():
        return 0.0, 0.5
    found = pairs(sample)
    shared = [int(sample[pair].all(0).sum()) if len(pair) == 2 else 0 for pair in found]
    longest = [int(sample[pair].sum(1).max()) for pair in found]
    return sum(shared) / sample.sum(), (sum(longest) - sum(shared)) / sample.sum()
