"""`magnitude`: the smallest weights go, the usual baseline (Han et al., arXiv 1506.02626).

    score[f,c,u,v] = | w[f,c,u,v] |

Collects nothing: the weights say it all, and no pass over the samples is made. Use: every scope; in `global`, one threshold over the
absolute values of all layers, whatever a weight costs: global magnitude. Where several filters share a tap, its score is the
sum over them. Deviations: the source retrains in between and prunes again, and its ratio is one of weights; here all goes at once, to a
ratio of multiply-adds.
"""

from torch import Tensor

from ..criterion import Criterion, Layer
from ..units import TAP


class Magnitude(Criterion):
    """Absolute values; a list in common divides by the cost, which is taken back here."""

    name, summary, unit, comparable = "magnitude", "magnitude of the weight", TAP, True
    published = {"scope": "global", "floor": 0.0}  # noqa: RUF012

    def scores(self, layer: Layer) -> Tensor:
        """[Q,C/groups,kh,kw]."""
        return layer.over_sets(layer.weight.detach().cpu().double().abs()) * layer.over_sets(layer.macs.double())


METHODS = (Magnitude(),)
