"""`obs` for blocks: the squared error of a layer's outputs when a block is dropped.

    score(c,p) = 1/2 E[ |W_c x_c,p|^2 ] = 1/2 tr( W_c^T W_c E[x_c,p x_c,p^T] )

Source: the layer error of the optimal brain surgeon (OBC, arXiv 2208.11580), which blocks (c,p) share with weights; its use on blocks is
this project's. Collects: one pass forward, without labels (`calibrate/inputs.py`). Use: the scopes of blocks; where layers share a list,
errors are shares of the layer's own sum of squared outputs, as those of `obs` for weights are.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fineprune.calibrate.convolutions import ConvSite
from fineprune.calibrate.measures import BlockErrors
from fineprune.calibrate.statistics import Statistics

from ..criterion import Criterion, Layer, require_criterion
from ..units import BLOCK


class ObsBlocks(Criterion):
    """Squared contributions as they were added up."""

    name, summary, unit = "obs", "rise of its layer's output error when it is dropped", BLOCK
    comparable, collects = True, "blocks"
    scale = "output error"

    def measure(self, config: Any, sites: Sequence[ConvSite]) -> BlockErrors:
        """The squared contribution of every block."""
        return BlockErrors()

    def check(self, statistics: Statistics, config: Any, sites: Sequence[ConvSite]) -> None:
        """They must be of this method."""
        require_criterion(statistics, self.name)

    def scores(self, layer: Layer) -> Tensor:
        """[C,oh,ow]."""
        return layer.sum("error") / (2 * layer.sum("outputs").clamp_min(torch.finfo(torch.float64).tiny))


METHODS = (ObsBlocks(),)
