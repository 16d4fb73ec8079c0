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
from typing import TypeGuard

import numpy as np
from numpy.typing import NDArray

from fineprune.ops.channel_groups import grouped_order

from ..ir import costs
from ..ir.network import Box, Layer, Order
from ..ops.quad_maps import QuadPermute, permute_counts
from ..ops.quads import TOGETHER, QuadConv, as_channels, as_quads

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
            maker, new = made.get(name), _reading(layer, order)
            if _is_free(maker) and readers[name] == 1 and name not in outputs:
                made[name] = replace(maker, weights=maker.weights[order], bias=maker.bias[order], factors=maker.factors[order])
                layer = new
            elif _seconds(new) + costs.seconds(permute_counts(boxes[name])) < _WORTH * _seconds(layer):
                copy = f"{name} for {layer.output}"
                sizes[copy] = boxes[name]
                made[copy] = QuadPermute(name=copy, inputs=(name,), output=copy, grid=layer.source, order=order)
                layer = replace(new, inputs=(copy, *layer.inputs[1:]))
        made[layer.output] = layer
    return list(made.values()), sizes


def _is_free(maker: Layer | None) -> TypeGuard[QuadConv]:
    """Whether it may make its channels in any order."""
    return isinstance(maker, QuadConv) and maker.residual is None and maker.grid is not None and not maker.depthwise


def _reading(conv: QuadConv, order: Order) -> QuadConv:
    """The same of channels that come in this order."""
    mask = None if conv.mask is None else as_quads(as_channels(conv.mask[None])[:, order])[0]
    return replace(conv, weights=as_quads(as_channels(conv.weights)[:, order]), mask=mask)


def _order(conv: QuadConv, boxes: Mapping[str, Box]) -> Order | None:
    """That of the channels which saves quads."""
    channels = boxes[conv.inputs[0]][0]
    kept = as_channels(conv.weights)[:, :channels] != 0 if conv.mask is None else _blocks(conv.mask)[:, :channels]
    if conv.depthwise or conv.planes or kept.shape[1] <= TOGETHER or kept.mean() > _DENSE:
        return None
    order = grouped_order(kept, TOGETHER)
    before, after = (np.count_nonzero(as_quads(mask).any(-1)) for mask in (kept, kept[:, order]))
    return order if after < _WORTH * before else None


def _blocks(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """[P,C,1,1] of a mask: each position keeps channels as a filter does."""
    return as_channels(mask[None])[0].reshape(mask.shape[0] * TOGETHER, -1).T[..., None, None]


def _seconds(conv: QuadConv) -> float:
    return min(candidate.seconds for candidate in conv.candidates)
