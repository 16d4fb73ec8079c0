"""`random`: weights, or blocks, by lot: what every other method is to be better than (the baseline of Blalock et al., arXiv 2003.03033).

    score = U,    U drawn from [0,1) for each tap (or block), by the seed of the run and the name of the layer

Collects nothing: no pass over the samples is made. Use: `fwp_criterion = "random"`, `ffp_criterion = "random"`, every scope; in `global`
all layers lose about the same share. The seed is that of the calibration (`--seed`).
"""

from zlib import crc32

import torch
from torch import Tensor

from ..criterion import Criterion, Layer
from ..units import BLOCK, TAP, Unit


def drawn(shape: torch.Size, seed: int, name: str) -> Tensor:
    """float64 in [0,1) of that shape, other numbers for every layer `name`."""
    generator = torch.Generator().manual_seed(crc32(f"{seed} {name}".encode()))  # which reads 32 bits
    return torch.rand(shape, generator=generator, dtype=torch.float64)


class Random(Criterion):
    """A number for each; lists divide by the cost, which is taken back here."""

    name, summary = "random", "a number that is drawn"
    comparable, per_cost = True, True
    published = {"scope": "global", "floor": 0.0}  # noqa: RUF012

    def __init__(self, unit: Unit) -> None:
        self.unit = unit

    def scores(self, layer: Layer) -> Tensor:
        """Of single taps or blocks."""
        return self._of(self.unit, layer)

    def scores_of_units(self, layer: Layer) -> Tensor:
        """One number for all that goes together."""
        return self._of(layer.config.ranked, layer)

    def _of(self, unit: Unit, layer: Layer) -> Tensor:
        costs = unit.costs(layer)
        return drawn(costs.shape, layer.seed, layer.site.name) * costs


METHODS = (Random(TAP), Random(BLOCK))
