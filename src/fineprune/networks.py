"""Naming a network: by architecture and checkpoint, by an ONNX file, or by a bundle that says both."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fineprune.common.errors import FinepruneError, RunError, UsageError
from fineprune.common.inputs import Shape, Structured
from fineprune.common.progress import Progress, Silent
from fineprune.compressor.bundle import GRAPH, MANIFEST, Bundle
from fineprune.models import onnx_file
from fineprune.models.data import DATA_ARGUMENTS, ImageData, load_data
from fineprune.models.naming import is_onnx
from fineprune.models.zoo import ModelSpec, build, load_checkpoint

from .manifest import check_facts, read_bundle
from .trust import data_names, network_names, require_data, require_network


@dataclass(frozen=True, kw_only=True)
class Network:
    """A network in eval mode with what is known about it; `data` are `load_data`'s facts from a bundle's manifest.

    input_shape: () where the network is called by a `forward` of its user, which no bundle holds; sample: samples to call it on then.
    trust: what the user allows of that which a manifest names (see `trust.py`).
    """

    model: nn.Module
    spec: ModelSpec | None
    input_shape: tuple[int, ...]
    bundle: Bundle | None = None
    data: dict[str, Any] | None = None
    trust: tuple[str, ...] = ()
    sample: Structured | None = None

    @property
    def shape(self) -> Shape:
        """What the network is called on. UsageError where nobody has said it."""
        if self.sample is not None:
            return self.sample
        if not self.input_shape:
            facts = {} if self.bundle is None else self.bundle.facts
            raise UsageError(
                f"the network was compressed on inputs {facts.get('inputs')} with forward={facts.get('forward')}, which no bundle holds: "
                "give samples= of that structure and forward=, too"
            )
        return self.input_shape

    def with_data(self, data: ImageData) -> "Network":
        """The same network with data that the user gave."""
        facts = data.to_json()
        return replace(self, data=facts, trust=(*self.trust, *data_names(load_arguments(facts))))


def load(bundle: Bundle | Path | str, model: nn.Module | None = None, *, trust: Collection[str] = ()) -> nn.Module:
    """The masked network of a bundle, or of the one in a folder, in eval mode.

    model: its dense architecture, where the manifest names none, or names code of the user's own that `trust` does not allow by name
    (trust=["my_net.py:my_net"]); otherwise UsageError.
    """
    from .arguments import check_arguments  # which knows networks

    check_arguments(bundle=bundle, architecture=model)
    if not isinstance(bundle, Bundle):
        bundle = read_bundle(bundle) if model is None else Bundle.load(bundle)
    return network_of(bundle, trust=trust).model if model is None else bundle.restore(model)


def open_bundle(folder: Path | str, *, model: nn.Module | None = None, trust: Collection[str] = ()) -> Network:
    """Read a bundle and rebuild its network; arguments and errors as in `load`."""
    return network_of(read_bundle(folder), model=model, trust=trust)


def network_of(bundle: Bundle, *, model: nn.Module | None = None, trust: Collection[str] = ()) -> Network:
    """Rebuild the network of a bundle in memory. What a bundle made in this process names is the user's own word."""
    spec = spec_of(bundle)
    where = "the bundle" if bundle.folder is None else str(bundle.folder)
    if bundle.folder is None:
        data = bundle.facts.get("data")
        trust = [*(network_names(spec) if spec else ()), *(data_names(load_arguments(data)) if data else ()), *trust]
    if model is None:
        if spec is None:
            raise UsageError(
                f"{where} was made from a network without a name; give its dense architecture: --model file.py:factory (in Python: "
                "model=network; to compress it further, fineprune.load(bundle, network) in its place)"
            )
        require_network(spec, trust, manifest_of(bundle))
        model = _built(spec, bundle, where)
    check_facts(bundle, where)
    return Network(
        model=bundle.restore(model),
        spec=spec,
        input_shape=tuple(bundle.facts.get("input_shape", ())),
        bundle=bundle,
        data=bundle.facts.get("data"),
        trust=tuple(trust),
    )


def _built(spec: ModelSpec, bundle: Bundle, where: str) -> nn.Module:
    """The network of `spec`, of which the bundle has the weights; one that is much larger is not even built."""
    try:
        held, wanted = sum(value.numel() for value in bundle.weights.values()), _parameters(spec)
        if wanted is not None and wanted > 2 * held + 2**20:
            raise UsageError(f"that has {wanted:,} weights, and the bundle holds {held:,}")
        return build(spec)
    except FinepruneError as error:
        if spec.graph is not None:
            raise RunError(f"{where}: {GRAPH} cannot be read: {error}; it was edited, or is of a later version") from error
        if not isinstance(error, UsageError):
            raise
        raise UsageError(f"{where} needs the network {spec.name}: {error}; file names are relative to the current folder") from error


def _parameters(spec: ModelSpec) -> int | None:
    """How many parameters `spec` has, counted without their memory; None where that cannot be told (the user's own code is not run)."""
    if spec.graph is not None:
        return onnx_file.elements(spec.graph)
    if network_names(spec):
        return None
    try:
        with torch.device("meta"):
            return sum(parameter.numel() for parameter in build(spec).parameters())
    except UsageError:
        raise
    except Exception as error:  # a few networks compute with numbers while they are built, and no memory holds the others
        if "overflow" in str(error).lower():
            raise UsageError(f"its arguments {spec.args} are too large") from error
        return None


def spec_of(bundle: Bundle) -> ModelSpec | None:
    """The network that a bundle's manifest names, if it names one."""
    return ModelSpec.from_json(bundle.facts["model"], bundle.graph) if bundle.facts.get("model") else None


def manifest_of(bundle: Bundle | None) -> str:
    """How messages name a bundle's manifest."""
    return "the manifest" if bundle is None or bundle.folder is None else str(bundle.folder / MANIFEST)


def open_model(
    spec: ModelSpec,
    *,
    checkpoint: Path | str | None = None,
    data: ImageData | None = None,
    input_shape: tuple[int, ...] | None = None,
    progress: Progress = Silent(),  # noqa: B008 - stateless
) -> Network:
    """Build `spec` and load its weights; without a checkpoint they are random, or those of an ONNX file.

    Channels and the number of classes come from `data` where the spec doesn't say.
    """
    if is_onnx(spec.name):
        return _open_onnx(spec, checkpoint, input_shape or (data.input_shape if data else None), progress)
    shape = input_shape or (data.input_shape if data else None)
    if not shape:
        raise UsageError(f"the input size of {spec.name} is not known; give --input CxHxW, such as --input 3x224x224, or --data")
    spec = completed(spec, shape, data)
    model = build(spec, seed=0)
    if checkpoint is not None:
        for note in load_checkpoint(model, checkpoint, spec):
            progress.log(note)
    check_channels(model, shape, spec)
    return Network(model=model.eval(), spec=spec, input_shape=shape)


def _open_onnx(spec: ModelSpec, checkpoint: Path | str | None, given: tuple[int, ...] | None, progress: Progress) -> Network:
    """The network of an ONNX file, which was compared with the file; its spec is the file's graph."""
    path = Path(spec.name)
    if spec.args:
        raise UsageError(f"{path} is a network as it stands: it takes no arguments, got {', '.join(spec.args)}")
    graph = onnx_file.read(path)
    own = onnx_file.input_shape(graph)
    sides = given or tuple(side for side in own if side is not None)
    if len(sides) != 3:
        raise UsageError(f"{path} leaves its input size open; give --input CxHxW, such as --input 3x224x224, or --data")
    channels, height, width = sides
    wanted = [side or other for side, other in zip(own, sides, strict=True)]
    if wanted != list(sides):
        raise UsageError(f"{path} takes inputs of {_by(wanted)}, not {_by(sides)}; give {resized(wanted, sides)} or other data")
    model, graph = onnx_file.opened(path, onnx_file.sized(graph, sides))
    if graph.graph.node[-1].op_type == "Softmax":
        progress.log(f"{path} ends in Softmax: for a fine-tuning, which takes outputs for the logits before it, export it without")
    spec = ModelSpec(name=path.name, graph=onnx_file.architecture(graph))
    if checkpoint is not None:
        for note in load_checkpoint(model, checkpoint, spec):
            progress.log(note)
    return Network(model=model, spec=spec, input_shape=(channels, height, width))


def resized(wanted: Sequence[int], given: Sequence[int]) -> str:
    """The options that give images of `wanted` instead of `given`, both (C,H,W)."""
    sides = zip(("channels", "image_size"), wanted, given, strict=False)
    return " ".join(f"--data-arg {name}={side}" for name, side, own in sides if side != own)


def _by(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def check_channels(model: nn.Module, input_shape: tuple[int, ...], spec: ModelSpec | None = None) -> None:
    """UsageError where the first convolution takes other channels than the images have and the network does not convert them itself."""
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    channels = input_shape[0]
    if first is None or first.in_channels in (0, channels):  # 0: not known before the first images
        return
    training = {module for module in model.modules() if module.training}
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            model.eval()(torch.zeros(1, *input_shape, device=first.weight.device))
    except Exception as error:
        if "channels" not in str(error):  # another fault, which is named where it is met
            return
        known = spec is not None and "in_channels" in spec.args
        network = f"--model-arg in_channels={channels}" if known else "a network for them"
        raise UsageError(
            f"the network's first convolution takes images with {first.in_channels} channel{'s' * (first.in_channels > 1)}, "
            f"not with {channels}; give {network}, or other data (a function of your own can convert them: --data file.py:factory)"
        ) from error
    finally:
        for module in training:
            module.training = True


def completed(spec: ModelSpec, input_shape: tuple[int, ...], data: ImageData | None) -> ModelSpec:
    """`spec` with what data say: channels, image size and (given data) the number of classes, where the network takes them."""
    known: dict[str, Any] = {"in_channels": input_shape[0], "image_size": input_shape[1]}
    if data is not None and data.classes:
        known["num_classes"] = len(data.classes)
    return spec.completed(**known)


def load_arguments(facts: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `load_data` that give a manifest's data with the same split and normalisation."""
    given = {key: facts[key] for key in DATA_ARGUMENTS if facts.get(key) not in (None, [])}
    return {"spec": facts["spec"], "mean": tuple(facts["mean"]), "std": tuple(facts["std"]), **given}


def named_data(network: Network) -> ImageData:
    """Load the data set that a network's manifest names; UsageError where there is none, or where it needs the user's word."""
    where = manifest_of(network.bundle)
    if network.data is None:
        raise UsageError(f"{where} names no data set; give --data (in Python: samples)")
    arguments = load_arguments(network.data)
    require_data(arguments, network.trust, where)
    try:
        return load_data(**arguments)
    except UsageError as error:
        raise UsageError(f"the manifest names the data {network.data['spec']}: {error}; or give --data (in Python: samples)") from error
