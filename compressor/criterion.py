"""What a pruning method declares. One file in `criteria/` is one method; everything else asks these objects and knows no names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fineprune.calibrate.convolutions import ConvSite
from fineprune.calibrate.importance import group_filters
from fineprune.calibrate.measures import Measure
from fineprune.calibrate.statistics import Statistics
from fineprune.common.errors import UsageError

if TYPE_CHECKING:
    from .units import Unit


@dataclass(frozen=True, kw_only=True)
class Layer:
    """All that a method may look at of one convolution.

    config: the settings of the pass (`FFPConfig` or `FWPConfig`). weight: [F,C/groups,kh,kw], dropped ones at zero. blocks: the block
    mask bool [C,oh,ow] that the layer carries, or None. sums: what was collected, None where the method collects nothing.
    """

    site: ConvSite
    config: Any
    weight: Tensor
    blocks: Tensor | None = None
    sums: Mapping[str, Tensor] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Those of the statistics."""

    def sum(self, name: str) -> Tensor:
        """One of the sums; UsageError where the statistics lack it."""
        if self.sums is None or name not in self.sums:
            raise UsageError(f"the statistics hold no {name!r} for layer {self.site.name}; calibrate with the criterion that you prune by")
        return self.sums[name]

    @cached_property
    def sets(self) -> Tensor:
        """int64 [F]: filters with the same number drop a tap together."""
        filters = torch.arange(self.site.out_channels)
        if self.config.sharing == "filter":
            return filters
        if self.config.sharing == "channel":
            return filters // self.site.filters_per_group
        if self.sums is None:
            return group_filters(self.weight, self.config.lanes, self.site.groups)
        if "groups" not in self.sums or self.settings.get("lanes") != self.config.lanes:
            raise UsageError(
                f"the statistics of {self.site.name} hold no groups of {self.config.lanes} filters; "
                f"calibrate the weights with lanes={self.config.lanes}"
            )
        return self.sums["groups"]

    def over_sets(self, per_filter: Tensor) -> Tensor:
        """Scores of taps [F,C/groups,kh,kw] added up over the filters that share them: [Q,C/groups,kh,kw] float64."""
        shared = torch.zeros(int(self.sets.max()) + 1, *per_filter.shape[1:], dtype=torch.float64)
        return shared.index_add_(0, self.sets, per_filter)

    @cached_property
    def used(self) -> Tensor:
        """int64 [C]: positions at which each input channel is computed with, |M_c|."""
        if self.blocks is None:
            return torch.full((self.site.in_channels,), self.site.positions)
        return self.blocks.flatten(1).sum(1).cpu()


class Criterion:
    """A pruning method: what it ranks, what it must collect, and the scores (larger ones stay)."""

    name: str
    """As it is spelled on the command line, in recipes and in Python."""
    summary: str
    """One phrase for lists."""
    unit: "Unit"
    """What is ranked, what it costs and how it becomes a mask."""
    comparable: bool = False
    """Whether scores of different layers may stand in one list, there divided by the cost."""
    per_cost: bool = False
    """Whether scores are divided by the cost in a layer's own list, too."""
    collects: str | None = None
    """The kind of statistics that it needs ("blocks" or "weights"); None: nothing, and no pass over the samples is made."""
    defaults: Mapping[str, Any] = {}
    """Settings that take the place of the preset's."""

    @property
    def scopes(self) -> tuple[str, ...]:
        """What may be ranked together by this method."""
        return tuple(scope for scope in self.unit.scopes if self.comparable or scope != "global")

    def measure(self, config: Any, sites: Sequence[ConvSite]) -> Measure | None:
        """What to collect for these settings."""
        return None

    def check(self, statistics: Statistics, config: Any, sites: Sequence[ConvSite]) -> None:
        """UsageError where statistics were not collected for this method with these settings."""

    def unreached(self, statistics: Statistics) -> set[str]:
        """Layers of which the pass could learn nothing."""
        return set()

    def scores(self, layer: Layer) -> Tensor:
        """The worth of every unit, in the shape that the unit says."""
        raise NotImplementedError

    def ties(self, layer: Layer) -> Tensor | None:
        """What decides between equal scores before the smaller index does, or None."""
        return None


def require_criterion(statistics: Statistics, name: str) -> None:
    """UsageError where block statistics were collected for another method."""
    collected = statistics.settings.get("criterion", statistics.kind)
    if collected != name:
        raise UsageError(f"the statistics hold block scores of {collected!r}, not of {name!r}; calibrate with that criterion")
