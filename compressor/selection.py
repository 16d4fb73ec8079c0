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
from .ranking import global_threshold, rows_reserved


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
