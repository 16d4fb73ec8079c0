"""An ONNX file -> layers of the engine and, for what the engine does not compute, nodes for ONNX Runtime.

The file is read in its own order, which ONNX requires to be one in which it can be executed. Shapes are computed here, from the
inputs on, and checked; those of nodes left to ONNX Runtime are inferred by onnx and checked when they have run.
"""

import itertools
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...common.errors import RunError
from ..functions import DOMAIN, VERSION
from . import channels, operators
from .attributes import LARGEST, Node, UnsupportedError
from .network import Box, Layer
from .protobuf import Constants, check_names, element_count, read_model

OPSETS = range(18, 24)
"""Versions of the standard operators whose meaning the handlers know."""

_HANDLERS = {
    **operators.HANDLERS,
    ("", "Slice"): channels.slice_,
    ("", "Pad"): channels.pad,
    ("", "Split"): channels.split,
}


@dataclass(frozen=True, kw_only=True)
class Port:
    """An input or output of the network: `dims` without the batch dimension; None where a size is not fixed."""

    name: str
    type: str
    batch: int | str
    dims: tuple[int | None, ...]


@dataclass(frozen=True, kw_only=True)
class Value:
    """A name of the file: its numbers are those of `tensor` in the same order, of shape `dims` a sample."""

    tensor: str
    dims: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Step:
    """One node (or several that belong together): layers, or None where ONNX Runtime runs `nodes`, and why."""

    nodes: tuple[Node, ...]
    layers: tuple[Layer, ...] | None
    reason: str = ""

    @property
    def reads(self) -> set[str]:
        """Names of the file that it needs."""
        own = {name for node in self.nodes for name in node.outputs}
        return {name for node in self.nodes for name in _reads(node.proto) if name and name not in own}

    @property
    def writes(self) -> set[str]:
        """Names of the file that it makes."""
        return {name for node in self.nodes for name in node.outputs if name}


@dataclass(frozen=True, kw_only=True)
class Graph:
    """A file as the engine sees it; `boxes` are the sizes of the tensors that `values` name."""

    model: Any
    where: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    batch: int | None
    steps: tuple[Step, ...]
    values: dict[str, Value]
    boxes: dict[str, Box]
    constants: Constants
    types: dict[str, Any]
    """TypeProtos of names that layers do not know, where onnx does."""


def read_graph(source: Any) -> Graph:
    """The graph of a path or of bytes; UsageError where there is no file, RunError where it cannot be trusted."""
    model, where = read_model(source)
    return Reader(model, where).read()


def _reads(proto: Any) -> set[str]:
    """Inputs of a node, and of the subgraphs in it."""
    names = set(proto.input)
    for attribute in proto.attribute:
        for graph in [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]:
            inner = {name for node in graph.node for name in node.output} | {value.name for value in graph.input}
            names |= {name for node in graph.node for name in _reads(node)} - inner - {tensor.name for tensor in graph.initializer}
            names |= {value.name for value in graph.output} - inner - {tensor.name for tensor in graph.initializer}
    return names


class Reader:
    """What the handlers ask: inputs with their sizes, constants; and tell: outputs."""

    def __init__(self, model: Any, where: str) -> None:
        self.model, self.where = model, where
        self.values: dict[str, Value] = {}
        self.boxes: dict[str, Box] = {}
        self.batch: int | None = None
        self._constants = Constants(model, where)
        self._known = {"", *(tensor.name for tensor in model.graph.initializer)}
        self._types: dict[str, Any] | None = None
        self._batch_name = ""

    def read(self) -> Graph:
        """Everything."""
        graph = self.model.graph
        known = any(entry.domain in ("", "ai.onnx") and entry.version in OPSETS for entry in self.model.opset_import)
        ours = all(entry.version == VERSION for entry in self.model.opset_import if entry.domain == DOMAIN)
        if not ours:
            raise RunError(f"{self.where} uses a newer version of the {DOMAIN} functions; use a newer fineprune or export it again")
        constant = {tensor.name for tensor in graph.initializer}
        inputs = tuple(_port(value, self.where) for value in graph.input if value.name not in constant)
        if not inputs:
            raise RunError(f"{self.where} has no input; export it again")
        self.batch = inputs[0].batch if isinstance(inputs[0].batch, int) else None
        self._batch_name = str(inputs[0].batch)
        self._known.update(value.name for value in graph.input)
        for port in inputs:
            self._define_port(port, inputs[0].batch)
        steps = self._steps(known)
        outputs = tuple(self._output(value, inputs[0].batch) for value in graph.output)
        return Graph(
            model=self.model,
            where=self.where,
            inputs=inputs,
            outputs=outputs,
            batch=self.batch,
            steps=tuple(steps),
            values=self.values,
            boxes=self.boxes,
            constants=self._constants,
            types=self._types if self._types is not None else {},
        )

    def _define_port(self, port: Port, batch: int | str) -> None:
        fixed = [size for size in port.dims if size is not None]
        if port.type == "tensor(float)" and port.batch == batch and len(fixed) == len(port.dims) in (1, 3):
            self._add(port.name, port.name, _box(tuple(fixed)), tuple(fixed), f"{self.where}: input {port.name!r}")

    def _output(self, value: Any, batch: int | str) -> Port:
        """An output as the file describes it, or where it leaves out the shape, as it is."""
        check_names((value.name,), self.where)
        if value.name not in self._known:
            raise RunError(f"{self.where}: no node makes the output {value.name!r}; export it again")
        if value.name in self.values and not value.type.tensor_type.HasField("shape"):
            return Port(name=value.name, type="tensor(float)", batch=batch, dims=self.values[value.name].dims)
        return _port(value, self.where)

    def _steps(self, known_opset: bool) -> list[Step]:
        nodes = [Node(proto, self.where) for proto in self.model.graph.node]
        readers = Counter(name for node in nodes for name in set(node.inputs))
        outputs = {value.name for value in self.model.graph.output}
        steps, position = [], 0
        while position < len(nodes):
            taken = nodes[position : position + 3]
            if not (known_opset and _is_shuffle(taken, readers, outputs)):
                taken = taken[:1]
            for node in taken:
                self._declare(node)
            step = self._step(tuple(taken), known_opset)
            if step is not None:
                steps.append(step)
            position += len(taken)
        return steps

    def _declare(self, node: Node) -> None:
        missing = sorted(_reads(node.proto) - self._known)
        if missing:
            raise node.broken(f"reads {missing[0]!r}, which nothing before it makes (a cycle, or a missing node)")
        for name in node.outputs:
            if name and name in self._known:
                raise node.broken(f"makes {name!r}, which is there already")
            self._known.add(name)

    def _step(self, nodes: tuple[Node, ...], known_opset: bool) -> Step | None:
        """None for a node whose outputs are constants now."""
        node = nodes[0]
        if self._fold(node):
            return None
        before = set(self.values)
        try:
            handler = _HANDLERS.get((node.domain, node.op_type))
            if not known_opset:
                raise UnsupportedError(f"operator set, not one of {OPSETS.start} to {OPSETS.stop - 1}")
            if len(nodes) == 3:
                return Step(nodes=nodes, layers=tuple(channels.shuffle(*nodes, self)))
            if handler is None:
                raise UnsupportedError("operator")
            return Step(nodes=nodes, layers=tuple(handler(node, self)))
        except UnsupportedError as reason:
            for name in set(self.values) - before:
                del self.values[name]
            for made in nodes:
                self._define_foreign(made)
            return Step(nodes=nodes, layers=None, reason=str(reason))

    def _fold(self, node: Node) -> bool:
        if node.domain == DOMAIN and node.op_type in operators.UNPACKING:
            node.require(len(node.outputs) == 1, "has several outputs")
            self._constants.unpack(node.proto, node.attributes.get("shape"))
            return True
        if node.domain == "" and node.op_type == "Constant" and len(node.outputs) == 1:
            return self._constants.constant_node(node.proto, node.attributes)
        return False

    def _define_foreign(self, node: Node) -> None:
        """Outputs of a node that ONNX Runtime runs can be read by layers where onnx knows their shapes."""
        if self._types is None:
            self._types = _infer_types(self.model)
        for name in node.outputs:
            dims = _dims(self._types.get(name))
            sizes = tuple(size for size in dims[1:] if isinstance(size, int) and 0 < size <= LARGEST)
            batch = self.batch if self.batch is not None else self._batch_name
            if len(dims) in (2, 4) and len(sizes) == len(dims) - 1 and dims[0] == batch:
                self._add(name, name, _box(sizes), sizes, node.label)

    def _add(self, name: str, tensor: str, box: Box, dims: tuple[int, ...], label: str) -> None:
        element_count(box, label)
        if max(box) > MOST_CHANNELS or max(box[1:]) > LARGEST or min(box) < 1:
            raise RunError(f"{label} has a tensor of {box} a sample; the file is damaged or too large")
        self.boxes.setdefault(tensor, box)
        self.values[name] = Value(tensor=tensor, dims=dims)

    def value(self, node: Node, index: int) -> Value:
        """Input number `index`: what the engine holds in memory; else UnsupportedError."""
        name = node.input(index)
        node.require(bool(name), f"has no input {index}")
        if name not in self.values:
            raise UnsupportedError(
                f"its input {name!r} is no image or vector of known size" + (" but constant" if name in self._constants else "")
            )
        return self.values[name]

    def image(self, node: Node, index: int) -> Box:
        """(C,H,W) of an input of four dimensions."""
        value = self.value(node, index)
        node.support(len(value.dims) == 3, f"an input of {1 + len(value.dims)} dimensions")
        return self.boxes[value.tensor]

    def tensor(self, name: str) -> str:
        """The tensor that a name stands for."""
        return self.values[name].tensor

    def constant(self, node: Node, index: int) -> NDArray:
        """A constant input; UnsupportedError where it is computed."""
        content = self._constants.get(node.input(index))
        if content is None:
            raise UnsupportedError(f"its input {node.input(index)!r} is not constant")
        return content

    def integers(self, node: Node, index: int) -> list[int]:
        """A constant input of whole numbers, whatever its shape."""
        content = self.constant(node, index)
        node.require(content.dtype.kind in "iu", f"has {node.input(index)!r} of {content.dtype}, not whole numbers")
        return [int(value) for value in content.reshape(-1)]

    def weights(self, node: Node, index: int) -> NDArray[np.float32]:
        """A constant input of finite float32."""
        content = self.constant(node, index)
        node.support(content.dtype == np.float32, f"{content.dtype} weights")
        node.require(bool(np.isfinite(content).all()), f"has {node.input(index)!r} with values that are not finite")
        return content

    def define(self, node: Node, box: Box, dims: tuple[int, ...] | None = None, *, output: int = 0) -> str:
        """An output of the node: a new tensor, called as the file calls it."""
        name = node.outputs[output]
        self._add(name, name, box, box if dims is None else dims, node.label)
        return name

    def alias(self, node: Node, tensor: str, dims: tuple[int, ...]) -> None:
        """The node's output is an existing tensor by another name and shape."""
        node.require(len(node.outputs) >= 1, "has no output")
        self._add(node.outputs[0], tensor, self.boxes[tensor], dims, node.label)


MOST_CHANNELS = 1 << 20


def _is_shuffle(nodes: list[Node], readers: Counter, outputs: set[str]) -> bool:
    if [node.op_type for node in nodes] != ["Reshape", "Transpose", "Reshape"] or any(node.domain for node in nodes):
        return False
    return all(
        len(node.outputs) == 1
        and node.outputs[0] not in outputs
        and readers[node.outputs[0]] == 1
        and following.input(0) == node.outputs[0]
        for node, following in itertools.pairwise(nodes)
    )


def _box(dims: tuple[int, ...]) -> Box:
    return (dims[0], dims[1], dims[2]) if len(dims) == 3 else (dims[0], 1, 1)


_TYPES = {1: "tensor(float)", 6: "tensor(int32)", 7: "tensor(int64)", 9: "tensor(bool)", 10: "tensor(float16)", 11: "tensor(double)"}


def _port(value: Any, where: str) -> Port:
    tensor = value.type.tensor_type
    check_names((value.name, *(dim.dim_param for dim in tensor.shape.dim)), where)
    if not value.type.HasField("tensor_type") or not tensor.HasField("shape") or not tensor.shape.dim:
        raise RunError(f"{where}: {value.name!r} has no shape with a batch dimension; export the network with a batch dimension")
    sizes: list[int | str | None] = []
    for dim in tensor.shape.dim:
        if dim.HasField("dim_value"):
            if not 0 < dim.dim_value <= MOST_CHANNELS:
                raise RunError(f"{where}: {value.name!r} has a size of {dim.dim_value}; the file is damaged, export it again")
            sizes.append(int(dim.dim_value))
        else:
            sizes.append(dim.dim_param or None)
    dims = tuple(size if isinstance(size, int) else None for size in sizes[1:])
    return Port(name=value.name, type=_TYPES.get(tensor.elem_type, f"tensor({tensor.elem_type})"), batch=sizes[0] or "batch", dims=dims)


def _infer_types(model: Any) -> dict[str, Any]:
    import onnx

    try:
        graph = onnx.shape_inference.infer_shapes(model).graph
    except Exception:  # then layers behind it run in ONNX Runtime, which says what is wrong
        graph = model.graph
    return {value.name: value.type for value in (*graph.input, *graph.value_info, *graph.output)}


def _dims(kind: Any) -> tuple[int | str, ...]:
    """Shape of a float32 tensor; () for anything else."""
    if kind is None or kind.tensor_type.elem_type != 1 or not kind.tensor_type.HasField("shape"):
        return ()
    return tuple(dim.dim_value if dim.HasField("dim_value") else dim.dim_param for dim in kind.tensor_type.shape.dim)
