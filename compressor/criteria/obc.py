"""`obc`: how much the error of a layer's outputs rises when a weight goes, those that are worth less having gone before it.

    q = argmin w_q^2 / (2 [H^-1]_qq),    w -= (w_q / [H^-1]_qq) [H^-1]_:q,    H^-1 -= [H^-1]_:q [H^-1]_q: / [H^-1]_qq,    and again
    score(q) = the largest w_q^2 / (2 [H^-1]_qq) of its filter (and block) so far,    H = sum of x x^T + a I over input patches x
    of a unit Q, all of which go at once: w_Q^T ([H^-1]_QQ)^-1 w_Q / 2 in place of w_q^2 / (2 [H^-1]_qq)

Source: the exact optimal brain surgeon of one layer, Frantar et al. (OBC), arXiv 2208.11580. Collects: what `obs` does, in blocks of at
most 600 weights; one elimination a filter and block then takes d^3/6 multiply-adds: five seconds for a ResNet-20, minutes where filters
have thousands of weights. Use: every scope; where layers share a list, errors are shares of the layer's own sum of squared outputs. Refit
afterwards (`--reconstruct`): masks are chosen for weights that make up for each other. Weights that several filters share are worth the sum
of what they are worth to each. Deviations: the largest rise so far, so that a threshold cuts each filter's order at one place; one list
over all filters and layers; the dampening a of `obs`; the other weights stay where they are.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fineprune.calibrate.convolutions import ConvSite
from fineprune.calibrate.measures import InputSquares
from fineprune.calibrate.statistics import Statistics
from fineprune.common.errors import UsageError

from ..criterion import Criterion, Layer
from ..units import TAP
from .obs_weights import by_tap, in_blocks, inverse_of, outputs_of

LARGEST = 600
"""Weights of a block."""


def rises(weights: Tensor, inverted: Tensor) -> Tensor:
    """The rises of weights [groups,F,blocks,size], given H^-1 [groups,blocks,size,size]; float64."""
    from fineprune.ops import elimination

    found = torch.empty(weights.movedim(1, 2).shape, dtype=torch.float64)
    for group, block in torch.cartesian_prod(*map(torch.arange, inverted.shape[:2])).tolist():
        of_block = weights[group, :, block].contiguous().numpy()
        elimination.rises(of_block, inverted[group, block].contiguous().numpy(), found[group, block].numpy())
    return found.movedim(1, 2)


def rises_of_units(weights: Tensor, inverted: Tensor, units: Tensor) -> Tensor:
    """The rises [groups,F,U] of units int64 [U,n] of the weights [groups,F,blocks,size]: block * size + row of each, -1 for none."""
    from fineprune.ops import elimination

    found = torch.empty((*weights.shape[:2], len(units)), dtype=torch.float64)
    for of_group, a, rise in zip(weights, inverted, found, strict=True):
        elimination.rises_of_units(of_group.contiguous().numpy(), a.contiguous().numpy(), units.numpy(), rise.numpy())
    return found


class Obc(Criterion):
    """Single weights, units of them, or the same ones of several filters."""

    name, summary, unit = "obc", "rise of its layer's output error when it is dropped after all that are worth less", TAP
    comparable, per_cost, collects = True, True, "weights"
    scale = "output error"

    def measure(self, config: Any, sites: Sequence[ConvSite]) -> InputSquares:
        """H of every layer, in blocks that are soon eliminated."""
        return InputSquares(most=LARGEST)

    def check(self, statistics: Statistics, config: Any, sites: Sequence[ConvSite]) -> None:
        """Blocks must not be too large."""
        if statistics.settings.get("moments", 0) > LARGEST:
            raise UsageError(f"the statistics have blocks of more than {LARGEST} weights, as 'obs' has them; calibrate with 'obc'")

    def scores(self, layer: Layer) -> Tensor:
        """[Q,C/groups,kh,kw]."""
        found = by_tap(rises(in_blocks(layer), inverse_of(layer)), layer)
        return layer.over_sets(found / outputs_of(layer))

    def scores_of_units(self, layer: Layer) -> Tensor:
        """All weights of a unit at once."""
        unit, weights = layer.config.ranked, in_blocks(layer)
        if unit is TAP:
            return self.scores(layer)
        places = torch.arange(layer.weight[0].numel()).view(1, *layer.weight.shape[1:])
        at = unit.members(places + 1, layer)[0] - 1
        found = rises_of_units(weights, inverse_of(layer), at.flatten(0, -2)).view(-1, *at.shape[:-1])
        return layer.over_sets(found / outputs_of(layer))


METHODS = (Obc(),)
