"""Operators with weights: modules whose parameters a training finds and whose convolutions masks find."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fineprune.common.errors import UsageError

from ..builder import Builder, Node, Value
from .table import onnx
from .windows import padded, window

_CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


def with_parameters(module: Callable[..., nn.Module], *args: Any, tensors: dict[str, Tensor | None], **settings: Any) -> nn.Module:
    """A module made without random numbers, its parameters and buffers copies of `tensors`."""
    made = module(*args, **settings, device="meta")
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if tensor.shape != getattr(made, name).shape:
            raise UsageError(f"its {name} has the shape {list(tensor.shape)}, not {list(getattr(made, name).shape)}")
        copy = tensor.detach().clone(memory_format=torch.contiguous_format)
        setattr(made, name, nn.Parameter(copy) if name in made._parameters else copy)
    return made


@onnx("Conv")
def conv(b: Builder, node: Node) -> Value:
    """y = w * x + bias; pads that differ at both ends are a step of their own."""
    x, weight, bias = node[0], node.constant(1), node.constant(2) if node.given(2) else None
    kind, groups = _dimensions(_CONVOLUTIONS, weight), node.attributes.get("group", 1)
    win = window(node, x, tuple(weight.shape[2:]))
    x, padding = padded(b, win, x)

    def make() -> nn.Module:
        sizes = (weight.shape[1] * groups, weight.shape[0], win.kernel)
        geometry = {"stride": win.stride, "padding": padding, "dilation": win.dilation, "groups": groups}
        return with_parameters(kind, *sizes, **geometry, bias=bias is not None, tensors={"weight": weight, "bias": bias})

    return b.layer(node, make, x)


@onnx("ConvTranspose")
def conv_transpose(b: Builder, node: Node) -> Value:
    """Its pads are alike at both ends."""
    x, weight, bias = node[0], node.constant(1), node.constant(2) if node.given(2) else None
    kind, groups, spatial = _dimensions(_TRANSPOSED, weight), node.attributes.get("group", 1), weight.dim() - 2
    if "output_shape" in node.attributes or node.attributes.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise UsageError("its pads follow from a shape of its output, which cannot be read; export it with pads")
    begin, end = _halves(node.attributes.get("pads", [0] * 2 * spatial))
    if begin != end:
        raise UsageError(f"its pads {begin} and {end} differ at both ends, which torch has not")

    def make() -> nn.Module:
        sizes = (weight.shape[0], weight.shape[1] * groups, tuple(weight.shape[2:]))
        geometry = {
            "stride": tuple(node.attributes.get("strides", [1] * spatial)),
            "padding": tuple(begin),
            "output_padding": tuple(node.attributes.get("output_padding", [0] * spatial)),
            "groups": groups,
            "dilation": tuple(node.attributes.get("dilations", [1] * spatial)),
        }
        return with_parameters(kind, *sizes, **geometry, bias=bias is not None, tensors={"weight": weight, "bias": bias})

    return b.layer(node, make, x)


@onnx("Gemm")
def gemm(b: Builder, node: Node) -> Value:
    """alpha * A B + beta * C: a linear layer where B and C are constant."""
    alpha, beta = (float(node.attributes.get(name, 1.0)) for name in ("alpha", "beta"))
    x, weight, bias = node[0], node[1], node.given(2)
    if node.attributes.get("transA"):
        x = b.call(torch.t, x)
    if not weight.constant or not (bias is None or bias.constant):
        product = b.call(torch.matmul, x, b.call(torch.t, weight) if node.attributes.get("transB") else weight)
        product = b.call(partial(torch.mul, other=alpha), product)
        return product if bias is None else b.call(partial(torch.add, alpha=beta), product, bias)

    def make() -> nn.Module:
        w = alpha * (weight.tensor if node.attributes.get("transB") else weight.tensor.T)
        added = None if bias is None else (beta * bias.tensor).reshape(-1).expand(len(w))
        return _linear(w, added)

    return b.layer(node, make, x)


@onnx("MatMul")
def matmul(b: Builder, node: Node) -> Value:
    """A linear layer without bias where the right factor is a constant matrix."""
    x, weight = node[0], node[1]
    if x.constant or not weight.constant or weight.tensor.dim() != 2:
        return b.call(torch.matmul, x, weight, by_rows=x.tensor.dim() > 2)
    return b.layer(node, lambda: _linear(weight.tensor.T, None), x)


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Module:
    return with_parameters(nn.Linear, weight.shape[1], weight.shape[0], bias=bias is not None, tensors={"weight": weight, "bias": bias})


@onnx("BatchNormalization")
def batchnorm(b: Builder, node: Node) -> Value:
    """With running statistics, which a fine-tuning updates."""
    if node.attributes.get("training_mode") or node.outputs > 1 or node.attributes.get("spatial", 1) != 1:
        raise UsageError("it is in training mode; export the network in eval mode")
    x, names = node[0], ("weight", "bias", "running_mean", "running_var")
    tensors: dict[str, Tensor | None] = {name: node.constant(position) for position, name in enumerate(names, 1)}
    settings = {"eps": node.attributes.get("epsilon", 1e-5), "momentum": 1 - node.attributes.get("momentum", 0.9)}
    counted = {**tensors, "num_batches_tracked": torch.tensor(0)}
    channels = x.tensor.shape[1]
    return b.layer(node, lambda: with_parameters(_NORMS[x.tensor.dim()], channels, **settings, tensors=counted), x)


@onnx("LayerNormalization")
def layernorm(b: Builder, node: Node) -> Value:
    """Over the axes from `axis` on."""
    x, weight = node[0], node.constant(1)
    axis, bias = node.attributes.get("axis", -1), node.constant(2) if node.given(2) else None
    shape = tuple(x.tensor.shape[axis % x.tensor.dim() :])
    settings = {"eps": node.attributes.get("epsilon", 1e-5), "bias": bias is not None}
    return b.layer(node, lambda: with_parameters(nn.LayerNorm, shape, **settings, tensors={"weight": weight, "bias": bias}), x)


@onnx("InstanceNormalization")
def instancenorm(b: Builder, node: Node) -> Value:
    """Each channel of each sample by its own statistics."""
    x, weight, bias = node[0], node.constant(1), node.constant(2)
    kind = {3: nn.InstanceNorm1d, 4: nn.InstanceNorm2d, 5: nn.InstanceNorm3d}[x.tensor.dim()]
    settings = {"eps": node.attributes.get("epsilon", 1e-5), "affine": True}
    return b.layer(node, lambda: with_parameters(kind, len(weight), **settings, tensors={"weight": weight, "bias": bias}), x)


@onnx("PRelu")
def prelu(b: Builder, node: Node) -> Value:
    """One slope, or one for each channel."""
    x, slope = node[0], node.constant(1)
    if slope.numel() not in (1, x.tensor.shape[1]) or max(slope.shape, default=1) != slope.numel():
        raise UsageError("its slopes are neither one nor one for each channel")
    return b.layer(node, lambda: with_parameters(nn.PReLU, slope.numel(), tensors={"weight": slope.reshape(-1)}), x)


@onnx("LRN")
def lrn(b: Builder, node: Node) -> Value:
    """Across channels."""
    settings = {name: node.attributes.get(name, value) for name, value in (("alpha", 1e-4), ("beta", 0.75))}
    return b.call(
        partial(F.local_response_norm, size=node.attributes["size"], k=node.attributes.get("bias", 1.0), **settings), node[0], by_rows=True
    )


def _dimensions(kinds: dict[int, Any], weight: Tensor) -> Any:
    if weight.dim() - 2 not in kinds:
        raise UsageError(f"its weight has {weight.dim()} dimensions")
    return kinds[weight.dim() - 2]


def _halves(pads: Sequence[int]) -> tuple[list[int], list[int]]:
    return list(pads[: len(pads) // 2]), list(pads[len(pads) // 2 :])
