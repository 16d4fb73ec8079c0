"""Naming a network: by architecture and checkpoint, or by a bundle that says both."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from .common.errors import UsageError
from .compressor.bundle import Bundle
from .manifest import read_bundle
from .models.data import ImageData, load_data
from .models.zoo import ModelSpec, build, load_checkpoint


@dataclass(frozen=True, kw_only=True)
class Network:
    """A network in eval mode with what is known about it; `data` are `load_data`'s facts from a bundle's manifest."""

    model: nn.Module
    spec: ModelSpec | None
    input_shape: tuple[int, int, int]
    bundle: Bundle | None = None
    data: dict[str, Any] | None = None


def load(folder: Path | str, model: nn.Module | None = None) -> nn.Module:
    """The masked network of the bundle in `folder`, in eval mode; `model` is its dense architecture where the manifest names none."""
    return open_bundle(folder, model=model).model


def open_bundle(folder: Path | str, *, model: nn.Module | None = None) -> Network:
    """Read a bundle and rebuild its network. UsageError when it was made from an unnamed module and `model` is not given."""
    return network_of(read_bundle(folder), model=model, where=str(folder))


def network_of(bundle: Bundle, *, model: nn.Module | None = None, where: str = "the bundle") -> Network:
    """Rebuild the network of a bundle in memory."""
    spec = ModelSpec.from_json(bundle.facts["model"]) if bundle.facts.get("model") else None
    if model is None:
        if spec is None:
            raise UsageError(f"{where} was made from a network without a name; give its dense architecture: load(folder, model)")
        try:
            model = build(spec)
        except UsageError as error:
            raise UsageError(f"{where} needs the network {spec.name}: {error}; file names are relative to the current folder") from error
    channels, height, width = bundle.facts["input_shape"]
    return Network(
        model=bundle.restore(model), spec=spec, input_shape=(channels, height, width), bundle=bundle, data=bundle.facts.get("data")
    )


def open_model(
    spec: ModelSpec, *, checkpoint: Path | str | None = None, data: ImageData | None = None, input_shape: tuple[int, int, int] | None = None
) -> Network:
    """Build `spec` and load its weights; without a checkpoint they are random.

    Channels and the number of classes come from `data` where the spec doesn't say.
    """
    shape = input_shape or (data.input_shape if data else None)
    if shape is None:
        raise UsageError(f"the input size of {spec.name} is not known; give --input CxHxW or --data")
    spec = completed(spec, shape, data)
    model = build(spec, seed=0)
    if checkpoint is not None:
        load_checkpoint(model, checkpoint)
    return Network(model=model.eval(), spec=spec, input_shape=shape)


def completed(spec: ModelSpec, input_shape: tuple[int, int, int], data: ImageData | None) -> ModelSpec:
    """`spec` with what data say: channels, image size and (given data) the number of classes, where the network takes them."""
    known: dict[str, Any] = {"in_channels": input_shape[0], "image_size": input_shape[1]}
    if data is not None:
        known["num_classes"] = len(data.classes)
    return spec.completed(**known)


def data_from_facts(facts: dict[str, Any]) -> ImageData:
    """Load the data set that a manifest names, with the same split and normalisation."""
    arguments = {key: facts[key] for key in ("validation", "seed", "image_size") if facts.get(key) is not None}
    try:
        return load_data(facts["spec"], mean=tuple(facts["mean"]), std=tuple(facts["std"]), **arguments)
    except UsageError as error:
        raise UsageError(f"the manifest names the data {facts['spec']}: {error}; or give --data (in Python: samples)") from error
