"""A network while it is put together: calls of torch, each made at once on one example without values, so that shapes are known.

What depends on constants and shapes alone is computed here and leaves no step. The size of the batch is the example's then; where a
Reshape or an Expand begins with it, the batch is meant. That this reading is right, the comparison with ONNX Runtime shows.

A graph for one sample, in which the batch goes other ways (heads of attention, transposed batches), is read literally, and its functions
are mapped over the samples. A value [n, ...] of the graph is [N n, ...] then, the rows of N samples one after another: layers take it as
it is, and so do functions that compute each row by itself.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fineprune.common.errors import UsageError

from .network import OnnxNetwork, Step

LARGEST = 2**28
"""Elements of a value: a file's word is no reason to take more memory."""


@dataclass(frozen=True, kw_only=True)
class Value:
    """What flows along an edge of the graph: a constant with its name, or a value of the forward pass with its number and, on the device
    meta, its shape."""

    tensor: Tensor
    name: str = ""
    number: int | None = None

    @property
    def constant(self) -> bool:
        """Whether it is the same for all images."""
        return self.number is None


Values = tuple[Value, ...]


@dataclass(frozen=True, kw_only=True)
class Node:
    """A node with its attributes as Python values, and what it reads (None: an input that is left out)."""

    kind: str
    name: str
    opset: int
    attributes: dict[str, Any]
    inputs: tuple[Value | None, ...]
    outputs: int

    def __getitem__(self, position: int) -> Value:
        """The input at `position`; UsageError where there is none."""
        value = self.given(position)
        if value is None:
            raise UsageError(f"its input {position} is missing")
        return value

    def given(self, position: int) -> Value | None:
        """The input at `position`, or None."""
        return self.inputs[position] if position < len(self.inputs) else None

    def constant(self, position: int) -> Tensor:
        """The constant at `position`; UsageError where it is computed from the images."""
        value = self[position]
        if not value.constant:
            raise UsageError(f"its input {position} depends on the images, and only a constant can be read there")
        return value.tensor

    def setting(self, name: str, position: int) -> Any:
        """A setting as plain numbers: an attribute `name` (of older opsets) or a constant input; None where it is left out."""
        if name in self.attributes:
            return self.attributes[name]
        return None if self.given(position) is None else self.constant(position).tolist()

    def choice(self, name: str, *known: Any) -> Any:
        """An attribute that may be one of `known`, the first by default; UsageError for others."""
        value = self.attributes.get(name, known[0])
        if value not in known:
            raise UsageError(f"its {name} is {value!r}, and only {', '.join(map(repr, known))} can be read")
        return value


@dataclass
class Builder:
    """The network while it is put together."""

    network: OnnxNetwork = field(default_factory=OnnxNetwork)
    steps: list[Step] = field(default_factory=list)
    constants: dict[int, str] = field(default_factory=dict)
    """Buffers by the numbers of their values."""
    held: dict[int, int] = field(default_factory=dict)
    """Their numbers by the identities of their tensors, which the buffers keep alive."""
    layers: dict[tuple[Any, ...], str] = field(default_factory=dict)
    count: int = 0
    single: bool = False
    """Whether the graph is for one sample, its functions mapped over samples."""

    def number(self) -> int:
        """A new value's."""
        self.count += 1
        return self.count - 1

    def call(self, function: Callable[..., Any], *inputs: Value, by_rows: bool = False) -> Value:
        """A function of torch on values of the graph; by_rows: that it computes each row of the
        result from that row of the inputs."""
        return self.calls(function, *inputs, by_rows=by_rows)[0]

    def calls(self, function: Callable[..., Any] | str, *inputs: Value, by_rows: bool = False) -> Values:
        """A function with several results, or a layer by its name."""
        results = shapes(self.network.get_submodule(function) if isinstance(function, str) else function, inputs)
        if not isinstance(function, str) and all(value.constant for value in inputs):
            with torch.no_grad():
                return tuple(Value(tensor=result) for result in _several(function(*(value.tensor for value in inputs))))
        numbers = tuple(self.number() for _ in results)
        if self.single and not isinstance(function, str):
            function = function if by_rows and alike(inputs) else mapped(function, inputs)
        self.steps.append(Step(call=function, inputs=tuple(map(self._numbered, inputs)), outputs=numbers))
        return tuple(Value(tensor=result, number=number) for result, number in zip(results, numbers, strict=True))

    def layer(self, node: Node, make: Callable[[], nn.Module], *inputs: Value) -> Value:
        """A module of the network; one that the graph calls again with the same parameters and settings is the same one."""
        module = make().eval()
        key = (node.kind, tuple(value and id(value.tensor) for value in node.inputs[1:]), repr(sorted(node.attributes.items())))
        name = self.layers.get(key)
        if name is None:
            name = self.network.place(layer_name(node, self.count), module)
            if next(module.parameters(), None) is not None:
                self.layers[key] = name
        return self.calls(name, *inputs)[0]

    def finished(self, output: Value) -> OnnxNetwork:
        """The network whose output is `output`, in eval mode."""
        if output.number is None:
            raise UsageError("its output does not depend on the images")
        last: dict[int, int] = {}
        for place, step in enumerate(self.steps):
            last.update(dict.fromkeys((*step.inputs, *step.outputs), place))
        last.pop(output.number, None)
        self.network._steps = tuple(
            Step(
                call=step.call,
                inputs=step.inputs,
                outputs=step.outputs,
                last=tuple(sorted(n for n in {*step.inputs} - self.constants.keys() if last.get(n) == place)),
            )
            for place, step in enumerate(self.steps)
        )
        self.network._constants = self.constants
        self.network._output = output.number
        return self.network.eval()

    def _numbered(self, value: Value) -> int:
        """The number by which a step reads `value`; a constant becomes a buffer."""
        if value.number is not None:
            return value.number
        if id(value.tensor) not in self.held:
            number = self.held[id(value.tensor)] = self.number()
            self.constants[number] = self.network.place(clean(value.name or f"constant_{number}"), value.tensor)
        return self.held[id(value.tensor)]


def by_sample(*values: Tensor, call: Callable[..., Any], rows: Sequence[int | None]) -> tuple[Tensor, ...]:
    """`call` on the values of each sample; of one it has rows[i], None: a constant, which all samples share."""
    parts = [value if count is None else value.unflatten(0, (-1, count)) for value, count in zip(values, rows, strict=True)]
    first = next(part for part, count in zip(parts, rows, strict=True) if count is not None)
    each = [count is not None or part.dim() == first.dim() - 1 for part, count in zip(parts, rows, strict=True)]
    for place, part in enumerate(parts):
        if each[place] and rows[place] is None:  # vmap itself would take the number of samples for a constant of the program
            parts[place] = part.expand(first.shape[0], *part.shape)
    results = torch.vmap(call, in_dims=tuple(0 if own else None for own in each))(*parts)
    return tuple(result.flatten(0, 1) for result in _several(results))


def mapped(call: Callable[..., Any], inputs: Sequence[Value]) -> Callable[..., Any]:
    """`call` on values of the graph, for the rows of several samples. UsageError where a value has no first axis."""
    if any(not value.constant and not value.tensor.dim() for value in inputs):
        raise UsageError("it reads a single number of a sample, which cannot be read for several samples")
    return partial(by_sample, call=call, rows=tuple(None if value.constant else len(value.tensor) for value in inputs))


def alike(inputs: Sequence[Value]) -> bool:
    """Whether values that are broadcast to each other have the same rows, so that those of several samples have, too."""
    rows = {value.tensor.shape[:1] for value in inputs if not value.constant}
    dims = {value.tensor.dim() for value in inputs if not value.constant}
    shared = all(value.tensor.dim() < max(dims) or value.tensor.shape[:1] == (1,) for value in inputs if value.constant)
    return len(rows) == len(dims) == 1 and shared


def shapes(call: Callable[..., Any], inputs: Sequence[Value]) -> tuple[Tensor, ...]:
    """The results of a call, on the device meta: before anything is computed. UsageError where they are too large for any network."""
    metas = [value.tensor.to("meta") for value in inputs]
    with torch.no_grad():
        if isinstance(call, nn.Module):
            state = {name: tensor.to("meta") for name, tensor in call.state_dict().items()}
            results = _several(functional_call(call, state, tuple(metas)))
        else:
            results = _several(call(*metas))
    for result in results:
        bounded(result.shape)
    return results


def bounded(sizes: Sequence[int]) -> list[int]:
    """`sizes`, of which no more than `LARGEST` elements come; UsageError for others."""
    if any(size < 0 for size in sizes) or prod(sizes) > LARGEST:
        raise UsageError(f"it makes a value of {'x'.join(map(str, sizes))}, which no image needs")
    return [int(size) for size in sizes]


def layer_name(node: Node, number: int) -> str:
    """As PyTorch called the layer, where the file says so: by its weight (layer1.0.conv1.weight), or by the path of its node
    (/layer1/layer1.0/conv1/Conv)."""
    weight = node.inputs[1].name if len(node.inputs) > 1 and node.inputs[1] else ""
    if weight.endswith(".weight"):
        return clean(weight.removesuffix(".weight"))
    parts: list[str] = []
    for part in node.name.strip("/").split("/")[:-1]:
        if parts and part.startswith(f"{parts[-1]}."):
            parts.pop()
        parts.append(part)
    return clean(".".join(parts)) if parts else f"{node.kind.lower()}_{number}"


def clean(name: str) -> str:
    """A dotted name that torch takes: empty parts and other characters go."""
    parts = (re.sub(r"\W", "_", part) for part in name.split("."))
    return ".".join(part for part in parts if part) or "unnamed"


def _several(results: Any) -> tuple[Tensor, ...]:
    return tuple(results) if isinstance(results, tuple | list) else (results,)
