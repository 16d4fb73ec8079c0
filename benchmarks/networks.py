"""Networks as others wrote them, from calibration to the bench: which layers carry masks, what is left dense and why, and parity.

    python benchmarks/networks.py [--only GLOB ...] [--repositories FOLDER] [--runs FOLDER] [--collect] [--output FILE.md]

Random weights and a few random images of 64x64 (32x32 and more where a network asks for it): this is about what runs, not about accuracy
or speed. Networks of torchvision, of timm (where it is installed) and, with --repositories, of public repositories in folders there, which
are run as they are. Each ends in a JSON file of its own in the folder of runs.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from fnmatch import fnmatch
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

import fineprune
from fineprune.calibrate.convolutions import find_convolutions
from fineprune.common.copies import copied
from fineprune.common.errors import FinepruneError
from fineprune.common.files import read_json, write_json
from fineprune.common.progress import Silent
from fineprune.compressor.attention import split
from fineprune.compressor.macs import count_macs
from fineprune.export.benchmark import BenchmarkConfig
from fineprune.export.parity import ENGINE, ONNXRUNTIME
from fineprune.models.vision import import_torchvision

SAMPLES, PRUNE = 8, 0.5
TORCHVISION: dict[str, dict[str, Any]] = {
    **{name: {} for name in ("alexnet", "vgg11_bn", "resnet18", "resnet50", "resnext50_32x4d", "densenet121", "squeezenet1_1")},
    **{name: {} for name in ("mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large", "shufflenet_v2_x1_0", "mnasnet1_0")},
    **{name: {} for name in ("efficientnet_b0", "efficientnet_v2_s", "regnet_y_400mf", "regnet_x_400mf", "convnext_tiny", "swin_t")},
    "googlenet": {"aux_logits": False, "init_weights": False},
    "inception_v3": {"aux_logits": False, "init_weights": True},
    "vit_b_16": {"image_size": 64},
}
TIMM: dict[str, dict[str, Any]] = {
    **{name: {} for name in ("tf_efficientnet_b0", "tf_mobilenetv3_small_100", "resnetv2_50x1_bit", "nfnet_l0", "repvgg_a0")},
    **{name: {} for name in ("ghostnet_100", "resnest14d", "convnext_atto", "edgenext_xx_small", "mobileone_s0", "dla34", "lcnet_050")},
    **{"vit_tiny_patch16_224": {"img_size": 64}, "mixer_s32_224": {"img_size": 64}, "poolformer_s12": {}},
}
REPOSITORIES: dict[str, tuple[str, str, dict[str, Any], int]] = {
    "kuangliu/pytorch-cifar DLA": ("models.dla", "DLA", {}, 32),
    "milesial/Pytorch-UNet UNet": ("unet", "UNet", {"n_channels": 3, "n_classes": 2}, 64),
    "lukemelas/EfficientNet-PyTorch b0": ("efficientnet_pytorch", "EfficientNet.from_name", {"model_name": "efficientnet-b0"}, 64),
}
"""By repository and network: module, factory, its arguments, and the size of an image."""
TOKENS = ("swin_t", "vit_b_16", "vit_tiny_patch16_224", "mixer_s32_224", "convnext_tiny", "convnext_atto", "edgenext_xx_small")
"""Networks most of whose multiply-adds are in linear layers."""
SIZES = {"inception_v3": 96}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=["*"], metavar="GLOB", help="Run only the networks that match.")
    parser.add_argument("--repositories", type=Path, metavar="FOLDER", help="Clones of the public repositories, as OWNER+NAME.")
    parser.add_argument("--runs", type=Path, default=Path("runs/networks"), metavar="FOLDER", help="Keep what ran in this folder.")
    parser.add_argument("--collect", action="store_true", help="Run nothing, and make the table of what is there.")
    parser.add_argument("--output", type=Path, metavar="FILE", help="Write the table there, too.")
    arguments = parser.parse_args()
    for name in [] if arguments.collect else names(arguments.repositories):
        path = arguments.runs / f"{name.replace('/', '+').replace(':', ' ')}.json"
        if path.exists() or not any(fnmatch(name, glob) for glob in arguments.only):
            continue
        begun = time.monotonic()
        try:
            facts = row(network_of(name, arguments.repositories), size_of(name), linear=name.partition(":")[2] in TOKENS)
        except FinepruneError as error:
            facts = {"error": str(error)}
        write_json(path, {"name": name, **facts, "seconds": time.monotonic() - begun})
        print(table([read_json(path)]).splitlines()[-1], flush=True)
    text = table([read_json(path) for path in sorted(arguments.runs.glob("*.json"))])
    print(text)
    if arguments.output:
        arguments.output.write_text(text + "\n")


def names(repositories: Path | None = None) -> list[str]:
    """Those that can be run here: torchvision:NAME, timm:NAME, OWNER/NAME NETWORK."""
    found = [f"torchvision:{name}" for name in TORCHVISION]
    found += [f"timm:{name}" for name in TIMM] if find_spec("timm") else []
    return found + ([name for name in REPOSITORIES if _clone(name, repositories).is_dir()] if repositories else [])


def size_of(name: str) -> int:
    """Of an image, along each side."""
    return REPOSITORIES[name][3] if name in REPOSITORIES else SIZES.get(name.partition(":")[2], 64)


def network_of(name: str, repositories: Path | None = None) -> nn.Module:
    """With random weights of seed 0."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = _made(name, repositories).eval()
        images = torch.randn(SAMPLES, 3, size_of(name), size_of(name))
        if tells(model, images) < 1e-2:
            _enliven(model, images)
    return model


def _made(name: str, repositories: Path | None) -> nn.Module:
    if name in REPOSITORIES and repositories is not None:
        return _of_repository(name, repositories)
    library, _, short = name.partition(":")
    torchvision = import_torchvision()
    if library == "torchvision":
        model: nn.Module = torchvision.models.get_model(short, weights=None, **TORCHVISION[short])
    else:
        model = import_module("timm").create_model(short, pretrained=False, **TIMM[short])
    return model


def tells(model: nn.Module, images: torch.Tensor) -> float:
    """How far the outputs for different images are apart, of the largest: where that is nothing, there is nothing to compare."""
    with torch.no_grad():
        outputs = model(images.clone())
    return float((outputs - outputs.mean(0)).abs().max() / outputs.abs().max().clamp_min(1e-30))


def _enliven(model: nn.Module, images: torch.Tensor) -> None:
    """Random numbers where all weights of a layer are zero, and BatchNorm statistics of images: signals neither vanish nor are cut off."""
    for parameter in model.parameters():
        if parameter.dim() > 1 and not parameter.any():
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None  # the mean of all batches, of which there is one
        norm.reset_running_stats()
    with torch.no_grad():
        model.train()(images.clone())
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()


def _clone(name: str, repositories: Path) -> Path:
    return repositories / name.partition(" ")[0].replace("/", "+")


def _of_repository(name: str, repositories: Path) -> nn.Module:
    module, factory, arguments, _ = REPOSITORIES[name]
    top = module.partition(".")[0]
    others = {key: sys.modules.pop(key) for key in list(sys.modules) if key == top or key.startswith(f"{top}.")}
    sys.path.insert(0, str(_clone(name, repositories)))
    try:
        made: Any = import_module(module)
        for part in factory.split("."):
            made = getattr(made, part)
        model: nn.Module = made(**arguments)
    finally:
        sys.path.pop(0)
        sys.modules.update(others)
    return model


def row(model: nn.Module, size: int, *, linear: bool) -> dict[str, Any]:
    """What becomes of a network: compressed by the masks of the preset thesis (blocks and weights), exported, compared, measured."""
    shape = (3, size, size)
    images = torch.randn(SAMPLES, *shape, generator=torch.Generator().manual_seed(0))
    layer_types = ("conv2d", "linear") if linear else ("conv2d",)
    sites, skipped = find_convolutions(split(copied(model)), shape, layer_types)
    settings: dict[str, Any] = {"preset": "thesis", "prune": PRUNE, "fwp": {"layer_types": layer_types}}
    bundle = fineprune.compress(model, images, validation=0.25, test=images[:4], epochs=0, reconstruct=False, progress=Silent(), **settings)
    masked = bundle.restore(model)
    macs = count_macs(masked, shape)
    facts: dict[str, Any] = {
        "masked": len(sites),
        "weights_only": sum(1 for site in sites if site.weights_only),
        "left": {reason: sum(1 for s in skipped if s.reason == reason) for reason in dict.fromkeys(s.reason for s in skipped)},
        "macs": macs.macs_dense,
        "pruned": 1 - macs.macs / macs.macs_dense,
    }
    with tempfile.TemporaryDirectory(prefix="fineprune-networks-") as folder:
        file = Path(folder) / "net.onnx"
        exported = fineprune.to_onnx(bundle, file, model=model, samples=images, progress=Silent())
        assert exported.parity is not None
        facts["parity"] = exported.parity.to_json()
        facts["masked_nodes"] = {op: count for op, count in exported.report.nodes.items() if op.startswith("fineprune")}
        config = BenchmarkConfig(batch_sizes=(1,), threads=(1,), rounds=5)
        report = fineprune.bench(bundle, config, onnx=file, int8=False, peers=(), samples=images, model=model, progress=Silent())
        facts["latency"] = report.to_json()
    return facts


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown; the last two columns are the largest difference to torch, of the largest output."""
    lines = ["| network | layers masked (weights alone) | left dense | MACs, million | pruned | ONNX Runtime | engine |"]
    lines.append("|" + "---|" * 7)
    for facts in rows:
        if "error" in facts:
            lines.append(f"| {facts['name']} | {facts['error']} | | | | | |")
            continue
        left = "; ".join(f"{count}: {reason}" for reason, count in facts["left"].items())
        masked = f"{facts['masked']} ({facts['weights_only']})"
        apart = differences(facts["parity"])
        lines.append(
            f"| {facts['name']} | {masked} | {left} | {facts['macs'] / 1e6:.0f} | {facts['pruned']:.0%} | "
            + " | ".join(f"{apart[runtime]:.0e}" if runtime in apart else "" for runtime in (ONNXRUNTIME, ENGINE))
            + " |"
        )
    return "\n".join(lines)


def differences(parity: dict[str, Any]) -> dict[str, float]:
    """By runtime, the largest difference to torch, of the largest output."""
    return {entry["runtime"]: entry["relative_error"] for entry in parity["runtimes"]}


if __name__ == "__main__":
    main()
