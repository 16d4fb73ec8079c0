"""`fpgm`: filters near the geometric median of their layer go, for the others can stand in for them
(He et al., CVPR 2019, arXiv 1811.00250).

    score[f] = sum over f' of || w[f] - w[f'] ||_2          w[f]: all weights of filter f as one vector

Collects nothing: the weights say it all, and no pass over the samples is made. Use: `fwp_criterion = "fpgm"`; a ratio r drops int(r * F)
filters of each layer (scope `layer`; scores of layers of different sizes do not compare). Filters that are outputs of the network stay.
What reads the maps of dropped filters alone goes with them (`dependents.py`); where a sum joins a dropped filter with a kept one, the
dropped one adds its bias and the shift of its BatchNorm. Block masks go on top (`ffp`), in the same run or later on. Readings: the source
chooses the filters again after every epoch of training, and so does `--method fpgm` (`prune_schedule = "each-epoch"`); masks at once need
`one-shot`. Its Algorithm 1 makes them zero and trains them on (`dropped = "trained"`), its program makes them zero and masks their gradient
(`zeroed`, the default, under which a zeroed filter hardly ever returns, since zero is near the median of most layers); `kept` leaves their
values for the next choice. Attribution: He, Liu, Wang, Hu, Yang, "Filter Pruning via Geometric Median".
"""

import torch
from torch import Tensor

from ..criterion import Criterion, Layer
from ..units import FILTER


def distances(weight: Tensor) -> Tensor:
    """For each filter of weight[F,C/groups,kh,kw], the sum of its distances from all filters of the layer: float64 [F]."""
    vectors = weight.detach().cpu().double().flatten(1)
    return torch.cdist(vectors, vectors, compute_mode="donot_use_mm_for_euclid_dist").sum(1)  # products would round small ones


class GeometricMedian(Criterion):
    """Distances from all other filters; the least ones go."""

    name, summary, unit = "fpgm", "distance of a filter from the geometric median of its layer", FILTER
    defaults = {"scope": "layer"}  # noqa: RUF012
    schedule = "each-epoch"

    def scores(self, layer: Layer) -> Tensor:
        """[F]."""
        return distances(layer.weight)


METHODS = (GeometricMedian(),)
