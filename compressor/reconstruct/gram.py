"""What a refit has to know of a layer's inputs and outputs, summed over the samples: H = X~ X~^T and G = X~ Y^T (see `refit`).

    X~[(c,u,v), (n,p)] = M[c,p] * b[n,c,p,u,v],    Y[f, (n,p)] = y[n,f,p]

H are the second moments of `calibrate.moments`. A layer with a bias has a last row of ones, of which the bias is the weight.
"""

import torch
from torch import Tensor, nn

from fineprune.calibrate.calls import groups_of, weight_of
from fineprune.calibrate.moments import add_moments
from fineprune.common.processes import Group


def outputs_at(y: Tensor, positions: Tensor, groups: int) -> Tensor:
    """Y [groups, F/groups, N*Q] of outputs y[N,F,oh,ow] at `positions`, int64 [Q] of oh*ow."""
    return y.flatten(2).index_select(2, positions).transpose(0, 1).reshape(groups, -1, len(y) * len(positions))


class Gram:
    """H [groups,d,d] and G [groups,d,F/groups]: products of a batch in float32, sums in float64 on the CPU."""

    def __init__(self, layer: nn.Module) -> None:
        weight, groups = weight_of(layer), groups_of(layer)
        inputs = weight[0].numel() + (layer.bias is not None)
        self.inputs = torch.zeros(groups, inputs, inputs, dtype=torch.float64)
        self.products = torch.zeros(groups, inputs, len(weight) // groups, dtype=torch.float64)

    def add(self, columns: Tensor, wanted: Tensor) -> None:
        """X~ [groups,d,n] and Y [groups,F/groups,n] of one batch."""
        self.products += (columns @ wanted.transpose(1, 2)).cpu()
        add_moments(self.inputs[:, None], columns)

    def total(self, group: Group) -> "Gram":
        """The sums of all processes."""
        self.inputs, self.products = group.total(self.inputs), group.total(self.products)
        return self
