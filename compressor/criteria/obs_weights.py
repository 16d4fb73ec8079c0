"""`obs`, `obs-quad`: the error of a layer's outputs when a weight is dropped and the others of its filter make up for it.

    score(q) = w_q^2 / (2 [H^-1]_qq)        score(Q) = 1/2 w_Q^T ([H^-1]_QQ)^-1 w_Q        H = sum of x x^T + a I over input patches x

Source: the optimal brain surgeon of one layer, Frantar et al. (OBC), arXiv 2208.11580. Collects: one pass forward, without labels
(`calibrate/inputs.py`); H takes 8 d^2 bytes a group of a convolution, d = kh*kw*C/groups. Use: every scope; where layers share a list,
errors are shares of the layer's own sum of squared outputs. Deviations: all scores are those of the dense layer, where the source drops
one weight after the other and updates H^-1; the dampening a is a share of the mean diagonal; the other weights stay where they are.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fineprune.calibrate.convolutions import ConvSite
from fineprune.calibrate.measures import OutputErrors

from ..criterion import Criterion, Layer
from ..units import QUAD, TAP

DAMPENING = 0.01
"""a as a share of the mean diagonal of H."""


def inverse(products: Tensor, dampening: float = DAMPENING) -> Tensor:
    """H^-1 [groups,d,d] of the sums of x x^T; a group whose inputs are all zero counts as inputs of one."""
    mean = products.diagonal(dim1=1, dim2=2).mean(1)
    a = torch.where(mean > 0, dampening * mean, 1.0)
    return torch.cholesky_inverse(torch.linalg.cholesky(products + a[:, None, None] * torch.eye(products.shape[1], dtype=products.dtype)))


def rows(weight: Tensor, groups: int) -> Tensor:
    """weight[F,C/groups,kh,kw] as [groups,F/groups,d] float64, d over (u,v,c) as in H."""
    return weight.detach().cpu().double().permute(0, 2, 3, 1).flatten(1).unflatten(0, (groups, -1))


class _Obs(Criterion):
    """What both units have in common."""

    comparable, per_cost, collects = True, True, "weights"
    scale = "output error"

    def measure(self, config: Any, sites: Sequence[ConvSite]) -> OutputErrors:
        """H of every layer."""
        return OutputErrors(kind="weights")

    def parts(self, layer: Layer) -> tuple[Tensor, Tensor]:
        """The weights as rows, divided by the root of the sum of squared outputs, and H^-1."""
        products, weights = layer.sum("products"), rows(layer.weight, layer.site.groups)
        outputs = ((weights @ products) * weights).sum()
        return weights / outputs.clamp_min(torch.finfo(outputs.dtype).tiny).sqrt(), inverse(products)


class ObsTaps(_Obs):
    """Single weights, or the same ones of several filters."""

    name, summary, unit = "obs", "rise of its layer's output error when it is dropped and others make up for it", TAP

    def scores(self, layer: Layer) -> Tensor:
        """[Q,C/groups,kh,kw]."""
        weights, inverted = self.parts(layer)
        scores = weights.square() / (2 * inverted.diagonal(dim1=1, dim2=2)[:, None])
        return layer.over_sets(scores.flatten(0, 1).unflatten(1, (*layer.site.kernel, -1)).permute(0, 3, 1, 2))


class ObsQuads(_Obs):
    """Four input channels of one tap."""

    name, summary, unit = "obs-quad", "rise of its layer's output error when it is dropped and others make up for it", QUAD

    def scores(self, layer: Layer) -> Tensor:
        """[F,ceil(C/groups/4),kh,kw]."""
        weights, inverted = self.parts(layer)
        channels, taps = layer.weight.shape[1], layer.site.taps
        found = []
        for first in range(0, channels, 4):
            of = torch.arange(taps)[:, None] * channels + torch.arange(first, min(first + 4, channels))  # [taps,4], places of a quad
            inner = inverted[:, of[:, :, None], of[:, None, :]]
            values = weights[:, :, of]
            found.append(torch.einsum("gftq,gtqr,gftr->gft", values, torch.linalg.inv(inner), values) / 2)
        return torch.stack(found, 2).flatten(0, 1).unflatten(2, layer.site.kernel)


METHODS = (ObsTaps(), ObsQuads())
