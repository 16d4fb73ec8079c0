"""What is ranked: blocks, taps, quads, filters, n of every m weights. A unit knows its cost, what a ratio means of it, and its mask.

A method gives one score a unit; whatever is left of a layer's list is decided here or, over all layers, by one threshold.
"""

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from fineprune.calibrate.convolutions import ConvSite
from fineprune.common.errors import UsageError

from .ranked import Layer
from .ranking import keep_count, rows_reserved, top_k


class Unit:
    """What a method ranks."""

    name: str
    """In lists and messages."""
    kind: str
    """The mask that it becomes: "ffp" (blocks) or "fwp" (weights)."""
    scopes: tuple[str, ...]
    """What may be ranked together."""

    def check(self, config: Any) -> None:
        """UsageError for settings that say nothing about this unit."""

    def ranks(self, site: ConvSite, config: Any, outputs: Collection[str]) -> bool:
        """Whether a chosen layer is ranked at all; outputs: layers that make the network's outputs."""
        return True

    def costs(self, layer: Layer) -> Tensor:
        """Multiply-adds that dropping each unit saves, in the shape of the scores."""
        raise NotImplementedError

    def reserved(self, scores: Tensor, costs: Tensor, ratio: float, layer: Layer) -> Tensor:
        """The scores of a layer that makes outputs, with infinity where a unit must stay."""
        return scores

    def keep(self, scores: Tensor, ties: Tensor | None, ratio: float, layer: Layer) -> Tensor:
        """bool in the shape of the scores: what stays of a layer that is ranked by itself."""
        raise NotImplementedError

    def mask(self, kept: Tensor, layer: Layer) -> Tensor:
        """The kept units as a mask of this kind."""
        raise NotImplementedError

    def alive(self, mask: Tensor, layer: Layer) -> Tensor:
        """bool in the shape of the scores: the units of which a mask that the layer carries already leaves something."""
        raise NotImplementedError


class _Blocks(Unit):
    """The kh x kw patch of one input channel under one output position: scores [C,oh,ow]."""

    name, kind, scopes = "block", "ffp", ("channel", "layer", "position", "global")

    def costs(self, layer: Layer) -> Tensor:
        return torch.full((layer.site.in_channels, *layer.site.output_size), layer.site.block_macs)

    def keep(self, scores: Tensor, ties: Tensor | None, ratio: float, layer: Layer) -> Tensor:
        channels, oh, ow = scores.shape
        if layer.config.scope == "position":
            gone = scores == -torch.inf  # blocks that a mask has dropped before say nothing of a position, unless all have gone
            totals = torch.where(gone.all(0), -torch.inf, scores.masked_fill(gone, 0).sum(0)).view(1, -1)
            tie_totals = None if ties is None else ties.sum(0).view(1, -1)
            return top_k(totals, keep_count(oh * ow, ratio), tie_break=tie_totals).view(1, oh, ow).expand(channels, oh, ow).clone()
        # A layer with a ratio of its own in a global selection is ranked as a layer.
        rows = channels if layer.config.scope == "channel" else 1
        flat, flat_ties = scores.reshape(rows, -1), None if ties is None else ties.reshape(rows, -1)
        return top_k(flat, keep_count(flat.shape[1], ratio), tie_break=flat_ties).view(scores.shape)

    def mask(self, kept: Tensor, layer: Layer) -> Tensor:
        return kept

    def alive(self, mask: Tensor, layer: Layer) -> Tensor:
        return mask


class _Weights(Unit):
    """Whatever ends as a mask of weights, bool [F,C/groups,kh,kw]."""

    kind = "fwp"

    def ranks(self, site: ConvSite, config: Any, outputs: Collection[str]) -> bool:
        return not (config.pointwise == "exempt" and site.taps == 1)

    def check(self, config: Any) -> None:
        if config.share != "filter":
            raise UsageError(f"FWP share={config.share!r} is of taps, and {config.criterion!r} ranks {self.name}s; leave it out")


class _Taps(_Weights):
    """One weight, or the same one of several filters that drop it together: scores [Q,C/groups,kh,kw] of Q sets of filters."""

    name, scopes = "tap", ("kernel", "group", "channel", "filter", "layer", "global")

    def check(self, config: Any) -> None:
        if config.share != "filter" and config.scope not in ("layer", "global"):
            raise UsageError(
                f"FWP share={config.share!r} goes with scope 'layer' or 'global'; scope {config.scope!r} has a sharing of its own"
            )

    def costs(self, layer: Layer) -> Tensor:
        """Filters that share the tap times positions at which its channel is kept."""
        return layer.over_sets(layer.macs.double())

    def reserved(self, scores: Tensor, costs: Tensor, ratio: float, layer: Layer) -> Tensor:
        """Every filter keeps some taps, however little the samples need it; the scopes within a filter do so by themselves."""
        if layer.config.scope not in ("layer", "global"):
            return scores
        return rows_reserved(scores, costs, max(layer.config.floor, (1 - ratio) / 2))

    def keep(self, scores: Tensor, ties: Tensor | None, ratio: float, layer: Layer) -> Tensor:
        sets, channels = scores.shape[:2]
        rows = {"kernel": sets * channels, "group": sets * channels, "channel": sets * channels, "filter": sets}.get(layer.config.scope, 1)
        if layer.site.taps == 1 and rows == sets * channels:
            rows = sets
        flat = scores.reshape(rows, -1)
        return top_k(flat, keep_count(flat.shape[1], ratio)).view(scores.shape)

    def mask(self, kept: Tensor, layer: Layer) -> Tensor:
        return kept[layer.sets]

    def alive(self, mask: Tensor, layer: Layer) -> Tensor:
        return layer.over_sets(mask.double()) > 0


class _Quads(_Weights):
    """The same tap in one filter's kernels of four input channels that follow each other: scores [F,ceil(C/groups/4),kh,kw].

    The last quad has fewer channels where four does not divide their number.
    """

    name, scopes = "quad", ("filter", "layer", "global")
    reserved = _Taps.reserved

    def total(self, weights: Tensor) -> Tensor:
        """Values of weights [F,C/groups,kh,kw] added up over each quad: what a method's scores are made by."""
        missing = -weights.shape[1] % 4
        return torch.nn.functional.pad(weights, (0, 0, 0, 0, 0, missing)).unflatten(1, (-1, 4)).sum(2)

    def costs(self, layer: Layer) -> Tensor:
        return self.total(layer.macs)

    def keep(self, scores: Tensor, ties: Tensor | None, ratio: float, layer: Layer) -> Tensor:
        flat = scores.reshape(len(scores) if layer.config.scope == "filter" else 1, -1)
        return top_k(flat, keep_count(flat.shape[1], ratio)).view(scores.shape)

    def mask(self, kept: Tensor, layer: Layer) -> Tensor:
        return kept.repeat_interleave(4, 1)[:, : layer.weight.shape[1]].contiguous()

    def alive(self, mask: Tensor, layer: Layer) -> Tensor:
        return self.total(mask.long()) > 0


class _Filters(_Weights):
    """All weights of one output channel: scores [F]. Of a ratio r, int(r * F) filters are dropped; at least one stays."""

    name, scopes = "filter", ("layer", "global")

    def ranks(self, site: ConvSite, config: Any, outputs: Collection[str]) -> bool:
        """Where filters are outputs of the network, none is dropped."""
        return super().ranks(site, config, outputs) and site.name not in outputs

    def costs(self, layer: Layer) -> Tensor:
        return layer.macs.flatten(1).sum(1)

    def keep(self, scores: Tensor, ties: Tensor | None, ratio: float, layer: Layer) -> Tensor:
        dropped = int(ratio * len(scores) + 1e-9)  # 0.29 * 100 is a little below 29
        return top_k(scores[None], max(1, len(scores) - dropped), tie_break=None if ties is None else ties[None])[0]

    def mask(self, kept: Tensor, layer: Layer) -> Tensor:
        return kept[:, None, None, None].expand(layer.weight.shape).clone()

    def alive(self, mask: Tensor, layer: Layer) -> Tensor:
        return mask.flatten(1).any(1)


class NOfM(_Weights):
    """`n` of every `m` weights that follow each other along the input channels, of one filter and one tap: scores [F,C/groups,kh,kw].

    Channels that are left over where m does not divide their number keep at most their n best.
    """

    scopes = ("layer",)

    def __init__(self, n: int, m: int) -> None:
        self.n, self.m, self.name = n, m, f"group of {m} weight"

    def check(self, config: Any) -> None:
        super().check(config)
        dropped = 1 - self.n / self.m
        for ratio in (config.ratio, *config.per_layer.values()):
            if ratio not in (0, dropped):
                raise UsageError(
                    f"the FWP criterion {config.criterion!r} drops {dropped:g} of the weights, not {ratio:g}; give {dropped:g}"
                )

    def costs(self, layer: Layer) -> Tensor:
        return layer.macs

    def keep(self, scores: Tensor, ties: Tensor | None, ratio: float, layer: Layer) -> Tensor:
        if ratio == 0:
            return torch.ones_like(scores, dtype=torch.bool)
        filters, channels, *kernel = scores.shape
        rows = scores.permute(0, 2, 3, 1).reshape(-1, channels)
        missing = -channels % self.m
        groups = torch.nn.functional.pad(rows.double(), (0, missing), value=-torch.inf).reshape(-1, self.m)
        kept = top_k(groups, self.n).view(len(rows), -1)[:, :channels]
        return kept.view(filters, *kernel, channels).permute(0, 3, 1, 2).contiguous()

    def mask(self, kept: Tensor, layer: Layer) -> Tensor:
        return kept

    def alive(self, mask: Tensor, layer: Layer) -> Tensor:
        return mask


BLOCK, TAP, QUAD, FILTER = _Blocks(), _Taps(), _Quads(), _Filters()
