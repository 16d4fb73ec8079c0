"""A convolution as pruning methods and their units see it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fineprune.calibrate.convolutions import ConvSite
from fineprune.calibrate.importance import group_filters
from fineprune.common.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Layer:
    """All that a method may look at of one convolution.

    config: the settings of the pass (`FFPConfig` or `FWPConfig`). weight: [F,C/groups,kh,kw], dropped ones at zero. blocks: the block
    mask bool [C,oh,ow] that the layer carries, kept: that of its weights, bool [F,C/groups,kh,kw], or None.
    sums: what was collected, None where the method collects nothing. order: int64
    [C/groups], the input channels in the order in which neighbours make a unit, the same in every group; None: as they are.
    """

    site: ConvSite
    config: Any
    weight: Tensor
    blocks: Tensor | None = None
    kept: Tensor | None = None
    order: Tensor | None = None
    sums: Mapping[str, Tensor] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Those of the statistics."""
    seed: int = 0
    """Of methods that draw numbers."""

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
        if self.sums is None or "lanes" not in self.settings:  # nothing was summed over groups
            return group_filters(self.weight, self.config.lanes, self.site.groups)
        if "groups" not in self.sums or self.settings.get("lanes") != self.config.lanes:
            raise UsageError(
                f"the statistics of {self.site.name} hold no groups of {self.config.lanes} filters; "
                f"calibrate the weights with lanes={self.config.lanes}"
            )
        return self.sums["groups"]

    def over_sets(self, per_filter: Tensor) -> Tensor:
        """float64 values of taps [F,C/groups,kh,kw] added up over the filters that share them: [Q,C/groups,kh,kw]."""
        shared = torch.zeros(int(self.sets.max()) + 1, *per_filter.shape[1:], dtype=torch.float64)
        return shared.index_add_(0, self.sets, per_filter)

    @cached_property
    def scores(self) -> Tensor:
        """What the method gives for each unit, which takes minutes in wide layers."""
        scores: Tensor = self.config.method.scores_of_units(self)
        return scores

    @cached_property
    def reads(self) -> Tensor:
        """int64 [C]: the kept weights that multiply a block of each input channel."""
        site = self.site
        if self.kept is None:
            return torch.full((site.in_channels,), site.block_macs)
        return self.kept.cpu().view(site.groups, -1, *self.kept.shape[1:]).sum((1, 3, 4)).flatten()

    @cached_property
    def macs(self) -> Tensor:
        """int64 [F,C/groups,kh,kw]: multiply-adds of each weight, the positions |M_c| at which its channel is computed with."""
        site = self.site
        used = torch.full((site.in_channels,), site.placements) if self.blocks is None else self.blocks.flatten(1).sum(1).cpu()
        per_filter = used.view(site.groups, -1).repeat_interleave(site.filters_per_group, 0)
        return per_filter[:, :, None, None].expand(-1, -1, *site.kernel)
