"""`ffp`: a mask of blocks, bool [C,oh,ow]. Input channel c takes part in output position p, for all filters, where M[c,p] is true."""

from collections.abc import Sequence

from torch import Tensor


class Blocks:
    """Block masks belong to one input size."""

    name, what = "ffp", "blocks"

    def shape(self, weight: Sequence[int], groups: int, output: Sequence[int | None]) -> tuple[int | None, ...]:
        """[C,oh,ow]."""
        return (weight[1] * groups, *output)

    def as_block_mask(self, mask: Tensor) -> Tensor | None:
        """Itself."""
        return mask

    def as_weight_mask(self, mask: Tensor) -> Tensor | None:
        """It drops no weights."""
        return None

    def kept_in_file(self, blocks: float, weights: float) -> float:
        """Those of the blocks."""
        return blocks


BLOCKS = Blocks()
