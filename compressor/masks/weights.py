"""`fwp`: a mask of weights, bool [F,C/groups,kh,kw], whatever was ranked: taps, filters, n of every m."""

from collections.abc import Sequence

from torch import Tensor


class Weights:
    """Weight masks hold at every input size."""

    name, what = "fwp", "weights"

    def shape(self, weight: Sequence[int], groups: int, output: Sequence[int | None]) -> tuple[int | None, ...]:
        """That of the weight."""
        return tuple(weight)

    def as_block_mask(self, mask: Tensor) -> Tensor | None:
        """It drops no blocks."""
        return None

    def as_weight_mask(self, mask: Tensor) -> Tensor | None:
        """Itself."""
        return mask

    def kept_in_file(self, blocks: float, weights: float) -> float:
        """Those of the weights."""
        return weights


WEIGHTS = Weights()
