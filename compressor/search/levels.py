"""What each layer may be pruned by: dense, or a pair of block and weight ratios; masks of all levels come from one calibration.

Blocks are ranked once, on the network as it is, weights once for each ratio of blocks, on the network whose layers all drop that many. A
level takes the top of these lists in each layer by itself, as a ratio of one layer (`per_layer`) does. Units of several channels (pairs,
quads) are put together once, at a ratio in the middle, where `prune` does so for the ratio that it is asked for.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from fineprune.calibrate.convolutions import ConvSite
from fineprune.common.errors import UsageError
from fineprune.common.progress import working

from ..bake import bake, masks_of
from ..clusters import in_clusters
from ..config import FFPConfig, FWPConfig, Part, PruneConfig
from ..masks import BLOCKS, WEIGHTS
from ..outputs import output_layers
from ..prune import CalibrationRun, ranked_layers
from ..ranked import Layer
from ..selection import select


@dataclass(frozen=True, order=True)
class Level:
    """Pruned fractions of one layer, in [0,1): of its blocks, and of the weights under those that are left."""

    ffp: float = 0.0
    fwp: float = 0.0

    def __str__(self) -> str:
        named = [f"{name} {ratio:.0%}" for name, ratio in (("blocks", self.ffp), ("weights", self.fwp)) if ratio]
        return ", ".join(named) or "dense"

    def to_json(self) -> dict[str, float]:
        """Both by the names of the kinds."""
        return {BLOCKS.name: self.ffp, WEIGHTS.name: self.fwp}


DENSE = Level()
LEVELS = tuple(Level(fwp=ratio) for ratio in (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95))
"""Weights alone: blocks cost more accuracy for the time that they save (docs/results.md)."""
_MIDDLE = 0.6


def levels_of(given: Sequence[Any] | None) -> tuple[Level, ...]:
    """Levels from weight ratios, or from pairs (blocks, weights); None: `LEVELS`. UsageError for others."""
    if given is None:
        return LEVELS
    try:
        found = [one if isinstance(one, Level) else Level(*one) if isinstance(one, list | tuple) else Level(fwp=one) for one in given]
        fit = all(isinstance(r, int | float) and not isinstance(r, bool) and 0 <= r < 1 for one in found for r in (one.ffp, one.fwp))
    except TypeError:
        fit = False
    if not fit or not found:
        raise UsageError(f"levels are weight ratios in [0, 1), or pairs (blocks, weights) of such, got {given!r:.80}")
    return tuple(sorted(set(found) - {DENSE}))


def at_levels(config: PruneConfig, levels: Mapping[str, Level], sites: Sequence[ConvSite]) -> PruneConfig:
    """`config` with the level of each of the layers `levels`; other layers that it chooses stay dense."""

    def part_at(part: Part, ratio: str) -> Any:
        chosen = {site.name for site in part.chosen(sites)}
        return replace(part, ratio=0.0, per_layer={_glob(n): getattr(level, ratio) for n, level in levels.items() if n in chosen})

    return PruneConfig(ffp=part_at(config.ffp, "ffp"), fwp=part_at(config.fwp, "fwp"))


def _glob(name: str) -> str:
    """The pattern that matches this name alone."""
    return name.replace("[", "[[]")


def masks_of_levels(
    model: nn.Module, config: PruneConfig, run: CalibrationRun, sites: list[ConvSite], levels: Sequence[Level]
) -> dict[Level, dict[str, dict[str, Tensor]]]:
    """Masks by level, kind and layer, where all layers that `config` chooses are at that level; masks that `model` carries stay."""
    names = [site.name for site in sites]
    outputs, carried = output_layers(model, run.input_shape, names), masks_of(model)
    masked = bake(model, {}, input_shape=run.input_shape)
    ranked = partial(ranked_layers, sites=sites, outputs=outputs, layer_types=config.fwp.layer_types)
    found: dict[Level, dict[str, dict[str, Tensor]]] = {}
    blocks: list[Layer] = []
    if any(level.ffp for level in levels):
        _, blocks = ranked(masked, config.ffp, run=run)
    for ffp in sorted({level.ffp for level in levels}):
        under = dict(carried)
        if ffp:
            under[BLOCKS.name] = carried[BLOCKS.name] | _selected(blocks, config.ffp, ffp, outputs, carried[BLOCKS.name])
        weights: list[Layer] = []
        if any(level.fwp for level in levels if level.ffp == ffp):
            where = None if run.folder is None else run.folder / f"blocks-{ffp:g}"
            at_blocks = bake(model, {BLOCKS.name: under[BLOCKS.name]}, input_shape=run.input_shape)
            _, weights = ranked(at_blocks, config.fwp, run=replace(run, folder=where))
            if config.fwp.clusters:
                with working(run.progress, "putting channels together"):
                    weights = in_clusters(weights, _at(config.fwp, _MIDDLE, weights), outputs=outputs, carried=carried[WEIGHTS.name])
        for level in (one for one in levels if one.ffp == ffp):
            new = _selected(weights, config.fwp, level.fwp, outputs, carried[WEIGHTS.name]) if level.fwp else {}
            found[level] = under | {WEIGHTS.name: carried[WEIGHTS.name] | new}
    return found


def _selected(layers: list[Layer], part: Part, ratio: float, outputs: frozenset[str], carried: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return select(layers, _at(part, ratio, layers), outputs=outputs, carried=carried)


def _at(part: FFPConfig | FWPConfig | Part, ratio: float, layers: Sequence[Layer]) -> Any:
    return replace(part, ratio=0.0, per_layer={_glob(layer.site.name): ratio for layer in layers})
