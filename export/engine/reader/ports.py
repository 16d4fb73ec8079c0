"""Inputs and outputs of a network, as the file describes them and as arrays of the caller are checked against."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..ir.dtypes import DTYPES, DType
from .protobuf import ContradictionError, check_names


@dataclass(frozen=True, kw_only=True)
class Port:
    """`shape`: an integer where a size is fixed, the name of a size, or None; None as a whole where the file says nothing of it."""

    name: str
    type: str
    shape: tuple[int | str | None, ...] | None

    @property
    def dtype(self) -> DType | None:
        """The type of its numbers, where the engine knows that."""
        return next((dtype for dtype in DTYPES if type_text(dtype) == self.type), None)

    @property
    def is_image_or_vector(self) -> bool:
        """Whether the engine can hold it in memory: [batch, channels, height, width] or [batch, features] of fixed sizes."""
        shape = self.shape or ()
        return self.dtype is not None and len(shape) in (2, 4) and all(isinstance(size, int) and size > 0 for size in shape[1:])

    @property
    def is_of_any_size(self) -> bool:
        """Whether it is [batch, channels, height, width] with a height or a width that the file leaves free."""
        shape = self.shape or ()
        return (
            self.dtype is not None
            and len(shape) == 4
            and isinstance(shape[1], int)
            and not all(isinstance(size, int) for size in shape[2:])
        )

    def takes(self, array: Any) -> bool:
        """Whether an array has the type of the port."""
        if not isinstance(array, np.ndarray) or not array.dtype.isnative:
            return False
        return self.type == ("tensor(string)" if array.dtype.kind in "OU" else type_text(array.dtype))

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether an array of this shape may be fed."""
        own = self.shape if self.shape is not None else shape
        return len(own) == len(shape) and all(not isinstance(want, int) or want == size for want, size in zip(own, shape, strict=True))


@dataclass(frozen=True, kw_only=True)
class Value:
    """A name of the file: its numbers are those of `tensor` in the same order, of shape `dims` a sample."""

    tensor: str
    dims: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Interface:
    """What a caller sees of a file, which is called `where` in messages; `dtypes`: types of the tensors that `values` name."""

    where: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    values: dict[str, Value]
    dtypes: dict[str, DType]


_NUMPY_TYPES = {
    **{name: f"tensor({name})" for name in ("uint8", "int8", "uint16", "int16", "int32", "int64", "uint32", "uint64", "bool", "float16")},
    "float32": "tensor(float)",
    "float64": "tensor(double)",
}


def type_text(dtype: DType) -> str | None:
    """What ONNX Runtime calls tensors of a type, if it has a name for it."""
    return _NUMPY_TYPES.get(dtype.name)


def port(value: Any, where: str) -> Port:
    """The port that a ValueInfoProto describes."""
    from onnx import TensorProto

    tensor = value.type.tensor_type
    check_names((value.name, *(dim.dim_param for dim in tensor.shape.dim)), where)
    if not value.type.HasField("tensor_type"):
        kind = value.type.WhichOneof("value") or "nothing"
        return Port(name=value.name, type=kind.removesuffix("_type"), shape=None)
    names = {number: name.lower() for name, number in TensorProto.DataType.items()}
    kind = f"tensor({names.get(tensor.elem_type, tensor.elem_type)})"
    shape = tuple(_size(dim) for dim in tensor.shape.dim) if tensor.HasField("shape") else None
    if shape and shape[0] is None:
        shape = ("batch", *shape[1:])
    return Port(name=value.name, type=kind, shape=shape)


def _size(dim: Any) -> int | str | None:
    """Of a negative size ONNX Runtime takes as little notice."""
    if dim.HasField("dim_value"):
        return int(dim.dim_value) if dim.dim_value >= 0 else None
    return dim.dim_param or None


def input_ports(model: Any, where: str) -> tuple[Port, ...]:
    """What a run is fed."""
    constant = {tensor.name for tensor in model.graph.initializer} | {sparse.values.name for sparse in model.graph.sparse_initializer}
    ports = tuple(port(value, where) for value in model.graph.input if value.name not in constant)
    if len({port.name for port in ports}) < len(ports):
        raise ContradictionError(f"{where}: two inputs have the same name; export it again")
    return ports
