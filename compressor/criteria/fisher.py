"""`fisher`: how much the loss rises, to second order, when a weight is dropped and its block makes up for it.

    score(q) = w_q^2 / (2 [F^-1]_qq)        score(Q) = 1/2 w_Q^T ([F^-1]_QQ)^-1 w_Q        F = sum of g g^T + a I, block by block

Source: the block-diagonal empirical Fisher of Kurtic et al. (oBERT), arXiv 2203.07259, after WoodFisher, arXiv 2004.14340: blocks of
at most 50 weights of one filter, gradients g of 16 samples. Collects: one pass forward and backward (`calibrate/fisher.py`), a matrix a
block: 400 bytes a weight; large networks get smaller blocks. Use: every scope and unit, divided by what a unit costs; what filters share
is worth the sum over them, and between weights of different blocks nothing is known. Deviations: the sum instead of the mean over
gradients (it ranks alike); the dampening a is a share of the layer's mean diagonal; the other weights stay where they are, and masks are
made at once.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fineprune.calibrate.convolutions import ConvSite
from fineprune.calibrate.fisher import from_blocks, to_blocks
from fineprune.calibrate.measures import Fisher
from fineprune.calibrate.statistics import Statistics

from .. import quadratic
from ..criterion import Criterion, Layer
from ..units import TAP

DAMPENING = 0.01
"""a as a share of the mean of the layer's diagonal."""


def inverses(fisher: Tensor, dampening: float = DAMPENING) -> Tensor:
    """F^-1 of each block [...,size,size] of a layer, float64."""
    diagonal = fisher.diagonal(dim1=-2, dim2=-1)
    real = diagonal[diagonal > 0]  # what fills blocks up has none, nor has a weight that nothing reaches
    a = dampening * float(real.mean()) if len(real) else 1.0
    return torch.cholesky_inverse(torch.linalg.cholesky(fisher + a * torch.eye(fisher.shape[-1], dtype=fisher.dtype)))


class FisherTaps(Criterion):
    """Single weights, units of them, or the same ones of several filters."""

    name, summary, unit = "fisher", "second-order rise of the loss when it is dropped, by block-diagonal Fisher", TAP
    comparable, per_cost, collects, reads_labels = True, True, "weights", True

    def measure(self, config: Any, sites: Sequence[ConvSite]) -> Fisher:
        """F of every block of weights."""
        return Fisher()

    def unreached(self, statistics: Statistics) -> set[str]:
        """Layers that no gradient reached in a pass that went backward."""
        if "fisher" not in statistics.settings:
            return set()
        return {name for name, sums in statistics.layers.items() if "fisher" not in sums}

    def scores(self, layer: Layer) -> Tensor:
        """[Q,C/groups,kh,kw]."""
        inverted = inverses(layer.sum("fisher"))
        weights = to_blocks(layer.weight.detach().cpu().double(), layer.settings["fisher"])
        scores = weights.square() / (2 * inverted.diagonal(dim1=-2, dim2=-1))
        return layer.over_sets(from_blocks(scores, layer.weight.shape[1], layer.site.kernel))

    def scores_of_units(self, layer: Layer) -> Tensor:
        """All weights of a unit at once; those in different blocks know nothing of each other."""
        if layer.config.ranked is TAP:
            return self.scores(layer)
        inverted = inverses(layer.sum("fisher"))
        _, blocks, size, _ = inverted.shape
        places = from_blocks(torch.arange(blocks * size).view(blocks, size), layer.weight.shape[1], layer.site.kernel)
        return layer.over_sets(quadratic.scores_of_units(layer, inverted, places).flatten(0, 1))

    def profile(self, layer: Layer) -> Tensor:
        """What no other weight makes up for, w_q^2 F_qq / 2."""
        weights = to_blocks(layer.weight.detach().cpu().double(), layer.settings["fisher"])
        squares = weights.square() * layer.sum("fisher").diagonal(dim1=-2, dim2=-1) / 2
        return layer.over_sets(from_blocks(squares, layer.weight.shape[1], layer.site.kernel))


METHODS = (FisherTaps(),)
