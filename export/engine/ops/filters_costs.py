"""Names of what the parts of the kernel "filters" cost, by the vectors of a panel, and a sum of some (../ir/costs.py)."""

from numpy.typing import NDArray

from ..ir import costs
from .filters_run import DEPTHWISE, TILES

ENTRY = {DEPTHWISE: "depthwise.entry", **{vectors: f"filters.entry.{vectors}" for vectors in TILES}}
"""An entry at a slot of a whole tile."""
KEPT_ENTRY = {vectors: f"filters.kept.{vectors}" for vectors in TILES}
"""An entry at a slot, in a tile in which some slots drop it."""
ALONE = {vectors: f"filters.alone.{vectors}" for vectors in TILES}
"""An entry at a slot that is no part of a tile: each waits for the one before."""
LISTED = {vectors: f"filters.listed.{vectors}" for vectors in TILES}
"""An entry at a slot of a list, whose last tiles may be smaller."""


def left_over(vectors: int, taps: NDArray) -> NDArray:
    """Nanoseconds of channels with so many taps at a slot, in passes of their own."""
    table = costs.current()
    return taps * table[LISTED[vectors]] + table["filters.sums"] + table["filters.sum"] * vectors
