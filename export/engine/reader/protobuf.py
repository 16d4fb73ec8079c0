"""An ONNX file as it is read: refused where it is damaged or points out of its folder; its constants, unpacked and checked.

Nothing here trusts the file: sizes are compared in Python integers before anything is allocated.
"""

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fineprune.common.errors import RunError, UsageError
from fineprune.ops import mask_bits

from ..ir.grids import Integers

MOST_ELEMENTS = 1 << 28
"""Of one tensor: 1 GiB of float32."""
MOST_UNPACKED = 1 << 26
"""Of a tensor whose elements the file does not hold: what a few bytes may become."""


class ContradictionError(RunError):
    """The file says what the engine can make no sense of. It is damaged if ONNX Runtime makes no sense of it either."""


def read_model(source: Any) -> tuple[Any, str]:
    """(ModelProto, what to call it in messages) of a path or of bytes. UsageError where there is no such file, RunError for its content."""
    content, where = read_content(source)
    return parsed_model(content, where), where


class Content(NamedTuple):
    """Bytes of a file, and what to call it in messages."""

    content: bytes
    where: str


def read_content(source: Any) -> tuple[bytes, str]:
    """(content, what to call it in messages) of a path or of bytes. UsageError where there is no such file."""
    if isinstance(source, Content):
        return source
    if isinstance(source, bytes | bytearray | memoryview):
        return bytes(source), "the ONNX bytes"
    if not isinstance(source, str | Path):
        raise UsageError(f"a session takes a path or the bytes of an ONNX file, got {type(source).__name__}")
    try:
        return Path(source).read_bytes(), str(source)
    except OSError as error:
        raise UsageError(f"cannot read {source}: {error.strerror or error}; export the network first") from error


def parsed_model(content: bytes, where: str) -> Any:
    """The ModelProto; RunError for what is no network in one file."""
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except (DecodeError, ValueError) as error:
        raise RunError(f"{where} is not an ONNX file or is damaged ({one_line(error)}); export it again") from error
    if not model.graph.output:
        raise RunError(f"{where} holds no network (no outputs); it is truncated or not an ONNX file, export it again")
    for tensor in _tensors(model):
        if tensor.external_data or tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise RunError(f"{where}: tensor {tensor.name!r} lies in another file, which the engine does not open; save it as one file")
    return model


def _tensors(model: Any) -> Iterator[Any]:
    """Every tensor of the file, in subgraphs and functions too."""
    nodes = []
    graphs = [model.graph]
    for function in model.functions:
        nodes.extend(function.node)
        for default in function.attribute_proto:
            yield from _attribute_tensors(default, graphs)
    while graphs or nodes:
        if graphs:
            graph = graphs.pop()
            yield from graph.initializer
            for sparse in graph.sparse_initializer:
                yield from (sparse.values, sparse.indices)
            nodes.extend(graph.node)
        while nodes:
            for attribute in nodes.pop().attribute:
                yield from _attribute_tensors(attribute, graphs)


def _attribute_tensors(attribute: Any, graphs: list[Any]) -> Iterator[Any]:
    graphs.extend(attribute.graphs)
    if attribute.HasField("g"):
        graphs.append(attribute.g)
    yield from attribute.tensors
    if attribute.HasField("t"):
        yield attribute.t
    for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
        yield from (sparse.values, sparse.indices)


class Constants:
    """The constants of the main graph by name: initializers, Constant nodes and what our functions unpack."""

    def __init__(self, model: Any, where: str) -> None:
        self._where = where
        self._arrays: dict[str, NDArray] = {}
        self._tensors: dict[str, Any] = {}
        self.integers: dict[str, Integers] = {}
        """What outputs of DequantizeLinear are made of."""
        self.dequantized: dict[str, Any] = {}
        """Their nodes."""
        for tensor in model.graph.initializer:
            self._declare(tensor.name)
            self._tensors[tensor.name] = tensor
        for sparse in model.graph.sparse_initializer:
            self._declare(sparse.values.name)
            self._arrays[sparse.values.name] = self._dense(sparse)

    def __contains__(self, name: str) -> bool:
        return name in self._tensors or name in self._arrays

    def __iter__(self) -> Iterator[str]:
        return iter({**self._tensors, **self._arrays})

    def _declare(self, name: str) -> None:
        check_names((name,), self._where)
        if name in self:
            raise ContradictionError(f"{self._where}: two initializers are called {name!r}; export it again")

    def tensor(self, name: str, *, most: int | None = None) -> Any:
        """The constant as a protobuf; where it has more than `most` elements, its type and shape alone."""
        from onnx import TensorProto, numpy_helper

        found = self._tensors.get(name)
        if found is None:
            found = numpy_helper.from_array(self.require(name), name)
        if most is None or math.prod(found.dims) <= most:
            return found
        return TensorProto(name=name, data_type=found.data_type, dims=found.dims)

    def get(self, name: str) -> NDArray | None:
        """The content of `name`, None where it is not constant; RunError where the content does not fit its own description."""
        if name not in self._arrays and name in self._tensors:
            self._arrays[name] = self._array(self._tensors[name])
        return self._arrays.get(name)

    def require(self, name: str) -> NDArray:
        """The content of a name that is constant."""
        content = self.get(name)
        if content is None:
            raise ContradictionError(f"{self._where}: {name!r} is not constant; export it again")
        return content

    def constant_node(self, node: Any, attributes: dict[str, Any]) -> bool:
        """Define the output of a Constant node; False where its form is not one of those that networks use."""
        import onnx

        kinds = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}
        for key, value in attributes.items():
            if key == "value" and isinstance(value, onnx.TensorProto):
                self._arrays[node.output[0]] = self._array(value)
                return True
            if key == "sparse_value" and isinstance(value, onnx.SparseTensorProto):
                self._arrays[node.output[0]] = self._dense(value)
                return True
            if key in kinds:
                self._arrays[node.output[0]] = self._listed(value, kinds[key], f"{self._where}: Constant {node.output[0]!r}")
                return True
        return False

    def unpack(self, node: Any, shape: Any) -> None:
        """Define the output of UnpackMask (bits) or UnpackWeights (values, bits); `shape` is the node's attribute."""
        label = f"{self._where}: {node.op_type} {node.output[0]!r}"
        masks = node.op_type == "UnpackMask"
        if len(node.input) != (1 if masks else 2):
            raise ContradictionError(f"{label} has {len(node.input)} inputs; export it again")
        parts = [self.get(name) for name in node.input]
        if any(part is None for part in parts):
            raise ContradictionError(f"{label} unpacks what is no constant; export it again")
        size = element_count(shape, label)
        bits = parts[-1]
        assert bits is not None  # for the type checker
        if bits.dtype != np.uint8 or bits.shape != (mask_bits.size(size),):
            raise ContradictionError(
                f"{label} needs {mask_bits.size(size)} bytes for shape {tuple(shape)}, found {bits.dtype} {bits.shape}; export it again"
            )
        content = mask_bits.unpack(bits, shape)
        if not masks:
            values = parts[0]
            assert values is not None
            if values.dtype not in (np.float32, np.int8) or values.shape != (np.count_nonzero(content),):
                raise ContradictionError(
                    f"{label}: {np.count_nonzero(content)} bits are set, but there are {values.dtype} {values.shape} values"
                )
            weights = np.zeros(shape, values.dtype)
            weights[content] = values
            content = weights
        self._arrays[node.output[0]] = content

    def dequantize(self, node: Any, attributes: dict[str, Any]) -> bool:
        """Define the output of a DequantizeLinear of constants; False where its form is not one of those that networks use."""
        parts = [self.get(name) if name else None for name in node.input]
        if not 2 <= len(parts) <= 3 or any(part is None for part in parts[:2]) or attributes.get("block_size", 0):
            return False
        values, scales = parts[0], parts[1]
        assert values is not None and scales is not None  # for the type checker
        zeros = parts[2] if len(parts) > 2 and node.input[2] else np.zeros_like(scales, values.dtype)
        if zeros is None or values.dtype not in (np.int8, np.uint8, np.int32) or scales.dtype != np.float32:
            return False
        if zeros.dtype != values.dtype or zeros.size != scales.size or max(zeros.ndim, scales.ndim) > 1:
            return False
        if not (scales > 0).all() or not np.isfinite(scales).all():
            return False
        axis, spread = attributes.get("axis", 1), [1] * values.ndim
        if type(axis) is not int:
            return False
        if scales.size != 1:
            if not -values.ndim <= axis < values.ndim or scales.shape != (values.shape[axis],):
                return False
            spread[axis] = -1
        integers = values.astype(np.int64) - zeros.astype(np.int64).reshape(spread)
        name = node.output[0]
        with np.errstate(over="ignore", under="ignore"):
            self._arrays[name] = integers.astype(np.float32) * scales.reshape(spread)
        self.dequantized[name] = node
        self.integers[name] = Integers(values=integers, scales=scales.reshape(-1), axis=axis % max(1, values.ndim))
        return True

    def _array(self, tensor: Any) -> NDArray:
        from onnx import numpy_helper

        label = f"{self._where}: tensor {tensor.name!r}"
        element_count(tensor.dims, label)
        try:
            return np.asarray(numpy_helper.to_array(tensor))
        except Exception as error:  # whatever numpy and protobuf make of damaged content
            raise ContradictionError(f"{label} of shape {list(tensor.dims)} is damaged ({one_line(error)}); export it again") from error

    @staticmethod
    def _listed(value: Any, kind: Any, label: str) -> NDArray:
        try:
            return np.asarray(value, kind)
        except (ValueError, TypeError, OverflowError) as error:
            raise ContradictionError(f"{label} holds {str(value)[:60]!r}; export it again") from error

    def _dense(self, sparse: Any) -> NDArray:
        """values[k] at indices[k], a position among all elements or one along each axis; zeros elsewhere."""
        label, shape = f"{self._where}: sparse tensor {sparse.values.name!r}", tuple(sparse.dims)
        size = element_count(shape, label, MOST_UNPACKED)
        values, places = self._array(sparse.values), self._array(sparse.indices)
        along = places.ndim == 2 and places.shape == (values.size, len(shape))
        if values.ndim != 1 or values.dtype.kind not in "fiub" or places.dtype != np.int64 or not (along or places.shape == values.shape):
            raise ContradictionError(f"{label} has {values.dtype} {values.shape} values at {places.dtype} {places.shape}; export it again")
        if (places < 0).any() or (places >= (np.array(shape, np.int64) if along else size)).any():
            raise ContradictionError(f"{label} of shape {list(shape)} has values outside of itself; export it again")
        content = np.zeros(shape, values.dtype)
        content.reshape(-1)[np.ravel_multi_index(tuple(places.T), shape) if along else places] = values
        return content


def check_names(names: Iterable[Any], where: str) -> None:
    """ContradictionError for names that are no text: protobuf gives them as bytes."""
    for name in names:
        if not isinstance(name, str):
            raise ContradictionError(f"{where}: {name!r} is no text; the file is damaged, export it again")


def element_count(shape: Iterable[Any] | None, label: str, most: int = MOST_ELEMENTS) -> int:
    """Product of `shape`; RunError where it has more than `most` elements, and where it is no shape."""
    if isinstance(shape, str | bytes) or not isinstance(shape, Iterable):
        raise ContradictionError(f"{label} has shape {shape!r}, which is none; the file is damaged, export it again")
    sizes = list(shape)
    if not all(isinstance(size, int) and size >= 0 for size in sizes):
        raise ContradictionError(f"{label} has shape {sizes}: none, or negative; the file is damaged, export it again")
    if math.prod(sizes) > most:
        raise RunError(f"{label} has shape {sizes}, more than {most} elements; the file is damaged or too large")
    return math.prod(sizes)


def one_line(text: object) -> str:
    """The first line of a message, without what a terminal would obey."""
    lines = str(text).strip().splitlines() or [type(text).__name__]
    return "".join(character if character.isprintable() else "?" for character in lines[0])
