"""Detection by torchvision's SSD, which gives losses where it trains: compressed on images of several sizes, its backbone exported."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import fineprune
from fineprune.common.progress import Silent
from fineprune.models.vision import import_torchvision

import_torchvision()
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator  # noqa: E402 - once it is ready
from torchvision.models.detection.ssd import SSD  # noqa: E402


class Backbone(nn.Module):
    """Maps of two sizes."""

    out_channels = (12, 12)

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in ((3, 8), (8, 12), (12, 12)):
            layers += [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
        self.near, self.far = nn.Sequential(*layers), nn.Sequential(nn.Conv2d(12, 12, 3, stride=2, padding=1), nn.ReLU())

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        near = self.near(x)
        return {"near": near, "far": self.far(near)}


def small() -> nn.Module:
    anchors = DefaultBoxGenerator([[2], [2]], scales=[0.2, 0.5, 0.9])
    return SSD(Backbone(), anchors, size=(48, 48), num_classes=3, image_mean=[0.0] * 3, image_std=[1.0] * 3)


def built(detector: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        return detector()


class Scenes(Dataset[Any]):
    """Two squares, of two colours, in images of 40 to 60 pixels a side."""

    def __len__(self) -> int:
        return 24

    def __getitem__(self, place: int) -> tuple[Tensor, dict[str, Tensor]]:
        draw = np.random.default_rng(place)
        height, width = draw.integers(40, 60, 2)
        image = torch.from_numpy(draw.random((3, height, width), dtype=np.float32) * 0.1)
        boxes, labels = [], draw.integers(1, 3, 2)
        for label in labels:
            size = int(draw.integers(10, 20))
            x, y = int(draw.integers(0, width - size)), int(draw.integers(0, height - size))
            image[label, y : y + size, x : x + size] = 1
            boxes.append([x, y, x + size, y + size])
        return image, {"boxes": torch.tensor(boxes, dtype=torch.float32), "labels": torch.from_numpy(labels)}


def together(samples: list[Any]) -> Any:
    """The detector takes lists, and the targets with the images."""
    images, targets = (list(part) for part in zip(*samples, strict=True))
    return (images, targets), targets


def forward(model: nn.Module, inputs: Any) -> dict[str, Tensor]:
    """The losses, where the layers of the network evaluate, too: the detector alone is told that it trains."""
    images, targets = inputs
    was, model.training = model.training, True
    try:
        losses: dict[str, Tensor] = model(images, targets)
        return losses
    finally:
        model.training = was


def loss(losses: dict[str, Tensor], targets: Any) -> Tensor:
    return sum(losses.values(), torch.zeros(()))


def backbone(model: nn.Module, images: Tensor) -> Any:
    return model.backbone(images)


@pytest.mark.parametrize(
    ("detector", "size", "how"),
    [
        (small, 48, {"preset": "taylor", "prune": 0.4, "epochs": 2, "lr": 0.01}),
        (small, 48, {"ffp": 0.2, "fwp": 0.3, "epochs": 0}),
    ],
    ids=["taylor", "blocks"],
)
def test_a_detector_is_compressed_by_its_losses(detector: Callable[[], nn.Module], size: int, how: dict[str, Any], tmp_path: Path) -> None:
    loader = DataLoader(Scenes(), batch_size=8, collate_fn=together)
    bundle = fineprune.compress(
        built(detector), loader, forward=forward, loss=loss, batch_size=8, output=tmp_path / "b", progress=Silent(), **how
    )
    accuracy = bundle.facts["accuracy"]
    assert accuracy["measure"] == "loss" and accuracy["higher_is_better"] is False and accuracy["masked"] != accuracy["dense"]
    if how["epochs"]:
        assert accuracy["finetuned"] < accuracy["masked"]

    model = fineprune.prepare(built(detector), tmp_path / "b")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.005, momentum=0.9)
    losses = []
    for _ in range(3):
        for (images, targets), _ in loader:
            value = loss(model(images, targets), targets)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            losses.append(float(value.detach()))
    assert losses[-1] < losses[0]
    fineprune.finish(model, tmp_path / "b", output=tmp_path / "c")

    if "ffp" in how:
        assert_backbone_exports(detector, size, tmp_path)


def assert_backbone_exports(detector: Callable[[], nn.Module], size: int, tmp_path: Path) -> None:
    images = torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(0))
    exported = fineprune.to_onnx(
        tmp_path / "c", tmp_path / "m.onnx", model=built(detector), forward=backbone, samples=images, progress=Silent()
    )
    assert exported.parity is not None and exported.parity.passed and exported.parity.compares("engine")
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    with torch.no_grad():
        expected = backbone(fineprune.load(tmp_path / "c", built(detector)), images)
    assert [port.name for port in session.get_outputs()] == [name if not name.isdigit() else f"logits_{name}" for name in expected]
    for one, other in zip(session.run(None, {"input": images.numpy()}), expected.values(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4 * float(other.abs().max()))
