"""Pools."""

from typing import Any

import torch
from torch import nn

from fineprune.common.errors import UsageError

from ..builder import Builder, Node, Value
from .table import onnx
from .windows import Window, padded, window

_MAXIMA = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}
_MEANS = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}
_GLOBAL: dict[str, dict[int, Any]] = {
    "GlobalAveragePool": {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d},
    "GlobalMaxPool": {1: nn.AdaptiveMaxPool1d, 2: nn.AdaptiveMaxPool2d, 3: nn.AdaptiveMaxPool3d},
}


@onnx("MaxPool")
def max_pool(b: Builder, node: Node) -> Value:
    """The largest value of a window."""
    kind, win = _pool(_MAXIMA, node)
    x, padding = padded(b, win, node[0], -torch.inf)
    settings = {"ceil_mode": bool(node.attributes.get("ceil_mode", 0)), "dilation": win.dilation}
    return b.layer(node, lambda: kind(win.kernel, win.stride, padding, **settings), x)


@onnx("AveragePool")
def average_pool(b: Builder, node: Node) -> Value:
    """The mean of a window, with pads counted or not."""
    kind, win = _pool(_MEANS, node)
    counted = bool(node.attributes.get("count_include_pad", 0))
    if win.begin != win.end and not counted:
        raise UsageError("its pads differ at both ends and are not counted, which torch has not")
    if set(win.dilation) != {1}:
        raise UsageError("its windows are dilated, which torch has not")
    x, padding = padded(b, win, node[0])
    settings = {"ceil_mode": bool(node.attributes.get("ceil_mode", 0)), "count_include_pad": counted}
    return b.layer(node, lambda: kind(win.kernel, win.stride, padding, **settings), x)


@onnx(*_GLOBAL)
def global_pool(b: Builder, node: Node) -> Value:
    """Over all positions."""
    kind = _GLOBAL[node.kind][node[0].tensor.dim() - 2]
    return b.layer(node, lambda: kind(1), node[0])


def _pool(kinds: dict[int, Any], node: Node) -> tuple[Any, Window]:
    kernel = tuple(node.attributes["kernel_shape"])
    return kinds[len(kernel)], window(node, node[0], kernel)
