"""`2:4`: of every four weights that follow each other along the input channels, the two of largest magnitude stay (Mishra et al.,
arXiv 2104.08378).

    kept[f,4i+j,u,v] = j is among the 2 largest of | w[f,4i,u,v] |, ..., | w[f,4i+3,u,v] |          ties: the smaller j

The axis is that of the sparse tensor cores' reduction for convolutions in channels-last order: the input channels that one filter reads,
at one tap (u,v). Channels that are left over after the last four keep at most their two largest.
Collects nothing: the weights say it all, and no pass over the samples is made. Use: `fwp_criterion = "2:4"` with the ratio 0.5, which is
the only one it has. Deviation: the source copies the pattern into special hardware; here it is a mask like any other, and the engine
skips the dropped weights one by one. Attribution: Mishra et al., "Accelerating Sparse Deep Neural Networks".
"""

from torch import Tensor

from ..criterion import Criterion, Layer
from ..units import NOfM


class TwoOfFour(Criterion):
    """Magnitudes within groups of four."""

    name, summary, unit = "2:4", "magnitude, of which two of every four weights stay", NOfM(2, 4)
    defaults = {"scope": "layer"}  # noqa: RUF012

    def scores(self, layer: Layer) -> Tensor:
        """[F,C/groups,kh,kw]."""
        return layer.weight.detach().cpu().double().abs()


METHODS = (TwoOfFour(),)
