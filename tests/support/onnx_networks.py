"""ONNX files of small networks, as exporters and hands write them."""

import io
import warnings
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import nn


class Exits(nn.Module):
    """Depthwise, grouped and strided convolutions, BatchNorm that cannot be folded, a gate, a shuffle and two joined branches."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8)
        self.gate = nn.Conv2d(8, 8, 1)
        self.grouped = nn.Conv2d(8, 12, 3, padding=1, groups=2)
        self.side = nn.Conv2d(8, 4, (1, 3), padding=(0, 1))
        self.head = nn.Linear(16, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = self.depthwise(torch.relu(self.norm(nn.functional.max_pool2d(x, 2))) + nn.functional.avg_pool2d(x, 2))
        x = x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        x = torch.cat([nn.functional.hardswish(self.grouped(x)), self.side(x)], 1)
        return self.head(torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1))


def exits(seed: int = 0) -> nn.Module:
    """Random weights and statistics, in eval mode."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.random.default_generator.manual_seed(seed)
        model = Exits().eval()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.copy_(torch.randn(8) / 4)  # type: ignore[union-attr]
                module.running_var.copy_(torch.rand(8) + 0.5)  # type: ignore[union-attr]
    return model


class Tokens(nn.Module):
    """Patches and a token of the classes, attention whose samples stand along the second axis, and one answer."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.patches, self.token = nn.Conv2d(3, 8, 4, 4), nn.Parameter(torch.randn(1, 1, 8))
        self.norm, self.attention, self.head = nn.LayerNorm(8), nn.MultiheadAttention(8, 2), nn.Linear(8, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1).transpose(0, 1)
        y = self.norm(x)
        return self.head((x + self.attention(y, y, y, need_weights=False)[0])[0])


def tokens(seed: int = 0) -> nn.Module:
    """Random weights, in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        return Tokens().eval()


EXPORTERS = ("dynamo", "dynamo, one sample", "older", "older, one sample")


def exported(model: nn.Module, path: Path, shape: Sequence[int], exporter: str = "older", *, oldest: int = 11) -> Path:
    """The file `path` of `model` for inputs `shape` [C,H,W], by one of torch's exporters; oldest: the opset of one for one sample."""
    x = torch.randn(1 if "one" in exporter else 2, *shape, generator=torch.Generator().manual_seed(0))
    names: dict[str, Any] = {"input_names": ["x"], "output_names": ["y"]}
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        if "dynamo" in exporter:
            dynamic = None if "one" in exporter else ({0: torch.export.Dim("n", min=1)},)
            torch.onnx.export(model, (x,), path, dynamo=True, verbose=False, dynamic_shapes=dynamic, external_data=False, **names)
        else:
            settings: dict[str, Any] = {"opset_version": oldest} if "one" in exporter else {"dynamic_axes": {"x": {0: "n"}, "y": {0: "n"}}}
            torch.onnx.export(model, (x,), path, dynamo=False, **settings, **names)
    return path


def graph(
    nodes: Sequence[Any],
    tensors: dict[str, NDArray] | None = None,
    *,
    shape: Sequence[int | str] = ("n", 3, 6, 8),
    opset: int = 18,
    kind: int = TensorProto.FLOAT,
) -> Any:
    """A model that reads x of `shape` and gives y."""
    values = [helper.make_tensor_value_info("x", kind, list(shape)), helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    held = [numpy_helper.from_array(np.asarray(value), name) for name, value in (tensors or {}).items()]
    made = helper.make_graph(list(nodes), "g", values[:1], values[1:], held)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def saved(model: Any, path: Path) -> Path:
    """The model as a file."""
    onnx.save(model, path)
    return path
