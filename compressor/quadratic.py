"""What it costs, to second order, to drop several weights at once when all others make up for them.

    score(Q) = 1/2 w_Q^T ([A^-1]_QQ)^-1 w_Q          A: the second derivatives in all weights; of one weight q: w_q^2 / (2 [A^-1]_qq)

Source: group OBS of Frantar et al., arXiv 2208.11580, and Kurtic et al., arXiv 2203.07259.
"""

import torch
from torch import Tensor

from .ranked import Layer


def scores_of_units(layer: Layer, inverse: Tensor, places: Tensor) -> Tensor:
    """The scores, float64 [G,F/G,U,kh',kw'], of units of a layer's weights.

    inverse: A^-1 [G,blocks,size,size], the same for all filters of one of G groups, zero between blocks. places: int64 [C/groups,kh,kw],
    where it has a weight: block * size + row.
    """
    unit, size = layer.config.ranked, inverse.shape[-1]
    at = unit.members(places[None] + 1, layer)[0] - 1  # -1 where a channel is missing
    i, j = at[..., :, None], at[..., None, :]
    joint = inverse[:, i // size, i % size, j % size] * (i // size == j // size)
    joint = torch.where((i < 0) | (j < 0), torch.eye(at.shape[-1], dtype=torch.float64), joint)
    weights = unit.members(layer.weight.detach().cpu().double(), layer).unflatten(0, (len(joint), -1))
    return torch.einsum("gf...i,g...ij,gf...j->gf...", weights, torch.linalg.inv(joint), weights) / 2
