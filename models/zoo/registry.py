"""Networks by name: one table of our own, every torchvision classifier as `torchvision:NAME`, the user's as `module.path:factory`."""

import contextlib
import difflib
import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin

import torch
from torch import nn

from fineprune.common.errors import FinepruneError, UsageError
from fineprune.common.wrappers import without_wrappers

from .. import onnx_file
from ..naming import meant_as_model
from ..user_code import accepted_arguments, call_factory, is_user_spec, load_factory
from . import torchvision_models
from .lenet import LeNet
from .resnet import BasicBlock, Bottleneck, CifarResNet
from .vgg import CifarVGG
from .wrn import WideResNet

Value = int | float | bool | str


@dataclass(frozen=True)
class Entry:
    """One row of the table: a factory whose keyword arguments are all typed and have defaults."""

    factory: Callable[..., nn.Module]
    description: str


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A network that can be built again: its name and arguments, as a manifest stores them."""

    name: str
    args: dict[str, Value] = field(default_factory=dict)
    graph: bytes | None = field(default=None, repr=False)
    """Of a network from an ONNX file, which no code builds: the file's graph, its weights left out."""

    def to_json(self) -> dict[str, Any]:
        """{"name": ..., "args": {...}}; a graph is kept beside."""
        return {"name": self.name, "args": dict(self.args)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any], graph: bytes | None = None) -> "ModelSpec":
        """The inverse of `to_json`; UsageError where `value` has another form."""
        try:
            name, args = value["name"], dict(value["args"])
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(f'a model is stored as {{"name": ..., "args": {{...}}}}, got {value!r}') from error
        if not isinstance(name, str) or not all(isinstance(v, int | float | str) for v in args.values()):
            raise UsageError(f"a model's name is text and its arguments are numbers, true/false or text, got {value!r}")
        return cls(name=name, args=args, graph=graph)

    def completed(self, **known: Value) -> "ModelSpec":
        """With those of `known` (in_channels, num_classes, image_size: facts of the data) that the network takes and that are not given."""
        if self.graph is not None:
            return self
        accepted = accepted_by(self.name)
        return ModelSpec(name=self.name, args={**{k: v for k, v in known.items() if k in accepted}, **self.args})


def parse_args(pairs: Iterable[str]) -> dict[str, Value]:
    """["width=83", "shortcut=A"] -> {"width": 83, "shortcut": "A"}: whole numbers, numbers, true/false, else text.

    Raises UsageError for a pair without `=` or a key that is empty or repeated.
    """
    args: dict[str, Value] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        key = key.strip()
        if not equals or not key.isidentifier():
            raise UsageError(f"a model argument is KEY=VALUE, got {pair!r}; write for example width=32")
        if key in args:
            raise UsageError(f"the model argument {key!r} is given twice")
        args[key] = _value(text.strip())
    return args


def build(spec: ModelSpec | str, *, seed: int | None = None, **args: Value) -> nn.Module:
    """The network of `spec`, freshly initialised; `args` add to the spec's own and go before them.

    seed: initialises under this seed and leaves the global random state as it was; None draws from the global state.
    Raises UsageError for an unknown name (with the closest known ones) or an argument the network does not take
    (with those it does), RunError where the user's own factory fails.
    """
    spec = ModelSpec(name=spec) if isinstance(spec, str) else spec
    if spec.graph is not None:
        return onnx_file.build(onnx_file.parse(spec.graph))
    factory = _factory(spec.name)
    merged = {**spec.args, **args}
    with torch.random.fork_rng(devices=[]) if seed is not None else contextlib.nullcontext():
        if seed is not None:
            torch.random.default_generator.manual_seed(seed)
        return factory(merged)


def names() -> list[str]:
    """Our own networks, in the order of the table."""
    return list(TABLE)


def torchvision_names() -> list[str]:
    """Every `torchvision:NAME` (this imports torchvision)."""
    return [torchvision_models.PREFIX + name for name in torchvision_models.classifier_names()]


def accepted_by(name: str) -> tuple[str, ...]:
    """The argument names that network `name` documents; UsageError where there is no such network."""
    return tuple(parameters_of(name))


def parameters_of(name: str) -> Mapping[str, inspect.Parameter]:
    """The arguments that network `name` documents, with their types and defaults; UsageError where there is no such network."""
    if name in TABLE:
        return inspect.signature(TABLE[name].factory).parameters
    if name.startswith(torchvision_models.PREFIX):
        return torchvision_models.accepted_arguments(name)
    if is_user_spec(name):
        return accepted_arguments(load_factory(name))
    raise _unknown(name)


def _factory(name: str) -> Callable[[dict[str, Value]], nn.Module]:
    if name in TABLE:
        return lambda args: TABLE[name].factory(**_checked(name, args))
    if name.startswith(torchvision_models.PREFIX):
        return lambda args: torchvision_models.build(name, args)
    if is_user_spec(name):
        return lambda args: _build_users(name, args)
    raise _unknown(name)


def _build_users(name: str, args: dict[str, Value]) -> nn.Module:
    model = call_factory(name, load_factory(name), **args)
    if not isinstance(model, nn.Module):
        raise UsageError(f"{name} returned {type(model).__name__}, not a torch.nn.Module")
    return without_wrappers(model)


def _unknown(name: str) -> UsageError:
    if meant := meant_as_model(name):
        return UsageError(f"{name!r} is no network: {meant}")
    plain = name.lower().replace("-", "").replace("_", "")
    with contextlib.suppress(FinepruneError):  # of a torchvision that cannot be imported
        for known in torchvision_names():
            if known.removeprefix(torchvision_models.PREFIX).replace("_", "") == plain:
                return UsageError(f"unknown model {name!r}: did you mean {known}?")
    close = difflib.get_close_matches(name.lower(), TABLE, n=3) or [key for key in TABLE if key.startswith(name[:3])][:3]
    hint = f"did you mean {', '.join(close)}?" if close else f"known are {', '.join(TABLE)}"
    return UsageError(f"unknown model {name!r}: {hint} (also torchvision:NAME, module.path:factory, file.py:factory)")


def _value(text: str) -> Value:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for convert in (int, float):
        with contextlib.suppress(ValueError):
            number = convert(text)
            return number if math.isfinite(number) else text  # JSON has no infinity
    return text


def _checked(name: str, args: dict[str, Value]) -> dict[str, Value]:
    """`args` if the factory of our own network `name` takes them with these types."""
    parameters = inspect.signature(TABLE[name].factory).parameters
    for key, value in args.items():
        if key not in parameters:
            raise UsageError(f"{name} takes no argument {key!r}; it takes {', '.join(parameters)}")
        wanted = parameters[key].annotation
        if get_origin(wanted) is Literal:
            if value not in get_args(wanted):
                raise UsageError(f"{name}: {key} is {' or '.join(map(str, get_args(wanted)))}, got {value!r}")
        elif wanted is int and (type(value) is not int or value < 1):
            raise UsageError(f"{name}: {key} is a whole number of at least 1, got {value!r}")
        elif wanted is float and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise UsageError(f"{name}: {key} is a number, got {value!r}")
    return args


def _resnet(depth: int) -> Entry:
    def factory(width: int = 16, shortcut: Literal["A", "B"] = "B", in_channels: int = 3, num_classes: int = 10) -> nn.Module:
        return CifarResNet(BasicBlock, ((depth - 2) // 6,) * 3, width, shortcut, in_channels, num_classes)

    return Entry(factory, f"CIFAR ResNet-{depth}: three stages of width, 2 width and 4 width planes; shortcut A or B")


def _imagenet_depth(depth: int, stages: int) -> Entry:
    block = Bottleneck if depth == 50 else BasicBlock
    blocks = (2, 2, 2, 2) if depth == 18 else (3, 4, 6, 3)
    first = 64 if stages == 4 else 16

    def factory(width: int = first, shortcut: Literal["A", "B"] = "B", in_channels: int = 3, num_classes: int = 10) -> nn.Module:
        return CifarResNet(block, blocks[:stages], width, shortcut, in_channels, num_classes)

    planes = "-".join(str(first << stage) for stage in range(stages))
    return Entry(factory, f"ResNet-{depth} blocks {blocks[:stages]} behind a CIFAR stem: {planes} planes")


def _vgg(depth: int) -> Entry:
    def factory(width: int = 64, in_channels: int = 3, num_classes: int = 10) -> nn.Module:
        return CifarVGG(depth, width, in_channels, num_classes)

    return Entry(factory, f"CIFAR VGG-{depth} with BatchNorm and one linear layer")


def _wrn(depth: int) -> Entry:
    def factory(k: int = 4, dropout: float = 0.0, in_channels: int = 3, num_classes: int = 10) -> nn.Module:
        if not 0 <= dropout < 1:
            raise UsageError(f"wrn{depth}: dropout is in [0,1), got {dropout}")
        return WideResNet(depth, k, dropout, in_channels, num_classes)

    return Entry(factory, f"wide ResNet WRN-{depth}-k: 16k, 32k and 64k planes")


TABLE: Mapping[str, Entry] = {
    "lenet": Entry(LeNet, "LeNet-5 with ReLU and max-pooling"),
    **{f"vgg{depth}": _vgg(depth) for depth in (13, 16, 19)},
    **{f"resnet{depth}": _resnet(depth) for depth in (8, 14, 20, 32, 44, 56, 110)},
    **{f"cifar-resnet{depth}": _imagenet_depth(depth, 4) for depth in (18, 34, 50)},
    **{f"resnet{depth}-3stage": _imagenet_depth(depth, 3) for depth in (18, 34, 50)},
    **{f"wrn{depth}": _wrn(depth) for depth in (10, 16, 22)},
}
"""Name -> factory and description."""
