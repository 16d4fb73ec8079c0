"""Random small ONNX networks out of everything that the engine has a handler for, and now and then something that it has none for."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from fineprune.export.functions import DEPTHWISE, DOMAIN, MASKED, POINTWISE, functions
from support.onnx_graphs import OPSET

Box = tuple[int, int, int]
_SOFTPLUS_OF = 25
"""One node in so many is left to ONNX Runtime."""


class RandomNetwork:
    """A network of `nodes` nodes over x[n, *box]; every tensor that nobody reads, and some others, are its outputs.

    foreign: whether the engine leaves some of it to ONNX Runtime, whose results may depend on the number of threads.
    """

    def __init__(self, seed: int, nodes: int) -> None:
        self._random, self.foreign = np.random.default_rng(seed), False
        self.box: Box = (self._pick(1, 3, 8, 16, 20), self._pick(3, 5, 8, 17), self._pick(3, 4, 7, 18))
        self._boxes: dict[str, Box] = {"x": self.box}
        self._flat: dict[str, int] = {}
        self._nodes: list[Any] = []
        self._constants: list[Any] = []
        while len(self._nodes) < nodes:
            self._pick(*self._kinds())()

    def _kinds(self) -> list[Callable[[], None]]:
        """What adds nodes, as often as it is to be picked."""
        often = [self._conv] * 6 + [self._unary] * 3 + [self._binary] * 3 + [self._parts] * 2
        return [*often, self._pool, self._mean, self._shuffle, self._resize, self._head]

    def serialized(self) -> bytes:
        """The file."""
        read = {name for node in self._nodes for name in node.input}
        made = [name for node in self._nodes for name in node.output if name in self._boxes or name in self._flat]
        names = [name for name in made if name not in read or self._random.random() < 0.15]
        sizes = {**self._boxes, **{name: (size,) for name, size in self._flat.items()}}
        x, *outputs = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", *sizes[name]]) for name in ("x", *names))
        graph = helper.make_graph(self._nodes, "network", [x], outputs, self._constants)
        used = {node.op_type for node in self._nodes if node.domain == DOMAIN}
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
        return helper.make_model(graph, opset_imports=opsets, functions=functions(used, OPSET), ir_version=10).SerializeToString()

    def _pick(self, *values: Any) -> Any:
        return values[self._random.integers(len(values))]

    def _image(self) -> str:
        """A recent tensor rather than an old one: networks are deep."""
        names = list(self._boxes)
        return names[-1 - min(int(self._random.geometric(0.5)) - 1, len(names) - 1)]

    def _constant(self, content: Any) -> str:
        name = f"c{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.asarray(content), name))
        return name

    def _normal(self, *shape: int) -> NDArray[np.float32]:
        return self._random.standard_normal(shape, np.float32)

    def _node(self, op_type: str, inputs: list[str], box: Box | None, domain: str = "", **attributes: Any) -> str:
        name = f"t{len(self._nodes)}"
        self._nodes.append(helper.make_node(op_type, inputs, [name], name=f"{op_type} {name}", domain=domain, **attributes))
        if box:
            self._boxes[name] = box
        return name

    def _conv(self) -> None:
        name = self._image()
        C, H, W = self._boxes[name]
        kernel, dilations, strides = ([self._pick(*sizes), self._pick(*sizes)] for sizes in ((1, 2, 3), (1, 1, 2), (1, 1, 2, 3)))
        pads = [self._pick(0, 1, 1, 2) for _ in range(4)]
        groups = self._pick(*(g for g in (1, 1, 1, 2, C) if C % g == 0))
        filters = groups * (self._pick(1, 1, 2) if groups > 2 else self._pick(1, 5, 16, 24))
        if self._random.random() < 0.25:
            kernel, dilations, strides, pads, groups = [1, 1], [1, 1], [1, 1], [0] * 4, 1
            filters = self._pick(C, 16, 33)
        oh, ow = ((size + pads[a] + pads[a + 2] - dilations[a] * (kernel[a] - 1) - 1) // strides[a] + 1 for a, size in enumerate((H, W)))
        if min(oh, ow) < 1:
            return
        weights = self._normal(filters, C // groups, *kernel) / np.float32(np.sqrt(C // groups * kernel[0] * kernel[1]))
        weights[self._random.random(weights.shape) >= self._pick(1.0, 1.0, 0.5, 0.1)] = 0
        weights[:, self._random.random(weights.shape[1:]) >= self._pick(1.0, 1.0, 0.5)] = 0
        attributes: dict[str, Any] = {"kernel_shape": kernel, "strides": strides, "pads": pads, "dilations": dilations, "group": groups}
        inputs, bias = [name, self._constant(weights)], self._constant(self._normal(filters))
        if self._random.random() < 0.5:
            self._node("Conv", [*inputs, bias], (filters, oh, ow), **attributes)
            return
        del attributes["kernel_shape"]
        mask = self._random.random((C, oh, ow)) < self._pick(0.0, 0.3, 0.7, 1.0)
        if self._random.random() < 0.5:  # blocks of positions as calibration finds them
            mask = np.broadcast_to(self._random.random((C, oh, 1)) < 0.6, mask.shape).copy()
        plain = (kernel, strides, pads) == ([1, 1], [1, 1], [0] * 4)
        kind = DEPTHWISE if groups == C and C > 1 else POINTWISE if plain else MASKED
        more = {"channels": C, "taps": kernel[0] * kernel[1]} if kind == MASKED else {"channels": C}
        self._node(kind, [*inputs, self._constant(mask), bias], (filters, oh, ow), domain=DOMAIN, **attributes, **more)

    def _unary(self) -> None:
        name = self._image()
        C, box = self._boxes[name][0], self._boxes[name]
        kind = self._pick("Relu", "Clip", "Sigmoid", "HardSigmoid", "HardSwish", "silu", "BatchNormalization", "Identity", "Dropout")
        if self._random.integers(_SOFTPLUS_OF) == 0:
            kind, self.foreign = "Softplus", True
        if kind == "Clip":
            self._node(kind, [name, self._constant(np.float32(self._pick(-0.5, 0.0, 0.2))), self._constant(np.float32(0.9))], box)
        elif kind == "silu":
            self._node("Mul", [name, self._node("Sigmoid", [name], box)], box)
        elif kind == "BatchNormalization":
            numbers = [self._normal(C), self._normal(C), self._normal(C), self._random.random(C).astype(np.float32) + np.float32(0.5)]
            self._node(kind, [name, *map(self._constant, numbers)], box)
        else:
            self._node(kind, [name], box)

    def _binary(self) -> None:
        name = self._image()
        box = self._boxes[name]
        alike = [other for other in self._boxes if self._boxes[other] == box]
        scales = [other for other in self._boxes if self._boxes[other] == (box[0], 1, 1)]
        if scales and self._random.random() < 0.5:
            pair = [name, self._pick(*scales)]
            self._node("Mul", pair[:: self._pick(1, -1)], box)
        else:
            both = self._node(self._pick("Add", "Add", "Mul"), [name, self._pick(*alike)], box)
            self._node("Clip", [both, self._constant(np.float32(-3)), self._constant(np.float32(3))], box)  # numbers do not grow

    def _parts(self) -> None:
        name = self._image()
        C, H, W = self._boxes[name]
        kind = self._pick("Concat", "Concat", "Slice", "Split", "Pad")
        if kind == "Concat":
            others = [other for other, box in self._boxes.items() if box[1:] == (H, W) and box[0] + C < 100]
            joined = [name] + [self._pick(*others) for _ in range(self._pick(0, 1, 2)) if others]
            self._node(kind, joined, (sum(self._boxes[part][0] for part in joined), H, W), axis=1)
        elif kind == "Slice":
            axis = self._pick(1, 1, 2, 3)
            size, step = self._boxes[name][axis - 1], self._pick(1, 1, 2)
            start = int(self._random.integers(size))
            end = int(self._random.integers(start + 1, size + 1))
            kept = [len(range(start, end, step)) if a == axis - 1 else s for a, s in enumerate((C, H, W))]
            self._node(kind, [name, *(self._constant(np.array([v])) for v in (start, end, axis, step))], (kept[0], kept[1], kept[2]))
        elif kind == "Split" and C > 1:
            first = int(self._random.integers(1, C))
            left = self._node(kind, [name, self._constant(np.array([first, C - first]))], (first, H, W), axis=1)
            self._nodes[-1].output.append(f"{left}b")
            self._boxes[f"{left}b"] = (C - first, H, W)
        elif kind == "Pad" and H * W < 400:
            pads = [0, self._pick(0, 1), self._pick(0, 2), 1, 0, self._pick(0, 3), 1, self._pick(0, 1)]
            box = (C + pads[1] + pads[5], H + pads[2] + pads[6], W + pads[3] + pads[7])
            self._node(kind, [name, self._constant(np.array(pads))], box)

    def _pool(self) -> None:
        name = self._image()
        C, H, W = self._boxes[name]
        kind, kernel, strides = self._pick("MaxPool", "AveragePool"), [self._pick(1, 2, 3), self._pick(2, 3)], [self._pick(1, 2, 3)] * 2
        pads = [self._pick(0, (kernel[a % 2] - 1) // 2) for a in range(4)]
        free = [size + pads[a] + pads[a + 2] - kernel[a] for a, size in enumerate((H, W))]
        if min(free) < 0:
            return
        attributes: dict[str, Any] = {"kernel_shape": kernel, "strides": strides, "pads": pads}
        sizes = [f // s + 1 for f, s in zip(free, strides, strict=True)]
        if kind == "AveragePool":
            attributes["count_include_pad"] = self._pick(0, 1)
        elif all(-(-f // s) * s < size + pads[a] for a, (f, s, size) in enumerate(zip(free, strides, (H, W), strict=True))):
            attributes["ceil_mode"] = 1  # shape inference of this operator set also counts windows that begin behind the image
            sizes = [-(-f // s) + 1 for f, s in zip(free, strides, strict=True)]
        self._node(kind, [name], (C, sizes[0], sizes[1]), **attributes)

    def _mean(self) -> None:
        name = self._image()
        C = self._boxes[name][0]
        if self._pick(True, False):
            self._node("GlobalAveragePool", [name], (C, 1, 1))
        else:
            self._node("ReduceMean", [name, self._constant(np.array([-1, 2]))], (C, 1, 1), keepdims=1)

    def _shuffle(self) -> None:
        name = self._image()
        C, H, W = self._boxes[name]
        groups = self._pick(*(g for g in (1, 2, 3, 4) if C % g == 0))
        inner = self._node("Reshape", [name, self._constant(np.array([-1, groups, C // groups, H, W]))], None)
        moved = self._node("Transpose", [inner], None, perm=[0, 2, 1, 3, 4])
        self._node("Reshape", [moved, self._constant(np.array([self._pick(0, -1), C, H, W]))], (C, H, W))

    def _resize(self) -> None:
        """By factors that are exact, so that no place lies between two pixels by a rounding error."""
        name = self._image()
        C, H, W = self._boxes[name]
        scales = np.array([1, 1, self._pick(0.5, 1, 2), self._pick(1, 2)], np.float32)
        if H * W > 200 or H == 1:
            return
        how = self._pick("nearest", "linear")
        coordinates = self._pick("half_pixel", "asymmetric")
        more = {"nearest_mode": "floor"} if how == "nearest" else {}
        box = (C, int(H * scales[2]), int(W * scales[3]))
        self._node("Resize", [name, "", self._constant(scales)], box, mode=how, coordinate_transformation_mode=coordinates, **more)

    def _head(self) -> None:
        """Flatten or Reshape, perhaps two of them joined, then Gemm or MatMul, perhaps a Relu or a Softmax."""
        flat, size = [], 0
        for name in [self._image() for _ in range(self._pick(1, 1, 2))]:
            box = self._boxes[name]
            size += box[0] * box[1] * box[2]
            flat.append(self._flattened(name))
        if size > 3000:
            return
        joined = self._node("Concat", flat, None, axis=1) if len(flat) > 1 else flat[0]
        classes = self._pick(1, 10, 35)
        weights = self._normal(size, classes) / np.float32(np.sqrt(size))
        if self._pick(True, False):
            made = self._node("MatMul", [joined, self._constant(weights)], None)
        else:
            inputs = [joined, self._constant(weights.T.copy()), self._constant(self._normal(classes))]
            made = self._node("Gemm", inputs, None, transB=1, alpha=0.5)
        self._flat[made] = classes
        if self._pick(True, False):
            self._flat[self._node(self._pick("Relu", "Softmax"), [made], None)] = classes

    def _flattened(self, name: str) -> str:
        if self._pick(True, False):
            return self._node("Flatten", [name], None)
        return self._node("Reshape", [name, self._constant(np.array([0, -1]))], None)
