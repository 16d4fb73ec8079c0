"""`lamp`: magnitudes that layers can compare, each weight as a share of those that would be left with it (Lee et al., arXiv 2010.15034).

    score[u] = w[u]^2 / sum of w[v]^2 over the v of its layer with |w[v]| >= |w[u]|          equal magnitudes: the larger index stays longer

One list over all layers, whatever a weight costs: the score is the squared relative error of the layer's weights if u is the next to go,
and the last weight of every layer has the score 1. Collects nothing: no pass over the samples is made. Use: `fwp_criterion = "lamp"`, scope
`global`; a ratio is one of multiply-adds here, where the source prunes a ratio of weights. Units of several weights, and weights that
several filters share, are scored alike by the sum of their squares. No floor: the score spares the last weight of a layer by itself.
"""

import torch
from torch import Tensor

from ..criterion import Criterion, Layer
from ..units import TAP


def lamp(squares: Tensor) -> Tensor:
    """Of squared magnitudes, of any shape: each divided by the sum of itself and all that come after it in rising order. 0 of zeros."""
    rising, order = squares.double().flatten().sort(stable=True)
    left = rising.flip(0).cumsum(0).flip(0)
    scores = torch.empty_like(rising).scatter_(0, order, rising / left.clamp_min(torch.finfo(torch.float64).tiny))
    return scores.view(squares.shape)


class Lamp(Criterion):
    """Shares of what is left; lists divide by the cost, which is taken back here."""

    name, summary, unit = "lamp", "squared weight as a share of those of its layer that are no smaller", TAP
    comparable, per_cost = True, True
    defaults = {"scope": "global", "floor": 0.0}  # noqa: RUF012

    def scores(self, layer: Layer) -> Tensor:
        """[Q,C/groups,kh,kw]: the squares, which units add up before they are compared."""
        return layer.over_sets(layer.weight.detach().cpu().double().square())

    def scores_of_units(self, layer: Layer) -> Tensor:
        """In the shape of the units."""
        unit = layer.config.ranked
        return lamp(unit.total(self.scores(layer), layer)) * unit.costs(layer)

    def profile(self, layer: Layer) -> Tensor:
        """[Q,C/groups,kh,kw]: the squares, whatever they cost."""
        return self.scores(layer) * layer.over_sets(layer.macs.double())


METHODS = (Lamp(),)
