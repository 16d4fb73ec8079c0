"""Detection by torchvision's SSD, RetinaNet and Faster R-CNN, which give losses where they train: compressed on images of several sizes,
their backbones exported."""

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
from torchvision.models.detection import FasterRCNN, RetinaNet  # noqa: E402 - once it is ready
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator  # noqa: E402
from torchvision.models.detection.ssd import SSD  # noqa: E402
from torchvision.ops import MultiScaleRoIAlign, boxes  # noqa: E402


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


class Maps(Backbone):
    """As those detectors want them that have one head for all maps."""

    out_channels = 12  # type: ignore[assignment]


def retina() -> nn.Module:
    sizes: dict[str, Any] = {"min_size": 48, "max_size": 64, "image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    return RetinaNet(Maps(), num_classes=3, anchor_generator=AnchorGenerator(((12,), (24,)), ((1.0,), (1.0,))), **sizes)


class Cut(MultiScaleRoIAlign):
    """What is under boxes, without torchvision's compiled operators, which a torch for the CPU alone may lack."""

    def forward(self, x: dict[str, Tensor], found: list[Tensor], sizes: list[tuple[int, int]]) -> Tensor:
        regions = []
        for maps, corners, (height, width) in zip(x["near"], found, sizes, strict=True):
            low, high = (corners[:, part] / torch.tensor([width, height]) * 2 - 1 for part in (slice(0, 2), slice(2, 4)))
            steps = low[:, None] + (high - low)[:, None] * torch.linspace(0, 1, 3)[:, None]
            grid = torch.stack([steps[:, None, :, 0].expand(-1, 3, 3), steps[:, :, None, 1].expand(-1, 3, 3)], -1)
            regions.append(nn.functional.grid_sample(maps.expand(len(corners), -1, -1, -1), grid, align_corners=False))
        return torch.cat(regions)


def faster() -> nn.Module:
    sizes: dict[str, Any] = {"min_size": 48, "max_size": 64, "image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    anchors = AnchorGenerator(((12,), (24,)), ((1.0,), (1.0,)))
    few: dict[str, Any] = {"rpn_pre_nms_top_n_train": 40, "rpn_batch_size_per_image": 8, "box_batch_size_per_image": 8}
    return FasterRCNN(Maps(), num_classes=3, rpn_anchor_generator=anchors, box_roi_pool=Cut(["near"], 3, 2), **few, **sizes)


def best(found: Tensor, scores: Tensor, groups: Tensor, threshold: float) -> Tensor:
    """In the place of suppression: the order of the scores."""
    return scores.argsort(descending=True)[:16]


def losses_of(model: nn.Module, inputs: Any) -> dict[str, Tensor]:
    """The parts of the detector that give losses are told that they train; where the network evaluates, they draw the same samples."""
    images, targets = inputs
    parts = [part for part in (model, getattr(model, "rpn", None), getattr(model, "roi_heads", None)) if part is not None]
    were = [part.training for part in parts]
    with torch.random.fork_rng(devices=[], enabled=not were[0]):
        if not were[0]:
            torch.random.default_generator.manual_seed(0)
        for part in parts:
            part.training = True
        try:
            losses: dict[str, Tensor] = model(images, targets)
            return losses
        finally:
            for part, was in zip(parts, were, strict=True):
                part.training = was


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


@pytest.mark.parametrize(
    ("detector", "names"),
    [
        (retina, {"classification_head.conv.0.0", "regression_head.bbox_reg"}),
        (faster, {"rpn.head.conv.0.0", "rpn.head.bbox_pred"}),
    ],
)
def test_detectors_that_draw_samples_or_have_one_head_for_all_maps(
    detector: Callable[[], nn.Module], names: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(boxes, "batched_nms", best)
    loader = DataLoader(Scenes(), batch_size=8, collate_fn=together)
    settings: dict[str, Any] = {"preset": "taylor", "fwp": 0.4, "epochs": 1, "lr": 0.005, "batch_size": 8, "progress": Silent()}
    bundle = fineprune.compress(built(detector), loader, forward=losses_of, loss=loss, output=tmp_path / "b", **settings)
    masked = {name.removeprefix("head.") for name, mask in bundle.masks["fwp"].items() if not mask.all()}
    assert names <= masked and "backbone.near.3" in masked
    accuracy = bundle.facts["accuracy"]
    assert accuracy["measure"] == "loss" and all(np.isfinite(accuracy[name]) for name in ("dense", "masked", "finetuned"))
    model = fineprune.load(tmp_path / "b", built(detector))
    images, targets = together([Scenes()[place] for place in range(3)])[0]
    with torch.no_grad():
        first, second = (losses_of(model, (images, targets)) for _ in range(2))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first), "the same samples are drawn"
    fineprune.to_onnx(
        tmp_path / "b", tmp_path / "m.onnx", model=built(detector), forward=backbone, samples=torch.rand(2, 3, 48, 48), parity_samples=0,
        progress=Silent(),
    )  # fmt: skip
    with torch.no_grad():
        wanted = model.backbone(torch.ones(1, 3, 48, 48))  # type: ignore[operator]
    found = onnxruntime.InferenceSession(tmp_path / "m.onnx").run(None, {"input": np.ones((1, 3, 48, 48), np.float32)})
    for one, other in zip(found, wanted.values(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


class Found:
    """The share of a set's squares that a box of the right label covers: recall at an overlap of a tenth (it is hardly trained)."""

    def __init__(self) -> None:
        self.right = self.all = 0

    def update(self, outputs: Any, targets: list[dict[str, Tensor]]) -> None:
        for found, target in zip(outputs["found"], targets, strict=True):
            over = boxes.box_iou(target["boxes"], found["boxes"]) > 0.1
            self.right += int((over & (target["labels"][:, None] == found["labels"])).any(1).sum())
            self.all += len(target["boxes"])

    def compute(self) -> float:
        return self.right / self.all


def with_boxes(model: nn.Module, inputs: Any) -> dict[str, Any]:
    """The losses, and, where figures are measured, the boxes."""
    outputs: dict[str, Any] = {"losses": losses_of(model, inputs)}
    return outputs | ({"found": model(inputs[0])} if torch.is_inference_mode_enabled() else {})


def test_a_detector_is_measured_by_the_boxes_that_it_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boxes, "batched_nms", best)
    loader = DataLoader(Scenes(), batch_size=8, collate_fn=together)
    task: dict[str, Any] = {"forward": with_boxes, "loss": lambda outputs, targets: loss(outputs["losses"], targets)}
    settings: dict[str, Any] = {"preset": "taylor", "fwp": 0.3, "epochs": 1, "lr": 0.005, "batch_size": 8, "progress": Silent()}
    metric = fineprune.Metric("recall", Found(), unit=None)
    model = built(small).eval()
    bundle = fineprune.compress(model, loader, **task, metric=metric, **settings)
    found, direct = fineprune.evaluate(model, loader, **task, metric=metric, progress=Silent()), Found()
    with torch.inference_mode():
        for inputs, targets in loader:
            direct.update(with_boxes(model, inputs), targets)
    assert bundle.facts["accuracy"]["measure"] == "recall" and found.samples == 24
    assert found.accuracy == pytest.approx(direct.compute()) and found.accuracy > 0
