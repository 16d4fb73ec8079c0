"""The kinds of masks, in the order in which they are pruned. Everything that handles masks loops over them."""

from .blocks import BLOCKS
from .kind import MaskKind
from .weights import WEIGHTS

KINDS: tuple[MaskKind, ...] = (BLOCKS, WEIGHTS)

__all__ = ["BLOCKS", "KINDS", "WEIGHTS", "MaskKind"]
