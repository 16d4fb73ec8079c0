"""Statistics and settings become masks (methods.md sections 1, 1b and 2). Pure: nothing is changed, nothing is random.

FFP   M[c,n]         = n among the top K of freq[c] (or of the Taylor scores), K = P - round(p * P)
FWP   Wmask[f,c,u,v] = tap (u,v) among the top K' of its slice by WIS = |w| * S (or by the Taylor score)

The method says what a unit is worth, the unit what it costs and what becomes of it; what is ranked together is decided here.
"""

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from fineprune.calibrate.convolutions import ConvSite
from fineprune.calibrate.statistics import Statistics

from .config import Part
from .ranked import Layer
from .ranking import global_threshold, largest_prefix, per_cost, rows_reserved


def layers_of(
    statistics: Statistics | None,
    weights: Mapping[str, Tensor],
    block_masks: Mapping[str, Tensor],
    sites: Sequence[ConvSite],
    config: Part,
    outputs: Collection[str] = (),
) -> list[Layer]:
    """What the method of `config` looks at, for each layer that it ranks. statistics: None for a method that needs none."""
    unreached = set() if statistics is None else config.method.unreached(statistics)
    return [
        Layer(
            site=site,
            config=config,
            weight=weights[site.name],
            blocks=block_masks.get(site.name),
            sums=None if statistics is None else statistics.layers.get(site.name, {}),
            settings={} if statistics is None else statistics.settings,
        )
        for site in config.chosen(sites)
        if site.name not in unreached and config.method.unit.ranks(site, config, outputs)
    ]


def select(
    layers: Sequence[Layer], config: Part, *, outputs: Collection[str] = (), carried: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Masks of the kind that the method makes, by layer; a layer of which nothing is dropped is left out.

    outputs: layers whose filters are outputs of the network, of each of which something stays. carried: masks of this kind that layers
    have already: what those dropped goes first and stays dropped, so that ratios are of the dense layer in all.
    """
    method, unit, carried = config.method, config.method.unit, carried or {}
    scores, costs = {}, {}
    for layer in layers:
        name = layer.site.name
        scores[name], costs[name] = method.scores(layer), unit.costs(layer)
        if name in outputs:
            scores[name] = unit.reserved(scores[name], costs[name], config.ratio_of(name), layer)
        if name in carried:
            scores[name] = scores[name].double().masked_fill(~unit.alive(carried[name], layer), -torch.inf)
    together = [n for n in scores if config.scope == "global" and config.override(n) is None]
    kept = _one_list({n: scores[n] for n in together}, costs, config) if together else {}
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


def _one_list(scores: dict[str, Tensor], costs: Mapping[str, Tensor], config: Part) -> dict[str, Tensor]:
    """Masks by one threshold. A layer of so few elements that the floor rounds to none keeps its best one."""
    for name, score in scores.items():
        if config.floor and not round(config.floor * score.numel()):
            scores[name] = rows_reserved(score[None], costs[name][None], 0.0)[0]
    return global_threshold(scores, {name: costs[name] for name in scores}, config.ratio, config.floor)


def select_common(lists: Sequence[Sequence[Layer]], ratio: float, *, outputs: Collection[str] = ()) -> dict[str, dict[str, Tensor]]:
    """Masks by kind and layer, of blocks and weights in one list by score per multiply-add of the dense layer.

    lists: what each method ranks. The list is cut where what is left, sum_c |M_c| nnz(Wmask[:,c]) counted exactly over these layers (a
    weight that is dropped saves nothing more under a block that is dropped), first is at most 1 - ratio of the dense layers.
    """
    ranked = [layer for layers in lists for layer in layers]
    values = []
    for layer in ranked:
        unit, config = layer.config.method.unit, layer.config
        scores, costs = config.method.scores(layer), unit.costs(layer)
        if layer.site.name in outputs:
            scores = unit.reserved(scores, costs, ratio, layer)
        values.append(per_cost(scores, costs, config.floor).view(scores.shape))
    value = torch.cat([one.flatten() for one in values])
    order = value.argsort(descending=True, stable=True)

    def masks(count: int) -> dict[str, dict[str, Tensor]]:
        kept = torch.zeros(len(value), dtype=torch.bool)
        kept[order[:count]] = True
        found: dict[str, dict[str, Tensor]] = {"ffp": {}, "fwp": {}}
        for layer, piece, one in zip(ranked, kept.split([one.numel() for one in values]), values, strict=True):
            unit = layer.config.method.unit
            found[unit.kind][layer.site.name] = unit.mask(piece.view(one.shape), layer)
        return found

    dense = {layer.site.name: layer for layer in ranked}
    budget = (1 - ratio) * sum(int(layer.macs.sum()) for layer in dense.values())
    reserved = int((value == torch.inf).sum())

    def fits(count: int) -> bool:
        return _left(masks(reserved + count), dense) <= budget * (1 + 1e-12)

    chosen = masks(reserved + largest_prefix(len(value) - reserved, fits))
    return {kind: {name: mask for name, mask in of.items() if not mask.all()} for kind, of in chosen.items()}


def _left(masks: Mapping[str, Mapping[str, Tensor]], layers: Mapping[str, Layer]) -> int:
    """Multiply-adds of these layers under the masks."""
    total = 0
    for name, layer in layers.items():
        site, blocks, weights = layer.site, masks["ffp"].get(name), masks["fwp"].get(name)
        positions = torch.full((site.in_channels,), site.positions) if blocks is None else blocks.flatten(1).sum(1)
        kept = torch.ones(layer.weight.shape, dtype=torch.bool) if weights is None else weights
        by_channel = kept.unflatten(0, (site.groups, -1)).sum((1, 3, 4)).flatten()
        total += int((positions * by_channel).sum())
    return total
