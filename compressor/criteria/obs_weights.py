"""`obs`, `obs-quad`: the error of a layer's outputs when a weight is dropped and the others of its filter make up for it.

    score(q) = w_q^2 / (2 [H^-1]_qq)        score(Q) = 1/2 w_Q^T ([H^-1]_QQ)^-1 w_Q        H = sum of x x^T + a I over input patches x

Source: the optimal brain surgeon of one layer, Frantar et al. (OBC), arXiv 2208.11580. Collects: one pass forward, without labels
(`calibrate/moments.py`); H takes 8 d^2 bytes a group of a convolution, d = kh*kw*C/groups, and is block-diagonal in large networks. Use:
every scope; where layers share a list, errors are shares of the layer's own sum of squared outputs. Deviations: all scores are those of
the dense layer, where the source drops one weight after the other and updates H^-1; the dampening a is a share of the mean diagonal; the
other weights stay where they are.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fineprune.calibrate.convolutions import ConvSite
from fineprune.calibrate.measures import InputSquares

from ..criterion import Criterion, Layer
from ..units import QUAD, TAP

DAMPENING = 0.01
"""a as a share of the mean diagonal of H."""


def inverse(moments: Tensor, inputs: int, dampening: float = DAMPENING) -> Tensor:
    """H^-1 [groups,blocks,size,size] of the sums of x x^T; `inputs`: d. A group whose inputs are all zero counts as inputs of one."""
    mean = moments.diagonal(dim1=2, dim2=3).sum((1, 2)) / inputs
    a = torch.where(mean > 0, dampening * mean, 1.0)[:, None, None, None]
    return torch.cholesky_inverse(torch.linalg.cholesky(moments + a * torch.eye(moments.shape[2], dtype=moments.dtype)))


class _Obs(Criterion):
    """What both units have in common."""

    comparable, per_cost, collects = True, True, "weights"
    scale = "output error"

    def measure(self, config: Any, sites: Sequence[ConvSite]) -> InputSquares:
        """H of every layer."""
        return InputSquares()

    def parts(self, layer: Layer) -> tuple[Tensor, Tensor]:
        """[groups,F/groups,blocks,size], the weights divided by the root of the sum of squared outputs, and H^-1."""
        moments, outputs = layer.sum("moments"), layer.sum("outputs")
        groups, blocks, size = moments.shape[:3]
        rows = layer.weight.detach().cpu().double().flatten(1)
        weights = F.pad(rows, (0, blocks * size - rows.shape[1])).view(groups, -1, blocks, size)
        return weights / outputs.clamp_min(torch.finfo(outputs.dtype).tiny).sqrt(), inverse(moments, rows.shape[1])


class ObsTaps(_Obs):
    """Single weights, or the same ones of several filters."""

    name, summary, unit = "obs", "rise of its layer's output error when it is dropped and others make up for it", TAP

    def scores(self, layer: Layer) -> Tensor:
        """[Q,C/groups,kh,kw]."""
        weights, inverted = self.parts(layer)
        scores = weights.square() / (2 * inverted.diagonal(dim1=2, dim2=3)[:, None])
        return layer.over_sets(scores.flatten(0, 1).flatten(1)[:, : layer.weight[0].numel()].view(layer.weight.shape))


class ObsQuads(_Obs):
    """Four input channels of one tap."""

    name, summary, unit = "obs-quad", "rise of its layer's output error when it is dropped and others make up for it", QUAD

    def scores(self, layer: Layer) -> Tensor:
        """[F,ceil(C/groups/4),kh,kw]."""
        weights, inverted = self.parts(layer)
        taps, of_block = layer.site.taps, inverted.shape[2] // layer.site.taps
        found = []
        for first in range(0, of_block, 4):
            of = torch.arange(first, min(first + 4, of_block)) * taps + torch.arange(taps)[:, None]  # [taps,4], places of a quad
            inner = inverted[..., of[:, :, None], of[:, None, :]]
            values = weights[..., of]
            found.append(torch.einsum("gfbtq,gbtqr,gfbtr->gfbt", values, torch.linalg.inv(inner), values) / 2)
        quads = -(-layer.weight.shape[1] // 4)
        return torch.stack(found, 3).flatten(0, 1).flatten(1, 2)[:, :quads].unflatten(2, layer.site.kernel)


METHODS = (ObsTaps(), ObsQuads())
