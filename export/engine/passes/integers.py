"""A pass over the layers: what stands between DequantizeLinear and QuantizeLinear becomes one layer that computes in integers.

    Q(clip(Conv(DQ(x), DQ(w), DQ(b))))     ->   QuadConv(x)            and of it and a sum that alone reads it, one with a residual
    Q(clip(DQ(a) + DQ(b)))                 ->   QuadAdd(a, b)
    Q(max(DQ(x))), Q(mean(DQ(x)))          ->   QuadPool(x), QuadMean(x)
    Q(pieces of DQ(x), DQ(y))              ->   the same pieces of x, y        where all have one grid and whole quads are moved
    Q(DQ(x))                               ->   x                              where both have one grid
    Linear(DQ(x), DQ(w), DQ(b))            ->   QuadConv(x) of float32         where nothing quantizes it

What has no such form computes in float32 between the two, as the file says. Tensors of a program that are on grids become quads
(ir/dtypes.py); those that are read from outside, or come from there, are packed and unpacked.
"""

import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..ir.dtypes import INT8, DType
from ..ir.grids import Grid
from ..ir.network import Box, Layer, Piece, typed
from ..ops import quad_depthwise
from ..ops.assemble import Assemble
from ..ops.conv import Conv
from ..ops.grids import Dequantize, Quantize
from ..ops.maps import Map
from ..ops.packing import Pack, Unpack
from ..ops.pools import Mean, Pool
from ..ops.quad_blocks import TAPS
from ..ops.quad_maps import Phases, QuadAdd, QuadAssemble, QuadMean, QuadPermute, QuadPool
from ..ops.quad_results import Residual
from ..ops.quads import TOGETHER, QuadConv, as_quads
from .align import align

_MOST_BIAS = 2**31 - 1
_MOST_WEIGHT = 255
_MOST_PLACES = 1 << 26
"""Of weights between which groups or strides put many zeros: beyond, a layer computes in float32."""
_MOST_PIXELS = 1 << 16
"""Of a mean: float32 sums of so many bytes are exact."""
_MOST_RATIO = 1e6
"""Of the scales of a mean's input and output: beyond, its numbers are those of float32."""
_NEAR = 1e-5
"""Relative: scales that were rounded otherwise."""


def integers(
    layers: Sequence[Layer], boxes: Mapping[str, Box], inputs: Mapping[str, DType], outputs: Collection[str]
) -> tuple[list[Layer], dict[str, Box]]:
    """(layers of which those on grids compute in integers, sizes of their tensors); inputs: types of what comes from outside."""
    if not any(isinstance(layer, Quantize | Dequantize) for layer in layers):
        return list(layers), dict(boxes)
    grids = _grids(layers)
    made, boxes = align(_joined(_fused(layers, boxes, grids, set(outputs)), set(outputs)), boxes, outputs)
    return _Quads(boxes, typed(layers, inputs), grids, set(outputs)).rewritten(made, inputs)


def _grids(layers: Sequence[Layer]) -> dict[str, Grid]:
    """The grid of each tensor that is on one: where nothing in the program quantizes it, that of the first who reads it."""
    made = {layer.output: layer.grid for layer in layers if isinstance(layer, Quantize)}
    for layer in layers:
        if isinstance(layer, Dequantize):
            made.setdefault(layer.inputs[0], layer.grid)
    return made


class _Fusing:
    """The layers as they are rewritten, and who reads what."""

    def __init__(self, layers: Sequence[Layer], boxes: Mapping[str, Box], outputs: set[str]) -> None:
        self.boxes, self.outputs = boxes, outputs
        self.readers: dict[str, list[Layer]] = defaultdict(list)
        self.sources: dict[str, Dequantize] = {}
        """float32 tensors that come from grids."""
        self.done: set[str] = set()
        """Outputs that a layer before makes, in integers."""
        for layer in layers:
            for name in set(layer.inputs):
                self.readers[name].append(layer)

    def sink(self, name: str) -> tuple[float, float, Quantize, list[str]] | None:
        """(bounds, the layer that alone reads a tensor, behind clips that alone do, all that they make)."""
        low, high, passed = -np.inf, np.inf, []
        while name not in self.outputs and len(self.readers[name]) == 1:
            reader = self.readers[name][0]
            passed.append(reader.output)
            if isinstance(reader, Quantize):
                return low, high, reader, passed
            if not isinstance(reader, Map) or reader.function != "identity":
                return None
            low, high = (min(max(bound, reader.low), reader.high) for bound in (low, high))
            name = reader.output
        return None


def _fused(layers: Sequence[Layer], boxes: Mapping[str, Box], grids: Mapping[str, Grid], outputs: set[str]) -> list[Layer]:
    """grids: those of tensors, around which their zero points lie: who reads one on another grid reads it as float32."""
    state, result, alike = _Fusing(layers, boxes, outputs), list[Layer](), dict[str, str]()
    for layer in layers:
        if layer.output in state.done:
            continue
        layer = replace(layer, inputs=tuple(alike.get(name, name) for name in layer.inputs))
        if isinstance(layer, Dequantize):
            if layer.grid.zero == grids[layer.inputs[0]].zero:
                state.sources[layer.output] = layer
        elif isinstance(layer, Quantize) and layer.output not in outputs and _undone(layer, state.sources.get(layer.inputs[0])):
            alike[layer.output] = state.sources[layer.inputs[0]].inputs[0]
            continue
        elif all(name in state.sources for name in layer.inputs):
            layer = _fuse(state, layer)
        result.append(layer)
    return result


def _undone(layer: Quantize, source: Dequantize | None) -> bool:
    """Whether it makes what its input was made of."""
    return source is not None and (source.grid, source.signed) == (layer.grid, layer.signed)


def _fuse(state: _Fusing, layer: Layer) -> Layer:
    """The layer in integers, with what quantizes its output; or as it is."""
    sources = [state.sources[name] for name in layer.inputs]
    found = state.sink(layer.output)
    if found is None:
        return _real(state, layer, sources[0]) if isinstance(layer, Conv) else layer
    low, high, sink, passed = found
    limits = _limits(low, high, sink.grid)
    facts: dict[str, Any] = {"name": layer.name, "inputs": tuple(source.inputs[0] for source in sources), "output": sink.output}
    new: Layer | None = None
    if isinstance(layer, Conv):
        new = _conv(layer, sources[0].grid, sink.grid, limits, facts, sources[0].signed)
    elif isinstance(layer, Map) and layer.function == "add" and len(sources) == 2:
        sums = Residual.of(sources[0].grid, sources[1].grid, sink.grid, *limits)
        new = QuadAdd(grid=sink.grid, sum=sums, **facts) if sums else None
    elif isinstance(layer, Mean) and limits == (0, 255) and math.prod(state.boxes[layer.inputs[0]][1:]) <= _MOST_PIXELS:
        if float(sources[0].grid.scale) < _MOST_RATIO * float(sink.grid.scale):
            new = QuadMean(grid=sink.grid, source=sources[0].grid, **facts)
    elif isinstance(layer, Pool) and layer.kind == "max" and limits == (0, 255):
        grid = sources[0].grid
        if grid == sink.grid and (grid.zero == 0 or not _overlaps(layer, state.boxes)):
            shape: dict[str, Any] = {"kernel": layer.kernel, "strides": layer.strides, "pads": layer.pads, "dilations": layer.dilations}
            new = QuadPool(grid=grid, **shape, **facts)
    elif isinstance(layer, Assemble) and limits == (0, 255) and all(source.grid == sink.grid for source in sources):
        pieces = _pieces(layer, state.boxes)
        if pieces is not None and sink.grid.zero == 0:
            new = QuadAssemble(pieces=pieces, **facts)
    if new is None:
        return layer
    state.done.update(passed)
    return new


def _overlaps(layer: Pool, boxes: Mapping[str, Box]) -> bool:
    """Whether a window reaches beyond the image."""
    (_, height, width), (_, rows, columns) = boxes[layer.inputs[0]], boxes[layer.output]
    spans = zip((rows, columns), layer.kernel, layer.strides, layer.dilations, layer.pads[:2], (height, width), strict=True)
    ends = [(places - 1) * stride + (taps - 1) * step - before >= size for places, taps, stride, step, before, size in spans]
    return any(layer.pads[:2]) or any(ends)


def _limits(low: float, high: float, grid: Grid) -> tuple[int, int]:
    """Bounds in numbers of the grid: QuantizeLinear of a clipped number is its number, clipped."""
    bounds = np.array([low, high], np.float32)
    with np.errstate(over="ignore"):
        found = np.clip(np.rint(bounds / grid.scale) + np.float32(grid.zero), 0, 255)
    return int(found[0]), int(found[1])


def _conv(
    layer: Conv, x: Grid, y: Grid | None, limits: tuple[int, int], facts: dict[str, Any], signed: bool = False
) -> QuadConv | None:  # fmt: skip
    """None where the file has no integers for it, or ones that the kernel does not take."""
    found = layer.integers
    if found is None or (layer.mask is not None and not _takes_mask(layer, x, y)) or np.abs(found.values).max(initial=0) > _MOST_WEIGHT:
        return None
    if _places(layer) > max(_MOST_PLACES, 2 * found.values.size):
        return None
    with np.errstate(over="ignore", under="ignore"):
        scales = np.broadcast_to(x.scale * found.scales, len(layer.weights)).astype(np.float32)
        factors = scales if y is None else (scales / y.scale).astype(np.float32)
    bias = _bias(layer, scales, exact=y is None) if (scales > 0).all() and np.isfinite(factors).all() else None
    if bias is None:
        return None
    bias = bias - x.zero * found.values.sum((1, 2, 3))
    largest = np.abs(bias) + 255 * np.abs(found.values).sum((1, 2, 3))
    if (largest > _MOST_BIAS).any():  # sums might not fit
        return None
    dense = _ungrouped(found.values.astype(np.int16), layer.shape.groups)
    return QuadConv(
        **_words(dense, layer, signed),
        bias=bias,
        factors=factors,
        grid=y,
        low=limits[0],
        high=limits[1],
        pads=layer.shape.pads,
        strides=layer.shape.strides,
        source=x,
        dilations=layer.shape.dilations,
        size=layer.shape.output,
        depthwise=layer.shape.depthwise and y is not None,
        kept=layer.macs,
        dense=layer.macs_dense,
        **facts,
    )


def _takes_mask(layer: Conv, x: Grid, y: Grid | None) -> bool:
    """Whether its block mask has a form in integers: dropped blocks are zero where the zero point is, or results are dropped."""
    several = layer.shape.groups == layer.shape.channels > 1  # filters to each channel, or one
    return y is not None and (layer.shape.depthwise or (x.zero == 0 and not several))


def _bias(layer: Conv, scales: NDArray[np.float32], exact: bool) -> NDArray[np.int64] | None:
    """[F]: on the grid of the sums, as the file has it, or as ONNX Runtime puts float32 numbers there; None where that is not `exact`, and
    for numbers on another grid."""
    given = layer.integer_bias
    if given is not None:
        alike = np.allclose(np.broadcast_to(given.scales, scales.shape), scales, rtol=_NEAR, atol=0)
        return np.broadcast_to(given.values.reshape(-1), scales.shape) if alike else None
    with np.errstate(over="ignore"):
        found = np.rint(layer.bias / scales)
    return found.astype(np.int64) if not layer.bias.any() or (not exact and (np.abs(found) < _MOST_BIAS).all()) else None


def _places(layer: Conv) -> int:
    """Numbers in the weights as quads, with the zeros that groups and phases put between them."""
    shape = layer.shape
    axes = [_Axis(*numbers) for numbers in zip(shape.kernel, shape.strides, shape.dilations, shape.pads[:2], shape.output, strict=True)]
    taps = shape.kernel if shape.strides == (1, 1) else (len(axis.phases) * axis.taps for axis in axes)
    return shape.filters * shape.channels * math.prod(taps)


def _words(weights: NDArray[np.int16], layer: Conv, signed: bool) -> dict[str, Any]:
    """Weights [F,C,kh,kw] and mask as words of four channels, or of four taps where those that are kept are fewer."""
    if layer.mask is None:
        return {"weights": as_quads(weights)}
    if layer.shape.depthwise:
        return {"weights": as_quads(weights), "mask": as_quads(layer.mask[None])[0]}
    padded = np.pad(weights, ((0, 0), (0, 0), (0, 0), (0, -weights.shape[3] % TAPS)))
    taps = padded.reshape(*weights.shape[:3], -1, TAPS), np.repeat(layer.mask[..., None], TAPS, -1)
    quads = as_quads(weights), as_quads(layer.mask[None])[0]
    planes = not signed and layer.shape.dilations[1] == 1 and _kept(*taps) < _kept(*quads)
    words, mask = taps if planes else quads
    return {"weights": words, "mask": mask, "planes": planes}


def _kept(words: NDArray[np.int16], mask: NDArray[np.bool_]) -> int:
    """Words that any filter keeps, at all positions of their masks."""
    return int(words.any((0, -1)).sum((1, 2)) @ mask.any(-1).sum((1, 2)))


def _ungrouped(weights: NDArray[np.int16], groups: int) -> NDArray[np.int16]:
    """[F,C/groups,kh,kw] as [F,C,kh,kw]: zeros for the channels of other groups."""
    F, per_group, kh, kw = weights.shape
    dense = np.zeros((F, per_group * groups, kh, kw), np.int16)
    for g in range(groups):
        filters = slice(g * (F // groups), (g + 1) * (F // groups))
        dense[filters, g * per_group : (g + 1) * per_group] = weights[filters]
    return dense


def _real(state: _Fusing, layer: Conv, source: Dequantize) -> Layer:
    """A layer of one position that nothing quantizes."""
    if layer.shape.output != (1, 1):
        return layer
    facts: dict[str, Any] = {"name": layer.name, "inputs": (source.inputs[0],), "output": layer.output}
    return _conv(layer, source.grid, None, (0, 255), facts) or layer


def _pieces(layer: Assemble, boxes: Mapping[str, Box]) -> tuple[Piece, ...] | None:
    """The pieces in quads; None where they are not whole ones."""
    made = []
    for piece in layer.pieces:
        ends = piece.start[0] + piece.size[0] == boxes[layer.inputs[piece.source]][0], piece.to[0] + piece.size[0] == boxes[layer.output][0]
        whole = piece.size[0] % TOGETHER == 0 or all(ends)
        if piece.start[0] % TOGETHER or piece.to[0] % TOGETHER or not whole or piece.step[0] != 1 or piece.to_step[0] != 1:
            return None
        first = [(value[0] // TOGETHER, *value[1:]) for value in (piece.start, piece.to)]
        size = (-(-piece.size[0] // TOGETHER), *piece.size[1:])
        made.append(replace(piece, start=first[0], to=first[1], size=size))
    return tuple(made)


def _joined(layers: Sequence[Layer], outputs: set[str]) -> list[Layer]:
    """A sum becomes the residual of the later of two convolutions that it alone reads; what nobody reads is left out."""
    needed = {name for layer in layers for name in layer.inputs} | outputs
    layers = [layer for layer in layers if not isinstance(layer, Dequantize) or layer.output in needed]
    readers: dict[str, list[Layer]] = defaultdict(list)
    for layer in layers:
        for name in layer.inputs:
            readers[name].append(layer)
    made: dict[str, Layer] = {}
    for layer in layers:
        if isinstance(layer, QuadAdd) and len(set(layer.inputs)) == 2:
            order = list(made)
            found = [made.get(name) for name in layer.inputs if readers[name] == [layer] and name not in outputs]
            convs = [conv for conv in found if isinstance(conv, QuadConv) and conv.takes_residual]
            if convs:
                conv = max(convs, key=lambda conv: order.index(conv.output))
                first = layer.inputs[0] == conv.output
                other = layer.inputs[1 if first else 0]
                del made[conv.output]
                sums = layer.sum if first else layer.sum.swapped
                layer = replace(conv, inputs=(conv.inputs[0], other), output=layer.output, residual=sums)
        made[layer.output] = layer
    return list(made.values())


_ON_QUADS = (Quantize, Dequantize, QuadConv, QuadAdd, QuadPool, QuadMean, QuadPermute, QuadAssemble)


class _Quads:
    """Tensors on grids as quads, called otherwise: what others make is packed, what they read, or the caller does, is unpacked."""

    def __init__(self, boxes: Mapping[str, Box], types: Mapping[str, DType], grids: Mapping[str, Grid], outputs: set[str]) -> None:
        self._boxes, self._types, self._grids, self._outputs = boxes, types, grids, outputs
        self._sizes, self._result = dict(boxes), list[Layer]()
        self._phases: dict[Any, str] = {}

    def rewritten(self, layers: Sequence[Layer], inputs: Collection[str]) -> tuple[list[Layer], dict[str, Box]]:
        """The layers, and the sizes of their tensors."""
        here = [layer for layer in layers if isinstance(layer, _ON_QUADS) and not isinstance(layer, Quantize)]
        planes = {layer.inputs[0] for layer in here if isinstance(layer, QuadConv) and layer.planes}
        needed = {name for layer in here for name in _read_as_quads(layer)}
        elsewhere = {name for layer in layers if not isinstance(layer, _ON_QUADS) for name in layer.inputs} | self._outputs | planes
        for name in [name for name in inputs if name in needed]:
            self._pack(name)
        for layer in layers:
            if not isinstance(layer, _ON_QUADS):
                self._result.append(layer)
                if layer.output in needed:
                    self._pack(layer.output)
                continue
            new = self._on_quads(layer)
            self._result.append(new)
            if new.output != layer.output and layer.output in elsewhere:
                signed = self._types[layer.output] == INT8
                self._result.append(Unpack(name=layer.output, inputs=(new.output,), output=layer.output, signed=signed))
        return self._result, self._sizes

    def _pack(self, name: str) -> None:
        signed = self._types[name] == INT8
        self._result.append(Pack(name=name, inputs=(name,), output=self._name(name), grid=self._grids[name], signed=signed))

    def _name(self, name: str) -> str:
        C, H, W = self._boxes[name]
        self._sizes[f"{name} quads"] = (-(-C // TOGETHER), H, W)
        return f"{name} quads"

    def _on_quads(self, layer: Layer) -> Layer:
        if isinstance(layer, Quantize):
            return replace(layer, output=self._name(layer.output), quads=True)
        on_quads = _read_as_quads(layer)
        inputs = (*layer.inputs[: len(layer.inputs) - len(on_quads)], *map(self._name, on_quads))
        if isinstance(layer, Dequantize):
            return replace(layer, inputs=inputs, quads=True)
        if not isinstance(layer, QuadConv):
            return replace(layer, inputs=inputs, output=self._name(layer.output))
        output = layer.output if layer.grid is None else self._name(layer.output)
        return self._unstrided(replace(layer, inputs=inputs, output=output), self._boxes[layer.output])

    def _unstrided(self, conv: QuadConv, output: Box) -> QuadConv:
        """A convolution with strides as one over the phases of its input, which are made where nobody has made them yet."""
        if quad_depthwise.reads(conv) if conv.depthwise else conv.strides == (1, 1) or conv.mask is not None:
            return conv
        F, C, kh, kw, _ = conv.weights.shape
        rows, columns = (_Axis(taps, conv.strides[k], conv.dilations[k], conv.pads[k], output[k + 1]) for k, taps in enumerate((kh, kw)))
        places = tuple((a, b) for a in rows.phases for b in columns.phases)
        weights = np.zeros((F, len(places) * C, rows.taps, columns.taps, TOGETHER), conv.weights.dtype)
        for u in range(kh):
            for v in range(kw):
                k = places.index((rows.phase(u), columns.phase(v)))
                weights[:, k * C : (k + 1) * C, rows.offset(u), columns.offset(v)] = conv.weights[:, :, u, v]
        key = conv.inputs[0], places, conv.strides, rows.size, columns.size
        if key not in self._phases:
            self._phases[key] = name = f"{conv.inputs[0]} in {len(self._phases)} phases"
            self._sizes[name] = (len(places) * C, rows.size, columns.size)
            made = Phases(name=name, inputs=conv.inputs[:1], output=name, grid=conv.source, places=places, strides=conv.strides)
            self._result.append(made)
        pads = (rows.before, columns.before, 0, 0)
        inputs = (self._phases[key], *conv.inputs[1:])
        return replace(conv, inputs=inputs, weights=weights, pads=pads, strides=(1, 1), dilations=(1, 1))


def _read_as_quads(layer: Layer) -> tuple[str, ...]:
    """The last of its inputs, or all."""
    return layer.inputs[1:] if isinstance(layer, QuadConv) and layer.planes else layer.inputs


class _Axis:
    """Rows or columns of a strided convolution: tap u is tap offset(u) of phase phase(u)."""

    def __init__(self, taps: int, stride: int, dilation: int, pad: int, places: int) -> None:
        self._at = [divmod(u * dilation - pad, stride) for u in range(taps)]
        offsets = [offset for offset, _ in self._at]
        self.phases = sorted({phase for _, phase in self._at})
        self.before, after = max(0, -min(offsets)), max(0, *offsets)
        self.taps = self.before + after + 1
        self.size = places + after

    def phase(self, tap: int) -> int:
        return self._at[tap][1]

    def offset(self, tap: int) -> int:
        return self._at[tap][0] + self.before
