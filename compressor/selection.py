"""Statistics and settings become masks (methods.md sections 1, 1b and 2). Pure: nothing is changed, nothing is random.

FFP   M[c,n]         = n among the top K of freq[c] (or of the Taylor scores), K = P - round(p * P)
FWP   Wmask[f,c,u,v] = tap (u,v) among the top K' of its slice by WIS = |w| * S (or by the Taylor score)
"""

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from fineprune.calibrate.convolutions import ConvSite, select_sites
from fineprune.calibrate.statistics import Statistics
from fineprune.common.errors import UsageError

from .config import FFPConfig, FWPConfig
from .ranking import global_threshold, keep_count, rows_reserved, top_k


def chosen_sites(sites: Sequence[ConvSite], config: FFPConfig | FWPConfig) -> list[ConvSite]:
    """The sites to prune; UsageError for a glob of include, exclude or per_layer that matches none."""
    chosen = select_sites(sites, include=config.include, exclude=config.exclude)
    select_sites(chosen, include=tuple(config.per_layer))
    return chosen


def without_gradient(statistics: Statistics, config: FFPConfig | FWPConfig) -> set[str]:
    """The layers that no gradient reached in a pass that collected Taylor scores: by those scores nothing can be chosen there."""
    settings = statistics.settings
    collected = settings.get("criterion") == "taylor" or settings.get("taylor")
    if config.criterion != "taylor" or not collected:
        return set()
    return {name for name, fields in statistics.layers.items() if "taylor" not in fields}


def kept_blocks(sites: Sequence[ConvSite], config: FFPConfig) -> dict[str, int]:
    """K of stage 1 for each layer that FFP prunes: blocks kept of each channel, the same number as in stage 2."""
    return {site.name: keep_count(site.positions, _ratio(site, config)) for site in chosen_sites(sites, config)}


def select_blocks(statistics: Statistics, sites: Sequence[ConvSite], config: FFPConfig) -> dict[str, Tensor]:
    """FFP masks, bool [C,oh,ow] by layer; a layer of which nothing is dropped is left out."""
    chosen = [site for site in chosen_sites(sites, config) if site.name not in without_gradient(statistics, config)]
    scores = {site.name: _block_scores(statistics, site, config) for site in chosen}
    in_one_list = [site for site in chosen if config.scope == "global" and config.override(site.name) is None]
    masks = {}
    if in_one_list:
        costs = {site.name: torch.full(scores[site.name][0].shape, site.block_macs) for site in in_one_list}
        masks = _one_list({site.name: scores[site.name][0] for site in in_one_list}, costs, config)
    for site in chosen:
        if site.name not in masks:
            masks[site.name] = _select_layer_blocks(*scores[site.name], _ratio(site, config), config.scope)
    return {site.name: masks[site.name] for site in chosen if not masks[site.name].all()}


def select_taps(
    statistics: Statistics,
    weights: Mapping[str, Tensor],
    ffp_masks: Mapping[str, Tensor],
    sites: Sequence[ConvSite],
    config: FWPConfig,
    outputs: Collection[str] = (),
) -> dict[str, Tensor]:
    """FWP masks, bool [F,C/groups,kh,kw] by layer; a layer of which nothing is dropped is left out.

    weights[name] is the layer's weight; ffp_masks tells how often each tap is used, which is what dropping it saves. outputs: layers
    whose filters are outputs of the network; each of these filters keeps some taps, however little the samples need it.
    """
    chosen = [site for site in chosen_sites(sites, config) if site.name not in without_gradient(statistics, config)]
    chosen = [site for site in chosen if not (config.pointwise == "exempt" and site.taps == 1)]
    assignments = {site.name: filter_groups(statistics, site, config) for site in chosen}
    scores, costs = {}, {}
    for site in chosen:
        scores[site.name] = _tap_scores(statistics, site, weights[site.name], assignments[site.name], config)
        costs[site.name] = _tap_costs(site, ffp_masks.get(site.name), assignments[site.name])
        if config.criterion == "magnitude":  # the usual baseline ranks |w| itself, and a list in common divides by the cost
            scores[site.name] = scores[site.name] * costs[site.name]
        if site.name in outputs and config.scope in ("layer", "global"):  # the other scopes keep some of every filter
            share = max(config.floor, (1 - _ratio(site, config)) / 2)
            scores[site.name] = rows_reserved(scores[site.name], costs[site.name], share)
    in_one_list = [site.name for site in chosen if config.scope == "global" and config.override(site.name) is None]
    shared = {}
    if in_one_list:
        shared = _one_list({n: scores[n] for n in in_one_list}, costs, config)
    for site in chosen:
        if site.name not in shared:
            shared[site.name] = _select_layer_taps(scores[site.name], costs[site.name], _ratio(site, config), site, config)
    masks = {site.name: shared[site.name][assignments[site.name]] for site in chosen}
    return {name: mask for name, mask in masks.items() if not mask.all()}


def filter_groups(statistics: Statistics, site: ConvSite, config: FWPConfig) -> Tensor:
    """int64 [F]: filters with the same number drop a tap together."""
    filters = torch.arange(site.out_channels)
    if config.sharing == "filter":
        return filters
    if config.sharing == "channel":
        return filters // site.filters_per_group
    fields = statistics.layers[site.name]
    if "groups" not in fields or statistics.settings.get("lanes") != config.lanes:
        raise UsageError(
            f"the statistics of {site.name} hold no groups of {config.lanes} filters; calibrate the weights with lanes={config.lanes}"
        )
    return fields["groups"]


def _ratio(site: ConvSite, config: FFPConfig | FWPConfig) -> float:
    override = config.override(site.name)
    return config.ratio if override is None else override


def _one_list(scores: dict[str, Tensor], costs: Mapping[str, Tensor], config: FFPConfig | FWPConfig) -> dict[str, Tensor]:
    """Masks by one threshold. A layer of so few elements that the floor rounds to none keeps its best one."""
    for name, score in scores.items():
        if config.floor and not round(config.floor * score.numel()):
            scores[name] = rows_reserved(score[None], costs[name][None], 0.0)[0]
    return global_threshold(scores, {name: costs[name] for name in scores}, config.ratio, config.floor)


def _field(statistics: Statistics, site: ConvSite, name: str) -> Tensor:
    try:
        return statistics.layers[site.name][name]
    except KeyError:
        raise UsageError(f"the statistics hold no {name!r} for layer {site.name}; calibrate with the criterion that you prune by") from None


def _block_scores(statistics: Statistics, site: ConvSite, config: FFPConfig) -> tuple[Tensor, Tensor | None]:
    """(scores, tie-break), each [C,oh,ow]."""
    collected = statistics.settings.get("criterion", statistics.kind)
    if collected != config.criterion:
        raise UsageError(f"the statistics hold block scores of {collected!r}, not of {config.criterion!r}; calibrate with that criterion")
    if config.criterion == "taylor":
        return _field(statistics, site, "taylor"), None
    return _field(statistics, site, "frequency"), _field(statistics, site, "norm")


def _select_layer_blocks(scores: Tensor, ties: Tensor | None, ratio: float, scope: str) -> Tensor:
    channels, oh, ow = scores.shape
    if scope == "position":
        totals = scores.sum(0).view(1, -1)
        tie_totals = None if ties is None else ties.sum(0).view(1, -1)
        return top_k(totals, keep_count(oh * ow, ratio), tie_break=tie_totals).view(1, oh, ow).expand(channels, oh, ow).clone()
    # A layer with a ratio of its own in a global selection is ranked as a layer.
    rows = 1 if scope in ("layer", "global") else channels
    flat, flat_ties = scores.reshape(rows, -1), None if ties is None else ties.reshape(rows, -1)
    return top_k(flat, keep_count(flat.shape[1], ratio), tie_break=flat_ties).view(scores.shape)


def _tap_scores(statistics: Statistics, site: ConvSite, weight: Tensor, assignment: Tensor, config: FWPConfig) -> Tensor:
    """[Q,C/groups,kh,kw] for Q sets of filters that share taps."""
    per_group = site.in_channels // site.groups
    if config.criterion == "taylor":
        field = {"filter": "taylor", "group": "taylor_group", "channel": "taylor_channel"}[config.sharing]
        return _field(statistics, site, field).reshape(-1, per_group, *site.kernel)
    per_filter = weight.detach().cpu().double()
    if config.criterion != "wis-signed":
        per_filter = per_filter.abs()
    if config.criterion != "magnitude":
        sums = _field(statistics, site, "signed" if config.criterion == "wis-signed" else "absolute")
        group_of_filter = torch.arange(site.out_channels) // site.filters_per_group
        per_filter = per_filter * sums.view(site.groups, per_group, *site.kernel)[group_of_filter]
    shared = torch.zeros(int(assignment.max()) + 1, *per_filter.shape[1:], dtype=torch.float64)
    return shared.index_add_(0, assignment, per_filter)


def _tap_costs(site: ConvSite, ffp_mask: Tensor | None, assignment: Tensor) -> Tensor:
    """Multiply-adds that each shared tap [Q,C/groups,kh,kw] costs: filters that share it times positions at which its channel is kept."""
    used = torch.full((site.in_channels,), site.positions) if ffp_mask is None else ffp_mask.flatten(1).sum(1).cpu()
    sizes = assignment.bincount()
    conv_group = torch.zeros(len(sizes), dtype=torch.int64)
    conv_group[assignment] = torch.arange(site.out_channels) // site.filters_per_group
    positions = used.view(site.groups, -1)[conv_group]
    return (sizes[:, None] * positions)[:, :, None, None].expand(-1, -1, *site.kernel)


def _select_layer_taps(scores: Tensor, costs: Tensor, ratio: float, site: ConvSite, config: FWPConfig) -> Tensor:
    if config.criterion == "taylor":
        scores = torch.where(costs > 0, scores / costs.clamp_min(1), -torch.inf)
    sets, channels = scores.shape[:2]
    rows = {"kernel": sets * channels, "group": sets * channels, "channel": sets * channels, "filter": sets}.get(config.scope, 1)
    if site.taps == 1 and rows == sets * channels:
        rows = sets
    flat = scores.reshape(rows, -1)
    return top_k(flat, keep_count(flat.shape[1], ratio)).view(scores.shape)
