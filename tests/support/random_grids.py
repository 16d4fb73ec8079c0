"""Random small networks on eight-bit grids, in QDQ form, and what integers they make: computed in int64 while the network is made."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from support.grids import File, Grid, conv_sums, requantized

Box = tuple[int, int, int]
_WEIGHTS = {"fits": 64, "wide": 127, "saturates": 128}
"""Largest absolute value; ONNX Runtime adds pairs in 16 bits on some CPUs, beyond which only the first kind fits."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Tensor:
    """On a grid: `name` of float32 is what DequantizeLinear makes of `stored`; `values`: the integers of the network's input x."""

    name: str
    stored: str
    grid: Grid
    signed: bool
    values: NDArray[np.int64]

    @property
    def box(self) -> Box:
        _, C, H, W = self.values.shape
        return C, H, W

    @property
    def real(self) -> NDArray[np.float32]:
        return (self.values - self.grid.zero).astype(np.float32) * np.float32(self.grid.scale)


class RandomGrids:
    """A network of about `nodes` operations over `x`, a batch of three; `expected`: each output by name.

    exact: whether ONNX Runtime computes these integers, too: it computes in float32 what stands before a clip that the grid does not end
    with, and sums of int8 tensors round otherwise. real: the output that no grid rounds.
    """

    def __init__(self, seed: int, nodes: int) -> None:
        self._random, self.exact, self.real = np.random.default_rng(seed), True, ""
        self._largest = _WEIGHTS[self._pick("fits", "fits", "wide", "saturates")]
        self._signed, self._count = self._pick(False, False, True), 0
        self.box: Box = (self._pick(1, 3, 4, 8, 13), self._pick(2, 5, 8, 17), self._pick(3, 4, 7, 18, 33))
        real, grid = self._random.standard_normal((3, *self.box), np.float32) * 2, Grid(0.03, self._zero())
        stored = self._pick(False, False, True)
        self.x = self._as_stored(grid.integers(real)) if stored else real
        self._file = File(self.box, self.x.dtype)
        self._tensors: list[Tensor] = []
        self.expected: dict[str, NDArray] = {}
        self._add_tensor("x", grid.integers(real), grid, "x" if stored else None)
        while self._count < nodes:
            self._pick(*self._kinds())()
        self._finish()

    def serialized(self) -> bytes:
        """The file."""
        content: bytes = self._file.model(*self.expected, types={name: array.dtype for name, array in self.expected.items()})
        return content

    def _kinds(self) -> list[Callable[[], None]]:
        """What adds nodes, as often as it is to be picked."""
        return [*[self._conv] * 6, *[self._sum] * 3, *[self._pool] * 2, self._concat, self._slice, self._pad, self._relu, self._mean]

    def _pick(self, *values: Any) -> Any:
        return values[self._random.integers(len(values))]

    def _zero(self) -> int:
        return int(self._pick(0, 0, 128, int(self._random.integers(256)), 255))

    def _as_stored(self, values: NDArray[np.int64]) -> NDArray:
        return (values - 128 * self._signed).astype(np.int8 if self._signed else np.uint8)

    def _tensor(self, fits: Callable[[Tensor], bool] = lambda tensor: True) -> Tensor | None:
        """A recent one rather than an old one, perhaps dequantized once more."""
        good = [tensor for tensor in self._tensors if fits(tensor)]
        if not good:
            return None
        chosen = good[-1 - min(int(self._random.geometric(0.5)) - 1, len(good) - 1)]
        return self._again(chosen) if self._random.random() < 0.2 else chosen

    def _again(self, tensor: Tensor) -> Tensor:
        self._count += 1
        inputs = [tensor.stored, *self._file.parameters(f"d{self._count}", tensor.grid, tensor.signed)]
        name = self._file.node("DequantizeLinear", inputs, f"d{self._count}")
        return Tensor(name=name, stored=tensor.stored, grid=tensor.grid, signed=tensor.signed, values=tensor.values)

    def _node(self, kind: str, inputs: list[str], **attributes: Any) -> str:
        self._count += 1
        return self._file.node(kind, inputs, f"t{self._count}", **attributes)

    def _array(self, content: Any) -> str:
        self._count += 1
        return self._file.constant(f"c{self._count}", content)

    def _add_tensor(self, name: str, values: NDArray[np.int64], grid: Grid, stored: str | None = None) -> Tensor:
        """Quantizes what a node made; stored: it is there as integers."""
        if stored:
            made = self._file.node("DequantizeLinear", [stored, *self._file.parameters(name, grid, self._signed)], f"{name}.dq")
        else:
            made = self._file.on_grid(name, grid, self._signed)
        tensor = Tensor(name=made, stored=stored or f"{name}.q", grid=grid, signed=self._signed, values=values)
        self._tensors.append(tensor)
        return tensor

    def _grid(self, real: NDArray) -> Grid:
        """One that suits numbers, or does so badly."""
        low, high = min(0.0, float(real.min())), max(0.0, float(real.max()))
        scale = np.float32(max(high - low, 1e-3) / 255 * self._pick(1.0, 1.0, 0.5, 1.7))
        zero = int(np.clip(round(-low / float(scale)), 0, 255)) if self._random.random() < 0.7 else self._zero()
        return Grid(float(scale), zero)

    def _clipped(self, name: str, real: NDArray, final: bool = False) -> tuple[str, Grid, tuple[int, int]]:
        """(what stands between a layer and its grid, the grid, bounds in its numbers)"""
        kind = self._pick("none", "none", "Relu", "Relu", "Clip", "Relu6") if not final else "none"
        bounds = {"none": (-np.inf, np.inf), "Relu": (0.0, np.inf), "Clip": (-0.7, 0.9), "Relu6": (0.0, 6.0)}[kind]
        if kind == "Relu":
            name = self._node("Relu", [name])
        elif kind != "none":
            name = self._node("Clip", [name, *(self._array(np.float32(bound)) for bound in bounds)])
        grid = self._grid(np.clip(real, *bounds))
        limits = tuple(int(np.clip(np.rint(np.float32(bound) / np.float32(grid.scale)) + grid.zero, 0, 255)) for bound in bounds)
        self.exact &= limits == (0, 255) and (kind == "none" or grid.zero == 0)
        return name, grid, (limits[0], limits[1])

    def _conv(self) -> None:
        x = self._tensor()
        assert x is not None
        C, H, W = x.box
        kernel, dilations, strides = ((self._pick(*sizes), self._pick(*sizes)) for sizes in ((1, 2, 3, 5), (1, 1, 1, 2), (1, 1, 1, 2, 3)))
        pads = tuple(self._pick(0, 1, 1, 2) for _ in range(4))
        groups = self._pick(*(g for g in (1, 1, 1, 2, C) if C % g == 0))
        filters = groups * (self._pick(1, 1, 2) if groups > 2 else self._pick(1, 3, 5, 8, 12))
        if self._random.random() < 0.3:
            kernel, dilations, pads, groups, filters = (1, 1), (1, 1), (0, 0, 0, 0), 1, self._pick(1, 4, 7, 16)
        taps = [(size + pads[a] + pads[a + 2] - dilations[a] * (kernel[a] - 1) - 1) for a, size in enumerate((H, W))]
        if min(taps) < 0 or C * H * W * filters > 400_000:
            return
        weights, scales, zeros = self._weights((filters, C // groups, *kernel))
        attributes = {"kernel_shape": kernel, "strides": strides, "pads": pads, "dilations": dilations, "group": groups}
        name, bias = self._layer("Conv", x.name, x.grid, (weights, scales, zeros), **attributes)
        sums = conv_sums(x.values, x.grid.zero, weights, bias, strides, pads, dilations, groups)
        self._requantize(name, sums, np.float32(x.grid.scale) * scales)

    def _requantize(self, name: str, sums: NDArray[np.int64], scales: NDArray[np.float32]) -> None:
        real = sums.astype(np.float32) * scales.reshape(-1, 1, 1)
        name, grid, limits = self._clipped(name, real)
        values = requantized(sums, scales / np.float32(grid.scale), grid.zero)
        self._add_tensor(name, np.clip(values, *limits), grid)

    def _weights(self, shape: tuple[int, ...]) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray]:
        """(weights [F, ...], scales [F] or one, zero points as they are stored), whose type is the weights'."""
        one, scale = self._random.random() < 0.3, 64 / self._largest
        zero, low, high, dtype = 0, -self._largest, self._largest, np.int8
        if self._random.random() < 0.25:  # uint8, as far as that goes
            zero = int(self._pick(128, 128, 0, 255, self._random.integers(256)))
            low, high, scale, dtype = -zero, 256 - zero, 0.3, np.uint8
            self.exact &= not self._signed
        else:
            self.exact &= self._largest == _WEIGHTS["fits"]
        weights = self._random.integers(low, high, shape)
        corner = self._pick(None, None, None, None, low, high - 1)
        if corner is not None:
            weights[:] = corner
        weights[self._random.random(shape) < self._pick(0.0, 0.3, 0.8)] = 0
        scales = (self._random.uniform(0.0005, 0.005, 1 if one else shape[0]) * scale).astype(np.float32)
        return weights, scales, np.full(() if one else shape[0], zero, dtype)

    def _layer(
        self, kind: str, x: str, grid: Grid, parts: tuple[NDArray, NDArray, NDArray], real: bool = False, **attributes: Any
    ) -> tuple[str, NDArray[np.int64]]:  # fmt: skip
        """(its output, its bias on the grid of the sums): a bias of int32, of float32, or none; real: nothing rounds the output."""
        self._count += 1
        weights, scales, zeros = parts
        name, F, form = f"t{self._count}", len(weights), self._pick("int32", "int32", "none", "int32" if real else "float32")
        w = self._file.weights(name, weights, scales if scales.size > 1 else scales[0], zeros)
        sums = np.float32(grid.scale) * scales
        bias = np.zeros(F, np.int64) if form == "none" else self._random.integers(-3000, 3000, F)
        inputs = [x, w]
        if form == "int32":
            stored = self._file.constant(f"{name}.b", bias, np.int32)
            inputs.append(self._file.node("DequantizeLinear", [stored, self._file.constant(f"{name}.bs", sums)], f"{name}.bf", axis=0))
        elif form == "float32":
            floats = ((bias + self._random.uniform(-0.4, 0.4, F)) * sums).astype(np.float32)
            inputs.append(self._file.constant(f"{name}.b", floats))
            bias = np.rint(floats / sums).astype(np.int64)
        return self._file.node(kind, inputs, name, **attributes), bias

    def _sum(self) -> None:
        a = self._tensor()
        assert a is not None
        b = self._tensor(lambda tensor: tensor.box == a.box)
        assert b is not None
        pair = (a, b) if self._random.random() < 0.5 else (b, a)
        name, grid, limits = self._clipped(self._node("Add", [pair[0].name, pair[1].name]), a.real + b.real)
        self._add_tensor(name, np.clip(added(*((part.values, part.grid) for part in pair), grid), *limits), grid)
        self.exact &= not self._signed

    def _pool(self) -> None:
        x = self._tensor(lambda tensor: min(tensor.box[1:]) > 1)
        if x is None:
            return
        _, H, W = x.box
        kernel, strides = [self._pick(1, 2, 3), self._pick(2, 3)], [self._pick(1, 2, 3), self._pick(1, 2, 3)]
        pads = [self._pick(0, (kernel[a % 2] - 1) // 2) for a in range(4)]
        sizes = [(size + pads[a] + pads[a + 2] - kernel[a]) // strides[a] + 1 for a, size in enumerate((H, W))]
        if min(size + pads[a] + pads[a + 2] - kernel[a] for a, size in enumerate((H, W))) < 0:
            return
        name = self._node("MaxPool", [x.name], kernel_shape=kernel, strides=strides, pads=pads)
        edges = ((0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3]))
        padded = np.pad(x.values, edges, constant_values=-1)
        windows = np.lib.stride_tricks.sliding_window_view(padded, kernel, (2, 3))[:, :, :: strides[0], :: strides[1]]
        self._moved(name, windows.max((-1, -2))[:, :, : sizes[0], : sizes[1]], x.grid, same=self._random.random() < 0.8)

    def _moved(self, name: str, values: NDArray[np.int64], grid: Grid, same: bool) -> None:
        """Numbers of a grid as they are, or on another one."""
        real = (values - grid.zero).astype(np.float32) * np.float32(grid.scale)
        new = grid if same else self._grid(real)
        self._add_tensor(name, values if same else new.integers(real), new)

    def _concat(self) -> None:
        x = self._tensor()
        assert x is not None
        y = self._tensor(lambda tensor: tensor.box[1:] == x.box[1:] and tensor.box[0] + x.box[0] < 40)
        if y is None:
            return
        name = self._node("Concat", [x.name, y.name], axis=1)
        same = x.grid == y.grid and self._random.random() < 0.8
        if same:
            self._add_tensor(name, np.concatenate([x.values, y.values], 1), x.grid)
        else:
            real = np.concatenate([x.real, y.real], 1)
            grid = self._grid(real)
            self._add_tensor(name, grid.integers(real), grid)

    def _slice(self) -> None:
        x = self._tensor()
        assert x is not None
        axis = self._pick(1, 1, 2, 3)
        size, step = x.values.shape[axis], self._pick(1, 1, 2)
        start = int(self._random.integers(size)) // 4 * self._pick(1, 4)
        kept = np.arange(min(start, size - 1), size, step)
        numbers = [self._array(np.array([number], np.int64)) for number in (kept[0], size, axis, step)]
        self._moved(self._node("Slice", [x.name, *numbers]), np.take(x.values, kept, axis), x.grid, same=self._random.random() < 0.8)

    def _pad(self) -> None:
        x = self._tensor(lambda tensor: tensor.box[1] * tensor.box[2] < 400)
        if x is None:
            return
        before, after = ([0, self._pick(0, 0, 1, 4), self._pick(0, 1), self._pick(0, 2)] for _ in range(2))
        name = self._node("Pad", [x.name, self._array(np.array([*before, *after], np.int64))])
        values = np.pad(x.values, list(zip(before, after, strict=True)), constant_values=x.grid.zero)
        self._moved(name, values, x.grid, same=self._random.random() < 0.8)

    def _relu(self) -> None:
        x = self._tensor()
        assert x is not None
        real = np.maximum(x.real, 0)
        grid = self._grid(real)
        self._add_tensor(self._node("Relu", [x.name]), grid.integers(real), grid)

    def _mean(self) -> None:
        x = self._tensor(lambda tensor: tensor.box[1:] != (1, 1))
        if x is None:
            return
        _, H, W = x.box
        sums = (x.values - x.grid.zero).sum((2, 3), keepdims=True)
        grid = self._grid(x.real.mean((2, 3), keepdims=True))
        factor = np.float32(x.grid.scale) / (np.float32(grid.scale) * np.float32(H * W))
        values = requantized(sums, np.full(1, factor, np.float32), grid.zero)
        ties = np.abs(sums * float(factor) % 1 - 0.5) < 1e-4  # ONNX Runtime has two ways to round these, and refuses large factors
        self.exact &= not ties.any() and 2**-32 < factor < 256
        self._add_tensor(self._node("GlobalAveragePool", [x.name]), values, grid)

    def _finish(self) -> None:
        """Outputs: a linear layer, what nobody reads, and some others, on their grids or of float32."""
        x = self._tensor(lambda tensor: np.prod(tensor.box) < 3000)
        if x is not None:
            self._linear(x)
        read = {name for node in self._file.nodes for name in node.input}
        for tensor in dict.fromkeys(self._tensors):
            if tensor.name not in read or self._random.random() < 0.1:
                if self._random.random() < 0.5 and tensor.stored != "x":
                    self.expected[tensor.stored] = self._as_stored(tensor.values)
                else:
                    self.expected[tensor.name] = tensor.real

    def _linear(self, x: Tensor) -> None:
        F, K, real = self._pick(1, 5, 10, 19), int(np.prod(x.box)), self._random.random() < 0.5
        weights, scales, zeros = self._weights((F, K))
        flat = self._node("Flatten", [x.name])
        if self._random.random() < 0.8:
            flat = self._file.on_grid(flat, x.grid, self._signed)
        else:
            self.exact = False  # ONNX Runtime computes in float32 behind a Flatten
        values = x.values.reshape(len(x.values), K) - x.grid.zero
        if self._random.random() < 0.3:
            w = self._file.weights(f"{flat}.m", weights.T, scales if zeros.ndim else scales[0], zeros, axis=1)
            name, sums = self._node("MatMul", [flat, w]), values @ weights.T
        else:
            name, bias = self._layer("Gemm", flat, x.grid, (weights, scales, zeros), real, transB=1)
            sums = bias + values @ weights.T
        factors = np.float32(x.grid.scale) * scales
        if real:
            self.expected[name], self.real = sums.astype(np.float32) * factors, name
            return
        grid = self._grid(sums * factors)
        values = requantized(sums, factors / np.float32(grid.scale), grid.zero)
        name = self._file.on_grid(name, grid, self._signed)
        self.expected[name] = (values - grid.zero).astype(np.float32) * np.float32(grid.scale)


def added(x: tuple[NDArray[np.int64], Grid], z: tuple[NDArray[np.int64], Grid], y: Grid) -> NDArray[np.int64]:
    """clip(round(a x + (b z + shift)), 0, 255) with a multiply-add that rounds once, see export/engine/ops/quads.py."""
    a, b = (np.float32(np.float32(grid.scale) / np.float32(y.scale)) for _, grid in (x, z))
    away = (np.longdouble(a) * x[1].zero + np.longdouble(b * np.float32(z[1].zero))).astype(np.float32)
    shift = np.float32(np.float32(y.zero) - away)
    inner = (np.longdouble(b) * z[0] + np.longdouble(shift)).astype(np.float32)
    real = (np.longdouble(a) * x[0] + inner).astype(np.float32)
    return np.clip(np.rint(real), 0, 255).astype(np.int64)
