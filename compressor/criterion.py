"""What a pruning method declares. One file in `criteria/` is one method; everything else asks these objects and knows no names."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from fineprune.calibrate.convolutions import ConvSite
from fineprune.calibrate.measures import Measure
from fineprune.calibrate.statistics import Statistics
from fineprune.common.errors import UsageError

from .ranked import Layer
from .units import Unit

__all__ = ["Criterion", "Layer", "require_criterion"]


class Criterion:
    """A pruning method: what it ranks, what it must collect, and the scores (larger ones stay)."""

    name: str
    """As it is spelled on the command line, in recipes and in Python."""
    summary: str
    """One phrase for lists."""
    unit: Unit
    """What is ranked, what it costs and how it becomes a mask."""
    comparable: bool = False
    """Whether scores of different layers may stand in one list, there divided by the cost."""
    scale: str | None = None
    """What scores are measured in, if blocks and weights ranked by methods of one scale may share a list."""
    per_sample: bool = False
    """Whether samples are ranked one by one, which can be read in several ways (`FFPConfig`)."""
    per_cost: bool = False
    """Whether scores are divided by the cost in a layer's own list, too."""
    collects: str | None = None
    """The kind of statistics that it needs ("blocks" or "weights"); None: nothing, and no pass over the samples is made."""
    reads_labels: bool = False
    """Whether that pass needs the samples' labels."""
    defaults: Mapping[str, Any] = {}
    """Settings that take the place of the preset's."""
    published: Mapping[str, Any] = {}
    """More of them, where a user asks for the method as its source has it (`--method`)."""
    schedule: str | None = None
    """When its source makes the masks, if that is not at once (`prune_schedule`)."""

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
        """The worth of each of what `unit` says, in its shape."""
        raise NotImplementedError

    def scores_of_units(self, layer: Layer) -> Tensor:
        """The worth of each unit that the settings ask for (`layer.config.ranked`): what it is made of, added up."""
        return layer.config.ranked.total(self.scores(layer), layer)

    def profile(self, layer: Layer) -> Tensor:
        """What taps are worth where most of the others go, by which channels are put together: the scores, in most methods."""
        return self.scores(layer)

    def ties(self, layer: Layer) -> Tensor | None:
        """What decides between equal scores before the smaller index does, or None."""
        return None


def require_criterion(statistics: Statistics, name: str) -> None:
    """UsageError where block statistics were collected for another method."""
    collected = statistics.settings.get("criterion", statistics.kind)
    if collected != name:
        raise UsageError(f"the statistics hold block scores of {collected!r}, not of {name!r}; calibrate with that criterion")
