"""What a layer costs at a level is what a prune of that layer alone, refitted, costs; the network given stays as it is."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch

from fineprune.calibrate.collect import CalibrationConfig
from fineprune.compressor.config import prune_config
from fineprune.compressor.prune import CalibrationRun, prunable, prune
from fineprune.compressor.reconstruct.run import ReconstructConfig, reconstruct
from fineprune.compressor.search.levels import Level, at_levels, masks_of_levels
from fineprune.compressor.search.sensitivity import sensitivities
from support.networks import SHAPE, samples, varied

RUN = CalibrationRun(source=samples(), input_shape=SHAPE, config=CalibrationConfig(data="noise"))
LEVELS = [Level(fwp=0.5), Level(fwp=0.8), Level(0.4, 0.5)]


def apart(answers: Iterable[tuple[Any, Any]]) -> Mapping[str, float]:
    errors = [float((outputs - exact).square().mean()) for outputs, exact in answers]
    return {"error": sum(errors) / len(errors), "batches": len(errors)}


@pytest.mark.parametrize("refit", [None, ReconstructConfig(images=12)], ids=["kept", "refitted"])
def test_it_is_what_a_prune_of_that_layer_costs(refit: ReconstructConfig | None) -> None:
    model, config = varied(0, dtype=torch.float32).eval(), prune_config("obs")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = prunable(model, replace(config, fwp=replace(config.fwp, ratio=0.5)), RUN)
    masks = masks_of_levels(model, config, RUN, found[0], LEVELS)
    held_out = [torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)]
    rows = list(sensitivities(model, masks, found[0], RUN, held_out, apart, refit=refit))
    assert {(row.layer, row.level) for row in rows} == {(site.name, level) for site in found[0] for level in LEVELS}
    for row in rows:
        alone = prune(model, at_levels(config, {row.layer: row.level}, found[0]), RUN, found=found).model
        if row.level.ffp == 0:  # weights under blocks are ranked with all layers at that level
            if refit is not None:
                reconstruct(model, alone, RUN, refit)
            with torch.no_grad():
                wanted = apart((alone(x), model(x)) for x in held_out)["error"]
            assert row.figures["error"] == pytest.approx(wanted, rel=1e-3, abs=1e-9)
        assert row.figures["batches"] == 2
        assert 0 < row.kept < 1
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_what_is_done_is_not_measured_again() -> None:
    model, config = varied(0, dtype=torch.float32).eval(), prune_config("obs")
    found = prunable(model, replace(config, fwp=replace(config.fwp, ratio=0.5)), RUN)
    masks = masks_of_levels(model, config, RUN, found[0], LEVELS[:2])
    done = frozenset((site.name, level) for site in found[0][1:] for level in LEVELS[:2]) | {(found[0][0].name, LEVELS[0])}
    rows = list(sensitivities(model, masks, found[0], RUN, [torch.randn(4, *SHAPE)], apart, done=done))
    assert [(row.layer, row.level) for row in rows] == [(found[0][0].name, LEVELS[1])]
