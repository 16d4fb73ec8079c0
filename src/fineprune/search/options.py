"""The levels that are open to each layer, with what they take and what they cost; the choice among them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fineprune.calibrate.convolutions import ConvSite
from fineprune.compressor.search.levels import DENSE, Level
from fineprune.compressor.search.programme import Floats, solve
from fineprune.compressor.search.sensitivity import LevelMasks
from fineprune.compressor.selection import left

_GAIN = 0.99
"""A level is open where it takes at most so much of what the dense layer takes."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """By layer: its levels, the dense one first, and their times (seconds or multiply-adds) and errors."""

    names: Sequence[str]
    levels: Sequence[Sequence[Level]]
    times: Sequence[Floats]
    errors: Sequence[Floats]

    @classmethod
    def of(cls, times: Mapping[str, Mapping[Level, float]], errors: Mapping[str, Mapping[Level, float]]) -> "Options":
        """Of the layers that have both; an error never falls as time does, since less of a layer is not worth more."""
        names, levels, taken, lost = [], [], [], []
        for name, of_layer in times.items():
            dense = of_layer[DENSE]
            gains = [level for level in errors.get(name, {}) if of_layer.get(level, np.inf) <= _GAIN * dense]
            gains.sort(key=lambda level: -of_layer[level])
            if gains:
                names.append(name)
                levels.append([DENSE, *gains])
                taken.append(np.array([dense, *(of_layer[level] for level in gains)]))
                lost.append(np.maximum.accumulate([0.0, *(errors[name][level] for level in gains)]))
        return cls(names=names, levels=levels, times=taken, errors=lost)

    def choice(self, budget: float) -> dict[str, Level] | None:
        """The level of each layer, at the least sum of errors whose times stay within `budget`; None where nothing does."""
        chosen = solve(self.times, self.errors, budget) if budget > 0 and self.names else None
        return None if chosen is None else {name: self.levels[k][chosen[k]] for k, name in enumerate(self.names)}

    @property
    def fastest(self) -> float:
        """The least sum of times."""
        return float(sum(of_layer.min() for of_layer in self.times))

    @property
    def dense(self) -> float:
        """The sum of times where nothing is pruned."""
        return float(sum(of_layer[0] for of_layer in self.times))

    def error(self, chosen: Mapping[str, Level]) -> float:
        """The sum of errors of a choice."""
        return float(sum(e[levels.index(chosen[n])] for n, levels, e in zip(self.names, self.levels, self.errors, strict=True)))


def chosen_masks(masks: LevelMasks, chosen: Mapping[str, Level]) -> dict[str, dict[str, Any]]:
    """Masks by kind and layer of a choice of levels."""
    found: dict[str, dict[str, Any]] = {}
    for name, level in chosen.items():
        for kind, of_kind in masks.get(level, {}).items():
            if name in of_kind:
                found.setdefault(kind, {})[name] = of_kind[name]
    return found


def multiply_adds(masks: LevelMasks, sites: Sequence[ConvSite]) -> dict[str, dict[Level, float]]:
    """What each layer takes at each level where multiply-adds are what counts."""
    return {site.name: {DENSE: float(site.macs)} | {level: float(left(site, masks[level])) for level in masks} for site in sites}
