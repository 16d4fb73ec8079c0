"""Files of torchvision's networks from both exporters: read, masked to a half without their code, exported, equal in ONNX Runtime."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

import fineprune
from fineprune.common.progress import Silent
from fineprune.export.exporter import export_onnx
from fineprune.models.zoo import ModelSpec, build
from fineprune.networks import open_bundle, open_model
from support.onnx_networks import exported
from support.tolerances import ONNX_LOGITS

NETWORKS = (
    *("resnet18", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "densenet121", "regnet_y_400mf", "shufflenet_v2_x0_5"),
    *("squeezenet1_1", "googlenet", "mnasnet0_5"),
)
SIZE = (3, 64, 64)


def network(name: str) -> nn.Module:
    """Random weights, and statistics of BatchNorm that are not those of noise."""
    model = build(f"torchvision:{name}", seed=0, num_classes=10).eval()
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None and module.running_var is not None:
            module.running_mean += torch.randn(module.num_features, generator=generator) / 10
            module.running_var *= torch.rand(module.num_features, generator=generator) + 0.5
    return model


@pytest.mark.slow
@pytest.mark.parametrize("exporter", ["dynamo", "older", "older, one sample"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_file_is_pruned_and_exported(name: str, exporter: str, tmp_path: Path) -> None:
    model = network(name)
    path = exported(model, tmp_path / "net.onnx", SIZE, exporter)
    x = torch.randn(24, *SIZE, generator=torch.Generator().manual_seed(1))
    weights = {"ratio": 0.5, "criterion": "magnitude"}
    options = {"preset": "taylor", "epochs": 0, "reconstruct": False, "output": tmp_path / "b", "progress": Silent()}
    bundle = fineprune.compress(str(path), x, fwp=weights, **options)  # type: ignore[arg-type]
    assert abs(bundle.facts["conv_macs_kept"] - 0.5) < 0.02
    path.unlink()
    masked = open_bundle(tmp_path / "b").model
    convolutions = {key for key, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    assert {key.replace("-", "_") for key in convolutions} == set(bundle.masks["fwp"])
    export_onnx(masked, SIZE, tmp_path / "small.onnx")
    [found] = onnxruntime.InferenceSession(tmp_path / "small.onnx").run(None, {"input": x[:3].numpy()})
    with torch.no_grad():
        expected = masked(x[:3]).numpy()
    np.testing.assert_allclose(found / np.abs(expected).max(), expected / np.abs(expected).max(), *ONNX_LOGITS)


@pytest.mark.slow
@pytest.mark.parametrize("exporter", ["dynamo", "dynamo, one sample"])
@pytest.mark.parametrize("name", ["convnext_tiny", "vit_b_32"])
def test_files_whose_graph_holds_the_batch(name: str, exporter: str, tmp_path: Path) -> None:
    """They are compared with ONNX Runtime when they are opened."""
    given = {"image_size": 64} if name == "vit_b_32" else {}
    model = build(f"torchvision:{name}", seed=0, num_classes=10, **given).eval()
    if name == "vit_b_32":
        nn.init.normal_(model.heads.head.weight, generator=torch.Generator().manual_seed(0))  # type: ignore[union-attr, arg-type]
    network = open_model(ModelSpec(name=str(exported(model, tmp_path / "net.onnx", SIZE, exporter)))).model
    x = torch.randn(3, *SIZE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found, expected = network(x).numpy(), model(x).numpy()
    np.testing.assert_allclose(found / np.abs(expected).max(), expected / np.abs(expected).max(), *ONNX_LOGITS)
