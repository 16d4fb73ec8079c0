"""What is ranked: blocks, taps (or pairs, quads, rows of them), filters, n of every m weights. A unit knows its cost, what a ratio means
of it, and its mask.

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
    channels: int = 1
    """How many input channels of a layer it takes."""
    whole_filters: bool = False
    """Whether filters go as a whole, and with them what reads their maps alone (dependents.py)."""

    @property
    def ratio(self) -> float | None:
        """The pruned fraction, where there is only one."""
        return None

    def check(self, config: Any) -> None:
        """UsageError for settings that say nothing about this unit."""

    def ranks(self, site: ConvSite, config: Any, outputs: Collection[str]) -> bool:
        """Whether a chosen layer is ranked at all; outputs: layers that make the network's outputs."""
        return True

    def total(self, values: Tensor, layer: Layer) -> Tensor:
        """Of what a method gives for the smallest unit of this kind: the sum over each of these."""
        return values

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
        return layer.reads[:, None, None].expand(-1, *layer.site.output_size).contiguous()

    def keep(self, scores: Tensor, ties: Tensor | None, ratio: float, layer: Layer) -> Tensor:
        read = layer.reads > 0
        if not read.all():  # blocks that no weight multiplies go, and are none of those that a ratio is of
            kept = torch.zeros(scores.shape, dtype=torch.bool)
            if read.any():
                kept[read] = self._kept(scores[read], None if ties is None else ties[read], ratio, layer)
            return kept
        return self._kept(scores, ties, ratio, layer)

    def _kept(self, scores: Tensor, ties: Tensor | None, ratio: float, layer: Layer) -> Tensor:
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
        if config.unit != "weight":
            raise UsageError(f"FWP unit={config.unit!r} is made of taps, and {config.criterion!r} ranks {self.name}s; leave it out")


class _Taps(_Weights):
    """Weights of one filter that go together: scores [Q,ceil(C/groups/n),kh,kw/k] of Q sets of filters that share them.

    That is the same tap of `channels` input channels (n), which follow each other in `layer.order`, or a row of a kernel (k = kw). Where n
    does not divide the channels, the last units have fewer.
    """

    scopes = ("kernel", "group", "channel", "filter", "layer", "global")

    def __init__(self, name: str, channels: int = 1, row: bool = False) -> None:
        self.name, self.channels, self.row = name, channels, row

    def check(self, config: Any) -> None:
        if config.share != "filter" and config.scope not in ("layer", "global"):
            raise UsageError(
                f"FWP share={config.share!r} goes with scope 'layer' or 'global'; scope {config.scope!r} has a sharing of its own"
            )

    def members(self, values: Tensor, layer: Layer) -> Tensor:
        """Values of taps [Q,C/groups,kh,kw] as [Q,ceil(C/groups/n),kh,kw/k,n*k], those of a unit last; zeros where channels are missing."""
        ordered = values if layer.order is None else values[:, layer.order]
        padded = torch.nn.functional.pad(ordered, (0, 0, 0, 0, 0, -ordered.shape[1] % self.channels))
        width = values.shape[3] if self.row else 1
        return padded.unflatten(3, (-1, width)).unflatten(1, (-1, self.channels)).movedim(2, -1).flatten(-2)

    def total(self, values: Tensor, layer: Layer) -> Tensor:
        return self.members(values, layer).sum(-1)

    def costs(self, layer: Layer) -> Tensor:
        """Filters that share a tap times positions at which its channel is kept, of all taps of the unit."""
        return self.total(layer.over_sets(layer.macs.double()), layer)

    def reserved(self, scores: Tensor, costs: Tensor, ratio: float, layer: Layer) -> Tensor:
        """Every filter keeps some units, however little the samples need it; the scopes within a filter do so by themselves."""
        if layer.config.scope not in ("layer", "global"):
            return scores
        return rows_reserved(scores, costs, max(layer.config.floor, (1 - ratio) / 2))

    def keep(self, scores: Tensor, ties: Tensor | None, ratio: float, layer: Layer) -> Tensor:
        sets, kernels, *of_kernel = scores.shape
        rows = {"layer": 1, "global": 1, "filter": sets}.get(layer.config.scope, sets * kernels if of_kernel != [1, 1] else sets)
        flat = scores.reshape(rows, -1)
        return top_k(flat, keep_count(flat.shape[1], ratio)).view(scores.shape)

    def mask(self, kept: Tensor, layer: Layer) -> Tensor:
        taps = kept.repeat_interleave(self.channels, 1)[:, : layer.site.in_channels // layer.site.groups]
        taps = taps.repeat_interleave(layer.site.kernel[1], 3) if self.row else taps
        return (taps if layer.order is None else taps[:, layer.order.argsort()])[layer.sets]

    def alive(self, mask: Tensor, layer: Layer) -> Tensor:
        return self.total(layer.over_sets(mask.double()), layer) > 0


class _Filters(_Weights):
    """All weights of one output channel: scores [F]. Of a ratio r, int(r * F) filters are dropped; at least one stays."""

    name, scopes, whole_filters = "filter", ("layer", "global"), True

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

    @property
    def ratio(self) -> float:
        """Of whole groups."""
        return 1 - self.n / self.m

    def check(self, config: Any) -> None:
        super().check(config)
        for ratio in (config.ratio, *config.per_layer.values()):
            if ratio not in (0, self.ratio):
                raise UsageError(
                    f"the FWP criterion {config.criterion!r} drops {self.ratio:g} of the weights, not {ratio:g}; give {self.ratio:g}"
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


BLOCK, TAP, FILTER = _Blocks(), _Taps("tap"), _Filters()
TAPS = {"weight": TAP, "pair": _Taps("pair", channels=2), "quad": _Taps("quad", channels=4), "row": _Taps("row", row=True)}
"""What a method that ranks taps can rank instead, by the name of the setting."""
