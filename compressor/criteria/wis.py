"""`wis`, `wis-signed`: weight times accumulated input (FWP of the thesis, Algorithm 9, equations 5.8 and 5.9).

    S[c,u,v] = sum over samples and positions of | M[c,p] * b[c,p,u,v] |        WIS[f,c,u,v] = | w[f,c,u,v] | * S[c,u,v]

`wis-signed` is the listing read literally: no absolute values. Source: the thesis, chapter 5. Collects: S, one forward pass
(`calibrate/importance.py`); the source needs one more pass per filter, but WIS factorises. Use: preset `thesis`; every scope but
`global`, for the layers do not compare. Where several filters share a tap, its WIS is the sum over them.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fineprune.calibrate.convolutions import ConvSite
from fineprune.calibrate.measures import WeightSums

from ..criterion import Criterion, Layer
from ..units import TAP


def importance(weight: Tensor, sums: Tensor, groups: int) -> Tensor:
    """weight[F,C/groups,kh,kw] times the sums [C,kh,kw] of the channels that it reads."""
    group_of_filter = torch.arange(len(weight)) // (len(weight) // groups)
    return weight * sums.view(groups, *weight.shape[1:])[group_of_filter]


class WeightTimesInput(Criterion):
    """WIS, in magnitude or signed."""

    unit, collects = TAP, "weights"

    def __init__(self, name: str, summary: str, sums: str) -> None:
        self.name, self.summary, self.sums = name, summary, sums

    def measure(self, config: Any, sites: Sequence[ConvSite]) -> WeightSums:
        """S of every tap; groups of filters come with the scores."""
        return WeightSums(taylor=config.sharing == "group", lanes=config.lanes)

    def scores(self, layer: Layer) -> Tensor:
        """[Q,C/groups,kh,kw]."""
        weight = layer.weight.detach().cpu().double()
        weight = weight if self.sums == "signed" else weight.abs()
        return layer.over_sets(importance(weight, layer.sum(self.sums), layer.site.groups))


METHODS = (
    WeightTimesInput("wis", "magnitude of the weight times that of its accumulated input", "absolute"),
    WeightTimesInput("wis-signed", "weight times accumulated input, with their signs", "signed"),
)
