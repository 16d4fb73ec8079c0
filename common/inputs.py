"""What a network computes on, and how it is called: the one place where the rest of the program calls one on a batch.

    answer(model, inputs) = model(inputs)                         inputs: one tensor [N,...]
                          = inputs.forward(model, inputs.value)   any structure of tensors, called as its user says

A batch of the usual kind is a tensor and nothing else; any other is a `Structured`, which answers to what is asked of a tensor's batch
(len, to, clone). The call travels with the inputs, so that nobody between the user's data and the network has to know of it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from .errors import UsageError

Forward = Callable[[nn.Module, Any], Any]
"""A user's call of a network: forward(model, inputs) -> outputs of any structure."""


@dataclass(frozen=True)
class Structured:
    """A batch of `samples` samples: tensors in dicts, lists, tuples and dataclasses, and how a network is called on them."""

    value: Any
    samples: int
    forward: Forward

    def __len__(self) -> int:
        return self.samples

    def map(self, change: Callable[[Tensor], Tensor]) -> "Structured":
        """The same with every tensor changed."""
        return replace(self, value=mapped(self.value, change))

    def to(self, device: torch.device | str, *, copy: bool = False, non_blocking: bool = False) -> "Structured":
        """The same on a device; types stay."""
        return self.map(lambda tensor: tensor.to(device, copy=copy, non_blocking=non_blocking))

    def clone(self) -> "Structured":
        """Tensors of its own, which a network may write to."""
        return self.map(Tensor.clone)

    @property
    def device(self) -> torch.device:
        """Of the first tensor; the CPU where there is none."""
        return next((tensor.device for tensor in tensors(self.value)), torch.device("cpu"))


Inputs = Tensor | Structured
Shape = Sequence[int] | Structured
"""What the inputs of a network are like: (C,H,W) of a sample, or one sample itself where that is no such tensor."""


def answer(model: nn.Module, inputs: Inputs) -> Any:
    """What `model` makes of a batch; whatever its own code raises comes out."""
    return inputs.forward(model, inputs.value) if isinstance(inputs, Structured) else model(inputs)


def zeros(shape: Shape, model: nn.Module) -> Inputs:
    """A sample to look at a network with, where the network is: zeros [1,C,H,W] of the type of its weights, or the sample itself."""
    first = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    return shape.to(first.device, copy=True) if isinstance(shape, Structured) else torch.zeros(1, *shape).to(first)


def noise(shape: Shape, model: nn.Module) -> Inputs:
    """`zeros` with normally distributed numbers [1,C,H,W] in their place; a sample stays what it is."""
    if isinstance(shape, Structured):
        return zeros(shape, model)
    return torch.randn(1, *shape, generator=torch.Generator().manual_seed(0)).to(next(model.parameters(), torch.empty(0)))


def tracked(inputs: Inputs) -> Inputs:
    """A copy from which gradients are followed, and which a network may write to."""

    def track(tensor: Tensor) -> Tensor:
        return tensor.detach().requires_grad_(tensor.is_floating_point()).clone()

    return inputs.map(track) if isinstance(inputs, Structured) else track(inputs)


def laid_out(inputs: Inputs, order: torch.memory_format) -> Inputs:
    """Tensors of four dimensions in a memory order."""

    def lay_out(tensor: Tensor) -> Tensor:
        return tensor.contiguous(memory_format=order) if tensor.dim() == 4 else tensor

    return inputs.map(lay_out) if isinstance(inputs, Structured) else lay_out(inputs)


def one(inputs: Inputs) -> Tensor:
    """The batch of a network that takes one tensor; UsageError for another."""
    if isinstance(inputs, Structured):
        raise UsageError("this takes networks that are called on one tensor alone, and the samples have a forward of their own")
    return inputs


def numbers(inputs: Inputs) -> int:
    """Of a sample, on average."""
    parts = tensors(inputs.value) if isinstance(inputs, Structured) else [inputs]
    return sum(tensor.numel() for tensor in parts) // max(len(inputs), 1)


def numbers_of(shape: Shape) -> int:
    """Of a sample of that shape."""
    return numbers(shape) if isinstance(shape, Structured) else prod(shape)


def told(shape: Shape) -> Any:
    """A shape for files: the sizes [C,H,W], or what the structure holds in one line of text."""
    return structure(shape.value) if isinstance(shape, Structured) else list(shape)


def written(inputs: Inputs) -> str:
    """What a batch holds, for messages: `4 images of 3x32x32`."""
    if isinstance(inputs, Structured):
        return f"{len(inputs)} samples, {structure(inputs.value)}"
    return f"{inputs.shape[0]} images of {'x'.join(map(str, inputs.shape[1:]))}"


def named(values: Any) -> list[tuple[str, Tensor]]:
    """All tensors of a structure, in its order, each with the keys and places that lead to it: "maps.out"; "" where it is the structure."""
    found: list[tuple[str, Tensor]] = []

    def note(name: str, tensor: Tensor) -> Tensor:
        found.append((name, tensor))
        return tensor

    _walked(values, note, "")
    return found


def tensors(values: Any) -> list[Tensor]:
    """All tensors of a structure, in its order."""
    return [tensor for _, tensor in named(values)]


def floats(values: Any) -> list[Tensor]:
    """The floating-point tensors of a structure, in its order: what a network's outputs are compared by."""
    return [tensor for tensor in tensors(values) if tensor.is_floating_point()]


def mapped(values: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A structure of tensors with each of them changed: dicts, lists, tuples (named ones, too) and dataclasses; all else stays."""
    return _walked(values, lambda _, tensor: change(tensor), "")


def _walked(values: Any, change: Callable[[str, Tensor], Tensor], name: str) -> Any:
    def inner(key: Any, value: Any) -> Any:
        return _walked(value, change, f"{name}.{key}" if name else str(key))

    if isinstance(values, Tensor):
        return change(name, values)
    if isinstance(values, Mapping):
        return {key: inner(key, value) for key, value in values.items()}
    if isinstance(values, tuple | list):
        parts = [inner(key, value) for key, value in zip(getattr(values, "_fields", range(len(values))), values, strict=True)]
        return type(values)(*parts) if hasattr(values, "_fields") else type(values)(parts)
    if is_dataclass(values) and not isinstance(values, type):
        return replace(values, **{field.name: inner(field.name, getattr(values, field.name)) for field in fields(values) if field.init})
    return values


def structure(values: Any) -> str:
    """What a structure holds, in one line: "{image: float32 2x3x8x8, sizes: int64 2}"."""
    if isinstance(values, Tensor):
        return f"{str(values.dtype).removeprefix('torch.')} {'x'.join(map(str, values.shape)) or 'scalar'}"
    if isinstance(values, Mapping):
        return "{" + ", ".join(f"{key}: {structure(value)}" for key, value in values.items()) + "}"
    if isinstance(values, tuple | list):
        return "(" + ", ".join(map(structure, values)) + ")"
    if is_dataclass(values) and not isinstance(values, type):
        return structure({field.name: getattr(values, field.name) for field in fields(values)})
    return type(values).__name__
