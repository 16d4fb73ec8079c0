"""The networks of benchmarks/engine.py with their masks, calibrated here and exported.

Masks are exact and come from calibration on images resized to the network's input. resnet20-w16 has trained weights where FINEPRUNE_DATA
has its checkpoint; other networks have random weights and the BatchNorm statistics of those images: their accuracy means nothing, but their
masks have what matters here, the densities and irregular shapes of real scores. Nothing is fine-tuned: that changes no time.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fineprune.calibrate.collect import CalibrationConfig, Samples
from fineprune.calibrate.convolutions import find_convolutions
from fineprune.compressor.config import PruneConfig, prune_config
from fineprune.compressor.macs import count_macs
from fineprune.compressor.prune import CalibrationRun, prune
from fineprune.export.exporter import export_onnx
from fineprune.models.data import load_data
from fineprune.models.training.batchnorm import recalibrate_batchnorm
from fineprune.models.zoo import ModelSpec, build, load_checkpoint

FFP, FWP = 0.37, 0.556
"""Pruned shares of blocks and weights: together about 72 % of the multiply-adds."""

PRUNED = 0.72
"""Pruned share where one of the two prunes alone."""


@dataclass(frozen=True, kw_only=True)
class NetworkCase:
    """A network, its input size, and how many images calibrate it."""

    spec: ModelSpec
    size: int
    samples: int
    checkpoint: str | None = None
    pointwise: bool = False
    """Most of its multiply-adds are in 1x1 convolutions, which have one tap: scopes that rank taps of a channel do not prune them."""

    @property
    def input_shape(self) -> tuple[int, int, int]:
        return (3, self.size, self.size)


def _cifar(name: str, samples: int, checkpoint: str | None = None, **args: Any) -> NetworkCase:
    return NetworkCase(spec=ModelSpec(name=name, args=args), size=32, samples=samples, checkpoint=checkpoint)


def _imagenet(name: str, samples: int, *, pointwise: bool = False) -> NetworkCase:
    return NetworkCase(spec=ModelSpec(name=f"torchvision:{name}", args={}), size=224, samples=samples, pointwise=pointwise)


NETWORKS = {
    "resnet20-w16": _cifar("resnet20", 512, "resnet20-12fca82f.th", width=16, shortcut="A"),
    "resnet20-w32": _cifar("resnet20", 256, width=32),
    "resnet56-w32": _cifar("resnet56", 128, width=32),
    "vgg16-cifar": _cifar("vgg16", 128),
    "resnet18-224": _imagenet("resnet18", 16),
    "resnet50-224": _imagenet("resnet50", 16, pointwise=True),
    "vgg16-224": _imagenet("vgg16", 8),
    "mobilenetv2-224": _imagenet("mobilenet_v2", 16, pointwise=True),
}


KINDS = ("blocks", "channel", "group", "both", "weights", "thesis-channel", "thesis-group", "thesis-kernel")
"""The masks of the benchmark.

Ranked by Taylor scores over the whole network, so that densities differ by layer, as the preset `taylor` does: blocks (FFP alone); channel,
group (FFP and weight masks shared by all filters of a channel or by the filters of a vector); both (FFP and unstructured weight masks);
weights (unstructured weight masks alone, the most accurate of them at this budget: docs/results.md).

With the ratios of the preset `thesis` in every layer, so that each keeps about 28 %: thesis-channel, thesis-group, thesis-kernel (FFP and
weight masks of that scope; `kernel` is unstructured: every filter has its own taps).
"""


def configs(case: NetworkCase) -> dict[str, PruneConfig]:
    """What makes each of KINDS."""
    shared = {"channel": {"scope": "channel"}, "group": {"scope": "group"}}
    if case.pointwise:
        shared = {share: {"scope": "layer", "share": share} for share in shared}
    scopes = {**shared, "kernel": {"scope": "kernel"}}
    return {
        "blocks": prune_config("taylor", ffp={"ratio": PRUNED}),
        **{name: prune_config("taylor", ffp={"ratio": FFP}, fwp={"ratio": FWP, **scope}) for name, scope in shared.items()},
        "both": prune_config("taylor", ffp={"ratio": FFP}, fwp={"ratio": FWP}),
        "weights": prune_config("taylor", fwp={"ratio": PRUNED}),
        **{f"thesis-{name}": prune_config("thesis", ffp={"ratio": FFP}, fwp={"ratio": FWP, **scope}) for name, scope in scopes.items()},
    }


def prepare(
    name: str, folder: Path, *, data: str, kinds: Sequence[str] = KINDS, samples: int | None, say: Callable[[str], None]
) -> dict[str, Any]:
    """Write `dense.onnx` and one file for each of the `kinds` of masks to `folder`; facts of the network and of the files."""
    case = NETWORKS[name]
    count = min(case.samples, samples or case.samples)
    images, labels = calibration_images(data, case.size, max(count, 32))
    model, weights = _model(case, images)
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, dict[str, Any]] = {}
    dense = folder / "dense.onnx"
    export_onnx(model, case.input_shape, dense)
    files["dense"] = {"path": str(dense), "pruned": 0.0}
    run = CalibrationRun(
        source=_Images(images[:count], labels[:count]), input_shape=case.input_shape, config=CalibrationConfig(batch_size=min(count, 32))
    )
    blocks: dict[str, Any] = {}  # they do not depend on the ratios
    for kind, config in configs(case).items():
        if kind not in kinds:
            continue
        say(f"{name}: masks {kind} from {count} images")
        criterion = config.ffp.criterion
        if criterion not in blocks:
            measure = config.ffp.method.measure(config.ffp, find_convolutions(model, case.input_shape)[0])
            blocks[criterion] = run.collect(model, measure)
        masked = prune(model, config, run, statistics={"blocks": blocks[criterion]}).model.eval()
        macs = count_macs(masked, case.input_shape)
        path = folder / f"{kind}.onnx"
        export_onnx(masked, case.input_shape, path)
        files[kind] = {"path": str(path), "pruned": 1 - macs.conv_macs / macs.conv_macs_dense, "bytes": path.stat().st_size}
    return {
        "network": name,
        "input_shape": list(case.input_shape),
        "weights": weights,
        "images": f"{count} of {Path(data).name}, resized to {case.size}x{case.size}",
        "samples": images[:16].numpy(),
        "files": files,
    }


class _Images:
    """Samples in memory, as a source for calibration."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self._images, self._labels = images, labels

    def __len__(self) -> int:
        return len(self._images)

    def batches(self, batch_size: int, *, indices: Tensor | None = None) -> Iterator[Samples]:
        order = torch.arange(len(self)) if indices is None else indices
        for part in order.split(batch_size):
            yield Samples(self._images[part], self._labels[part], part)


def default_data() -> str:
    """CIFAR-10 images where FINEPRUNE_DATA has them, else scikit-learn's digits."""
    images = Path(os.environ.get("FINEPRUNE_DATA", "")) / "cifar10_lossless_partial.npz"
    return f"npz:{images}" if images.is_file() else "digits"


def calibration_images(spec: str, size: int, count: int) -> tuple[Tensor, Tensor]:
    """images[N,3,size,size] with mean 0 and deviation 1, and their labels."""
    data = load_data(spec)
    batch = next(iter(data.train.batches(min(count, len(data.train)), generator=torch.Generator().manual_seed(0))))
    images = batch.images if batch.images.shape[1] == 3 else batch.images.expand(-1, 3, -1, -1)
    images = nn.functional.interpolate(images, size=(size, size), mode="bilinear", antialias=True)
    return ((images - images.mean()) / images.std()).contiguous(), batch.labels


def untrained(case: NetworkCase, images: Tensor) -> nn.Module:
    """With random weights, and BatchNorm of the images."""
    model = build(case.spec, seed=0)
    recalibrate_batchnorm(model, _Images(images, torch.zeros(len(images))).batches(len(images)))
    return model.eval()


def _model(case: NetworkCase, images: Tensor) -> tuple[nn.Module, str]:
    checkpoint = Path(os.environ.get("FINEPRUNE_DATA", "")) / "checkpoints" / (case.checkpoint or "")
    if case.checkpoint and checkpoint.is_file():
        model = build(case.spec, seed=0)
        load_checkpoint(model, checkpoint)
        return model.eval(), f"trained ({case.checkpoint})"
    return untrained(case, images[:32]), "random, BatchNorm of the images"
