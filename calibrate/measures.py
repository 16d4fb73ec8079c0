"""What a pass over the samples can measure, one object a kind of statistic: its name, its settings, its collectors."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, Protocol

from torch import nn

from .calls import weight_of
from .convolutions import ConvSite
from .fisher import block_limit
from .frequency import PLAIN, Norm, Reading, TieBreaker
from .importance import group_filters
from .layers import (
    BlockFrequency,
    BlockOutputs,
    BlockTaylor,
    BlockTaylorFrequency,
    Collector,
    InputMoments,
    WeightFisher,
    WeightScores,
    layer_at,
)
from .moments import block_limit as moments_limit
from .moments import moments_shape, positions_taken


class Measure(Protocol):
    """What is collected in one pass."""

    @property
    def kind(self) -> str:
        """What the statistics are called in messages and as a folder: "blocks" or "weights"."""
        ...

    def settings(self, sites: Sequence[ConvSite]) -> dict[str, Any]:
        """What parts of one calibration must agree in."""
        ...

    def collectors(self, model: nn.Module, sites: Sequence[ConvSite], seed: int, samples: int) -> dict[str, Collector]:
        """By layer, what adds up the statistic over a pass of `samples`."""
        ...

    def trial(self) -> "Measure":
        """The same, so that it looks on without changing what the network computes."""
        ...


TAYLOR = "taylor-top"
"""What the settings of frequencies by the change of the loss say in the place of a norm."""


@dataclass(frozen=True, kw_only=True)
class Frequencies:
    """Algorithm 8 stage 1: how often each block is among the top `keep[layer]` of its channel (all, where a layer is not named).

    norm: the score, None for the absolute first-order change of the loss, which needs gradients and the dense network. Deeper layers see
    inputs under each sample's own masks, unless propagate="dense".
    """

    norm: Norm | None
    reading: Reading = PLAIN
    keep: Mapping[str, int] = field(default_factory=dict)
    propagate: Literal["masked", "dense"] = "masked"
    kind = "blocks"

    def settings(self, sites: Sequence[ConvSite]) -> dict[str, Any]:
        """The norm, K of every layer, and what deeper layers see."""
        keep = {site.name: self._keep(site) for site in sites}
        other = {} if self.reading == PLAIN else asdict(self.reading)
        propagate = self.propagate if keep and self.norm else "dense"
        return {"criterion": self.norm or TAYLOR, "keep": keep, "propagate": propagate, **other}

    def _keep(self, site: ConvSite) -> int:
        return self.keep.get(site.name, self.reading.blocks(site.in_channels, site.positions))

    def collectors(self, model: nn.Module, sites: Sequence[ConvSite], seed: int, samples: int) -> dict[str, Collector]:
        """One `BlockFrequency` a layer that can carry masks of blocks, each with an order of its own among ties."""
        found: dict[str, Collector] = {}
        for number, site in enumerate(sites):
            if site.weights_only:
                continue
            ties = TieBreaker(site.in_channels * site.positions, seed=seed * 7919 + number)
            layer, keep = layer_at(model, site), self._keep(site)
            if self.norm is None:
                found[site.name] = BlockTaylorFrequency(layer, site, keep, ties, self.reading)
            else:
                masked = self.propagate == "masked"
                found[site.name] = BlockFrequency(layer, site, keep, self.norm, ties, masked=masked, reading=self.reading)
        return found

    def trial(self) -> "Frequencies":
        """Every block is kept."""
        return replace(self, keep={}, propagate="dense")


@dataclass(frozen=True, kw_only=True)
class BlockScores:
    """First-order (Taylor) scores of blocks, of the network as it is."""

    kind = "blocks"

    def settings(self, sites: Sequence[ConvSite]) -> dict[str, Any]:
        """There is nothing to set."""
        return {"criterion": "taylor", "keep": {}, "propagate": "dense"}

    def collectors(self, model: nn.Module, sites: Sequence[ConvSite], seed: int, samples: int) -> dict[str, Collector]:
        """One `BlockTaylor` a layer that can carry masks of blocks."""
        return {site.name: BlockTaylor(layer_at(model, site), site) for site in sites if not site.weights_only}

    def trial(self) -> "BlockScores":
        """It changes nothing."""
        return self


@dataclass(frozen=True, kw_only=True)
class WeightSums:
    """S of Algorithm 9 and, with `taylor`, first-order scores of taps: of one filter, of groups of `lanes` filters, of all filters.

    Without `taylor` the pass needs no gradients.
    """

    taylor: bool = True
    lanes: int = 16
    kind = "weights"

    def settings(self, sites: Sequence[ConvSite]) -> dict[str, Any]:
        """Whether scores are collected, and the size of the groups."""
        return {"taylor": self.taylor, "lanes": self.lanes}

    def collectors(self, model: nn.Module, sites: Sequence[ConvSite], seed: int, samples: int) -> dict[str, Collector]:
        """One `WeightScores` a layer."""
        found: dict[str, Collector] = {}
        for site in sites:
            layer = layer_at(model, site)
            sets = group_filters(weight_of(layer), self.lanes, site.groups) if self.taylor else None
            found[site.name] = WeightScores(layer, site, sets)
        return found

    def trial(self) -> "WeightSums":
        """All filters are one group, which is found at once."""
        return replace(self, lanes=1 << 30)


@dataclass(frozen=True, kw_only=True)
class Fisher:
    """Block-diagonal Fisher matrices of the weights (`fisher`), of the network as it is."""

    kind = "weights"

    def settings(self, sites: Sequence[ConvSite]) -> dict[str, Any]:
        """The largest number of weights of a block."""
        return {"fisher": block_limit(sites)}

    def collectors(self, model: nn.Module, sites: Sequence[ConvSite], seed: int, samples: int) -> dict[str, Collector]:
        """One `WeightFisher` a layer."""
        limit = block_limit(sites)
        return {site.name: WeightFisher(layer_at(model, site), site, limit) for site in sites}

    def trial(self) -> "Fisher":
        """It changes nothing."""
        return self


@dataclass(frozen=True, kw_only=True)
class InputSquares:
    """Second moments of the layers' inputs (`moments`) and the squares of their outputs. No labels, no gradients.

    most: rows of a block of the matrices, where that is fewer than fit into the memory.
    """

    most: int | None = None
    kind = "weights"

    def settings(self, sites: Sequence[ConvSite]) -> dict[str, Any]:
        """The largest number of rows of a block."""
        return {"moments": moments_limit(sites, self.most)}

    def collectors(self, model: nn.Module, sites: Sequence[ConvSite], seed: int, samples: int) -> dict[str, Collector]:
        """One `InputMoments` a layer; positions are taken where `samples` have more of them than a layer's matrix needs."""
        limit = moments_limit(sites, self.most)
        taken = {site.name: positions_taken(site.positions, samples, moments_shape(site, limit)[2]) for site in sites}
        return {site.name: InputMoments(layer_at(model, site), site, limit, taken[site.name]) for site in sites}

    def trial(self) -> "InputSquares":
        """It changes nothing."""
        return self


@dataclass(frozen=True, kw_only=True)
class BlockErrors:
    """What every block adds to its layer's outputs, squared (`inputs`). No labels, no gradients."""

    kind = "blocks"

    def settings(self, sites: Sequence[ConvSite]) -> dict[str, Any]:
        """What the error is of."""
        return {"criterion": "obs"}

    def collectors(self, model: nn.Module, sites: Sequence[ConvSite], seed: int, samples: int) -> dict[str, Collector]:
        """One `BlockOutputs` a layer that can carry masks of blocks."""
        return {site.name: BlockOutputs(layer_at(model, site), site) for site in sites if not site.weights_only}

    def trial(self) -> "BlockErrors":
        """It changes nothing."""
        return self
