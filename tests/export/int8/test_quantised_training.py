"""What a network computes in its last epochs is what its export in int8 computes: the same integers of weights, the same grids."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from fineprune.common.processes import Group
from fineprune.compressor.layers import MaskedConv2d
from fineprune.export.exporter import export_onnx
from fineprune.export.int8.quantiser import Quantiser
from fineprune.models.training import TrainConfig, train
from fineprune.models.training.quantised import Quantised, fake_weights
from support.fakes import fake_data

CONFIG = TrainConfig(epochs=1, batch_size=64, lr=0.05, qat_epochs=1)
LAYERS = ("0", "3", "6")


def network() -> nn.Sequential:
    """A chain, so that every tensor on a grid is read by a layer; some weights are masked."""
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 6, 3, stride=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(24, 3),
        )
        with torch.no_grad():
            layers[1].weight[:2] = torch.tensor([-0.7, 0.3])
        layers[0] = MaskedConv2d.wrap(layers[0], fwp_mask=torch.rand(8, 3, 3, 3) < 0.6)
    return layers


@pytest.fixture(scope="module")
def trained() -> nn.Sequential:
    model = network()
    train(model, fake_data(256), CONFIG, device="cpu")
    return model


@pytest.fixture(scope="module")
def exported(trained: nn.Sequential, tmp_path_factory: pytest.TempPathFactory) -> Any:
    path: Path = tmp_path_factory.mktemp("int8") / "m.onnx"
    images = fake_data(256).train.images.numpy()
    export_onnx(trained, (3, 6, 6), path, int8=Quantiser(samples=images), plain=True)
    return onnx.load(path)


def constants(file: Any) -> dict[str, np.ndarray]:
    return {one.name: numpy_helper.to_array(one) for one in file.graph.initializer}


def test_the_integers_of_weights_are_those_of_the_file(trained: nn.Sequential, exported: Any) -> None:
    """Folding BatchNorm multiplies each filter by a constant, its scale with it; one below zero turns the signs."""
    stored = constants(exported)
    for name in LAYERS:
        layer = trained[int(name)]
        weight = layer.masked_weight() if isinstance(layer, MaskedConv2d) else layer.weight
        scales = fake_weights(weight).flatten(1).abs().amax(1) / 64
        ours = (fake_weights(weight) / scales.reshape(-1, *[1] * (weight.dim() - 1))).round().detach().numpy().astype(np.int8)
        signs = np.sign(trained[1].weight.detach().numpy()).reshape(-1, 1, 1, 1).astype(np.int8) if name == "0" else 1
        assert np.array_equal(ours * signs, stored[f"{name}.weight.int8"])
    assert (stored["0.weight.int8"][~trained[0].fwp_mask.numpy()] == 0).all()


def test_grids_and_answers_are_those_of_the_file(trained: nn.Sequential, exported: Any) -> None:
    data = fake_data(256)
    task: Any = SimpleNamespace(model=trained, config=CONFIG, data=data, device=torch.device("cpu"), group=Group())
    layers = Quantised(task)
    layers.begin(0)
    assert layers.grids is not None
    stored = constants(exported)
    grids = {node.output[0]: node.input[1:] for node in exported.graph.node if node.op_type == "DequantizeLinear"}
    readers = [node for node in exported.graph.node if node.op_type in ("Conv", "Gemm")]
    for name, node in zip(LAYERS, readers, strict=True):
        scale, zero = (stored[each] for each in grids[node.input[0]])
        assert layers.grids[name].zero_point == zero and layers.grids[name].scale == pytest.approx(scale, rel=1e-4)
    x = data.test.images
    session = onnxruntime.InferenceSession(exported.SerializeToString(), providers=["CPUExecutionProvider"])
    with torch.no_grad():
        ours = trained(x)
        layers.close()
        float32 = trained(x)
    theirs = torch.from_numpy(session.run(None, {"input": x.numpy()})[0])
    assert (ours - theirs).abs().mean() < 0.1 * (float32 - theirs).abs().mean()
