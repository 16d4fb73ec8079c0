"""From a trained network and samples to a masked network: calibrate blocks, mask them, calibrate weights under the masks, mask those."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fineprune.calibrate.calls import weight_of
from fineprune.calibrate.collect import CalibrationConfig, Source, collect
from fineprune.calibrate.convolutions import LAYER_TYPES, ConvSite, Skipped, find_convolutions
from fineprune.calibrate.layers import layer_at
from fineprune.calibrate.measures import Measure
from fineprune.calibrate.statistics import Statistics, check_fields, fingerprint, masks_by_layer
from fineprune.common.errors import UsageError
from fineprune.common.inputs import Shape, Structured, told
from fineprune.common.progress import Progress, Silent, working

from .agreement import check_agreement
from .bake import bake, masks_of
from .clusters import in_clusters
from .config import Part, PruneConfig
from .dependents import without_dead
from .masks import WEIGHTS
from .outputs import output_layers
from .ranked import Layer
from .selection import layers_of, select, select_common


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """A masked network (before fine-tuning), the masks it carries by kind and layer, and what stayed dense and why.

    `groups` has, for taps that groups of filters share, each layer's int64 [F]: filters of one number have the same weight mask.
    """

    model: nn.Module
    masks: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    groups: dict[str, Tensor] = field(default_factory=dict)
    skipped: list[Skipped] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class CalibrationRun:
    """Where and how the calibration passes run. `folder` keeps statistics: finished ones are used again, interrupted ones go on."""

    source: Source
    input_shape: Shape
    config: CalibrationConfig = field(default_factory=CalibrationConfig)
    device: torch.device | str = "cpu"
    folder: Path | None = None
    progress: Progress = field(default_factory=Silent)

    def collect(self, model: nn.Module, measure: Measure, layer_types: tuple[str, ...] = LAYER_TYPES) -> Statistics:
        """One pass over the samples."""
        return collect(
            model,
            self.source,
            measure,
            input_shape=self.input_shape,
            config=replace(self.config, layer_types=layer_types),
            device=self.device,
            checkpoint=self.folder and self.folder / measure.kind,
            progress=self.progress,
        )


def prunable(model: nn.Module, config: PruneConfig, run: CalibrationRun) -> tuple[list[ConvSite], list[Skipped]]:
    """`find_convolutions` of a network that `config` fits: UsageError where it doesn't, before any pass over the samples.

    RunError where masks or measuring change the network's outputs, tried on the first two samples (`check_agreement`).
    """
    sites, skipped = find_convolutions(model, run.input_shape, config.fwp.layer_types)
    if not sites:
        reasons = "".join(f"; {s.name}: {s.reason}" for s in skipped)
        raise UsageError(f"the network has no convolution that can carry masks{reasons}; give one with nn.Conv2d layers")
    for part in (config.ffp, config.fwp):
        part.chosen(sites)
    if len(run.source):
        few = next(iter(run.source.batches(2, indices=torch.arange(min(2, len(run.source)))))).images
        alone = None
        if isinstance(few, Structured):
            alone = next(iter(run.source.batches(1, indices=torch.arange(1)))).images.to(run.device)
        elif list(few.shape[1:]) != told(run.input_shape):
            raise UsageError(f"the calibration samples are of shape {list(few.shape[1:])}, not {told(run.input_shape)}; give their shape")
        check_agreement(model.to(run.device), sites, config, few.to(run.device), run.progress, alone)
    return sites, skipped


def prune(
    model: nn.Module,
    config: PruneConfig,
    run: CalibrationRun,
    *,
    found: tuple[list[ConvSite], list[Skipped]] | None = None,
    statistics: Mapping[str, Statistics] | None = None,
) -> Pruned:
    """Mask `model` by `config`; statistics already at hand ("blocks", "weights") are used instead of a pass over the samples.

    A network that carries masks is measured under them and keeps them: what the old or the new masks drop is dropped. Ratios stay
    those of the dense layer: 15 % of the blocks on top of a network without 40 % of its filters are 15 % of all its blocks. But where
    the weights' method needs no data, it goes first in the same run, and blocks are of those that it leaves. What a mask of the same
    kind has dropped before counts towards the ratio (it goes first), so that 0.3 and then 0.5 is 0.5 in all.

    found: what `prunable` gave, where it was asked before. The model given is left as it is. UsageError when statistics belong to
    another network, or when it has nothing to mask.
    """
    sites, skipped = found or prunable(model, config, run)
    masks = masks_of(model)
    groups: dict[str, Tensor] = {}
    unreached: set[str] = set()
    masked = bake(model, {}, input_shape=run.input_shape)
    outputs = output_layers(model, run.input_shape, [site.name for site in sites]) if config.parts else frozenset()
    for parts in config.passes:
        lists = []
        for part in parts:
            options: dict[str, Any] = {"layer_types": config.fwp.layer_types, "on_top": config.weights_first}
            at_hand, layers = ranked_layers(masked, part, sites, run, outputs, statistics=statistics, **options)
            if at_hand is not None:
                unreached |= {site.name for site in part.chosen(sites)} & part.method.unreached(at_hand)
            if part.clusters:
                at_ratio = replace(part, ratio=config.common or part.ratio)
                with working(run.progress, "putting channels together"):
                    layers = in_clusters(layers, at_ratio, outputs=outputs, carried=masks[part.mask])
            lists.append(layers)
        with working(run.progress, "ranking"):
            if config.common:
                new = select_common(lists, config.common, outputs=outputs, carried=masks)
            else:
                new = {part.mask: select(lists[0], part, outputs=outputs, carried=masks[part.mask]) for part in parts}
        for kind, of_kind in new.items():
            masks[kind] |= of_kind
        if any(part.ranked.whole_filters for part in parts):
            read_by, _ = find_convolutions(model, run.input_shape, {*config.fwp.layer_types, "linear"})
            masks[WEIGHTS.name] = without_dead(masked, read_by, run.input_shape, masks[WEIGHTS.name])
        for part, layers in zip(parts, lists, strict=True):
            if part.sharing == "group":
                groups = sharing({layer.site.name: layer.sets for layer in layers}, masks[part.mask])
        masked = bake(model, masks, input_shape=run.input_shape)
    _warn(masks, run.progress)
    reason = "no gradient reaches it, by which its worth is measured; the preset thesis needs none"
    skipped = [*skipped, *(Skipped(name=name, reason=reason) for name in sorted(unreached.difference(*masks.values())))]
    return Pruned(model=masked, masks=masks, groups=groups, skipped=skipped)


def sharing(groups: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of the groups, int64 [F] by layer, whose filters have the same mask [F,...]: an earlier mask may tell them apart."""
    found = {}
    for name, sets in groups.items():
        _, first, of = np.unique(sets.numpy(), return_index=True, return_inverse=True)
        if name in masks and bool((masks[name] == masks[name][first[of]]).all()):
            found[name] = sets
    return found


def ranked_layers(
    masked: nn.Module,
    part: Part,
    sites: list[ConvSite],
    run: CalibrationRun,
    outputs: Collection[str],
    *,
    statistics: Mapping[str, Statistics] | None = None,
    layer_types: tuple[str, ...] = LAYER_TYPES,
    on_top: bool = False,
) -> tuple[Statistics | None, list[Layer]]:
    """What the method of `part` knows of `masked`, from the statistics given or a pass over the samples (None: it needs none), and the
    layers that it ranks. on_top: the ratio of blocks is of those that some weight of `masked` multiplies, not of the dense layer's."""
    measure, found = part.method.measure(part, sites), None
    if measure is not None:
        given = _checked((statistics or {}).get(measure.kind), masked, sites, run)
        found = given or run.collect(masked, measure, layer_types)
        part.method.check(found, part, sites)
    weights = {site.name: weight_of(layer_at(masked, site)) for site in sites}
    masks = masks_of(masked)
    if not on_top:
        masks[WEIGHTS.name] = {}
    return found, layers_of(found, weights, masks, sites, part, outputs, run.config.seed)


def _warn(masks: Mapping[str, Mapping[str, Tensor]], progress: Progress) -> None:
    for name in [name for of_kind in masks.values() for name, mask in of_kind.items() if not mask.any()]:
        progress.log(f"warning: nothing of {name} is kept, so that its output is constant; give a floor above 0 or exclude the layer")
    if not any(masks.values()):
        progress.log("warning: nothing was pruned; give --prune, --ffp or --fwp a fraction above 0 (in Python: prune, ffp, fwp)")


def _checked(statistics: Statistics | None, model: nn.Module, sites: list[ConvSite], run: CalibrationRun) -> Statistics | None:
    if statistics is None:
        return None
    if statistics.settings.get("network") != fingerprint(model, masks_by_layer(model, (site.name for site in sites))):
        what = "network" if statistics.kind == "blocks" else "network or with other block masks"
        raise UsageError(f"the {statistics.kind} statistics were collected on another {what}; calibrate again with the same options")
    size = statistics.settings.get("input_shape")
    if size != told(run.input_shape):
        raise UsageError(
            f"the {statistics.kind} statistics were collected on inputs of {size}, not {told(run.input_shape)}; calibrate again"
        )
    check_fields(statistics, sites)
    return statistics
