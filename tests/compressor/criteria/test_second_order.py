"""What methods of second order have in common: masks by them are exported, and run in ONNX Runtime and in the engine as in torch."""

from pathlib import Path

import pytest
import torch

from fineprune.calibrate.moments import moments_shape
from fineprune.compressor.config import FWPConfig, prune_config
from fineprune.compressor.layers import MaskedConv2d
from fineprune.compressor.prune import CalibrationRun, prune
from fineprune.compressor.ranked import Layer
from fineprune.compressor.reconstruct.run import reconstruct
from fineprune.export.exporter import export_onnx
from fineprune.export.parity import ONNXRUNTIME, check_parity
from support.geometries import KINDS, problem
from support.networks import SHAPE, samples, varied


@pytest.mark.parametrize("unit", ["weight", "quad"])
@pytest.mark.parametrize("criterion", ["obs", "obc"])
def test_a_layer_that_gets_nothing_and_gives_nothing_is_worth_nothing(criterion: str, unit: str) -> None:
    geometry = KINDS["groups"]
    config, weight = FWPConfig(criterion=criterion, unit=unit), torch.from_numpy(problem(geometry).w) * 100  # type: ignore[arg-type]
    sums = {
        "moments": torch.zeros(moments_shape(geometry.site, 600), dtype=torch.float64),
        "outputs": torch.zeros(1, dtype=torch.float64),
    }
    layer = Layer(site=geometry.site, config=config, weight=weight, sums=sums)
    for worth in (config.method.scores_of_units(layer), config.method.profile(layer)):
        assert not worth.any()


@pytest.mark.parametrize("parts", [{"fwp": "fisher"}, {"fwp": "obs", "ffp": "obs"}, {"fwp": "obc"}], ids=["fisher", "obs", "obc"])
def test_masks_are_exported_and_answer_as_in_torch(parts: dict[str, str], tmp_path: Path) -> None:
    dense, run = varied(dtype=torch.float32), CalibrationRun(source=samples(), input_shape=SHAPE)
    config = prune_config(**{part: {"criterion": name, "ratio": 0.3} for part, name in parts.items()})  # type: ignore[arg-type]
    model = prune(dense, config, run).model
    reconstruct(dense, model, run)
    masked = [layer for layer in model.modules() if isinstance(layer, MaskedConv2d)]
    kept = {part: [mask for layer in masked if (mask := getattr(layer, f"{part}_mask")) is not None] for part in parts}
    assert all(not all(bool(mask.all()) for mask in masks) for masks in kept.values())
    export_onnx(model.eval(), SHAPE, tmp_path / "net.onnx")
    report = check_parity(model, tmp_path / "net.onnx", samples(4).images.numpy(), reference_samples=1, engine=True)
    assert report.passed and report.compares("engine") and report.compares(ONNXRUNTIME)
