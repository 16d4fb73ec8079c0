"""Damaged networks on eight-bit grids: scales, zero points, axes and inputs as no quantiser writes them, in QDQ and QOperator form."""

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from support.grids import File, Grid
from support.random_grids import RandomGrids

_SCALES = (0.0, -0.02, np.nan, np.inf, 1e-45, 1e-38, 1e-20, 1e20, 3e38)
_INTEGERS = (TensorProto.INT8, TensorProto.INT32)
_ON_GRIDS = ("QuantizeLinear", "DequantizeLinear")


class MutatedGrids:
    """`model`, damaged in one or two places, and what it is fed."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        if self._random.random() < 0.6:
            network = RandomGrids(seed, 2 + seed % 5)
            self.x, self.model = network.x, onnx.load_from_string(network.serialized())
        else:
            self.x, self.model = self._random.standard_normal((2, 4, 6, 6), np.float32), qoperators(seed)
        kinds = [self._scale, self._zero, self._axis, self._input, self._weights, self._attribute, self._shape, self._node]
        for _ in range(self._pick(1, 1, 2)):
            self._pick(*kinds)()

    @property
    def content(self) -> bytes:
        made: bytes = self.model.SerializeToString()
        return made

    @property
    def wraps(self) -> bool:
        """Whether sums may leave the integers that ONNX Runtime has for them: 16 bits of pairs on some CPUs, 32 bits in all."""
        arrays = [
            numpy_helper.to_array(tensor).astype(np.float64) for tensor in self.model.graph.initializer if tensor.data_type in _INTEGERS
        ]
        return any(np.abs(array).max(initial=0) > (64 if array.ndim > 1 else 2**30) for array in arrays)

    def _pick(self, *values: Any) -> Any:
        return values[self._random.integers(len(values))]

    def _change(self, tensor: Any, content: NDArray) -> None:
        tensor.CopyFrom(numpy_helper.from_array(content, tensor.name))

    def _tensor(self, *types: int) -> tuple[Any, NDArray]:
        tensor = self._pick(
            *[tensor for tensor in self.model.graph.initializer if tensor.data_type in types] or self.model.graph.initializer
        )
        return tensor, numpy_helper.to_array(tensor).copy()

    def _scale(self) -> None:
        tensor, content = self._tensor(TensorProto.FLOAT)
        content.reshape(-1)[: self._pick(1, content.size)] = self._pick(*_SCALES)
        self._change(tensor, content)

    def _zero(self) -> None:
        tensor, content = self._tensor(TensorProto.UINT8, TensorProto.INT8)
        dtype = self._pick(np.uint8, np.int8, np.int32, np.uint16, np.int16, np.float32, np.int64)
        self._change(
            tensor, content.astype(dtype) if self._pick(True, False) else np.full(content.shape, self._pick(0, 1, 127)).astype(dtype)
        )

    def _axis(self) -> None:
        node = self._pick(*self.model.graph.node)
        name, value = self._pick("axis", "axis", "block_size", "output_dtype", "saturate"), self._pick(-5, -1, 0, 1, 2, 3, 7, 2**40)
        del node.attribute[:]
        node.attribute.append(helper.make_attribute(name, value))

    def _input(self) -> None:
        """Left out, or another tensor, or computed when the network runs."""
        node = self._pick(*[node for node in self.model.graph.node if node.input])
        k = int(self._random.integers(len(node.input)))
        kind = self._pick("last", "none", "other", "computed")
        if kind == "last":
            del node.input[-1]
        elif kind == "none":
            node.input[k] = ""
        elif kind == "other":
            node.input[k] = self._pick(*self.model.graph.initializer).name
        else:
            made = helper.make_node("Identity", [node.input[k]], [f"{node.input[k]} computed"])
            place = list(self.model.graph.node).index(node)
            node.input[k] = made.output[0]
            self.model.graph.node.insert(place, made)

    def _weights(self) -> None:
        tensor, content = self._tensor(TensorProto.INT8, TensorProto.UINT8, TensorProto.INT32)
        limits = np.iinfo(content.dtype) if content.dtype.kind in "iu" else np.iinfo(np.int8)
        content[...] = self._pick(limits.min, limits.max, limits.max - 1, 0)
        self._change(tensor, content)

    def _attribute(self) -> None:
        found = [a for node in self.model.graph.node for a in node.attribute if a.name != "group" and (a.ints or a.HasField("i"))]
        if found:
            attribute = self._pick(*found)
            if attribute.ints:
                attribute.ints[int(self._random.integers(len(attribute.ints)))] = self._pick(-1, 0, 1, 2, 5, 70, 2**20, 2**62)
            else:
                attribute.i = self._pick(-1, 0, 1, 2, 3, 2**31, 2**62)

    def _shape(self) -> None:
        """Of scales and zero points: several for one tensor, or one in more dimensions."""
        tensor, content = self._tensor(TensorProto.FLOAT, TensorProto.UINT8, TensorProto.INT8, TensorProto.INT32)
        shapes = [(1, content.size), (content.size, 1), (content.size,), (0,)]
        count = self._pick(2, 3, 4)
        changed = np.resize(content, count) if self._pick(True, False) else np.resize(content, self._pick(*shapes))
        self._change(tensor, changed.astype(content.dtype))

    def _node(self) -> None:
        """Gone, or of another kind."""
        place = int(self._random.integers(len(self.model.graph.node)))
        node = self.model.graph.node[place]
        if self._pick(True, False):
            node.op_type = self._pick("Relu", "Identity", "Sigmoid", "MaxPool", "QLinearConv", *_ON_GRIDS, "Conv", "Add", "QLinearAdd")
            node.domain = "com.microsoft" if node.op_type == "QLinearAdd" else ""
        else:
            del self.model.graph.node[place]


def qoperators(seed: int) -> Any:
    """A sound network of QLinearConv, MaxPool of bytes, QLinearAdd, QLinearGlobalAveragePool and QGemm."""
    random, file = np.random.default_rng(seed), File((4, 6, 6))
    grids = [Grid(0.03, 128), Grid(0.05, 0), Grid(0.06, 7), Grid(0.01, 3)]
    x, first, total, mean = (file.parameters(f"g{k}", grid) for k, grid in enumerate(grids))
    file.node("QuantizeLinear", ["x", *x], "q")

    def weights(name: str, *shape: int) -> list[str]:
        scales, zeros = random.uniform(0.001, 0.01, shape[0]), np.zeros(shape[0])
        stored = file.constant(f"{name}.w", random.integers(-64, 65, shape), np.int8)
        return [stored, file.constant(f"{name}.s", scales, np.float32), file.constant(f"{name}.z", zeros, np.int8)]

    bias = [file.constant(f"b{k}", random.integers(-999, 999, 4), np.int32) for k in range(2)]
    file.node("QLinearConv", ["q", *x, *weights("a", 4, 4, 3, 3), *first, bias[0]], "a", pads=(1, 1, 1, 1))
    file.node("MaxPool", ["a"], "p", kernel_shape=(3, 3), pads=(1, 1, 1, 1))
    file.node("QLinearAdd", ["a", *first, "p", *first, *total], "s", domain="com.microsoft")
    file.node("QLinearGlobalAveragePool", ["s", *total, *mean], "m", domain="com.microsoft", channels_last=0)
    file.node("Flatten", ["m"], "f")
    file.node("QGemm", ["f", *mean, *weights("l", 4, 4), bias[1], *total], "l", domain="com.microsoft", transB=1)
    file.node("DequantizeLinear", ["l", *total], "y")
    model = onnx.load_from_string(file.model("y"))
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return model
