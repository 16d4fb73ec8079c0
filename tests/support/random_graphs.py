"""Random small ONNX graphs of all sorts: what the engine computes beside what it leaves to ONNX Runtime, joined in every way.

More than random_networks.py: several inputs of several types, a fixed batch, vectors that become images again, forms of attributes and
inputs that the engine has no kernel for, tensors of other ranks, intermediate tensors as outputs, and numbers that are not finite,
subnormal, negative zeros or huge, in what is fed or in the weights.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from fineprune.export.functions import DOMAIN, functions
from support.random_networks import RandomNetwork

ODD = np.array([np.nan, np.inf, -np.inf, 1e-40, -1e-42, -0.0, 0.0, 1e30, -1e18], np.float32)
_TYPES = {"uint8": 2, "int8": 3, "int32": 6, "int64": 7, "bool": 9, "float16": 10, "float64": 11}
_KEEP_SIZE: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in ("Softplus", "Tanh", "LeakyRelu", "Elu", "Selu", "Neg", "Abs", "Erf", "Softsign", "Celu", "Mish")),
    ("Softmax", {"axis": 1}),
    ("Softmax", {"axis": -1}),
    ("LogSoftmax", {"axis": -1}),
    ("HardSigmoid", {"alpha": 0.3, "beta": 0.6}),
    ("ThresholdedRelu", {"alpha": 0.0}),
    ("Gelu", {}),
    ("LpNormalization", {"axis": 1, "p": 2}),
]


class RandomGraph(RandomNetwork):
    """`model` is the graph of a seed, `feeds(count)` what it may be fed; `odd` says where numbers are that are not ordinary."""

    def __init__(self, seed: int) -> None:
        random = np.random.default_rng((seed, 1))
        self.odd = str(random.choice(["", "", "", "inputs", "weights"]))
        self.batch: int | str = "n" if random.random() < 0.8 else int(random.integers(1, 6))
        self.opset = int(random.integers(18, 24))
        self._others: dict[str, tuple[int, ...]] = {}
        """Tensors of other ranks: sizes behind the batch."""
        self._sources: dict[str, tuple[str, tuple[int, ...]]] = {}
        """More inputs: type and sizes."""
        self._sparse: list[Any] = []
        self._names = 0
        super().__init__(seed, int(random.integers(1, 9)))
        self.model = self._finished()

    def feeds(self, count: int, seed: int) -> dict[str, NDArray]:
        """Arrays for all inputs: `count` samples, or as many as the graph fixes."""
        random = np.random.default_rng((seed, count))
        count = self.batch if isinstance(self.batch, int) else count
        result = {}
        for name, (kind, sizes) in {"x": ("float32", self.box), **self._sources}.items():
            x = random.standard_normal((count, *sizes), np.float32)
            if self.odd == "inputs" and kind in ("float32", "float64"):
                places = random.random(x.shape) < random.choice([0.002, 0.02])
                x[places] = random.choice(ODD, np.count_nonzero(places))
            result[name] = x if kind == "float32" else (np.clip(x * 9 + 9, 0, 99) if "int" in kind else x).astype(kind)
        return result

    # ---- the walk

    def _kinds(self) -> list[Callable[[], None]]:
        often = [self._conv] * 4 + [self._unary] * 3 + [self._binary] * 2 + [self._parts] * 2
        often += [self._pool, self._mean, self._head] * 2
        rare = [self._shuffle, self._keep_size, self._broadcast, self._window, self._reduce, self._moved, self._reshaped, self._clip]
        return [*often, *rare, *rare, self._source, self._vector, self._vector, self._normalised, self._part]

    def _normal(self, *shape: int) -> NDArray[np.float32]:
        content = super()._normal(*shape)
        if self.odd == "weights" and self._random.random() < 0.3:
            places = self._random.random(shape) < 0.1
            content[places] = self._random.choice(ODD, np.count_nonzero(places))
        return content

    def _constant(self, content: Any) -> str:
        """An initializer, a Constant node or, now and then, a sparse initializer."""
        name, content = f"c{self._names}", np.asarray(content)
        self._names += 1
        how = self._random.integers(24)
        if how == 0 and content.ndim < 2 and content.dtype in (np.float32, np.int64):
            word = "float" if content.dtype == np.float32 else "int"
            value = {f"value_{word}s": content.tolist()} if content.ndim else {f"value_{word}": content.item()}
            self._nodes.append(helper.make_node("Constant", [], [name], **value))
        elif how == 1:
            self._nodes.append(helper.make_node("Constant", [], [name], value=numpy_helper.from_array(content, name)))
        elif how == 2 and content.dtype == np.float32 and content.ndim and content.size:
            places = np.flatnonzero(content)
            values = numpy_helper.from_array(content.reshape(-1)[places], name)
            self._sparse.append(helper.make_sparse_tensor(values, numpy_helper.from_array(places, f"{name}i"), list(content.shape)))
        else:
            self._constants.append(numpy_helper.from_array(content, name))
        return name

    def _add(self, op_type: str, inputs: list[str], sizes: tuple[int, ...], domain: str = "", **attributes: Any) -> str:
        """A node whose output has `sizes` behind the batch."""
        self.foreign = True
        name = self._node(op_type, inputs, None, domain, **attributes)
        self._know(name, sizes)
        return name

    def _know(self, name: str, sizes: tuple[int, ...]) -> None:
        if len(sizes) == 3:
            self._boxes[name] = (sizes[0], sizes[1], sizes[2])
        elif len(sizes) == 1:
            self._flat[name] = sizes[0]
        else:
            self._others[name] = sizes

    def _any(self) -> tuple[str, tuple[int, ...]]:
        """An image or, if there is one, a vector."""
        if self._flat and self._random.random() < 0.3:
            name = self._pick(*self._flat)
            return name, (self._flat[name],)
        name = self._image()
        return name, self._boxes[name]

    def _integers(self, *values: int) -> str:
        return self._constant(np.array(values, np.int64))

    # ---- kinds of nodes

    def _source(self) -> None:
        """One more input, of any type, as float32."""
        kind, sizes = self._pick("float32", *_TYPES), self._pick(self.box, self.box, (5,), (self.box[0], 1, 1))
        name = f"in{len(self._sources)}"
        self._sources[name] = kind, sizes
        if kind == "float32":
            self._know(name, sizes)
        else:
            if kind in ("uint8", "int8", "int32") and self._random.random() < 0.5:  # joined with itself as it comes
                joined, sizes = f"{name} joined", _with(sizes, 0, 2 * sizes[0])
                self._nodes.append(helper.make_node("Concat", [name, name], [joined], axis=1))
                name = joined
            self._add("Cast", [name], sizes, to=1)

    def _keep_size(self) -> None:
        name, sizes = self._any()
        op_type, attributes = self._pick(*_KEEP_SIZE)
        if op_type in ("Gelu", "LpNormalization") and (self.opset < 20 or len(sizes) == 1):
            return
        self._add(op_type, [name], sizes, **attributes)

    def _broadcast(self) -> None:
        """Arithmetic of two tensors, or of one and a constant, that are not alike."""
        name, sizes = self._any()
        op_type = self._pick("Add", "Mul", "Sub", "Div", "Max", "Min", "Sum", "Mean")
        shapes = [(), (1,), (1, *sizes), (1, sizes[0], *[1] * (len(sizes) - 1)), sizes[-1:]]
        other = self._constant(self._normal(*self._pick(*shapes)))
        alike = [o for o, box in self._boxes.items() if len(sizes) == 3 and box[0] in (1, sizes[0]) and box[1:] == (1, 1)]
        if alike and op_type in ("Add", "Max", "Sub") and self._random.random() < 0.5:
            other = self._pick(*alike)
        self._add(op_type, [name, other][:: self._pick(1, 1, -1)], sizes)

    def _clip(self) -> None:
        """Bounds left out, turned round, or computed."""
        name, sizes = self._any()
        low, high = (self._constant(np.float32(self._pick(*values))) for values in ((-1, 0, 0.5), (6, 0, 0.25)))
        self._add("Clip", [name, *self._pick([], [low], ["", high], [low, high], [high, low])], sizes)

    def _window(self) -> None:
        """Pools and convolutions in forms that have no kernel."""
        name = self._image()
        C, H, W = self._boxes[name]
        kind = self._pick("average", "same", "max", "conv same", "transposed", "lp")
        if kind == "average":
            attributes = {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1, "count_include_pad": self._pick(0, 1)}
            if H > 1 and W > 1:
                self._add("AveragePool", [name], (C, -(-(H - 2) // 2) + 1, -(-(W - 2) // 2) + 1), **attributes)
        elif kind in ("same", "max", "lp"):
            op_type = {"same": "AveragePool", "max": "MaxPool", "lp": "LpPool"}[kind]
            way = self._pick("SAME_UPPER", "SAME_LOWER")
            self._add(op_type, [name], (C, -(-H // 2), -(-W // 2)), kernel_shape=[2, 3], strides=[2, 2], auto_pad=way)
        elif kind == "conv same":
            weights = self._constant(self._normal(6, C, 3, 2) / np.float32(C))
            self._add("Conv", [name, weights], (6, H, W), auto_pad=self._pick("SAME_UPPER", "SAME_LOWER"))
        elif H * W < 200:
            weights = self._constant(self._normal(C, 4, 2, 2) / np.float32(C))
            self._add("ConvTranspose", [name, weights], (4, 2 * H, 2 * W), strides=[2, 2])

    def _reduce(self) -> None:
        name, (C, H, W) = (image := self._image()), self._boxes[image]
        op_type = self._pick("ReduceMean", "ReduceMean", "ReduceMax", "ReduceSum", "ReduceL2", "GlobalMaxPool")
        if op_type == "GlobalMaxPool":
            self._add(op_type, [name], (C, 1, 1))
            return
        axes, keep = self._pick((2, 3), (-1, -2), (1,), (3,), (1, 2, 3), ()), self._pick(0, 1)
        if not axes:
            self._add(op_type, [name], (C, H, W), noop_with_empty_axes=1)
            return
        gone = [axis % 4 - 1 for axis in axes]
        sizes = tuple(1 if k in gone else size for k, size in enumerate((C, H, W)) if keep or k not in gone)
        self._add(op_type, [name, self._integers(*axes)], sizes, keepdims=keep)

    def _moved(self) -> None:
        name = self._image()
        C, H, W = self._boxes[name]
        kind = self._pick("Transpose", "Resize", "Gather", "Tile", "Slice", "Pad", "DepthToSpace", "SpaceToDepth", "Slice", "Pad")
        if kind == "Transpose":
            self._add(kind, [name], (C, W, H), perm=[0, 1, 3, 2])
        elif kind == "Resize" and H * W < 150:
            scales = self._constant(np.array([1, 1, 2, 2], np.float32))
            self._add(kind, [name, "", scales], (C, 2 * H, 2 * W), mode=self._pick("nearest", "linear"))
        elif kind == "Gather":
            self._add(kind, [name, self._integers(*self._random.integers(-C, C, 4).tolist())], (4, H, W), axis=1)
        elif kind == "Tile" and C < 30:
            self._add(kind, [name, self._integers(1, 2, 1, 1)], (2 * C, H, W))
        elif kind == "Slice":
            places = self._pick((-1, -1 << 40, 2, -1), (-1, -1 << 40, -1, -1), (0, 1 << 40))
            self._add(kind, [name, *map(self._integers, places)], (C, H, W))
        elif kind == "Pad" and H > 2 and W > 2 and H * W < 300:
            mode, value = self._pick("reflect", "edge", "constant", "wrap"), self._constant(np.float32(1.5))
            if mode == "constant" and self._pick(True, False):
                self._add(kind, [name, self._integers(0, 0, -1, 0, 0, 0, 0, 1)], (C, H - 1, W + 1))
            else:
                extra = [value, self._integers(2, -1)] if mode == "constant" else ["", self._integers(2, -1)]
                self._add(kind, [name, self._integers(1, 0, 1, 2), *extra], (C, H + 2, W + 2), mode=mode if self.opset > 18 else "edge")
        elif kind == "DepthToSpace" and C % 4 == 0:
            self._add(kind, [name], (C // 4, 2 * H, 2 * W), blocksize=2)
        elif kind == "SpaceToDepth" and H % 2 == W % 2 == 0:
            self._add(kind, [name], (4 * C, H // 2, W // 2), blocksize=2)

    def _reshaped(self) -> None:
        """Reshape, Flatten, Squeeze and Unsqueeze in every form, and back."""
        others = [*self._others.items()]
        if others and self._random.random() < 0.6:
            name, sizes = others[self._random.integers(len(others))]
            self._add("Flatten", [name], (math.prod(sizes),))
            return
        name, sizes = self._any()
        C, size = sizes[0], math.prod(sizes)
        kind = self._pick("Flatten", "Reshape", "Squeeze", "Unsqueeze", "rows", "zeros")
        if kind == "Flatten":
            self._add(kind, [name], (size,), axis=self._pick(1, -len(sizes)))
        elif kind == "Reshape":
            self._add(kind, [name, self._integers(*self._pick((0, C, -1), (0, 0, size // C), (-1, C, size // C)))], (C, size // C))
        elif kind == "zeros":
            self._add("Reshape", [name, self._integers(0, -1)], (size,))
        elif kind == "rows" and isinstance(self.batch, int):
            self._add("Reshape", [name, self._integers(self.batch, size)], (size,), allowzero=self._pick(0, 1))
        elif kind == "Unsqueeze":
            self._add(kind, [name, self._integers(-1)], (*sizes, 1))
        elif kind == "Squeeze" and len(sizes) == 3 and sizes[1:] == (1, 1):
            axes = self._pick((2, 3), (-1, -2), (3,))
            self._add(kind, [name, self._integers(*axes)], (C,) if len(axes) == 2 else (C, 1))

    def _vector(self) -> None:
        """On from a vector: another linear layer, or an image again."""
        if not self._flat:
            return
        name = self._pick(*self._flat)
        size = self._flat[name]
        if self._pick(True, False) and size < 2000:
            classes = self._pick(1, 7, 16)
            weights, bias = self._normal(size, classes) / np.float32(np.sqrt(size)), self._pick((classes,), (1, classes), (1,), ())
            factors = {"alpha": self._pick(1.0, 0.5, -2.0), "beta": self._pick(1.0, 0.0, 0.3)}
            self._add(
                "Gemm", [name, self._constant(weights), *self._pick([], [self._constant(self._normal(*bias))])], (classes,), **factors
            )
        else:
            self._add("Unsqueeze", [name, self._integers(2, 3)], (size, 1, 1))

    def _normalised(self) -> None:
        name, sizes = self._any()
        C = sizes[0]
        numbers = [self._constant(self._normal(C)) for _ in range(3)]
        kind = self._pick("BatchNormalization", "InstanceNormalization", "LayerNormalization", "Dropout")
        if kind == "BatchNormalization":
            variance = self._constant(self._random.random(C).astype(np.float32) * np.float32(self._pick(1, 1e-2, 1e-4)))
            self._add(kind, [name, *numbers, variance], sizes, epsilon=self._pick(1e-5, 1e-3))
        elif kind == "InstanceNormalization" and len(sizes) == 3:
            self._add(kind, [name, *numbers[:2]], sizes, epsilon=1e-2)
        elif kind == "LayerNormalization":
            scale = self._constant(self._normal(sizes[-1]))
            self._add(kind, [name, scale], sizes, axis=-1, epsilon=1e-2)
        elif kind == "Dropout":
            ratio, training = self._constant(np.float32(0.5)), self._constant(np.array(False))
            self._add(kind, [name, *self._pick([], [ratio], [ratio, training], ["", training])], sizes)

    def _part(self) -> None:
        """Split along any axis, Concat of rows or of vectors."""
        name, sizes = self._any()
        axis = int(self._random.integers(len(sizes)))
        size = sizes[axis]
        if size > 1:
            parts = [size // 2, size - size // 2]
            made = self._add("Split", [name, self._integers(*parts)], _with(sizes, axis, parts[0]), axis=axis + 1)
            self._nodes[-1].output.append(f"{made}b")
            self._know(f"{made}b", _with(sizes, axis, parts[1]))
        if math.prod(sizes) < 3000:
            self._add("Concat", [name, name], _with(sizes, axis, 2 * size), axis=axis - len(sizes))

    # ---- the file

    def _finished(self) -> Any:
        if not self._nodes:
            self._node("Relu", ["x"], self.box)
        sizes: dict[str, tuple[int, ...]] = {**self._boxes, **{name: (size,) for name, size in self._flat.items()}, **self._others}
        read = {name for node in self._nodes for name in node.input}
        made = [name for node in self._nodes for name in node.output if name in sizes]
        names = [name for name in made if name not in read or self._random.random() < 0.25]
        names += [name for name in ("x", *self._sources) if name in sizes and (self._random.random() < 0.03 or not names)]
        info = helper.make_tensor_value_info
        inputs = [info("x", TensorProto.FLOAT, [self.batch, *self.box])]
        inputs += [info(name, _TYPES.get(kind, 1), [self.batch, *dims]) for name, (kind, dims) in self._sources.items()]
        outputs = [info(name, TensorProto.FLOAT, [self.batch, *sizes[name]]) for name in names]
        graph = helper.make_graph(self._nodes, "graph", inputs, outputs, self._constants)
        graph.sparse_initializer.extend(self._sparse)
        used = {node.op_type for node in self._nodes if node.domain == DOMAIN}
        opsets = [helper.make_opsetid("", self.opset), helper.make_opsetid(DOMAIN, 1)]
        return helper.make_model(graph, opset_imports=opsets, functions=functions(used, self.opset), ir_version=10)


def _with(sizes: tuple[int, ...], axis: int, size: int) -> tuple[int, ...]:
    return (*sizes[:axis], size, *sizes[axis + 1 :])
