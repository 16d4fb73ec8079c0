"""An ONNX file -> layers of the engine and, for what the engine does not compute, nodes for ONNX Runtime.

The file is read in its own order, which ONNX requires to be one in which it can be executed. Shapes are computed here, from the
inputs on, and checked; those of nodes left to ONNX Runtime are inferred by onnx and checked when they have run.
"""

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fineprune.common.errors import RunError

from ...functions import DEQUANTIZE_WEIGHTS, DOMAIN, UNPACK_MASK, UNPACK_WEIGHTS, VERSION, functions
from .. import ops  # noqa: F401 - the operations register their handlers
from ..ir.dtypes import DTYPES, FLOAT32, DType
from ..ir.grids import Integers
from ..ir.network import HANDLERS, SEQUENCES, Box, Layer
from .attributes import LARGEST, Node, UnsupportedError
from .inference import infer_types
from .ports import Interface, Port, Value, input_ports, port, type_text
from .protobuf import Constants, ContradictionError, check_names, element_count, one_line, parsed_model, read_content, read_model
from .qoperators import as_qdq

OPSETS = range(18, 24)
"""Versions of the standard operators whose meaning the handlers know."""

_UNPACKING = (UNPACK_MASK, UNPACK_WEIGHTS)
_LENGTHS = sorted(set(map(len, SEQUENCES)), reverse=True)


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
class Graph(Interface):
    """A file as the engine sees it; `boxes` are the sizes of the tensors that `values` name.

    whole: why ONNX Runtime runs the file as it is, where the engine can make no sense of it; then there are no steps.
    """

    model: Any
    batch: int | None
    steps: tuple[Step, ...]
    boxes: dict[str, Box]
    constants: Constants | None
    types: dict[str, Any]
    """TypeProtos of names that layers do not know, where onnx does."""
    whole: str = ""


def read_graph(source: Any) -> Graph:
    """The graph of a path or of bytes; UsageError where there is no file, RunError where it cannot be trusted."""
    return parsed_graph(*read_content(source))


def parsed_graph(content: bytes, where: str) -> Graph:
    """The graph of the content of a file that is called `where`; RunError where it cannot be trusted."""
    return Reader(as_qdq(parsed_model(content, where)), where).read()


def whole_graph(source: Any, reason: ContradictionError) -> Graph:
    """A file in which the engine found a contradiction, to be run by ONNX Runtime as it is; RunError where that would be too large."""
    model, where = read_model(source)
    return Graph(
        model=model,
        where=where,
        inputs=input_ports(model, where),
        outputs=tuple(port(value, where) for value in model.graph.output),
        batch=None,
        steps=(),
        values={},
        boxes={},
        dtypes={},
        constants=None,
        types=infer_types(model, None, where),
        whole=one_line(reason),
    )


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
        self.dtypes: dict[str, DType] = {}
        self.batch: int | None = None
        self._constants = Constants(model, where)
        self._known = {"", *self._constants}
        self._types: dict[str, Any] | None = None
        self._batch_name = ""

    def read(self) -> Graph:
        """Everything."""
        graph = self.model.graph
        standard = [entry.version for entry in self.model.opset_import if entry.domain in ("", "ai.onnx")]
        known = len(standard) == 1 and standard[0] in OPSETS
        self._foreign_functions = _foreign_functions(self.model, standard)
        if any(entry.version != VERSION for entry in self.model.opset_import if entry.domain == DOMAIN):
            raise ContradictionError(
                f"{self.where} uses another version of the {DOMAIN} functions; use a newer fineprune or export it again"
            )
        inputs = input_ports(self.model, self.where)
        ours = [entry for entry in inputs if entry.is_image_or_vector]
        ours.sort(key=lambda entry: entry.dtype != FLOAT32)  # images say what a batch is, not numbers beside them
        batch = ours[0].shape[0] if ours and ours[0].shape else None
        if batch == 0:
            raise ContradictionError(f"{self.where}: {ours[0].name!r} has a batch size of 0; export it again")
        self.batch, self._batch_name = batch if isinstance(batch, int) else None, str(batch)
        self._known.update(value.name for value in graph.input)
        for entry in ours:
            if entry.shape and entry.shape[0] == batch and entry.dtype:
                self.dtypes[entry.name] = entry.dtype
                sizes = tuple(size for size in entry.shape[1:] if isinstance(size, int))
                self._add(entry.name, entry.name, _box(sizes), sizes, f"{self.where}: input {entry.name!r}")
        steps = self._steps(known)
        outputs = tuple(self._output(value, batch) for value in graph.output)
        return Graph(
            model=self.model,
            where=self.where,
            inputs=inputs,
            outputs=outputs,
            batch=self.batch,
            steps=tuple(steps),
            values=self.values,
            boxes=self.boxes,
            dtypes=self.dtypes,
            constants=self._constants,
            types=self._types if self._types is not None else {},
        )

    def _output(self, value: Any, batch: int | str | None) -> Port:
        """An output as the file describes it, or where it leaves out the shape, as it is."""
        check_names((value.name,), self.where)
        if value.name not in self._known or not value.name:
            raise ContradictionError(f"{self.where}: no node makes the output {value.name!r}; export it again")
        if value.name in self.values and not value.type.tensor_type.HasField("shape"):
            found = self.values[value.name]
            return Port(name=value.name, type=type_text(self.dtypes[found.tensor]) or "", shape=(batch, *found.dims))
        return port(value, self.where)

    def _steps(self, known_opset: bool) -> list[Step]:
        nodes = [Node(proto, self.where) for proto in self.model.graph.node]
        readers = Counter(name for node in nodes for name in set(node.inputs))
        outputs = {value.name for value in self.model.graph.output}
        steps, position = [], 0
        while position < len(nodes):
            parts = [nodes[position : position + length] for length in _LENGTHS] if known_opset else []
            taken = next((part for part in parts if _belong_together(part, readers, outputs)), nodes[position : position + 1])
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
        values, boxes, dtypes = dict(self.values), dict(self.boxes), dict(self.dtypes)
        try:
            handler = None if (node.domain, node.op_type) in self._foreign_functions else HANDLERS.get((node.domain, node.op_type))
            if not known_opset:
                raise UnsupportedError(f"operator set, not one of {OPSETS.start} to {OPSETS.stop - 1}")
            if len(nodes) > 1:
                return Step(nodes=nodes, layers=self._typed(node, SEQUENCES[tuple(made.op_type for made in nodes)](*nodes, self)))
            if handler is None:
                raise UnsupportedError("operator")
            return Step(nodes=nodes, layers=self._typed(node, handler(node, self)))
        except UnsupportedError as reason:
            self.values, self.boxes, self.dtypes = values, boxes, dtypes
            for made in nodes:
                self._define_foreign(made)
            return Step(nodes=nodes, layers=None, reason=str(reason))

    def _typed(self, node: Node, layers: Sequence[Layer]) -> tuple[Layer, ...]:
        """The layers of a node, their outputs' types noted; UnsupportedError where they cannot compute with what they read."""
        for layer in layers:
            read = [self.dtypes[name] for name in layer.inputs]
            made = layer.dtype(read)
            if made is None:
                raise UnsupportedError(f"inputs of {', '.join(sorted({str(dtype) for dtype in read}))}")
            self.dtypes[layer.output] = made
        return tuple(layers)

    def _fold(self, node: Node) -> bool:
        if (node.domain, node.op_type) in self._foreign_functions:
            return False
        if node.domain == DOMAIN and node.op_type in _UNPACKING:
            node.require(len(node.outputs) == 1, "has several outputs")
            self._constants.unpack(node.proto, node.attributes.get("shape"))
            return True
        if node.domain == DOMAIN and node.op_type == DEQUANTIZE_WEIGHTS and len(node.outputs) == 1:
            return self._constants.dequantize(node.proto, {"axis": 0})
        if node.domain == "" and node.op_type == "DequantizeLinear" and len(node.outputs) == 1:
            return self._constants.dequantize(node.proto, node.attributes)
        if node.domain == "" and node.op_type == "Constant" and len(node.outputs) == 1:
            return self._constants.constant_node(node.proto, node.attributes)
        return False

    def _define_foreign(self, node: Node) -> None:
        """Outputs of a node that ONNX Runtime runs can be read by layers where onnx knows their shapes."""
        if self._types is None:
            self._types = infer_types(self.model, self._constants, self.where)
        for name in node.outputs:
            dtype, dims = _described(self._types.get(name))
            sizes = tuple(size for size in dims[1:] if isinstance(size, int) and 0 < size <= LARGEST)
            batch = self.batch if self.batch is not None else self._batch_name
            if dtype and len(dims) in (2, 4) and len(sizes) == len(dims) - 1 and dims[0] == batch:
                self._add(name, name, _box(sizes), sizes, node.label)
                self.dtypes[name] = dtype

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
        node.support(bool(np.isfinite(content).all()), f"values in {node.input(index)!r} that are not finite")
        return content

    def integers_of(self, name: str, axis: int) -> Integers | None:
        """What a constant is made of, where the file holds it as integers with scales along `axis`, or one scale."""
        found = self._constants.integers.get(name)
        return found if found is not None and (found.scales.size == 1 or found.axis == axis) else None

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


def _foreign_functions(model: Any, opsets: list[int]) -> set[tuple[str, str]]:
    """(domain, name) of functions in the file that are not those that fineprune writes: only ONNX Runtime knows what they compute."""
    names = {function.name for function in model.functions if function.domain == DOMAIN}
    own = {function.name: _essence(function) for function in functions(names, opsets[0])} if names and opsets else {}
    return {
        (function.domain, function.name)
        for function in model.functions
        if function.domain != DOMAIN or own.get(function.name) != _essence(function)
    }


def _essence(function: Any) -> Any:
    """What a function computes: all but comments and what tools note beside it."""
    nodes = [
        (node.domain, node.op_type, *node.input, "", *node.output, *sorted(a.SerializeToString(deterministic=True) for a in node.attribute))
        for node in function.node
    ]
    return [*function.input], [*function.output], sorted(function.attribute), nodes


def _belong_together(nodes: list[Node], readers: Counter, outputs: set[str]) -> bool:
    """Whether one handler takes them all: each is read by the next alone."""
    if tuple(node.op_type for node in nodes) not in SEQUENCES or any(node.domain for node in nodes):
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


def _described(kind: Any) -> tuple[DType | None, tuple[int | str, ...]]:
    """(type, shape) of a tensor of a type that the engine knows; (None, ()) for anything else."""
    import onnx

    known = {onnx.helper.np_dtype_to_tensor_dtype(dtype): dtype for dtype in DTYPES}
    if kind is None or kind.tensor_type.elem_type not in known or not kind.tensor_type.HasField("shape"):
        return None, ()
    dims = tuple(dim.dim_value if dim.HasField("dim_value") else dim.dim_param for dim in kind.tensor_type.shape.dim)
    return known[kind.tensor_type.elem_type], dims
