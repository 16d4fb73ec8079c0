"""From a trained network and samples to a masked network: calibrate blocks, mask them, calibrate weights under the masks, mask those."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from fineprune.calibrate.collect import CalibrationConfig, Source, collect_block_statistics, collect_weight_statistics
from fineprune.calibrate.convolutions import ConvSite, Skipped, find_convolutions
from fineprune.calibrate.statistics import Statistics, check_fields, fingerprint
from fineprune.common.errors import UsageError
from fineprune.common.progress import Progress, Silent

from .agreement import check_agreement
from .bake import bake, masked_layers
from .config import FFPConfig, FWPConfig, PruneConfig
from .outputs import output_layers
from .selection import chosen_sites, filter_groups, kept_blocks, select_blocks, select_taps, without_gradient


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """A masked network (before fine-tuning), the masks it carries, and what stayed dense and why.

    `groups` has, for the scope "group", each layer's int64 [F]: filters of one number share their taps.
    """

    model: nn.Module
    ffp_masks: dict[str, Tensor] = field(default_factory=dict)
    fwp_masks: dict[str, Tensor] = field(default_factory=dict)
    groups: dict[str, Tensor] = field(default_factory=dict)
    skipped: list[Skipped] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class CalibrationRun:
    """Where and how the calibration passes run. `folder` keeps statistics: finished ones are used again, interrupted ones go on."""

    source: Source
    input_shape: tuple[int, ...]
    config: CalibrationConfig = field(default_factory=CalibrationConfig)
    device: torch.device | str = "cpu"
    folder: Path | None = None
    progress: Progress = field(default_factory=Silent)

    def block_statistics(self, model: nn.Module, sites: list[ConvSite], config: PruneConfig) -> Statistics:
        """Statistics of blocks by the criterion of `config`."""
        return collect_block_statistics(
            model,
            self.source,
            input_shape=self.input_shape,
            criterion=config.ffp.criterion,
            keep=kept_blocks(sites, config.ffp),
            propagate=config.ffp.propagate,
            config=self.config,
            device=self.device,
            checkpoint=self.folder and self.folder / "blocks",
            progress=self.progress,
        )

    def weight_statistics(self, model: nn.Module, config: PruneConfig) -> Statistics:
        """Statistics of weights of a network that carries its FFP masks."""
        return collect_weight_statistics(
            model,
            self.source,
            input_shape=self.input_shape,
            taylor=config.fwp.criterion == "taylor" or config.fwp.sharing == "group",
            lanes=config.fwp.lanes,
            config=self.config,
            device=self.device,
            checkpoint=self.folder and self.folder / "weights",
            progress=self.progress,
        )


def prunable(model: nn.Module, config: PruneConfig, run: CalibrationRun) -> tuple[list[ConvSite], list[Skipped]]:
    """`find_convolutions` of a network that `config` fits: UsageError where it doesn't, before any pass over the samples.

    RunError where masks or measuring change the network's outputs, tried on the first two samples (`check_agreement`).
    """
    sites, skipped = find_convolutions(model, run.input_shape)
    if not sites:
        reasons = "".join(f"; {s.name}: {s.reason}" for s in skipped)
        raise UsageError(f"the network has no convolution that can carry masks{reasons}; give one with nn.Conv2d layers")
    if any(masked_layers(model)):
        raise UsageError("the network carries masks already; prune the dense network it came from")
    for part in (config.ffp, config.fwp):
        chosen_sites(sites, part)
    if len(run.source):
        few = next(iter(run.source.batches(2, indices=torch.arange(min(2, len(run.source)))))).images
        if tuple(few.shape[1:]) != tuple(run.input_shape):
            raise UsageError(f"the calibration samples are of shape {list(few.shape[1:])}, not {list(run.input_shape)}; give their shape")
        check_agreement(model.to(run.device), sites, config, few.to(run.device), run.progress)
    return sites, skipped


def prune(
    model: nn.Module,
    config: PruneConfig,
    run: CalibrationRun,
    *,
    found: tuple[list[ConvSite], list[Skipped]] | None = None,
    blocks: Statistics | None = None,
    weights: Statistics | None = None,
) -> Pruned:
    """Mask `model` by `config`; statistics already at hand (`blocks`, `weights`) are used instead of a pass over the samples.

    found: what `prunable` gave, where it was asked before. The model given is left as it is. UsageError when statistics belong to
    another network, or when it has nothing to mask.
    """
    sites, skipped = found or prunable(model, config, run)
    ffp_masks: dict[str, Tensor] = {}
    unreached: set[str] = set()
    if config.ffp.prunes:
        blocks = _checked(blocks, model, {}, sites, run) or run.block_statistics(model, sites, config)
        _check_counts(blocks, sites, config)
        ffp_masks = select_blocks(blocks, sites, config.ffp)
        unreached |= _unreached(blocks, sites, config.ffp)
    masked = bake(model, ffp_masks=ffp_masks, input_shape=run.input_shape)
    fwp_masks: dict[str, Tensor] = {}
    groups: dict[str, Tensor] = {}
    if config.fwp.prunes:
        weights = _checked(weights, masked, ffp_masks, sites, run) or run.weight_statistics(masked, config)
        parameters = {site.name: _weight(masked, site) for site in sites}
        outputs = output_layers(model, run.input_shape, list(parameters))
        fwp_masks = select_taps(weights, parameters, ffp_masks, sites, config.fwp, outputs)
        unreached |= _unreached(weights, sites, config.fwp)
        if config.fwp.sharing == "group":
            groups = {site.name: filter_groups(weights, site, config.fwp) for site in sites if site.name in fwp_masks}
        masked = bake(model, ffp_masks=ffp_masks, fwp_masks=fwp_masks, input_shape=run.input_shape)
    for name in [name for name, mask in [*ffp_masks.items(), *fwp_masks.items()] if not mask.any()]:
        run.progress.log(f"warning: nothing of {name} is kept, so that its output is constant; give a floor above 0 or exclude the layer")
    if not ffp_masks and not fwp_masks:
        run.progress.log("warning: nothing was pruned; give --prune, --ffp or --fwp a fraction above 0")
    reason = "no gradient reaches it, by which its worth is measured; the preset thesis needs none"
    skipped = [*skipped, *(Skipped(name=name, reason=reason) for name in sorted(unreached - ffp_masks.keys() - fwp_masks.keys()))]
    return Pruned(model=masked, ffp_masks=ffp_masks, fwp_masks=fwp_masks, groups=groups, skipped=skipped)


def _unreached(statistics: Statistics, sites: list[ConvSite], config: FFPConfig | FWPConfig) -> set[str]:
    return {site.name for site in chosen_sites(sites, config)} & without_gradient(statistics, config)


def _weight(model: nn.Module, site: ConvSite) -> Tensor:
    weight = model.get_submodule(site.name).weight
    if not isinstance(weight, Tensor):
        raise TypeError(f"{site.name} has no weight tensor")
    return weight


def _check_counts(blocks: Statistics, sites: list[ConvSite], config: PruneConfig) -> None:
    """Frequencies count top-K memberships, so they serve only the K that they were collected with."""
    asked = kept_blocks(sites, config.ffp)
    for name, counted in blocks.settings.get("keep", {}).items():
        if name in asked and asked[name] != counted:
            raise UsageError(
                f"the frequencies of {name} were counted with {counted} blocks kept of a channel and not {asked[name]}; "
                "calibrate again with the ratios that you prune by"
            )


def _checked(
    statistics: Statistics | None, model: nn.Module, masks: dict[str, Tensor], sites: list[ConvSite], run: CalibrationRun
) -> Statistics | None:
    if statistics is None:
        return None
    if statistics.settings.get("network") != fingerprint(model, masks):
        what = "network" if statistics.kind == "blocks" else "network or with other block masks"
        raise UsageError(f"the {statistics.kind} statistics were collected on another {what}; calibrate again with the same options")
    size = statistics.settings.get("input_shape")
    if size != list(run.input_shape):
        raise UsageError(
            f"the {statistics.kind} statistics were collected on inputs of {size}, not {list(run.input_shape)}; calibrate again"
        )
    check_fields(statistics, sites)
    return statistics
