"""`taylor` for weights: how much the loss rises, to first order, when a tap is dropped (methods.md section 1b).

    T[F',c,u,v] = sum over samples of ( sum_{f in F'} w[f,c,u,v] * sum_p g[f,p] * M[c,p] * b[c,p,u,v] )^2,        g = d loss / d y

F' is the set of filters that drop the tap together (`share`). Source: Molchanov et al., arXiv 1611.06440 and 1906.10771; taken per tap
under the block masks M by this project. Collects: one pass forward and backward (`calibrate/taylor.py` adds up T for single filters, groups
and channels). Use: the default; every scope. T is weighed against what the tap costs, in a layer's own list too.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fineprune.calibrate.convolutions import ConvSite
from fineprune.calibrate.measures import WeightSums
from fineprune.calibrate.statistics import Statistics

from ..criterion import Criterion, Layer
from ..units import TAP

_FIELDS = {"filter": "taylor", "group": "taylor_group", "channel": "taylor_channel"}


class TaylorTaps(Criterion):
    """T as it was added up for the sharing that is asked for."""

    name, summary, unit = "taylor", "first-order rise of the loss when it is dropped", TAP
    comparable, per_cost, collects, reads_labels = True, True, "weights", True
    scale = "loss, first order"

    def measure(self, config: Any, sites: Sequence[ConvSite]) -> WeightSums:
        """T of every tap."""
        return WeightSums(taylor=True, lanes=config.lanes)

    def unreached(self, statistics: Statistics) -> set[str]:
        """Layers that no gradient reached in a pass that went backward."""
        if not statistics.settings.get("taylor"):
            return set()
        return {name for name, sums in statistics.layers.items() if "taylor" not in sums}

    def scores(self, layer: Layer) -> Tensor:
        """[Q,C/groups,kh,kw]."""
        site = layer.site
        return layer.sum(_FIELDS[layer.config.sharing]).reshape(-1, site.in_channels // site.groups, *site.kernel)


METHODS = (TaylorTaps(),)
