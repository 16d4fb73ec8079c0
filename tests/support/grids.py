"""Small networks on eight-bit grids: QDQ files, and what their integers are, in int64."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import helper, numpy_helper


@dataclass(frozen=True)
class Grid:
    scale: float
    zero: int

    def integers(self, x: NDArray) -> NDArray[np.int64]:
        return np.clip(np.rint(np.float32(x) / np.float32(self.scale)) + self.zero, 0, 255).astype(np.int64)


class File:
    """A graph while it is put together; names of tensors are those of nodes' outputs."""

    def __init__(self, shape: tuple[int, ...], dtype: Any = np.float32) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.input = _described("x", dtype, ["batch", *shape])

    def constant(self, name: str, content: Any, dtype: Any = None) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(content, dtype), name))
        return name

    def node(self, kind: str, inputs: list[str], name: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def parameters(self, tensor: str, grid: Grid, signed: bool = False) -> list[str]:
        """Scale and zero point."""
        zero = self.constant(f"{tensor}.zero", grid.zero - 128 * signed, np.int8 if signed else np.uint8)
        return [self.constant(f"{tensor}.scale", grid.scale, np.float32), zero]

    def on_grid(self, tensor: str, grid: Grid, signed: bool = False) -> str:
        """Quantized, and back."""
        parameters = self.parameters(tensor, grid, signed)
        quantized = self.node("QuantizeLinear", [tensor, *parameters], f"{tensor}.q")
        return self.node("DequantizeLinear", [quantized, *parameters], f"{tensor}.dq")

    def layer(
        self, kind: str, x: str, name: str, weights: NDArray[Any], scales: NDArray, bias: NDArray, source: Grid, **attributes: Any
    ) -> str:  # fmt: skip
        """Of weights by output channel, bias int32."""
        w = self.weights(name, weights, scales, np.zeros(len(scales), np.int8))
        stored = self.constant(f"{name}.b", bias, np.int32)
        b = self.node(
            "DequantizeLinear", [stored, self.constant(f"{name}.bs", np.float32(source.scale) * scales, np.float32)], f"{name}.bf", axis=0
        )
        return self.node(kind, [x, w, b], name, **attributes)

    def weights(self, name: str, weights: NDArray[Any], scales: NDArray, zeros: NDArray, axis: int = 0) -> str:
        """weights + zeros as stored integers, dequantized; one scale, or one for each place along an axis."""
        spread = [1] * weights.ndim
        spread[axis] = -1
        stored = self.constant(f"{name}.w", weights.astype(np.int64) + zeros.astype(np.int64).reshape(spread), zeros.dtype)
        parameters = [self.constant(f"{name}.ws", scales, np.float32), self.constant(f"{name}.zeros", zeros)]
        return self.node("DequantizeLinear", [stored, *parameters], f"{name}.wf", axis=axis)

    def model(self, *outputs: str, types: Mapping[str, Any] | None = None) -> bytes:
        """types: of outputs; those that are not named are float32."""
        described = [_described(name, (types or {}).get(name, np.float32), None) for name in outputs]
        graph = helper.make_graph(self.nodes, "grids", [self.input], described, self.constants)
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
        content: bytes = made.SerializeToString()
        return content


def _described(name: str, dtype: Any, shape: Any) -> Any:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)


def conv_sums(
    x: NDArray,
    zero: int,
    weights: NDArray,
    bias: NDArray,
    strides: tuple[int, int],
    pads: tuple[int, ...],
    dilations: tuple[int, int],
    groups: int,
) -> NDArray[np.int64]:  # fmt: skip
    """[N,F,oh,ow]: bias + sum of (x - zero) * w, number by number."""
    F, per_group, kh, kw = weights.shape
    padded = np.pad(x.astype(np.int64) - zero, ((0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3])))
    N, _, H, W = padded.shape
    oh, ow = (
        (size - (taps - 1) * step - 1) // stride + 1 for size, taps, step, stride in zip((H, W), (kh, kw), dilations, strides, strict=True)
    )
    sums = np.broadcast_to(bias.astype(np.int64)[None, :, None, None], (N, F, oh, ow)).copy()
    for f in range(F):
        first = f // (F // groups) * per_group
        for u in range(kh):
            for v in range(kw):
                rows, columns = u * dilations[0], v * dilations[1]
                part = padded[:, first : first + per_group, rows:, columns:][:, :, :: strides[0], :: strides[1]][:, :, :oh, :ow]
                sums[:, f] += np.einsum("nchw,c->nhw", part, weights[f, :, u, v].astype(np.int64))
    return sums


def requantized(sums: NDArray[np.int64], factors: NDArray[np.float32], zero: int) -> NDArray[np.int64]:
    """clip(round(s * factor) + zero, 0, 255)"""
    real = sums.astype(np.float32) * factors.reshape(-1, *[1] * (sums.ndim - 2))
    return np.clip(np.rint(real) + zero, 0, 255).astype(np.int64)
