"""ONNX files as graphs of one float32 input [N,C,H,W] and one output; what else they are is refused in one line.

A bundle keeps the graph of its network without the weights, which are in its state dict: large tensors have their dimensions alone.
"""

from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from fineprune.common.errors import RunError, UsageError, said_by

Shape = tuple[int | None, int | None, int | None]
OLDEST = 7
"""The first opset whose operators broadcast as today's do."""
_SMALL = 64
"""Elements of a tensor of floats that may be a setting, such as the bounds of Clip: it stays in a graph without weights."""
_SINGLE = "fineprune.single"
"""In the metadata of a graph that is read for one sample."""
_INTEGERS = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger")


def read(path: Path | str) -> Any:
    """The graph (`onnx.ModelProto`) of the file `path`, functions inlined. UsageError where it is none that can become a network."""
    import onnx
    from onnx import inliner

    path = Path(path)
    if not path.is_file():
        raise UsageError(f"there is no file {path}; check the path")
    try:
        model = onnx.load(path)
    except Exception as error:  # protobuf's errors, those of tensors in other files, of memory
        raise RunError(f"{path} cannot be read as ONNX ({said_by(error)[:200]}); export it again") from error
    if not model.graph.output:
        raise RunError(f"{path} cannot be read as ONNX (it holds no graph); export it again")
    if any(function.domain.startswith("fineprune") for function in model.functions):
        raise UsageError(f"{path} was written by fineprune and carries masks; give the bundle that it was exported from")
    if model.functions:
        model = inliner.inline_local_functions(model)
    return _checked(model, str(path))


def parse(graph: bytes) -> Any:
    """The graph that `architecture` made, from a bundle. RunError where it is none, or names another file."""
    import onnx

    try:
        model = onnx.load_model_from_string(graph)
    except Exception as error:
        raise RunError(f"its graph cannot be read as ONNX ({said_by(error)[:200]}); compress again") from error
    if any(tensor.data_location == tensor.EXTERNAL for tensor in tensors(model)):
        raise RunError("its graph names another file; compress again")
    return _checked(model, "its graph")


def _checked(model: Any, where: str) -> Any:
    """`model` without what is no part of the computation."""
    graph = model.graph
    held = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in held]
    del graph.input[:]
    graph.input.extend(inputs)
    opset = opset_of(model)
    quantised = next((node.op_type for node in graph.node if node.op_type in _INTEGERS or node.op_type.startswith("QLinear")), None)
    if quantised is not None:
        raise UsageError(f"{where} is quantised ({quantised}); give the float32 file that it was made from (--int8 quantises afterwards)")
    if opset < OLDEST:
        raise UsageError(f"{where} is of opset {opset}, older than {OLDEST}; export it again, or convert it (onnx.version_converter)")
    for what, values in (("inputs", graph.input), ("outputs", graph.output)):
        if len(values) != 1:
            names = ", ".join(value.name for value in values) or "none"
            raise UsageError(f"{where} has {len(values)} {what} ({names}), not one; cut the file (onnx.utils.extract_model)")
    kind = graph.input[0].type.tensor_type
    if kind.elem_type != 1:
        raise UsageError(f"{where} takes inputs that are not float32; give the float32 file, without what prepares its images")
    if len(kind.shape.dim) != 4:
        raise UsageError(f"{where} takes inputs of {len(kind.shape.dim)} dimensions, not images [N,C,H,W]")
    channels, _, width = input_shape(model)
    if channels not in (1, 3) and width in (1, 3):
        raise UsageError(f"{where} takes its channels last, [N,H,W,C]; export it as [N,C,H,W] (tf2onnx: --inputs-as-nchw)")
    del graph.value_info[:]
    for entry in [entry for entry in model.metadata_props if entry.key != _SINGLE]:
        model.metadata_props.remove(entry)
    for node in graph.node:
        node.ClearField("doc_string")
        del node.metadata_props[:]
    return model


def opset_of(model: Any) -> int:
    """Version of the standard operators."""
    return next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 1)


def input_shape(model: Any) -> Shape:
    """(C, H, W) of the input; None for a size that the file leaves open."""
    sizes = [dim.dim_value or None for dim in model.graph.input[0].type.tensor_type.shape.dim]
    return sizes[1], sizes[2], sizes[3]


def batch_of(model: Any) -> int | None:
    """How many samples the file takes at a time; None for any number."""
    return model.graph.input[0].type.tensor_type.shape.dim[0].dim_value or None


def single(model: Any) -> Any:
    """A copy of the graph that is read for one sample at a time."""
    import onnx

    alone = onnx.ModelProto()
    alone.CopyFrom(model)
    alone.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    alone.metadata_props.add(key=_SINGLE, value="true")
    return alone


def is_single(model: Any) -> bool:
    """Whether `single` made the graph."""
    return any(entry.key == _SINGLE for entry in model.metadata_props)


def sized(model: Any, shape: Sequence[int]) -> Any:
    """The graph for inputs of `shape` (C,H,W) alone."""
    for dim, size in zip(model.graph.input[0].type.tensor_type.shape.dim[1:], shape, strict=True):
        dim.dim_value = size
    return model


def architecture(model: Any) -> bytes:
    """The graph without its weights, as a bundle keeps it."""
    import onnx

    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    for tensor in tensors(bare):
        if tensor.data_type == tensor.FLOAT and prod(tensor.dims) > _SMALL:
            tensor.ClearField("raw_data")
            tensor.ClearField("float_data")
    return bare.SerializeToString(deterministic=True)


def elements(graph: bytes) -> int:
    """How many numbers the tensors of a graph have, also of those that are left out."""
    return sum(prod(tensor.dims) for tensor in tensors(parse(graph)))


def tensors(model: Any) -> list[Any]:
    """Every `onnx.TensorProto` that the graph holds."""
    constants = [
        attribute.t for node in model.graph.node if node.op_type == "Constant" for attribute in node.attribute if attribute.name == "value"
    ]
    return [*model.graph.initializer, *constants]


def array(tensor: Any) -> np.ndarray:
    """What a TensorProto holds; zeros where its values are left out."""
    from onnx import numpy_helper

    if tensor.data_type == tensor.FLOAT and prod(tensor.dims) and not tensor.raw_data and not tensor.float_data:
        return np.zeros(tuple(tensor.dims), np.float32)
    return numpy_helper.to_array(tensor).copy()
