"""Statistics and settings become masks (methods.md sections 1, 1b and 2). Pure: nothing is changed, nothing is random.

FFP   M[c,n]         = n among the top K of freq[c] (or of the Taylor scores), K = P - round(p * P)
FWP   Wmask[f,c,u,v] = tap (u,v) among the top K' of its slice by WIS = |w| * S (or by the Taylor score)

The method says what a unit is worth, the unit what it costs and what becomes of it; what is ranked together is decided here: units of a
layer, of all layers, or blocks and weights of all layers (`select_common`).
"""

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from fineprune.calibrate.convolutions import ConvSite
from fineprune.calibrate.statistics import Statistics
from fineprune.ops.multiply_adds import multiply_adds

from .bake import Masks
from .config import Part
from .masks import BLOCKS, KINDS, WEIGHTS
from .ranked import Layer
from .ranking import global_threshold, largest_prefix, per_cost


def layers_of(
    statistics: Statistics | None,
    weights: Mapping[str, Tensor],
    masks: Masks,
    sites: Sequence[ConvSite],
    config: Part,
    outputs: Collection[str] = (),
    seed: int = 0,
) -> list[Layer]:
    """What the method of `config` looks at, for each layer that it ranks. statistics: None for a method that needs none.

    weights: [F,C/groups,kh,kw] by layer. masks: what layers carry, by kind.
    """
    unreached = set() if statistics is None else config.method.unreached(statistics)
    return [
        Layer(
            site=site,
            config=config,
            weight=weights[site.name],
            blocks=masks.get(BLOCKS.name, {}).get(site.name),
            kept=masks.get(WEIGHTS.name, {}).get(site.name),
            sums=None if statistics is None else statistics.layers.get(site.name, {}),
            settings={} if statistics is None else statistics.settings,
            seed=seed,
        )
        for site in config.chosen(sites)
        if site.name not in unreached and config.ranked.ranks(site, config, outputs)
    ]


def select(
    layers: Sequence[Layer], config: Part, *, outputs: Collection[str] = (), carried: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Masks of the kind that the method makes, by layer; a layer of which nothing is dropped is left out.

    outputs: layers whose filters are outputs of the network, of each of which something stays. carried: masks of this kind that layers
    have already: what those dropped goes first and stays dropped, so that ratios are of the dense layer in all.
    """
    method, unit, carried = config.method, config.ranked, carried or {}
    scores, costs = {}, {}
    for layer in layers:
        name = layer.site.name
        scores[name], costs[name] = _scores(layer, config.ratio_of(name), outputs, carried.get(name))
    together = [n for n in scores if config.scope == "global" and config.override(n) is None]
    kept = global_threshold({n: scores[n] for n in together}, costs, config.ratio, config.floor) if together else {}
    masks = {}
    for layer in layers:
        name = layer.site.name
        if name not in kept:
            value = scores[name]
            if method.per_cost:
                value = torch.where(costs[name] > 0, value / costs[name].clamp_min(1), -torch.inf)
            kept[name] = unit.keep(value, method.ties(layer), config.ratio_of(name), layer)
        mask = unit.mask(kept[name], layer)
        masks[name] = mask & carried[name] if name in carried else mask
    return {name: mask for name, mask in masks.items() if not mask.all()}


def select_common(
    lists: Sequence[Sequence[Layer]], ratio: float, *, outputs: Collection[str] = (), carried: Masks | None = None
) -> dict[str, dict[str, Tensor]]:
    """Masks by kind and layer, of blocks and weights in one list by score per multiply-add of the dense layer.

    lists: what each method ranks, measured on one network. The list is cut where what is left, sum_c |M_c| nnz(Wmask[:,c]) counted exactly
    over these layers (a weight that is dropped saves nothing more under a block that is dropped), first is at most 1 - ratio of them dense.
    outputs, carried: as for `select`, here the carried masks of every kind.
    """
    ranked, already = [layer for layers in lists for layer in layers], carried or {}
    if not ranked:
        return {}
    values, shapes = [], []
    for layer in ranked:
        scores, costs = _scores(layer, ratio, outputs, already.get(layer.config.mask, {}).get(layer.site.name))
        values.append(per_cost(scores, costs, layer.config.floor))
        shapes.append(scores.shape)
    value = torch.cat(values)
    order = value.argsort(descending=True, stable=True)[: int((value > -torch.inf).sum())]
    reserved = int((value == torch.inf).sum())
    dense = {layer.site.name: layer for layer in ranked}
    budget = (1 - ratio) * sum(layer.site.macs for layer in dense.values()) * (1 + 1e-12)

    def masks(count: int) -> dict[str, dict[str, Tensor]]:
        kept = torch.zeros(len(value), dtype=torch.bool)
        kept[order[:count]] = True
        found = {kind.name: dict(already.get(kind.name, {})) for kind in KINDS}
        for layer, piece, shape in zip(ranked, kept.split([len(one) for one in values]), shapes, strict=True):
            name, of_kind = layer.site.name, found[layer.config.mask]
            mask = layer.config.ranked.mask(piece.view(shape), layer)
            of_kind[name] = mask & of_kind[name] if name in of_kind else mask
        return found

    def fits(count: int) -> bool:
        found = masks(reserved + count)
        return sum(left(layer.site, found) for layer in dense.values()) <= budget

    chosen = masks(reserved + largest_prefix(len(order) - reserved, fits))
    return {kind: {name: mask for name, mask in of.items() if not mask.all()} for kind, of in chosen.items()}


def _scores(layer: Layer, ratio: float, outputs: Collection[str], carried: Tensor | None) -> tuple[Tensor, Tensor]:
    """Scores and costs: infinity where a layer that makes outputs needs a unit, -infinity where a carried mask left nothing of it."""
    unit = layer.config.ranked
    scores, costs = layer.scores, unit.costs(layer)
    if layer.site.name in outputs:
        scores = unit.reserved(scores, costs, ratio, layer)
    if carried is not None:
        scores = scores.double().masked_fill(~unit.alive(carried, layer), -torch.inf)
    return scores, costs


def left(site: ConvSite, masks: Masks) -> int:
    """Multiply-adds of a layer under masks by kind and layer."""
    blocks, weights = (masks.get(kind.name, {}).get(site.name) for kind in (BLOCKS, WEIGHTS))
    kept = {"blocks": None if blocks is None else blocks.numpy(), "weights": None if weights is None else weights.numpy()}
    return multiply_adds(site.weight_shape, site.placements, site.groups, **kept)
