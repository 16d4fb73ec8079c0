"""The user's own training loop: plain, under autocast, with averaged weights; then a bundle, torch.export and ordinary layers."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fineprune
from fineprune.common.errors import UsageError
from fineprune.common.progress import Silent
from fineprune.compressor.layers import MaskedConv2d


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2),
        )  # fmt: skip


IMAGES = torch.randn(32, 1, 8, 8, generator=torch.Generator().manual_seed(1))
TARGETS = torch.stack([IMAGES.mean((1, 2, 3)), IMAGES.std((1, 2, 3))], 1)


@pytest.fixture(scope="module")
def compressed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own") / "bundle"
    options: dict[str, Any] = {"preset": "taylor", "epochs": 0, "output": folder, "progress": Silent()}
    fineprune.compress(network(), (IMAGES, TARGETS), loss=F.mse_loss, prune=0.5, **options)
    return folder


def loop(model: nn.Module, averaged: nn.Module | None = None, *, autocast: bool = False) -> list[float]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    losses = []
    for _ in range(20):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = F.mse_loss(model(IMAGES).float(), TARGETS)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if isinstance(averaged, torch.optim.swa_utils.AveragedModel):
            averaged.update_parameters(model)
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("way", ["plain", "autocast", "averaged", "compiled"])
def test_from_a_bundle_through_the_users_loop_to_onnx(way: str, compressed: Path, tmp_path: Path) -> None:
    dense = network()
    model = fineprune.prepare(dense, compressed)
    assert model.training and not any(isinstance(layer, MaskedConv2d) for layer in dense.modules())
    average = torch.optim.swa_utils.AveragedModel(model) if way == "averaged" else None
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True) if way == "compiled" else None
    losses = loop(compiled or model, average, autocast=way == "autocast")
    assert losses[-1] < 0.5 * losses[0]
    trained = average or compiled or model
    before = fineprune.Bundle.load(compressed)
    bundle = fineprune.finish(trained, compressed, output=tmp_path / "b")
    for name, mask in before.masks["fwp"].items():
        assert torch.equal(bundle.masks["fwp"][name], mask) and not mask.all()
        assert bool((bundle.weights[f"{name}.weight"][~mask] == 0).all())
    assert not torch.equal(bundle.weights["0.weight"], before.weights["0.weight"]) and "note" in bundle.facts["accuracy"]
    exported = fineprune.to_onnx(tmp_path / "b", tmp_path / "m.onnx", model=network(), samples=IMAGES[:4], progress=Silent())
    assert exported.parity is not None and exported.parity.passed
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    with torch.no_grad():
        expected = trained.eval()(IMAGES)
        ordinary = fineprune.plain(trained)
        assert not any(isinstance(layer, MaskedConv2d) for layer in ordinary.modules()) and torch.equal(ordinary.eval()(IMAGES), expected)
    [found] = session.run(None, {session.get_inputs()[0].name: IMAGES.numpy()})
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_torch_export_takes_what_is_prepared_and_what_is_plain(compressed: Path) -> None:
    model = fineprune.prepare(network(), fineprune.Bundle.load(compressed)).eval()
    with torch.no_grad():
        expected = model(IMAGES[:2])
        for module in (model, fineprune.plain(model)):
            torch.testing.assert_close(torch.export.export(module, (IMAGES[:2],)).module()(IMAGES[:2]), expected)


def test_masks_of_ones_own_go_on_the_networks_weights() -> None:
    kept = torch.arange(48 * 9).reshape(8, 6, 3, 3) % 3 > 0
    dense = network()
    model = fineprune.prepare(dense, {"fwp": {"3": kept}})
    loop(model)
    bundle = fineprune.finish(model, input_shape=(1, 8, 8))
    assert torch.equal(bundle.masks["fwp"]["3"], kept) and bool((bundle.weights["3.weight"][~kept] == 0).all())
    assert bundle.facts["input_shape"] == [1, 8, 8] and bundle.facts["macs"]["macs"] < bundle.facts["macs"]["macs_dense"]


BLOCKS: dict[str, dict[str, Tensor]] = {"ffp": {"3": torch.arange(6 * 36).reshape(6, 6, 6) % 2 > 0}}


class Held(nn.Module):
    """A module of the user's framework that holds the network, as a LightningModule does; its forward may or may not call it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network


def test_the_network_inside_of_another_module_is_named(compressed: Path) -> None:
    held = Held(fineprune.prepare(network(), compressed))
    with pytest.raises(UsageError, match="finish takes the network that prepare gave, and Held holds it as network: give that"):
        fineprune.finish(held, compressed)
    assert fineprune.finish(held.network, compressed).masks.keys() == {"fwp", "ffp"}


def test_what_cannot_be_is_named(compressed: Path) -> None:
    with pytest.raises(UsageError, match="carries no masks: finish takes what prepare gave"):
        fineprune.finish(network(), compressed)
    model = fineprune.prepare(network(), compressed)
    with pytest.raises(UsageError, match="one of the two"):
        fineprune.finish(model)
    with pytest.raises(UsageError, match="masks are a bundle, or a dict of"):
        fineprune.prepare(network(), {"3": torch.ones(8, 6, 3, 3, dtype=torch.bool)})  # type: ignore[dict-item]
    with pytest.raises(UsageError, match="blocks are dropped in 3, which zeros of weights cannot say"):
        fineprune.plain(fineprune.prepare(network(), BLOCKS))
    with pytest.raises(UsageError, match="the dense network"):
        fineprune.prepare("resnet20", compressed)  # type: ignore[arg-type]
