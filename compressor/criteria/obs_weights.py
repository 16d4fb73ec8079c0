"""`obs`: the error of a layer's outputs when a weight is dropped and the others of its filter make up for it.

    score(q) = w_q^2 / (2 [H^-1]_qq)        score(Q) = 1/2 w_Q^T ([H^-1]_QQ)^-1 w_Q        H = sum of x x^T + a I over input patches x

Source: the optimal brain surgeon of one layer, Frantar et al. (OBC), arXiv 2208.11580. Collects: one pass forward, without labels
(`calibrate/moments.py`); H takes 8 d^2 bytes a group of a convolution, d = kh*kw*C/groups, and is block-diagonal in large networks. Use:
every scope and unit; where layers share a list, errors are shares of the layer's own sum of squared outputs. Deviations: all scores are
those of the dense layer, where the source drops one weight after the other and updates H^-1; the dampening a is a share of the mean
diagonal; the other weights stay where they are.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fineprune.calibrate.convolutions import ConvSite
from fineprune.calibrate.measures import InputSquares

from .. import quadratic
from ..criterion import Criterion, Layer
from ..units import TAP

DAMPENING = 0.01
"""a as a share of the mean diagonal of H."""


def inverse(moments: Tensor, inputs: int, dampening: float = DAMPENING) -> Tensor:
    """H^-1 [groups,blocks,size,size] of the sums of x x^T; `inputs`: d. A group whose inputs are all zero counts as inputs of one."""
    mean = moments.diagonal(dim1=2, dim2=3).sum((1, 2)) / inputs
    a = torch.where(mean > 0, dampening * mean, 1.0)[:, None, None, None]
    return torch.cholesky_inverse(torch.linalg.cholesky(moments + a * torch.eye(moments.shape[2], dtype=moments.dtype)))


def in_blocks(layer: Layer) -> Tensor:
    """The weights of a layer as its H has them, float64 [groups,F/groups,blocks,size]; zero where blocks are filled up."""
    groups, blocks, size = layer.sum("moments").shape[:3]
    rows = layer.weight.detach().cpu().double().flatten(1)
    return F.pad(rows, (0, blocks * size - rows.shape[1])).view(groups, -1, blocks, size)


def by_tap(values: Tensor, layer: Layer) -> Tensor:
    """Values [groups,F/groups,blocks,size] of weights as [F,C/groups,kh,kw]."""
    return values.flatten(0, 1).flatten(1)[:, : layer.weight[0].numel()].view(layer.weight.shape)


def inverse_of(layer: Layer) -> Tensor:
    """H^-1 [groups,blocks,size,size] of a layer."""
    return inverse(layer.sum("moments"), layer.weight[0].numel())


def outputs_of(layer: Layer) -> Tensor:
    """The sum of squared outputs [1], of which errors are shares; infinite where there are none: then nothing is worth anything."""
    outputs = layer.sum("outputs")
    return torch.where(outputs > 0, outputs, torch.inf)


class ObsTaps(Criterion):
    """Single weights, units of them, or the same ones of several filters."""

    name, summary, unit = "obs", "rise of its layer's output error when it is dropped and others make up for it", TAP
    comparable, per_cost, collects = True, True, "weights"
    scale = "output error"

    def measure(self, config: Any, sites: Sequence[ConvSite]) -> InputSquares:
        """H of every layer."""
        return InputSquares()

    def scores(self, layer: Layer) -> Tensor:
        """[Q,C/groups,kh,kw]."""
        scores = self._shares(layer).square() / (2 * inverse_of(layer).diagonal(dim1=2, dim2=3)[:, None])
        return layer.over_sets(by_tap(scores, layer))

    def scores_of_units(self, layer: Layer) -> Tensor:
        """All weights of a unit at once."""
        if layer.config.ranked is TAP:
            return self.scores(layer)
        places = torch.arange(layer.weight[0].numel()).view(layer.weight.shape[1:])
        scores = quadratic.scores_of_units(layer, inverse_of(layer), places)
        return layer.over_sets(scores.flatten(0, 1) / outputs_of(layer).sqrt().square())

    def profile(self, layer: Layer) -> Tensor:
        """Errors that no other weight makes up for, w_q^2 H_qq / 2."""
        errors = self._shares(layer).square() * layer.sum("moments").diagonal(dim1=2, dim2=3)[:, None] / 2
        return layer.over_sets(by_tap(errors, layer))

    def _shares(self, layer: Layer) -> Tensor:
        """The weights divided by the root of the sum of squared outputs."""
        return in_blocks(layer) / outputs_of(layer).sqrt()


METHODS = (ObsTaps(),)
