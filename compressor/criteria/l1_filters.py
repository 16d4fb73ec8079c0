"""`l1-filters`: the filters of smallest weights go (Li et al., ICLR 2017, arXiv 1608.08710).

    score[f] = sum over c,u,v of | w[f,c,u,v] |

Collects nothing: the weights say it all, and no pass over the samples is made. Use: `fwp_criterion = "l1-filters"`; a ratio r drops
int(r * F) filters of each layer, since sums of filters of different sizes do not compare. Filters that are outputs of the network stay, and
the channels that nothing computes any more go where they are read. Deviations: one ratio for all layers, where the source spares those
that it found to be sensitive (`--fwp-layer`, `--exclude`).
"""

from torch import Tensor

from ..criterion import Criterion, Layer
from ..units import FILTER


class L1Filters(Criterion):
    """Sums of absolute values; the least ones go."""

    name, summary, unit = "l1-filters", "sum of the magnitudes of a filter's weights", FILTER
    defaults = {"scope": "layer"}  # noqa: RUF012

    def scores(self, layer: Layer) -> Tensor:
        """[F]."""
        return layer.weight.detach().cpu().double().abs().flatten(1).sum(1)


METHODS = (L1Filters(),)
