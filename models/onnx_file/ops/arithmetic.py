"""Operators that compute element by element, activations, and sums over axes."""

from collections.abc import Callable
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor, nn

from fineprune.common.errors import UsageError

from ..builder import Builder, Node, Value
from .table import onnx


def divided(a: Tensor, b: Tensor) -> Tensor:
    """a / b; whole numbers towards zero."""
    return torch.div(a, b, rounding_mode=None if a.is_floating_point() else "trunc")


def hard_sigmoid(x: Tensor, *, alpha: float, beta: float) -> Tensor:
    """max(0, min(1, alpha x + beta))."""
    return (alpha * x + beta).clamp(0, 1)


def flat_softmax(x: Tensor, *, axis: int, function: Callable[..., Tensor]) -> Tensor:
    """Over all axes from `axis` on together, as before opset 13."""
    return function(x.flatten(axis), dim=-1).reshape(x.shape)


_BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    **{"Add": torch.add, "Sub": torch.sub, "Mul": torch.mul, "Div": divided, "Pow": torch.pow},
    **{"Min": torch.minimum, "Max": torch.maximum, "Sum": torch.add, "Equal": torch.eq, "Less": torch.lt, "Greater": torch.gt},
    **{"And": torch.logical_and, "Or": torch.logical_or},
}
_UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    **{"Erf": torch.erf, "Exp": torch.exp, "Log": torch.log, "Sqrt": torch.sqrt, "Neg": torch.neg, "Abs": torch.abs},
    **{
        "Reciprocal": torch.reciprocal,
        "Floor": torch.floor,
        "Ceil": torch.ceil,
        "Sin": torch.sin,
        "Cos": torch.cos,
        "Not": torch.logical_not,
    },
}
_ACTIVATIONS: dict[str, Callable[[dict[str, Any]], nn.Module]] = {
    "Relu": lambda given: nn.ReLU(),
    "Sigmoid": lambda given: nn.Sigmoid(),
    "Tanh": lambda given: nn.Tanh(),
    "HardSwish": lambda given: nn.Hardswish(),
    "Softplus": lambda given: nn.Softplus(),
    "Softsign": lambda given: nn.Softsign(),
    "Mish": lambda given: nn.Mish(),
    "LeakyRelu": lambda given: nn.LeakyReLU(given.get("alpha", 0.01)),
    "Elu": lambda given: nn.ELU(given.get("alpha", 1.0)),
    "Gelu": lambda given: nn.GELU(approximate=given.get("approximate", "none")),
}
_SOFTMAX: dict[str, Callable[..., Tensor]] = {"Softmax": torch.softmax, "LogSoftmax": torch.log_softmax}
_REDUCTIONS: dict[str, Callable[..., Tensor]] = {
    **{"ReduceMean": torch.mean, "ReduceSum": torch.sum, "ReduceMax": torch.amax, "ReduceMin": torch.amin},
}


@onnx(*_BINARY)
def binary(b: Builder, node: Node) -> Value:
    """Of two values, or of any number."""
    return reduce(partial(b.call, _BINARY[node.kind], by_rows=True), [node[position] for position in range(len(node.inputs))])


@onnx("Mod")
def mod(b: Builder, node: Node) -> Value:
    """The remainder of a division, with the sign of the divisor, or (fmod) that of the number divided."""
    return b.call(torch.fmod if node.attributes.get("fmod") else torch.remainder, node[0], node[1], by_rows=True)


@onnx(*_UNARY)
def unary(b: Builder, node: Node) -> Value:
    """Of one value."""
    return b.call(_UNARY[node.kind], node[0], by_rows=True)


@onnx(*_ACTIVATIONS)
def activation(b: Builder, node: Node) -> Value:
    """A layer without parameters."""
    if node[0].constant:
        return b.call(_ACTIVATIONS[node.kind](node.attributes).eval(), node[0])
    return b.layer(node, lambda: _ACTIVATIONS[node.kind](node.attributes), node[0])


@onnx("Dropout")
def dropout(b: Builder, node: Node) -> Value:
    """Of a training; what it dropped, its second output, nobody reads."""
    ratio = node.setting("ratio", 1)
    return b.layer(node, lambda: nn.Dropout(0.5 if ratio is None else ratio), node[0])


@onnx("HardSigmoid")
def hardsigmoid(b: Builder, node: Node) -> Value:
    """torch's layer has one slope and one offset."""
    alpha, beta = node.attributes.get("alpha", 0.2), node.attributes.get("beta", 0.5)
    if abs(alpha - 1 / 6) < 1e-6 and beta == 0.5:
        return b.layer(node, nn.Hardsigmoid, node[0])
    return b.call(partial(hard_sigmoid, alpha=alpha, beta=beta), node[0], by_rows=True)


@onnx("Clip")
def clip(b: Builder, node: Node) -> Value:
    """Between two bounds, each of which may be left out."""
    low, high = node.setting("min", 1), node.setting("max", 2)
    if (low, high) == (0, 6):
        return b.layer(node, nn.ReLU6, node[0])
    return node[0] if low is None and high is None else b.call(partial(torch.clamp, min=low, max=high), node[0], by_rows=True)


@onnx(*_SOFTMAX)
def softmax(b: Builder, node: Node) -> Value:
    """Along one axis; before opset 13 along all from it on."""
    function, dims = _SOFTMAX[node.kind], node[0].tensor.dim()
    axis = node.attributes.get("axis", -1 if node.opset >= 13 else 1) % dims
    if node.opset >= 13 or axis == dims - 1:
        return b.call(partial(function, dim=axis), node[0], by_rows=axis > 0)
    return b.call(partial(flat_softmax, axis=axis, function=function), node[0], by_rows=axis > 0)


@onnx(*_REDUCTIONS)
def reduction(b: Builder, node: Node) -> Value:
    """Over some axes, all by default."""
    axes = node.setting("axes", 1)
    if not axes:
        if node.attributes.get("noop_with_empty_axes"):
            return node[0]
        axes = list(range(node[0].tensor.dim()))
    over_axes = partial(_REDUCTIONS[node.kind], dim=list(axes), keepdim=bool(node.attributes.get("keepdims", 1)))
    return b.call(over_axes, node[0], by_rows=all(axis % node[0].tensor.dim() for axis in axes))


@onnx("Cast")
def cast(b: Builder, node: Node) -> Value:
    """Into another type of numbers."""
    kinds = {1: torch.float32, 6: torch.int32, 7: torch.int64, 9: torch.bool, 11: torch.float64}
    if node.attributes["to"] not in kinds:
        raise UsageError(f"it casts to the type {node.attributes['to']}; give the float32 file")
    return b.call(partial(torch.Tensor.to, dtype=kinds[node.attributes["to"]]), node[0], by_rows=True)
