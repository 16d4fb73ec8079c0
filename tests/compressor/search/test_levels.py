"""Masks of levels are those that a ratio of one layer gives; what levels may be."""

from dataclasses import replace

import pytest
import torch

from fineprune.calibrate.collect import CalibrationConfig
from fineprune.common.errors import UsageError
from fineprune.compressor.bake import bake
from fineprune.compressor.config import prune_config
from fineprune.compressor.prune import CalibrationRun, prunable, prune
from fineprune.compressor.search.levels import DENSE, LEVELS, Level, at_levels, levels_of, masks_of_levels
from support.networks import CONVOLUTIONS, SHAPE, samples, varied

RUN = CalibrationRun(source=samples(), input_shape=SHAPE, config=CalibrationConfig(data="noise"))


def network() -> torch.nn.Module:
    return varied(0, dtype=torch.float32).eval()


@pytest.mark.parametrize("criterion", ["obs", "magnitude"])
def test_a_level_drops_what_a_ratio_of_the_layer_drops(criterion: str) -> None:
    model, config = network(), prune_config("obs", fwp={"criterion": criterion})
    found = prunable(model, replace(config, fwp=replace(config.fwp, ratio=0.5)), RUN)
    levels = [Level(fwp=0.4), Level(fwp=0.7)]
    masks = masks_of_levels(model, config, RUN, found[0], levels)
    for level in levels:
        for name in CONVOLUTIONS[:3]:
            alone = prune(model, at_levels(config, {name: level}, found[0]), RUN, found=found)
            assert list(alone.masks["fwp"]) == [name]
            assert torch.equal(masks[level]["fwp"][name], alone.masks["fwp"][name])


def test_weights_are_ranked_under_the_blocks_of_their_level() -> None:
    model, config = network(), prune_config("obs")
    sites, _ = prunable(model, replace(config, fwp=replace(config.fwp, ratio=0.5)), RUN)
    both, weights = Level(0.5, 0.5), Level(fwp=0.5)
    masks = masks_of_levels(model, config, RUN, sites, [both, weights])
    whole = prune(model, at_levels(config, dict.fromkeys([site.name for site in sites], both), sites), RUN)
    for kind in ("ffp", "fwp"):
        assert masks[both][kind].keys() == whole.masks[kind].keys()
        assert all(torch.equal(masks[both][kind][name], mask) for name, mask in whole.masks[kind].items())
    assert not masks[weights]["ffp"]


def test_masks_that_the_network_carries_stay() -> None:
    model, config = network(), prune_config("obs")
    sites, _ = prunable(model, replace(config, fwp=replace(config.fwp, ratio=0.5)), RUN)
    name = sites[0].name
    carried = torch.rand(sites[0].weight_shape, generator=torch.Generator().manual_seed(3)) < 0.6
    masks = masks_of_levels(bake(model, {"fwp": {name: carried}}), config, RUN, sites, [Level(fwp=0.7)])
    mask = masks[Level(fwp=0.7)]["fwp"][name]
    assert not (mask & ~carried).any()
    assert mask.sum() < carried.sum()


def test_what_levels_may_be() -> None:
    assert levels_of(None) == LEVELS
    assert levels_of([0.5, (0.3, 0.5), 0.5, 0.0]) == (Level(fwp=0.5), Level(0.3, 0.5))
    assert str(DENSE) == "dense"
    assert str(Level(0.3, 0.5)) == "blocks 30%, weights 50%"
    for wrong in ([], [1.0], ["half"], [(0.1, 0.2, 0.3)], [True], 0.5):
        with pytest.raises(UsageError, match="levels are weight ratios"):
            levels_of(wrong)  # type: ignore[arg-type]
