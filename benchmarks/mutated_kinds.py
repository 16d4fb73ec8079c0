"""What `mutated_files.py` damages: for each loader sound files, the mutations that suit them, and how they are read."""

import hashlib
import io
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from random import Random

import mutations
import numpy as np
import torch
from mutations import Mutation

import fineprune
from fineprune.calibrate.collect import CalibrationConfig
from fineprune.common.progress import Silent
from fineprune.compressor.config import prune_config
from fineprune.compressor.prune import CalibrationRun, prune
from fineprune.models.data import ImageData, load_data
from fineprune.models.data.load import data_from_arrays
from fineprune.models.zoo import ModelSpec, build, load_checkpoint

NETWORK = ModelSpec(name="resnet8", args={"width": 2, "in_channels": 1})
Files = dict[str, bytes]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """sound: folders of files by path. mutations: by the end of a file's name. read: what a user's command does with the folder."""

    sound: Callable[[], list[Files]]
    mutations: Mapping[str, tuple[Mutation, ...]]
    read: Callable[[Path], object]


def damaged(kind: Kind, sound: list[Files], random: Random) -> Files:
    """One of the sound folders with one file of it changed, and (mostly) the hashes of it in other files right again."""
    files = dict(random.choice(sound))
    name = random.choice(sorted(files))
    suitable = next((ways for end, ways in kind.mutations.items() if name.endswith(end)), ())
    changed = random.choice((*suitable, *suitable, mutations.any_bytes))(files[name], random)
    if random.randrange(5):
        old, new = (hashlib.sha256(content).hexdigest().encode() for content in (files[name], changed))
        files = {key: content.replace(old, new) if key.endswith(".json") else content for key, content in files.items()}
    return {**files, name: changed} if name in files else files


def _read_folder(folder: Path) -> Files:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def _with_folder(write: Callable[[Path], object]) -> Files:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        return _read_folder(Path(folder))


def _data() -> ImageData:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (16, 12, 12), dtype=torch.uint8, generator=generator)
    return data_from_arrays("digits", (images, torch.arange(16) % 10))


def _calibration(data: ImageData, folder: Path | None = None) -> CalibrationRun:
    return CalibrationRun(source=data.train, input_shape=data.input_shape, config=CalibrationConfig(data="d"), folder=folder)


_PRUNE = {"ffp": {"ratio": 0.3}, "fwp": {"ratio": 0.4}}


def _statistics() -> list[Files]:
    model = build(NETWORK, seed=0)
    return [
        _with_folder(lambda folder, preset=preset: prune(model, prune_config(preset, **_PRUNE), _calibration(_data(), folder)))  # type: ignore[misc]
        for preset in ("taylor", "thesis")
    ]


def _read_statistics(folder: Path) -> None:
    from fineprune.compression import read_statistics

    statistics = read_statistics(folder)
    for part in statistics.values():
        part + part
    of_thesis = any(b'"l2"' in content for content in _read_folder(folder).values())
    config = prune_config("thesis" if of_thesis else "taylor", **_PRUNE)
    prune(build(NETWORK, seed=0), config, _calibration(_data()), statistics=statistics)


def _bundles() -> list[Files]:
    def write(folder: Path, **ratios: float) -> None:
        fineprune.compress(NETWORK, _data(), epochs=0, output=folder / "b", **ratios)  # type: ignore[arg-type]

    def of_a_file(folder: Path) -> None:
        [(name, content)] = _networks()[0].items()
        (folder / name).write_bytes(content)
        fineprune.compress(str(folder / name), _data(), epochs=0, fwp=0.4, output=folder / "b")
        (folder / name).unlink()

    return [*(_with_folder(partial(write, ffp=ffp, fwp=0.4)) for ffp in (0.3, 0.0)), _with_folder(of_a_file)]


def _read_bundle(folder: Path) -> None:
    from fineprune.common.errors import UsageError
    from fineprune.compressor.macs import count_macs
    from fineprune.networks import open_bundle

    content = b"".join(_read_folder(folder).values())
    if hashlib.sha256(content).digest()[0] < 64:  # curves take a while
        from fineprune.report import write_report

        write_report(folder / "b", folder / "r.html")
    try:
        network = open_bundle(folder / "b")
    except UsageError as error:
        if "was made from a network without a name" not in str(error):
            raise
        network = open_bundle(folder / "b", model=build(NETWORK))
    count_macs(network.model, network.input_shape)


RECIPE = b"""output = "runs/x"
[model]
name = "resnet8"
args = { width = 2, shortcut = "A" }
[data]
spec = "npz:d.npz"
validation = 0.1
seed = 3
image_size = 32
mean = [0.5]
std = [0.5, 0.2, 0.1]
[train]
epochs = 12
batch_size = 64
lr = 0.1
optimizer = "sgd"
schedule = "multistep"
milestones = [3, 5]
warmup_epochs = 1
weight_decay = 5e-4
precision = "float32"
policy = { name = "fine-pruning", fraction = 0.25 }
[compress]
preset = "taylor"
ffp = { ratio = 0.37, per_layer = { "layer3.*" = 0.2 }, criterion = "taylor" }
fwp = { ratio = 0.5, scope = "global", share = "filter", lanes = 8, exclude = ["conv1"] }
samples = 100
calibration_batch_size = 16
batchnorm_samples = 64
compare_dense = true
seed = 1
[finetune]
epochs = 8
asynchronous = { algorithm = "lc-asgd", workers = 4, time = { compute_s = 1.0, distribution = "stragglers" } }
[export]
plain = false
parity_samples = 256
[bench]
batch_sizes = [1, 8]
threads = [1]
rounds = 15
seed = 0
"""


def _read_recipe(folder: Path) -> None:
    from fineprune.recipe import read_recipe
    from fineprune.trust import recipe_names, require_recipe

    settings = read_recipe(folder / "r.toml")
    require_recipe(settings, recipe_names(settings, output_given=False), folder / "r.toml", output_given=True)


def _npz() -> list[Files]:
    generator = np.random.default_rng(0)
    grey, colour = generator.integers(0, 256, (12, 8, 8), np.uint8), generator.random((12, 8, 8, 3)).astype(np.float32)
    labels = np.arange(12) % 3
    contents = [
        {"images": grey, "labels": labels},
        {"train_images": colour, "train_labels": labels, "test_images": colour[:3], "test_labels": labels[:3]},
        {"x_train": grey, "y_train": labels[:, None], "classes": np.array(["a", "b", "c"])},
    ]
    files = []
    for number, content in enumerate(contents):
        stream = io.BytesIO()
        (np.savez_compressed if number == 1 else np.savez)(stream, **content)  # type: ignore[arg-type]
        files.append({"d.npz": stream.getvalue()})
    return files


def _use(spec: str) -> None:
    data = load_data(spec, progress=Silent())
    for split in (data.train, data.validation, data.test):
        if len(split):
            next(iter(split.batches(4)))


def _checkpoints() -> list[Files]:
    from safetensors.torch import save

    state = {key: value.clone() for key, value in build(NETWORK, seed=0).state_dict().items()}
    first = next(iter(state))
    kinds = (torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64, torch.int8, torch.bool)
    odd: list[object] = [{**state, first: state[first].to(kind)} for kind in kinds]
    odd += [{**state, first: state[first].to_sparse()}, {**state, first: torch.empty(state[first].shape, device="meta")}]
    odd += [{**state, first: state[first][:, :, :1]}, {**state, first: "text"}, {**state, first: None}, {3: state[first]}, [], 5, state]
    odd += [{"state_dict": {f"module.{key}": value for key, value in state.items()}, "epoch": 3}, {"state_dict": {"state_dict": []}}]
    odd += [{**state, first: torch.quantize_per_tensor(state[first], 0.1, 0, torch.qint8)}, {"model": {"net": state}}, {"model": None}]
    files = [{"w.safetensors": save(state)}]
    for content in odd:
        for zipped in (True, False):
            stream = io.BytesIO()
            torch.save(content, stream, _use_new_zipfile_serialization=zipped)
            files.append({"w.pt": stream.getvalue()})
    return [*files, *files[:1] * 10]


def _images() -> list[Files]:
    from PIL import Image

    generator = np.random.default_rng(0)
    files: Files = {}
    for number, suffix in enumerate(("png", "jpg", "tif", "png", "bmp", "webp", "png", "ppm")):
        stream = io.BytesIO()
        pixels = generator.integers(0, 256, (20, 24, 3), np.uint8)
        image = Image.fromarray(pixels if number % 2 else pixels[..., 0])
        image.save(stream, {"jpg": "jpeg", "tif": "tiff"}.get(suffix, suffix))
        files[f"i/{'train' if number % 3 else 'test'}/{'ab'[number % 2]}/{number}.{suffix}"] = stream.getvalue()
    return [files]


def _onnx() -> list[Files]:
    from fineprune.export.exporter import export_onnx
    from fineprune.networks import network_of

    bundle = fineprune.compress(NETWORK, _data(), epochs=0, ffp=0.3, fwp=0.4)
    network = network_of(replace(bundle, folder=None))
    return [
        _with_folder(lambda folder, plain=plain: export_onnx(network.model, network.input_shape, folder / "m.onnx", plain=plain))  # type: ignore[misc]
        for plain in (False, True)
    ]


def graph(content: bytes, random: Random) -> bytes:
    """Attributes, shapes, types and names within an ONNX graph."""
    import onnx

    model = onnx.ModelProto()
    model.ParseFromString(content)
    numbers = (0, 1, -1, 2, 3, 7, 10**6, 2**31, -(2**31), 2**62)
    graphs = [model.graph, *model.functions]
    part = random.choice(graphs)
    node = random.choice(part.node)
    kind = random.randrange(7)
    if kind == 0 and node.attribute:
        attribute = random.choice(node.attribute)
        attribute.i = random.choice(numbers)
        if attribute.ints:
            attribute.ints[random.randrange(len(attribute.ints))] = random.choice(numbers)
    elif kind == 1 and node.input:
        node.input[random.randrange(len(node.input))] = random.choice(random.choice(part.node).output or [""])
    elif kind == 2:
        node.op_type = random.choice(random.choice(graphs).node).op_type
    elif kind == 3:
        part.node.remove(node)
    elif kind == 4 and model.graph.initializer:
        tensor = random.choice(model.graph.initializer)
        tensor.data_type = random.choice(range(25)) if random.randrange(2) else tensor.data_type
        if tensor.dims:
            tensor.dims[random.randrange(len(tensor.dims))] = random.choice(numbers)
    elif kind == 5:
        for dim in random.choice((*model.graph.input, *model.graph.output)).type.tensor_type.shape.dim:
            dim.dim_value = random.choice(numbers)
    else:
        part.node.append(node)
    return model.SerializeToString()


def _networks() -> list[Files]:
    from fineprune.export.exporter import export_onnx

    model = build(NETWORK, seed=0).eval()
    return [_with_folder(lambda folder: export_onnx(model, (1, 12, 12), folder / "m.onnx", plain=True))]


def _open_network(folder: Path) -> None:
    from fineprune.networks import open_model

    open_model(ModelSpec(name=str(folder / "m.onnx")))


def _run_onnx(folder: Path) -> None:
    from fineprune.export.engine import Session

    with Session(folder / "m.onnx") as session:
        [given] = session.get_inputs()
        session.run(None, {given.name: np.zeros((1, 1, 12, 12), np.float32)})


_TEXT = (mutations.values,)
KINDS = {
    "statistics": Kind(sound=_statistics, mutations={".json": _TEXT, ".safetensors": (mutations.safetensors,)}, read=_read_statistics),
    "bundles": Kind(
        sound=_bundles, mutations={".json": _TEXT, ".safetensors": (mutations.safetensors,), ".onnx": (graph,)}, read=_read_bundle
    ),
    "recipes": Kind(sound=lambda: [{"r.toml": RECIPE}], mutations={".toml": _TEXT}, read=_read_recipe),
    "npz": Kind(sound=_npz, mutations={".npz": (mutations.archive,)}, read=lambda folder: _use(f"npz:{folder / 'd.npz'}")),
    "checkpoints": Kind(
        sound=_checkpoints,
        mutations={".safetensors": (mutations.safetensors,), ".pt": (mutations.archive, lambda content, _: content)},
        read=lambda folder: load_checkpoint(build(NETWORK), next(folder.glob("w.*"))),
    ),
    "images": Kind(sound=_images, mutations={".png": (mutations.png_size,)}, read=lambda folder: _use(f"imagefolder:{folder / 'i'}")),
    "networks": Kind(sound=_networks, mutations={".onnx": (graph,)}, read=_open_network),
    "onnx": Kind(sound=_onnx, mutations={".onnx": (graph,)}, read=_run_onnx),
}


def write(files: Files, folder: Path) -> None:
    """Put the files into an empty folder."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def quiet() -> None:
    """Warnings of libraries about damaged files are no faults."""
    warnings.simplefilter("ignore")
