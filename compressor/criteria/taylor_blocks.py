"""`taylor` for blocks: how much the loss rises, to first order, when a block is dropped (methods.md section 1b).

    T[c,p] = sum over samples of ( sum_{u,v} b[c,p,u,v] * sum_f w[f,c,u,v] * g[f,p] )^2,        g = d loss / d y

Source: Molchanov et al., arXiv 1611.06440 and 1906.10771; taken per block, and squared per sample, by this project.
Collects: one pass forward and backward (`calibrate/taylor.py` adds up T). Use: the default for blocks; scope `global` compares T by
multiply-add over all layers. Attribution: the expansion is theirs, its use on blocks ours.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fineprune.calibrate.convolutions import ConvSite
from fineprune.calibrate.measures import BlockScores
from fineprune.calibrate.statistics import Statistics

from ..criterion import Criterion, Layer, require_criterion
from ..units import BLOCK


class TaylorBlocks(Criterion):
    """T as it was added up."""

    name, summary, unit = "taylor", "first-order rise of the loss when it is dropped", BLOCK
    comparable, collects, reads_labels = True, "blocks", True
    scale = "loss, first order"

    def measure(self, config: Any, sites: Sequence[ConvSite]) -> BlockScores:
        """T of every block."""
        return BlockScores()

    def check(self, statistics: Statistics, config: Any, sites: Sequence[ConvSite]) -> None:
        """They must be Taylor scores."""
        require_criterion(statistics, self.name)

    def unreached(self, statistics: Statistics) -> set[str]:
        """Layers that no gradient reached."""
        return {name for name, sums in statistics.layers.items() if "taylor" not in sums}

    def scores(self, layer: Layer) -> Tensor:
        """[C,oh,ow]."""
        return layer.sum("taylor")


METHODS = (TaylorBlocks(),)
