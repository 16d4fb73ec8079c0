"""forward=: networks of several inputs and of structured outputs, from samples to a bundle, the user's own loop and ONNX Runtime."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

import fineprune
from fineprune.common.errors import RunError, UsageError
from fineprune.common.progress import Lines, Silent
from fineprune.export.benchmark import BenchmarkConfig
from fineprune.export.int8.quantiser import Int8Config
from fineprune.int8 import Int8Export, quantiser_of, samples_for
from fineprune.models.objective import RELATIVE_ERROR
from fineprune.models.vision import import_torchvision
from fineprune.samples import called_on


class Fused(nn.Module):
    """An image and its depth, of other sizes and channels, and a few numbers; two maps and a vector come out."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.depth = nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.Conv2d(1, 5, 3, padding=1)
        self.norm = nn.BatchNorm2d(11)
        self.body = nn.Conv2d(11, 8, 3, padding=1)
        self.numbers = nn.Linear(4, 8)
        self.head, self.aux, self.vector = nn.Conv2d(8, 2, 1), nn.Conv2d(8, 2, 1), nn.Linear(8, 3)

    def forward(self, image: Tensor, depth: Tensor, *, numbers: Tensor) -> "Outputs":
        x = F.relu(self.norm(torch.cat([self.image(image), self.depth(depth)], 1)))
        x = F.relu(self.body(x) + self.numbers(numbers)[:, :, None, None])
        return Outputs(OrderedDict(out=self.head(x), aux=self.aux(x)), self.vector(x.mean((2, 3))))


@dataclass
class Outputs:
    maps: dict[str, Tensor]
    vector: Tensor


def network() -> Fused:
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        return Fused()


class Samples(Dataset[Any]):
    """A dict of inputs, and a dict of targets."""

    def __init__(self, count: int = 24) -> None:
        generator = torch.Generator().manual_seed(1)
        self.images, self.depths = (torch.randn(count, *size, generator=generator) for size in ((3, 10, 14), (1, 5, 7)))
        self.numbers = torch.randn(count, 4, generator=generator)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, place: int) -> Any:
        image, depth, numbers = self.images[place], self.depths[place], self.numbers[place]
        return {"image": image, "others": (depth, numbers)}, {"mask": (depth[0] > 0).long(), "mean": image.mean((1, 2))}

    def inputs(self, count: int) -> dict[str, Any]:
        return {"image": self.images[:count], "others": (self.depths[:count], self.numbers[:count])}


def forward(model: nn.Module, inputs: dict[str, Any]) -> Any:
    depth, numbers = inputs["others"]
    return model(inputs["image"], depth, numbers=numbers)


def loss(outputs: Outputs, targets: dict[str, Tensor]) -> Tensor:
    of_maps = sum(F.cross_entropy(scores, targets["mask"]) for scores in outputs.maps.values())
    return of_maps + F.mse_loss(outputs.vector, targets["mean"])


def pixels(outputs: Outputs, targets: dict[str, Tensor]) -> Tensor:
    return (outputs.maps["out"].argmax(1) == targets["mask"]).float().mean((1, 2))


def told() -> tuple[Lines, list[str]]:
    lines: list[str] = []

    class Told(Lines):
        def log(self, message: str) -> None:
            lines.append(message)

    return Told(), lines


@pytest.mark.parametrize(
    "how",
    [
        {"epochs": 0},  # refitted
        {"preset": "taylor", "epochs": 2, "batch_size": 8, "lr": 0.01},
        {"ffp": 0.3, "fwp": 0.3, "epochs": 1, "batch_size": 8, "reconstruct": True},
    ],
    ids=["reconstructed", "taylor", "blocks"],
)
def test_several_inputs_and_structured_outputs(how: dict[str, Any], tmp_path: Path) -> None:
    """Compressed, trained on in a loop of the user's own, and exported."""
    samples, (progress, lines) = Samples(), told()
    options: dict[str, Any] = {"prune": 0.4, **how} if "ffp" not in how else how
    metric = fineprune.Metric("pixel accuracy", pixels)
    bundle = fineprune.compress(
        network(), samples, forward=forward, loss=loss, metric=metric, progress=progress, output=tmp_path / "b", **options
    )
    assert bundle.facts["inputs"] == "{image: float32 1x3x10x14, others: (float32 1x1x5x7, float32 1x4)}"
    assert bundle.facts["accuracy"]["measure"] == "pixel accuracy" and bundle.facts["forward"] == "forward"
    dropped = sum(int((~mask).sum()) for of_kind in bundle.masks.values() for mask in of_kind.values())
    assert dropped > 0
    if how["epochs"]:
        assert any(line.startswith("epoch 1/") and "pixel accuracy" in line for line in lines)

    measured = fineprune.evaluate(bundle, samples, forward=forward, loss=loss, metric=metric, model=network(), progress=Silent())
    assert measured.samples == len(samples) and 0 < measured.accuracy < 1 < measured.loss
    model = fineprune.prepare(network(), tmp_path / "b")
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    losses = []
    for _ in range(8):
        for inputs, targets in DataLoader(samples, batch_size=8):
            value = loss(forward(model, inputs), targets)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            losses.append(float(value.detach()))
    assert losses[-1] < 0.8 * losses[0]
    fineprune.finish(model, tmp_path / "b", output=tmp_path / "c")

    if "ffp" in how:
        assert_exports(tmp_path / "c", tmp_path / "m.onnx")


def assert_exports(folder: Path, path: Path) -> None:
    """The file computes what the network does, output by output, in ONNX Runtime and in the engine."""
    samples = Samples()
    exported = fineprune.to_onnx(folder, path, model=network(), forward=forward, samples=samples.inputs(6), progress=Silent())
    assert exported.parity is not None and exported.parity.passed and exported.parity.compares("engine")
    session = onnxruntime.InferenceSession(path)
    assert [port.name for port in session.get_inputs()] == ["image", "others_0", "others_1"]
    assert [port.name for port in session.get_outputs()] == ["maps_out", "maps_aux", "vector"]
    given = samples.inputs(5)
    with torch.no_grad():
        expected = forward(fineprune.load(folder, network()), given)
    feeds = {"image": given["image"], "others_0": given["others"][0], "others_1": given["others"][1]}
    found = session.run(None, {name: value.numpy() for name, value in feeds.items()})
    for one, other in zip(found, [*expected.maps.values(), expected.vector], strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_int8_is_calibrated_through_the_forward(tmp_path: Path) -> None:
    samples, quick = Samples(), {"criterion": "magnitude", "ratio": 0.3}
    bundle = fineprune.compress(network(), samples, forward=forward, loss=loss, fwp=quick, ffp=0, epochs=0, progress=Silent())
    options: dict[str, Any] = {"model": network(), "forward": forward, "samples": samples, "parity_samples": 0, "progress": Silent()}
    exported = fineprune.to_onnx(bundle, tmp_path / "m.onnx", int8={"images": 18}, **options)
    facts = exported.int8
    assert facts is not None and facts["images"] == 18 and exported.parity is None
    given = samples.inputs(20)
    feeds = {"image": given["image"], "others_0": given["others"][0], "others_1": given["others"][1]}
    found = onnxruntime.InferenceSession(tmp_path / "m.onnx").run(None, {name: value[18:].numpy() for name, value in feeds.items()})
    with torch.no_grad():
        wanted = forward(fineprune.load(bundle, network()), given)
    exact = [value[18:] for value in (*wanted.maps.values(), wanted.vector)]
    error = RELATIVE_ERROR.figures(tuple(map(torch.from_numpy, found)), tuple(exact), 2).mean()
    assert facts["accuracy"]["samples"] == 2 and facts["accuracy"]["relative_error"] == pytest.approx(float(error), rel=1e-3)
    assert 0 < error < 0.1
    kinds = [node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node]
    assert kinds.count("QuantizeLinear") >= 3 and "DequantizeLinear" in kinds
    for wrong, message in (({"max_drop": 1.0}, "max_drop is of a score"), ({"metric": pixels}, "leave metric out")):
        with pytest.raises(UsageError, match=message):
            fineprune.to_onnx(bundle, tmp_path / "m.onnx", int8=wrong, **options)
    with pytest.raises(UsageError, match="int8 needs samples that calibrate and others that measure, got one"):
        fineprune.to_onnx(bundle, tmp_path / "m.onnx", int8=True, **{**options, "samples": samples.inputs(1)})


@pytest.mark.parametrize(("given", "images"), [(2, 1), (20, 5), (samples_for(Int8Config(images=256)), 256)])
def test_as_many_samples_calibrate_as_are_asked_for(given: int, images: int) -> None:
    """And none of those that measure."""
    quantiser = quantiser_of(Int8Export(config=Int8Config(images=images), data=called_on(Samples(given), given, forward)), Silent())
    assert quantiser.to_json()["images"] == images and {len(one) for one in quantiser.samples} == {images}
    assert images + max(1, given // 10) <= given


def test_a_bundle_of_a_forward_is_benched_on_samples(tmp_path: Path) -> None:
    bundle = fineprune.compress(
        network(), Samples(), forward=forward, loss=loss, fwp={"ratio": 0.5, "criterion": "magnitude"}, epochs=0, progress=Silent()
    )
    progress, lines = told()
    config = BenchmarkConfig(rounds=1, turn_s=0.0, warmup_s=0.0)
    report = fineprune.bench(bundle, config, model=network(), forward=forward, samples=Samples(3), progress=progress)
    names = {row.runtime for row in report.rows}
    assert names == {"onnxruntime dense", "torch dense", "engine compressed", "onnxruntime compressed"}
    assert "other runtimes and int8 are left out: they are given one input" in lines
    with pytest.raises(UsageError, match=r"compressed on inputs \{image: .*\} with forward=forward, which no bundle holds: give samples="):
        fineprune.to_onnx(bundle, tmp_path / "never.onnx", model=network(), progress=Silent())


def test_without_labels_outputs_are_compared_and_learned_whatever_they_are() -> None:
    """Agreement of outputs that are no class scores is their relative error; the dense network teaches by it."""
    samples = [Samples()[place][0] for place in range(24)]
    options: dict[str, Any] = {"forward": forward, "fwp": {"ratio": 0.6, "criterion": "magnitude"}, "batch_size": 8, "lr": 0.01}
    bundle = fineprune.compress(network(), Listed(samples), epochs=4, distill=1, reconstruct=False, progress=Silent(), **options)
    accuracy = bundle.facts["accuracy"]
    assert accuracy["measure"] == "relative error to the dense network's outputs" and accuracy["higher_is_better"] is False
    assert accuracy["dense"] == 0 and 0 < accuracy["finetuned"] < accuracy["masked"]
    with pytest.raises(UsageError, match="fine-tuning needs labels"):
        fineprune.compress(network(), Listed(samples), epochs=1, progress=Silent(), **options)


def test_a_task_is_taught_by_the_dense_network_through_its_outputs() -> None:
    options: dict[str, Any] = {"forward": forward, "loss": loss, "prune": 0.5, "batch_size": 8, "lr": 0.02, "epochs": 6, "preset": "taylor"}
    found = {}
    for share in (0.0, 1.0):
        bundle = fineprune.compress(network(), Samples(), distill=share, progress=Silent(), **options)
        with torch.no_grad():
            given, dense = Samples().inputs(24), network().eval()
            outputs = (forward(model, given) for model in (bundle.restore(network()), dense))
            found[share] = float(RELATIVE_ERROR.figures(*outputs, 24).mean())
    assert found[1.0] < 0.7 * found[0.0]  # the loss alone leads elsewhere


class Listed(Dataset[Any]):
    def __init__(self, samples: list[Any]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, place: int) -> Any:
        return self.samples[place]


class Segmenter(nn.Module):
    """As torchvision's: a dict of scores at the images' size."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head, self.aux = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Conv2d(8, 2, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = F.relu(self.body(x))
        scores = {"out": self.head(y), "aux": self.aux(y)}
        return {name: F.interpolate(one, x.shape[2:], mode="bilinear") for name, one in scores.items()}


def of_maps(outputs: dict[str, Tensor], masks: Tensor) -> Tensor:
    return F.cross_entropy(outputs["out"], masks) + 0.5 * F.cross_entropy(outputs["aux"], masks)


def right(outputs: dict[str, Tensor], masks: Tensor) -> Tensor:
    return (outputs["out"].argmax(1) == masks).float().mean((1, 2))


def lraspp() -> nn.Module:
    from torchvision.models.segmentation import lraspp_mobilenet_v3_large

    network: nn.Module = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=2)
    return network


@pytest.mark.parametrize(("built", "size"), [(Segmenter, 12), pytest.param(lraspp, 64, marks=pytest.mark.slow)])
def test_structured_outputs_of_one_tensor_need_no_forward(built: Callable[[], nn.Module], size: int, tmp_path: Path) -> None:
    import_torchvision()
    images = torch.randn(24, 3, size, size, generator=torch.Generator().manual_seed(2))
    masks = (images.mean(1) > 0).long()
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        model = built()
    loss = of_maps if built is Segmenter else lambda outputs, masks: F.cross_entropy(outputs["out"], masks)
    metric = fineprune.Metric("pixel accuracy", right)
    options: dict[str, Any] = {"loss": loss, "metric": metric, "epochs": 2, "batch_size": 8, "lr": 0.02, "progress": Silent()}
    bundle = fineprune.compress(model, (images, masks), prune=0.3, preset="taylor", output=tmp_path / "b", **options)
    assert bundle.facts["input_shape"] == [3, size, size] and bundle.facts["accuracy"]["measure"] == "pixel accuracy"
    assert built is lraspp or bundle.facts["accuracy"]["finetuned"] > 0.5  # so large a network learns nothing in six steps
    if built is lraspp:
        exported = fineprune.to_onnx(bundle, tmp_path / "m.onnx", model=model, samples=images[:4], progress=Silent())
        assert exported.parity is not None and exported.parity.passed


class Sizes(Dataset[Any]):
    """Images of 6 to 15 pixels a side, the later ones larger."""

    def __len__(self) -> int:
        return 300

    def __getitem__(self, place: int) -> tuple[Tensor, Tensor]:
        image = torch.randn(3, 6 + place // 30, 15, generator=torch.Generator().manual_seed(place))
        return image, (image.mean(0) > 0).long()


def padded(samples: list[Any]) -> tuple[Tensor, Tensor]:
    """To the most rows of a batch; pixels below an image are of no class."""
    rows = max(image.shape[1] for image, _ in samples)
    images, masks = (
        torch.stack([F.pad(one[part], (0, 0, 0, rows - one[part].shape[-2]), value=fill) for one in samples])
        for part, fill in ((0, 0), (1, -100))
    )
    return images, masks


def test_where_sizes_vary_weights_are_dropped_and_blocks_are_refused() -> None:
    loader = DataLoader(Sizes(), collate_fn=padded)
    options: dict[str, Any] = {"forward": lambda model, images: model(images)["out"], "loss": F.cross_entropy, "progress": Silent()}
    for how in ({"epochs": 0}, {"preset": "taylor", "epochs": 1, "batch_size": 32}):  # the first is calibrated and refitted
        bundle = fineprune.compress(Segmenter(), loader, fwp={"ratio": 0.4}, **how, **options)
        assert not bundle.masks["ffp"] and not bundle.masks["fwp"]["body"].all()
    for criterion in ("taylor", "obs"):
        with pytest.raises(
            UsageError, match=r"gives maps of several sizes \(.*x8 and .*x8\).* or drop weights alone \(ffp 0\), which fit any size"
        ):
            fineprune.compress(Segmenter(), loader, ffp={"ratio": 0.3, "criterion": criterion}, epochs=0, **options)


WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "no forward": ({}, UsageError, r"inputs are dicts of tensors; say how .*: forward=lambda model, inputs: model\(\*\*inputs\)"),
    "no function": ({"forward": 3}, UsageError, r"forward is a function of \(model, inputs\), got 3"),
    "named data": ({"forward": forward, "data": "digits", "loss": None}, UsageError, "forward belongs to samples that are given in Python"),
    "another call": (
        {"forward": lambda model, inputs: model(inputs["image"])},
        UsageError,
        r"forward failed on one sample, \{image: .*: its forward function failed: .*missing 1 required",
    ),
    "no tensors": ({"data": Listed([("a word", 1)] * 4), "forward": forward}, UsageError, "inputs hold no tensor, got tuple"),
    "random": (
        {"forward": lambda model, inputs: F.dropout(forward(model, inputs).vector)},
        RunError,
        "two equal calls give different outputs in eval mode",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_called_is_named(name: str) -> None:
    settings, kind, message = WRONG[name]
    arguments = {"data": Samples(), "prune": 0.3, "epochs": 0, "loss": loss, "progress": Silent(), **settings}
    with pytest.raises(kind, match=message) as caught:
        fineprune.compress(network(), **arguments)
    assert "\n" not in str(caught.value)
