"""A pass over convolutions of integers: input channels that are dropped together come to lie in one word.

    s[f,p] = sum over (c,u,v) of w[f,c,u,v] x[c,...] = sum over (k,u,v) of w[f,o[k],u,v] x[o[k],...]      for any order o of the channels

A quad is saved where all of its four channels are dropped, at a tap of a filter. Which channels a mask takes together is its own
affair (masks of unit `quad` are made of clusters of channels), and every convolution has its own: so each has an order of the channels
that it reads. Where another convolution makes them for it alone, that one makes them in this order, which costs nothing; else they
are copied in it (`QuadPermute`), where that is expected to be worth its time.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fineprune.ops.channel_groups import grouped_order

from ..ir import costs
from ..ir.network import Box, Layer, Order
from ..ops.quad_maps import QuadPermute, permute_counts
from ..ops.quads import QuadConv

_QUAD = 4
_DENSE, _WORTH = 0.9, 0.9
"""Of what a convolution keeps, no order saves much; an order is worth it that leaves so much of the quads, or of the time, at most."""


def align(layers: Sequence[Layer], boxes: Mapping[str, Box], outputs: Collection[str]) -> tuple[list[Layer], dict[str, Box]]:
    """(the layers, each convolution reading its channels in the order that suits it, sizes of their tensors)."""
    readers = Counter(name for layer in layers for name in layer.inputs)
    sizes, made = dict(boxes), dict[str, Layer]()
    for layer in layers:
        order = _order(layer, boxes) if isinstance(layer, QuadConv) else None
        if isinstance(layer, QuadConv) and order is not None:
            name = layer.inputs[0]
            maker, new = made.get(name), replace(layer, weights=_quads(_channels(layer.weights)[:, order]))
            if _makes_for_one(maker) and readers[name] == 1 and name not in outputs:
                assert isinstance(maker, QuadConv)  # for the type checker
                made[name] = replace(maker, weights=maker.weights[order], bias=maker.bias[order], factors=maker.factors[order])
                layer = new
            elif _seconds(new) + costs.seconds(permute_counts(boxes[name])) < _WORTH * _seconds(layer):
                copy = f"{name} for {layer.output}"
                sizes[copy] = boxes[name]
                made[copy] = QuadPermute(name=copy, inputs=(name,), output=copy, grid=layer.source, order=order)
                layer = replace(new, inputs=(copy, *layer.inputs[1:]))
        made[layer.output] = layer
    return list(made.values()), sizes


def _makes_for_one(maker: Layer | None) -> bool:
    """Whether a layer may make its channels in any order."""
    return isinstance(maker, QuadConv) and maker.residual is None and maker.grid is not None and not maker.depthwise


def _order(conv: QuadConv, boxes: Mapping[str, Box]) -> Order | None:
    """That of the channels which saves quads."""
    kept = _channels(conv.weights)[:, : boxes[conv.inputs[0]][0]] != 0
    if conv.depthwise or kept.shape[1] <= _QUAD or kept.mean() > _DENSE:
        return None
    order = grouped_order(kept, _QUAD)
    before, after = (np.count_nonzero(_quads(mask).any(-1)) for mask in (kept, kept[:, order]))
    return order if after < _WORTH * before else None


def _seconds(conv: QuadConv) -> float:
    return min(candidate.seconds for candidate in conv.candidates)


def _channels(weights: NDArray) -> NDArray:
    """[F,C/4,kh,kw,4] as [F,C,kh,kw]."""
    F, C, kh, kw, _ = weights.shape
    return weights.transpose(0, 1, 4, 2, 3).reshape(F, C * _QUAD, kh, kw)


def _quads(weights: NDArray) -> NDArray:
    """The other way round, filled up with zeros."""
    F, C, kh, kw = weights.shape
    filled = np.pad(weights, ((0, 0), (0, -C % _QUAD), (0, 0), (0, 0)))
    return np.ascontiguousarray(filled.reshape(F, -1, _QUAD, kh, kw).transpose(0, 1, 3, 4, 2))
