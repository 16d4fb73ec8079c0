"""Does a network answer the same for the same sample? One that does not agrees with no file, whatever the file computes.

Two causes are told apart: random numbers or state (dropout that is always on, noise, counters), which change the outputs from call to
call, and statistics of the batch (BatchNorm without running statistics), which make them depend on the other samples.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

TOLERANCE = 1e-4
"""Largest difference, relative to the largest value, that may be rounding: batches of other sizes take other kernels."""


class _Call(NamedTuple):
    """A module that finished: its name, and its inputs and outputs for the first samples."""

    name: str
    inputs: list[Tensor]
    outputs: list[Tensor]


def random_cause(model: nn.Module, x: Tensor) -> str:
    """Why outputs for x[:1] differ from call to call, as a sentence with the module to blame; empty where they do not."""
    if not differ(answer(model, x[:1]), answer(model, x[:1])):
        return ""
    where = _first_difference(model, x[:1], x[:1])
    return f"{where} gives other outputs for the same input from call to call (random numbers or kept state, in eval mode too)"


def batch_cause(model: nn.Module, x: Tensor) -> str:
    """Why outputs for x[0] depend on the other samples of its batch, as a sentence; empty where they do not, or x has no others."""
    if len(x) < 2 or not differ(answer(model, x[:1]), answer(model, x)):
        return ""
    return f"{_first_difference(model, x[:1], x)} gives other outputs for a sample alone than in a batch (statistics of the batch)"


def answer(model: nn.Module, x: Tensor) -> Any:
    """The outputs of `model` for a copy of `x`, which it may change in place."""
    with torch.no_grad():
        return model(x.clone())


def differ(alone: Any, other: Any) -> bool:
    """Whether outputs differ by more than rounding, in as many rows as the first has."""
    first, second = _tensors(alone), _tensors(other)
    return len(first) != len(second) or any(_off(a, b) for a, b in zip(first, second, strict=True))


def _first_difference(model: nn.Module, a: Tensor, b: Tensor) -> str:
    """The first module to finish whose outputs differ though its inputs did not, or the network itself."""
    for first, second in zip(_calls(model, a), _calls(model, b), strict=False):
        if first.name != second.name:
            break
        if differ(first.outputs, second.outputs) and not differ(first.inputs, second.inputs):
            return _named(model, first.name)
    return _named(model, "")


def _calls(model: nn.Module, x: Tensor) -> list[_Call]:
    calls: list[_Call] = []

    def keep(name: str, inputs: Any, outputs: Any) -> None:
        calls.append(_Call(name, _copies(inputs), _copies(outputs)))

    hooks = [
        module.register_forward_hook(lambda module, inputs, outputs, name=name: keep(name, inputs, outputs))
        for name, module in model.named_modules()
    ]
    try:
        answer(model, x)
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def _named(model: nn.Module, name: str) -> str:
    module = model.get_submodule(name)
    kind = type(module).__name__
    details = ", track_running_stats=False" if getattr(module, "track_running_stats", True) is False else ""
    return f"module {name} ({kind}{details})" if name else f"the forward of {kind}"


def _copies(values: Any) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in _tensors(values)]


def _tensors(values: Any) -> list[Tensor]:
    from torch.utils._pytree import tree_leaves

    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


def _off(a: Tensor, b: Tensor) -> bool:
    b = b[: len(a)] if a.dim() and b.dim() else b
    if a.shape != b.shape:
        return True
    if not a.numel() or torch.equal(a, b):
        return False
    a, b = (torch.nan_to_num(tensor if tensor.is_complex() else tensor.double()) for tensor in (a, b))
    return float((a - b).abs().max()) > TOLERANCE * float(torch.maximum(a.abs(), b.abs()).max())
