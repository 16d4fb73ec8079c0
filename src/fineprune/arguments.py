"""What the functions of the Python API take: checked where they are called, so that a wrong type is named and not met deep inside."""

import inspect
import os
from collections.abc import Mapping
from numbers import Integral
from pathlib import Path
from typing import Any

from torch import nn

from fineprune.common.errors import UsageError
from fineprune.compressor.bundle import Bundle
from fineprune.models.data import ImageData
from fineprune.models.data.given import is_given, loader_of
from fineprune.models.training.config import TrainConfig
from fineprune.models.zoo import ModelSpec

from .networks import Network

_PATH = (str, os.PathLike)
_DATA = (
    "a data set's spec, such as 'cifar10:data', 'imagefolder:FOLDER' or 'file.py:factory', what fineprune.models.data.load_data returns, "
    "or samples: a DataLoader, a Dataset, (inputs, labels)"
)
_BUNDLE = "a bundle (what fineprune.compress returns) or the path of its folder"
_ACCEPTED: dict[str, tuple[tuple[type, ...], str]] = {
    "model": ((nn.Module, ModelSpec, Bundle, str), "an nn.Module, or a name such as 'resnet20' or 'file.py:factory'"),
    "data": ((ImageData, str), _DATA),
    "checkpoint": (_PATH, "the path of a weights file"),
    "model_args": ((Mapping,), "a dict of the network's arguments, such as {'width': 32}"),
    "finetune": ((TrainConfig, Mapping), "a fineprune.models.training.config.TrainConfig, or a dict of its settings"),
    "samples": ((Integral,), "a whole number"),
    "statistics": (_PATH, "the path of a folder that `fineprune calibrate` wrote"),
    "output": (_PATH, "the path of a folder"),
    "bundle": ((Bundle, *_PATH), _BUNDLE),
    "network": ((Bundle, Network, *_PATH), _BUNDLE),
    "architecture": ((nn.Module,), "the dense network, an nn.Module"),
    "path": (_PATH, "the path of the ONNX file to write"),
    "onnx": (_PATH, "the path of an ONNX file"),
    "recipe": (_PATH, "the path of a recipe (TOML)"),
}
_OPTIONAL = {"checkpoint", "model_args", "finetune", "samples", "statistics", "output", "architecture"}
_NAMES = {"architecture": "model"}
"""Arguments that are another thing in one function than in another, and how they are called there."""


def check_arguments(**given: Any) -> None:
    """UsageError for the first of `given` that is not of the type that the argument of this name takes, with what it takes."""
    for name, value in given.items():
        types, accepted = _ACCEPTED[name]
        wrong = not isinstance(value, types) or (isinstance(value, bool) and Integral in types)
        if wrong and not (value is None and name in _OPTIONAL):
            raise UsageError(f"{_NAMES.get(name, name)} is {accepted}; got {_described(value)}{_meant(name, value)}")


def check_samples(samples: Any) -> None:
    """UsageError for what is no samples as the network takes them."""
    if is_given(samples):
        loader_of(samples, "samples")
    elif samples is not None and not isinstance(samples, ImageData):
        raise UsageError(
            "samples are inputs as the network takes them: a tensor [N,C,H,W], (inputs, labels), a Dataset, a DataLoader, or what "
            f"fineprune.models.data.load_data returns; got {_described(samples)}"
        )


def check_progress(progress: Any) -> None:
    """UsageError for what is no Progress."""
    if progress is not None and not (callable(progress) and callable(getattr(progress, "log", None))):
        raise UsageError(
            f"progress is an object of fineprune.common.progress: Lines() (the default), Bars() or Silent(); got {_described(progress)}"
        )


def _described(value: Any) -> str:
    if value is None or isinstance(value, int | float | str):
        return f"{value!r:.80}"
    return f"the class {value.__name__}" if isinstance(value, type) else f"an object of type {type(value).__name__}"


def _meant(name: str, value: Any) -> str:
    """What is likely to have been meant, where the type tells."""
    module = isinstance(value, nn.Module)
    if name in ("model", "architecture"):
        if isinstance(value, type) or inspect.isroutine(value):
            return "; call it to make the network"
        if isinstance(value, Mapping):
            return "; these are weights: build the network and load them into it (load_state_dict)"
        if isinstance(value, os.PathLike):
            return "; a file of weights is the checkpoint, an ONNX file is named as text, a bundle is opened by fineprune.load"
    if name == "data" and isinstance(value, os.PathLike):
        return f"; for a folder of images give 'imagefolder:{value}', for a file of arrays 'npz:{value}'"
    if module and name in ("bundle", "network"):
        return "; fineprune.compress makes a bundle of it (for a dense network: `fineprune export --model`)"
    return ""


def check_named(model: Any, *, checkpoint: Path | str | None, model_args: Mapping[str, Any] | None) -> None:
    """UsageError where weights or arguments are given beside a network that is already built: they would be left unread."""
    for name, value in (("checkpoint", checkpoint), ("model_args", model_args)):
        if value is not None and isinstance(model, nn.Module):
            remedy = "load the weights into it (fineprune.models.zoo.load_checkpoint)" if name == "checkpoint" else "build it with them"
            raise UsageError(f"{name} belongs to a network given by name; this one is an nn.Module: {remedy} and leave {name} out")
