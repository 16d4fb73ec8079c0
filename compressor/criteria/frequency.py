"""`l2`, `l1`, `apoz`: how often a block is among the best of its channel (FFP of the thesis, Algorithm 8, equations 5.4 to 5.7).

    s[n,c,p]  = || b[n,c,p] ||_2   (l1: the sum of absolute values; apoz: the number of non-zeros)
    freq[c,p] = sum_n [ p among the top K of s[n,c,:] ],   K = P - round(ratio * P),   ties by the sum of s

Source: the thesis, chapter 5; `apoz` counts what Hu et al., arXiv 1607.03250, count. Collects: one forward pass (`calibrate/frequency.py`),
by default (`propagate="masked"`) with every sample under its own top-K masks. Use: preset `thesis`, in the scopes `channel`, `layer` and
`position`; frequencies of different layers do not compare. Frequencies belong to the K that they were counted with.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fineprune.calibrate.convolutions import ConvSite
from fineprune.calibrate.frequency import Norm
from fineprune.calibrate.measures import Frequencies
from fineprune.calibrate.statistics import Statistics
from fineprune.common.errors import UsageError

from ..criterion import Criterion, Layer, require_criterion
from ..ranking import keep_count
from ..units import BLOCK


def kept_blocks(sites: Sequence[ConvSite], config: Any) -> dict[str, int]:
    """K of stage 1 for each layer that is pruned: blocks kept of each channel, the same number as in stage 2."""
    return {site.name: keep_count(site.positions, config.ratio_of(site.name)) for site in config.chosen(sites)}


class Frequency(Criterion):
    """Frequencies as they were counted."""

    unit, collects = BLOCK, "blocks"

    def __init__(self, norm: Norm, score: str) -> None:
        self.name, self.norm, self.summary = norm, norm, f"how often it is among the best of its channel, by {score}"

    def measure(self, config: Any, sites: Sequence[ConvSite]) -> Frequencies:
        """Frequencies for the K of the ratios asked for."""
        return Frequencies(norm=self.norm, keep=kept_blocks(sites, config), propagate=config.propagate)

    def check(self, statistics: Statistics, config: Any, sites: Sequence[ConvSite]) -> None:
        """They must count by the same norm, and memberships in the top K with the same K."""
        require_criterion(statistics, self.name)
        asked = kept_blocks(sites, config)
        for name, counted in statistics.settings.get("keep", {}).items():
            if name in asked and asked[name] != counted:
                raise UsageError(
                    f"the frequencies of {name} were counted with {counted} blocks kept of a channel and not {asked[name]}; "
                    "calibrate again with the ratios that you prune by"
                )

    def scores(self, layer: Layer) -> Tensor:
        """[C,oh,ow]."""
        return layer.sum("frequency")

    def ties(self, layer: Layer) -> Tensor:
        """[C,oh,ow]: the sum of the scores of single samples."""
        return layer.sum("norm")


METHODS = (Frequency("l2", "Euclidean norm"), Frequency("l1", "sum of absolute values"), Frequency("apoz", "number of non-zeros"))
