"""The runs of same_bits.py: what each of them calls, and the facts that it leaves.

Everything goes through what users call: the command line, `fineprune.compress`, `load` and `run`, `Session`, and the files that they
write. So the same runs can be made of any commit, however its modules are cut. The current folder is the work folder, and all names are
relative to it, so that no path gets into a file.
"""

import contextlib
import io
import json
import os
import shlex
import tempfile
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from same_bits_facts import Facts, array_digest, flat, folder_facts, onnx_facts, prefixed

BATCHES, THREADS = (1, 4), (1, 2)
CHECKPOINT = "resnet20-12fca82f.th"
"""The public checkpoint, in FINEPRUNE_DATA/checkpoints."""

TRUST = "--trust npz:colour.npz --trust npz:cifar.npz"
"""The images that bundles name."""

_LENET = "--model lenet --data digits --batch-size 128"
_EVERY = "--policy-arg start=1 --policy-arg block=1 --policy-arg prune_epochs=1"
"""A policy that prunes all epochs but the first."""
_RANDOM = f"--policy random --policy-arg window=2 {_EVERY}"
_SERVER = f"{_LENET} --epochs 1 --lr 0.05 --workers 4"
TRAININGS = {
    "cosine": f"{_LENET} --epochs 2 --warmup-epochs 0.5 --label-smoothing 0.1 --max-grad-norm 1",
    "multistep": f"{_LENET} --epochs 3 --schedule multistep --milestones 1,2 --gamma 0.3 --no-augment",
    "plateau": f"{_LENET} --epochs 8 --schedule plateau --lr 0.3 --seed 3",
    "adamw": f"{_LENET} --epochs 2 --schedule constant --optimizer adamw --lr 0.003",
    "bfloat16": f"{_LENET} --epochs 1 --precision bfloat16",
    "auto-rate": f"{_LENET} --epochs 14 --schedule auto --auto-arg interval=2 --auto-arg threshold=0.3 --lr 0.05",
    "auto-rate-literal": f"{_LENET} --epochs 8 --schedule auto --auto-arg rule=literal --auto-arg interval=2 --auto-arg threshold=0.5",
    "fine-pruning": f"{_LENET} --epochs 5 --suspects 8 --policy fine-pruning --policy-arg window=3 {_EVERY} --policy-arg rescale=true",
    "fine-pruning-easiest": f"{_LENET} --epochs 4 --policy fine-pruning --policy-arg window=2 {_EVERY} --policy-arg order=easiest "
    "--policy-arg tie_break=loss",
    "infobatch": f"{_LENET} --epochs 4 --suspects 8 --policy infobatch",
    "random": f"{_LENET} --epochs 4 {_RANDOM}",
    "batchnorm": "--model resnet8 --model-arg width=8 --data npz:colour.npz --epochs 2 --batch-size 32",
    "dropout": "--model wrn10 --model-arg k=1 --model-arg dropout=0.3 --data npz:colour.npz --epochs 2 --batch-size 32",
    "ssgd": f"{_SERVER} --trainer ssgd",
    "asgd": f"{_SERVER} --trainer asgd --trainer-arg shards=iid",
    "dc-asgd": f"{_SERVER} --trainer dc-asgd --trainer-arg shards=dirichlet",
    "dc-asgd-adaptive": f"{_SERVER} --trainer dc-asgd --trainer-arg adaptive=true",
    **{f"lc-asgd-{mode}": f"{_SERVER} --trainer lc-asgd --trainer-arg mode={mode}" for mode in ("ratio", "chain", "normalised")},
    "lc-asgd-damped": f"{_SERVER} --trainer lc-asgd --trainer-arg mode=damped --trainer-arg step_label=versions",
    "lc-asgd-last": f"{_SERVER} --trainer lc-asgd --trainer-arg mode=literal --trainer-arg predictor=last --trainer-arg max_scale=2",
    **{
        f"asgd-batchnorm-{policy}": "--model resnet8 --model-arg width=4 --data npz:colour.npz --epochs 1 --batch-size 16 --lr 0.05 "
        f"--workers 3 --trainer asgd --trainer-arg batchnorm={policy}"
        for policy in ("async", "last-worker", "last-batch")
    },
}
"""`fineprune train`."""

_RESNET = "--model resnet8 --model-arg width=16 --data npz:colour.npz"
_FEW = "--samples 96 --calibration-batch-size 32"
CALIBRATIONS = {
    "taylor": f"{_RESNET} {_FEW} --ffp 0.3 --fwp 0.4",
    "thesis": f"{_RESNET} {_FEW} --preset thesis --prune 0.6 --seed 2",
    "thesis-dense": f"{_RESNET} {_FEW} --preset thesis --ffp 0.3 --ffp-propagate dense",
    "l1": f"{_RESNET} {_FEW} --preset thesis --ffp 0.3 --ffp-criterion l1 --ffp-scope position",
    "apoz": f"{_RESNET} {_FEW} --preset thesis --ffp 0.3 --ffp-criterion apoz --ffp-scope layer",
    "wis-signed": f"{_RESNET} {_FEW} --preset thesis --fwp 0.4 --fwp-criterion wis-signed",
    "magnitude": f"{_RESNET} {_FEW} --fwp 0.4 --fwp-criterion magnitude",
    "group": f"{_RESNET} {_FEW} --fwp 0.4 --fwp-scope group --lanes 8",
    "depthwise": "--model torchvision:mobilenet_v2 --data npz:colour.npz --samples 16 --prune 0.3",
}
"""`fineprune calibrate`."""

_QUICK = f"{_FEW} --epochs 0"
BUNDLES = {
    **{f"resnet8-{name}": f"{text} --epochs 0" for name, text in CALIBRATIONS.items() if _RESNET in text},
    "resnet8-channel": f"{_RESNET} {_QUICK} --ffp 0.3 --fwp 0.4 --fwp-scope channel",
    "resnet8-filter": f"{_RESNET} {_QUICK} --fwp 0.5 --fwp-scope filter --pointwise exempt",
    "resnet8-shared": f"{_RESNET} {_QUICK} --fwp 0.5 --fwp-scope layer --fwp-share group --exclude conv1",
    "resnet8-layers": f"{_RESNET} {_QUICK} --ffp 0.2 --ffp-layer layer3.*=0.6 --fwp-layer layer2.*=0.7",
    "resnet8-finetuned": f"{_RESNET} {_FEW} --prune 0.7 --epochs 2 --batch-size 32 --lr 0.02 --compare-dense",
    "lenet-policy": f"{_LENET} --samples 200 --preset thesis --prune 0.5 --epochs 4 {_RANDOM}",
    "lenet-server": f"{_LENET} --samples 200 --prune 0.5 --epochs 1 --trainer dc-asgd --workers 2",
    "shortcut-a": f"--model resnet14 --model-arg shortcut=A --data npz:colour.npz {_QUICK} --ffp 0.37 --fwp 0.556",
    "bottleneck": f"--model resnet50-3stage --data npz:colour.npz {_QUICK} --prune 0.6",
    "vgg13": "--model vgg13 --data npz:colour.npz --samples 16 --epochs 0 --ffp 0.4 --fwp 0.5 --fwp-scope group",
    "wrn10-thesis": f"--model wrn10 --model-arg k=2 --data npz:colour.npz {_QUICK} --preset thesis --prune 0.72",
    "mobilenet": "--model torchvision:mobilenet_v2 --data npz:colour.npz --samples 16 --epochs 0 --ffp 0.3 --fwp 0.3",
    "squeezenet": f"--model torchvision:squeezenet1_1 --data npz:colour.npz --data-arg image_size=64 {_QUICK} --ffp 0.3 --fwp 0.3",
}
"""`fineprune compress`, then `macs`, `eval`, export and the engine."""
PLAIN = ("resnet8-taylor", "resnet8-thesis", "lenet-policy", "mobilenet")
"""Those that are exported with `--plain` as well: an export takes longer than all the rest."""

PUBLIC = {
    "weights": f"{_QUICK} --prune 0.72",
    "thesis": f"{_QUICK} --preset thesis --prune 0.72",
    "finetuned": f"{_FEW} --ffp 0.37 --fwp 0.556 --epochs 1 --lr 0.01",
}
"""The same for the public ResNet-20, where FINEPRUNE_DATA has it."""

DENSE = {
    "shufflenet": "--model torchvision:shufflenet_v2_x0_5 --input 3x64x64",
    "mobilenet-v3": "--model torchvision:mobilenet_v3_small --input 3x64x64",
    "googlenet": "--model torchvision:googlenet --input 3x64x64",
    "regnet": "--model torchvision:regnet_x_400mf --input 3x64x64",
    "efficientnet": "--model torchvision:efficientnet_b0 --input 3x64x64",
    "convnext": "--model torchvision:convnext_tiny --input 3x64x64",
}
"""`fineprune export` of networks without masks (random weights), and the engine."""

RECIPE = """
[model]
name = "lenet"
[data]
spec = "digits"
[train]
epochs = 3
asynchronous = { algorithm = "lc-asgd", workers = 3, time = { distribution = "stragglers" } }
[compress]
preset = "thesis"
ffp = { ratio = 0.2, criterion = "l1" }
fwp = 0.5
samples = 256
[finetune]
epochs = 2
nesterov = true
[export]
parity_samples = 8
"""


def cases() -> dict[str, Callable[[], Facts]]:
    """Every run by its name."""
    found: dict[str, Callable[[], Facts]] = {}
    found |= {f"train/{name}": partial(train, text) for name, text in TRAININGS.items()}
    found |= {f"calibrate/{name}": partial(calibrate, text) for name, text in CALIBRATIONS.items()}
    found |= {f"compress/{name}": partial(compress, text, plain=name in PLAIN) for name, text in BUNDLES.items()}
    found |= {f"dense/{name}": partial(dense, text) for name, text in DENSE.items()}
    found |= {"python/odd": odd_network, "python/recipe": recipe}
    if (Path(os.environ.get("FINEPRUNE_DATA", "")) / "checkpoints" / CHECKPOINT).is_file():
        named = f"--model resnet20 --model-arg shortcut=A --checkpoint {CHECKPOINT} --data npz:cifar.npz"
        found |= {f"public/{name}": partial(compress, f"{named} {text}") for name, text in PUBLIC.items()}
    return found


def train(text: str) -> Facts:
    """Losses, accuracies and weights of a training."""
    said = command(f"train {text} --output out")
    return {**prefixed("said", {"": said}), **folder_facts("out", "*.json", "*.safetensors", "*.csv")}


def calibrate(text: str) -> Facts:
    """The statistics of each part; none where the criterion needs no data."""
    command(f"calibrate {text} --output out")
    return {fact: value for part in sorted(Path("out").glob("*")) for fact, value in folder_facts(part).items()}


def compress(text: str, *, plain: bool = False) -> Facts:
    """A bundle, and what becomes of it."""
    said = command(f"compress {text} --output out")
    facts = {**prefixed("said", {"": said}), **bundle_facts("out", plain=plain)}
    facts |= prefixed("eval", flat(json.loads(command(f"eval out --json {TRUST}"))))
    return facts | prefixed("macs", flat(json.loads(command("macs out --json"))))


def dense(text: str) -> Facts:
    """A network without masks."""
    command(f"export {text} --parity-samples 0 --output net.onnx")
    return {**onnx_facts("net.onnx"), **engine_facts("net.onnx")}


def odd_network() -> Facts:
    """A module of the user's own through the Python functions: grouped, dilated, strided, rectangular and uneven convolutions."""
    import torch
    from torch import nn

    import fineprune

    torch.manual_seed(5)
    module = nn.Sequential(
        nn.Conv2d(3, 12, (3, 5), padding=(1, 2)),
        nn.ReLU(),
        nn.Conv2d(12, 24, 3, padding=2, dilation=2, groups=3, bias=False),
        nn.BatchNorm2d(24),
        nn.ReLU6(),
        nn.Conv2d(24, 24, 3, stride=2, padding=1, groups=24),
        nn.LeakyReLU(0.1),
        nn.Conv2d(24, 19, 1),
        nn.Sigmoid(),
        nn.AvgPool2d(2),
        nn.Conv2d(19, 7, (1, 3), stride=(2, 1)),
        nn.Flatten(),
        nn.Linear(7 * 4 * 6, 6),
    )
    ratios = {"ffp": {"ratio": 0.3}, "fwp": {"ratio": 0.4, "scope": "kernel"}}
    fineprune.compress(module, "npz:colour.npz", **ratios, epochs=0, samples=64, output="out")  # type: ignore[arg-type]
    return bundle_facts("out", module, plain=True)


def recipe() -> Facts:
    """All stages of a recipe."""
    import fineprune

    Path("recipe.toml").write_text(RECIPE)
    fineprune.run("recipe.toml", output="out")
    facts = {**folder_facts("out/train", "*.json", "*.safetensors"), **folder_facts("out/bundle"), **folder_facts("out", "summary.json")}
    return facts | onnx_facts("out/dense.onnx") | onnx_facts("out/compressed.onnx")


def bundle_facts(folder: str, module: Any = None, *, plain: bool) -> Facts:
    """Of its files, the outputs of its network in torch, the exported file (and the plain one), and the engine's outputs on that."""
    import torch

    import fineprune

    network = fineprune.load(folder, module)
    facts = folder_facts(folder)
    shape = (int(facts[f"{folder}/manifest.json:input_shape[{axis}]"]) for axis in range(3))
    x = torch.from_numpy(inputs((max(BATCHES), *shape)))
    with torch.no_grad():
        facts["torch outputs"] = array_digest(network(x).numpy())
    for name in ("packed.onnx", "plain.onnx")[: 1 + plain]:
        fineprune.to_onnx(folder, name, plain=name == "plain.onnx", samples=x[:1], model=module)
        facts |= onnx_facts(name) | engine_facts(name)
    return facts


def engine_facts(path: str) -> Facts:
    """The engine's outputs on seeded inputs for each batch size and thread count, and the kernels that it chose."""
    from fineprune.export.engine import Session

    facts: Facts = {}
    for threads in THREADS:
        with Session(path, threads=threads) as session:
            (port,) = session.get_inputs()
            for batch in BATCHES:
                x = inputs((batch, *(int(size) for size in port.shape[1:])))  # type: ignore[arg-type]
                for number, y in enumerate(session.run(None, {port.name: x})):
                    facts[f"{path} engine: output {number}, batch {batch}, threads {threads}"] = array_digest(y)
            if threads == 1:
                for number, record in enumerate(session.profile(x[:1])):
                    plan = [record.name, record.kernel, record.layout, record.macs, record.macs_dense]
                    facts[f"{path} engine: operation {number}"] = " ".join(map(str, plan))
    return facts


def inputs(shape: tuple[int, ...]) -> np.ndarray:
    """float32 noise that depends on the shape alone."""
    return np.random.default_rng(list(shape)).standard_normal(shape, np.float32)


def command(text: str) -> str:
    """What `fineprune TEXT` prints; RuntimeError with its message where it fails."""
    import torch

    from fineprune.__main__ import main

    torch.manual_seed(0)  # whoever draws from the global state draws the same whatever ran before
    printed, said = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(said):
        code = main(shlex.split(text))
    if code:
        raise RuntimeError(f"fineprune {text}: {said.getvalue().strip().splitlines()[-1:]}")
    return printed.getvalue()


@contextlib.contextmanager
def work_folder() -> Iterator[None]:
    """A new folder with images made of seeds, and few of the public ones; it is the current folder meanwhile."""
    with tempfile.TemporaryDirectory(prefix="fineprune-bits-") as folder, contextlib.chdir(folder):
        np.savez("colour.npz", **colour_images())  # type: ignore[arg-type]
        data = Path(os.environ.get("FINEPRUNE_DATA", ""))
        if (data / "checkpoints" / CHECKPOINT).is_file():
            Path(CHECKPOINT).symlink_to((data / "checkpoints" / CHECKPOINT).resolve())
            np.savez("cifar.npz", **public_images(data / "cifar10_lossless_partial.npz"))  # type: ignore[arg-type]
        yield


@cache
def public_images(path: Path, count: int = 300) -> dict[str, np.ndarray]:
    """The first images of each split of the file."""
    with np.load(path) as images:
        return {f"{split}_{what}": images[f"{split}_{what}"][:count] for split in ("train", "test") for what in ("images", "labels")}


def colour_images(classes: int = 6, train: int = 192, test: int = 60, size: int = 32) -> dict[str, np.ndarray]:
    """uint8 [N,size,size,3] with labels: a smooth pattern for each class, under noise."""
    rng = np.random.default_rng(12)
    patterns = np.kron(rng.integers(40, 216, (classes, 4, 4, 3)), np.ones((1, size // 4, size // 4, 1)))
    arrays: dict[str, np.ndarray] = {}
    for split, count in (("train", train), ("test", test)):
        labels = np.arange(count) % classes
        noise = rng.normal(0, 60, (count, size, size, 3))
        arrays |= {f"{split}_images": (patterns[labels] + noise).clip(0, 255).astype(np.uint8), f"{split}_labels": labels}
    return arrays
