"""`asl`: Adaptive Sparsity Loss, thresholds that are trained with the network, one a layer (Retsinas et al., arXiv 2006.02768).

    what^ = w where |w| > r_l std(w_l), else 0,      r_l in [0,5], straight through: d w^/d w = 1
    d loss/d r_l = - sum over dropped w of (d loss/d w^) w / r_l
    loss += strength (sum_l m_l (1 - erf(r_l / sqrt 2)) - (1 - ratio))^2,      m_l: share of layer l in the multiply-adds

The thesis compares with a weight-pruning method, SAT or SAL, that it does not identify; this one stands in for it. Collects nothing: no
pass over the samples is made. Use: `--method asl --rate 0.7` trains the thresholds (`prune_schedule = "asl"`, fineprune/thresholds.py); as
`fwp_criterion = "asl"` alone, masks at once are those of one r for all layers. Deviations: weights are not centred; layers count by
multiply-adds, not by weights; what the trained thresholds miss of the ratio is made up for by one factor for all of them.
"""

from torch import Tensor

from ..criterion import Criterion, Layer
from ..units import TAP


def spread(weight: Tensor) -> Tensor:
    """|w| / std(w) of a layer's weight, float64; 0 where all weights are alike."""
    values = weight.detach().cpu().double()
    return values.abs() / values.std().clamp_min(1e-300) if values.numel() > 1 else values.abs()


class AdaptiveSparsity(Criterion):
    """Magnitudes in standard deviations of the layer; lists divide by the cost, which is taken back here."""

    name, summary, unit = "asl", "magnitude of the weight in standard deviations of its layer", TAP
    comparable, per_cost = True, True
    defaults = {"scope": "global", "floor": 0.0}  # noqa: RUF012
    schedule = "asl"

    def scores(self, layer: Layer) -> Tensor:
        """[Q,C/groups,kh,kw]."""
        return layer.over_sets(spread(layer.weight)) * layer.over_sets(layer.macs.double())


METHODS = (AdaptiveSparsity(),)
