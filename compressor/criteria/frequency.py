"""`l2`, `l1`, `apoz`, `taylor-top`: how often a block is among the best of its channel (FFP of the thesis, Algorithm 8, equations 5.4
to 5.7).

    s[n,c,p]  = || b[n,c,p] ||_2   (l1: the sum of absolute values; apoz: the number of non-zeros; taylor-top: | t[n,c,p] |)
    freq[c,p] = sum_n [ p among the top K of s[n,c,:] ],   K = P - round(ratio * P),   ties by the sum of s

Source: the thesis, chapter 5; `apoz` counts what Hu et al., arXiv 1607.03250, count, t is the first-order change of the loss that `taylor`
squares and adds up (arXiv 1611.06440). Collects: one forward pass (`calibrate/frequency.py`), by default (`propagate="masked"`) with every
sample under its own top-K masks; of `taylor-top` a backward pass too, and the dense network, for gradients come too late for masks.
Use: preset `thesis`, in the scopes `channel`, `layer` and `position`; frequencies of different layers do not compare. Frequencies belong to
the K that they were counted with. Readings of the listing, which are options of blocks: `softmax` (of a channel's scores over its
positions, before all else: the literal form), `within="layer"` (the K best of a sample are those of the layer), `count="sum"` (scores are
added up in the place of memberships), `sample_ratio` (stage 1 has a ratio of its own).
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fineprune.calibrate.convolutions import ConvSite
from fineprune.calibrate.frequency import PLAIN, Norm, Reading
from fineprune.calibrate.measures import TAYLOR, Frequencies
from fineprune.calibrate.statistics import Statistics
from fineprune.common.errors import UsageError

from ..criterion import Criterion, Layer, require_criterion
from ..ranking import keep_count
from ..units import BLOCK


def reading_of(config: Any) -> Reading:
    """How samples are ranked."""
    return Reading(softmax=config.softmax, within=config.within)


def kept_blocks(sites: Sequence[ConvSite], config: Any) -> dict[str, int]:
    """K of stage 1 for each layer that is pruned: blocks kept of each channel (or layer), the same share as in stage 2 or its own."""
    own, reading = config.sample_ratio, reading_of(config)
    return {
        site.name: keep_count(reading.blocks(site.in_channels, site.positions), config.ratio_of(site.name) if own is None else own)
        for site in config.chosen(sites)
    }


class Frequency(Criterion):
    """Frequencies as they were counted."""

    unit, collects, per_sample = BLOCK, "blocks", True

    def __init__(self, name: str, score: str, norm: Norm | None) -> None:
        self.name, self.norm, self.summary = name, norm, f"how often it is among the best of its channel, by {score}"
        self.reads_labels = norm is None

    def measure(self, config: Any, sites: Sequence[ConvSite]) -> Frequencies:
        """Frequencies for the K of the ratios asked for."""
        keep = kept_blocks(sites, config)
        return Frequencies(norm=self.norm, keep=keep, propagate=config.propagate, reading=reading_of(config))

    def check(self, statistics: Statistics, config: Any, sites: Sequence[ConvSite]) -> None:
        """They must count by the same norm and reading, and memberships in the top K with the same K."""
        require_criterion(statistics, self.name)
        for name, asked in vars(reading_of(config)).items():
            if (counted := statistics.settings.get(name, getattr(PLAIN, name))) != asked:
                raise UsageError(
                    f"the frequencies were counted with {name}={counted!r} and not {asked!r}; calibrate again with what you prune by"
                )
        asked = kept_blocks(sites, config)
        for name, counted in statistics.settings.get("keep", {}).items():
            if name in asked and asked[name] != counted:
                raise UsageError(
                    f"the frequencies of {name} were counted with {counted} blocks kept of a {config.within} and not {asked[name]}; "
                    "calibrate again with the ratios that you prune by"
                )

    def unreached(self, statistics: Statistics) -> set[str]:
        """Layers that no gradient reached, where one is needed."""
        return {name for name, sums in statistics.layers.items() if "frequency" not in sums} if self.norm is None else set()

    def scores(self, layer: Layer) -> Tensor:
        """[C,oh,ow]."""
        return layer.sum("norm" if layer.config.count == "sum" else "frequency")

    def ties(self, layer: Layer) -> Tensor:
        """[C,oh,ow]: the sum of the scores of single samples."""
        return layer.sum("norm")


METHODS = (
    Frequency("l2", "Euclidean norm", "l2"),
    Frequency("l1", "sum of absolute values", "l1"),
    Frequency("apoz", "number of non-zeros", "apoz"),
    Frequency(TAYLOR, "first-order change of the loss", None),
)
