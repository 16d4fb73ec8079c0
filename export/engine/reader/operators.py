"""Nodes of an ONNX graph -> layers of the engine: one handler an operator, which checks all that it uses.

A handler raises RunError where the file contradicts itself, UnsupportedError where ONNX Runtime has to run the node.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fineprune.ops.geometry import windows

from ...functions import DEPTHWISE, DOMAIN, MASKED, POINTWISE, UNPACK_MASK, UNPACK_WEIGHTS
from ..ir.conv import ConvShape
from ..ir.network import Assemble, Box, Conv, Layer, Map, Mean, Piece, Pool
from .attributes import LARGEST, Node

if TYPE_CHECKING:
    from .graph import Reader

Handler = Callable[[Node, "Reader"], list[Layer]]


def conv(node: Node, reader: "Reader") -> list[Layer]:
    """Conv(X, W, B?) and the masked convolutions (X, W, M, B)."""
    masked = node.domain == DOMAIN
    node.arity(4 if masked else 2, 4 if masked else 3)
    x = reader.image(node, 0)
    weights = reader.weights(node, 1)
    node.support(weights.ndim == 4, f"weights of {weights.ndim} dimensions")
    F, per_group, kh, kw = weights.shape
    groups = node.integer("group", 1)
    node.require(F > 0 and kh > 0 and kw > 0 and max(kh, kw) <= LARGEST, f"has weights of shape {weights.shape}")
    node.require(
        groups > 0 and per_group * groups == x[0] and F % groups == 0, f"of group {groups} has {weights.shape} weights, {x[0]} inputs"
    )
    kernel = node.sizes("kernel_shape", (kh, kw), 1)
    node.require(kernel == (kh, kw), f"has kernel_shape {kernel}, but weights of shape {weights.shape}")
    shape = ConvShape(
        channels=x[0],
        filters=F,
        height=x[1],
        width=x[2],
        kernel=(kh, kw),
        strides=node.pair("strides"),
        pads=node.pads(),
        dilations=node.pair("dilations"),
        groups=groups,
    )
    node.require(min(shape.output) > 0, f"has no output: input {x}, kernel {kernel}, dilations {shape.dilations}, pads {shape.pads}")
    if masked:
        node.require(node.integer("channels", x[0]) == x[0], f"has channels={node.integer('channels', 0)}, its input {x[0]}")
    mask = _mask(node, reader, (x[0], *shape.output)) if masked else None
    bias = _bias(node, reader, 3 if masked else 2, F)
    output = reader.define(node, (F, *shape.output))
    name = node.name if node.name else output
    return [Conv(name=name, inputs=(reader.tensor(node.inputs[0]),), output=output, shape=shape, weights=weights, bias=bias, mask=mask)]


def _mask(node: Node, reader: "Reader", shape: Box) -> NDArray[np.bool_]:
    mask = reader.constant(node, 2)
    node.require(mask.dtype == np.bool_ and mask.shape == shape, f"has a mask {mask.dtype} {mask.shape}, its blocks are {shape}")
    return mask


def _bias(node: Node, reader: "Reader", index: int, filters: int) -> NDArray[np.float32]:
    if not node.input(index):
        return np.zeros(filters, np.float32)
    bias = reader.weights(node, index)
    node.require(bias.shape == (filters,), f"has a bias of shape {bias.shape} for {filters} filters")
    return bias


def gemm(node: Node, reader: "Reader") -> list[Layer]:
    """Gemm(X, W, B?) of a flat X: a convolution whose kernel covers its input."""
    node.arity(2, 3)
    node.support(not node.integer("transA", 0), "transA")
    weights = reader.weights(node, 1)
    node.support(weights.ndim == 2, "weights of another rank")
    rows = weights if node.integer("transB", 0) else weights.T
    bias = np.zeros(len(rows), np.float32)
    if node.input(2):
        given = reader.weights(node, 2)
        alike = given.size == 1 or (given.size == len(rows) and given.shape[-1] == len(rows))
        node.support(given.ndim <= 2 and alike, "a bias that varies with the sample")
        bias = np.broadcast_to(given.reshape(-1), bias.shape)
    alpha, beta = np.float32(node.number("alpha", 1)), np.float32(node.number("beta", 1))
    with np.errstate(over="ignore"):
        rows, bias = rows if alpha == 1 else rows * alpha, bias if beta == 1 else bias * beta
    node.support(bool(np.isfinite(rows).all() and np.isfinite(bias).all()), "weights that are not finite")
    return _linear(node, reader, rows, bias)


def matmul(node: Node, reader: "Reader") -> list[Layer]:
    """MatMul(X, W) of a flat X."""
    node.arity(2, 2)
    weights = reader.weights(node, 1)
    node.support(weights.ndim == 2, "weights of another rank")
    return _linear(node, reader, weights.T, np.zeros(weights.shape[1], np.float32))


def _linear(node: Node, reader: "Reader", rows: NDArray[np.float32], bias: NDArray[np.float32]) -> list[Layer]:
    value = reader.value(node, 0)
    node.support(len(value.dims) == 1, "an input that is not flat")
    box = reader.boxes[value.tensor]
    F, K = rows.shape
    node.require(F > 0 and value.dims == (K,), f"has weights for {K} inputs, but {value.dims} inputs")
    shape = ConvShape(channels=box[0], filters=F, height=box[1], width=box[2], kernel=(box[1], box[2]))
    weights = np.ascontiguousarray(rows, np.float32).reshape(F, *box)
    output = reader.define(node, (F, 1, 1), (F,))
    layer = Conv(
        name=node.name, inputs=(value.tensor,), output=output, shape=shape, weights=weights, bias=np.ascontiguousarray(bias, np.float32)
    )
    return [layer]


def pool(node: Node, reader: "Reader") -> list[Layer]:
    """MaxPool and AveragePool."""
    node.arity(1, 1)
    x = reader.image(node, 0)
    height, width = node.sizes("kernel_shape", None, 1)
    strides, pads, dilations = node.pair("strides"), node.pads(), node.pair("dilations")
    ceil = node.integer("ceil_mode", 0)
    node.support(node.integer("storage_order", 0) == 0, "storage_order")
    kernel, average = (height, width), node.op_type == "AveragePool"
    node.support(dilations == (1, 1) or not any(pads), "dilation with padding")  # a window may miss the image
    sizes = []
    for axis in (0, 1):
        reach = (kernel[axis] - 1) * dilations[axis] + 1
        before, after = pads[axis], pads[axis + 2]
        node.require(before < reach and after < reach, f"has pads {pads} not below its window {kernel}")
        free = x[axis + 1] + before + after - reach
        node.require(free >= 0, f"has a window {kernel} larger than its input {x}")
        size = windows(x[axis + 1] + before + after, kernel[axis], strides[axis], dilations[axis])
        if ceil and free % strides[axis] and size * strides[axis] < x[axis + 1] + before:
            size += 1  # a last window that starts inside
            node.support(not average, "an average with ceil_mode")
        sizes.append(size)
    output = reader.define(node, (x[0], sizes[0], sizes[1]))
    layer = Pool(
        name=node.name,
        inputs=(reader.tensor(node.inputs[0]),),
        output=output,
        kind="average" if average else "max",
        kernel=kernel,
        strides=strides,
        pads=pads,
        dilations=dilations,
        counts_padding=bool(node.integer("count_include_pad", 0)),
    )
    return [layer]


def mean(node: Node, reader: "Reader") -> list[Layer]:
    """GlobalAveragePool, and ReduceMean over rows and columns."""
    keep = True
    if node.op_type == "ReduceMean":
        node.arity(1, 2)
        node.support(bool(node.input(1)), "no axes")
        axes = reader.integers(node, 1)
        node.support(sorted(axes) in ([2, 3], [-2, -1], [-2, 3], [-1, 2]), f"axes {axes}")
        keep = bool(node.integer("keepdims", 1))
    else:
        node.arity(1, 1)
    C = reader.image(node, 0)[0]
    output = reader.define(node, (C, 1, 1), (C, 1, 1) if keep else (C,))
    return [Mean(name=node.name, inputs=(reader.tensor(node.inputs[0]),), output=output)]


def clip(node: Node, reader: "Reader") -> list[Layer]:
    """Relu, and Clip with constant bounds: min(max(x, low), high), whichever of them is larger."""
    low, high = 0.0, np.inf
    if node.op_type == "Clip":
        node.arity(1, 3)
        largest = float(np.finfo(np.float32).max)  # what ONNX has where a bound is left out: infinite numbers become finite
        low, high = (_scalar(node, reader, index, default) for index, default in ((1, -largest), (2, largest)))
    return _unary(node, reader, function="identity", low=low, high=high)


def _scalar(node: Node, reader: "Reader", index: int, default: float) -> float:
    if not node.input(index):
        return default
    value = reader.constant(node, index)
    node.require(value.size == 1 and value.dtype == np.float32, f"has a bound {value.dtype} {value.shape}")
    node.support(not np.isnan(value).any(), "a bound that is no number")
    return float(value.reshape(()))


def _unary(node: Node, reader: "Reader", **arguments: Any) -> list[Layer]:
    value = reader.value(node, 0)
    output = reader.define(node, reader.boxes[value.tensor], value.dims)
    return [Map(name=node.name, inputs=(value.tensor,), output=output, **arguments)]


def activation(node: Node, reader: "Reader") -> list[Layer]:
    """Sigmoid, HardSigmoid, HardSwish."""
    node.arity(1, 1)
    if node.op_type == "HardSigmoid":
        return _unary(node, reader, function="hardsigmoid", alpha=node.number("alpha", 0.2), beta=node.number("beta", 0.5))
    return _unary(node, reader, function=node.op_type.lower())


def batchnorm(node: Node, reader: "Reader") -> list[Layer]:
    """BatchNormalization in inference: scale[c] * x + shift[c]."""
    node.arity(5, 5)
    node.support(not node.integer("training_mode", 0), "training_mode")
    C = reader.image(node, 0)[0]
    gamma, beta, running_mean, variance = (reader.weights(node, index).astype(np.float64) for index in range(1, 5))
    node.require(all(v.shape == (C,) for v in (gamma, beta, running_mean, variance)), f"has parameters that do not fit {C} channels")
    spread = variance + node.number("epsilon", 1e-5)
    node.support(bool((spread > 0).all()), "a variance that is not positive")
    with np.errstate(over="ignore"):
        scale = (gamma / np.sqrt(spread)).astype(np.float32)
        shift = (beta - running_mean * (gamma / np.sqrt(spread))).astype(np.float32)
    node.support(bool(np.isfinite(scale).all() and np.isfinite(shift).all()), "scales that are not finite")
    return _unary(node, reader, function="affine", scale=scale, shift=shift)


def binary(node: Node, reader: "Reader") -> list[Layer]:
    """Add and Mul of two tensors alike; Mul by one number a channel."""
    node.arity(2, 2)
    values = [reader.value(node, index) for index in (0, 1)]
    boxes = [reader.boxes[value.tensor] for value in values]
    function = {"Add": "add", "Mul": "multiply"}[node.op_type]
    if values[0].dims != values[1].dims:
        node.support(function == "multiply" and all(len(value.dims) == 3 for value in values), "operands of different shapes")
        if boxes[1][1:] != (1, 1):
            values, boxes = values[::-1], boxes[::-1]
        node.support(boxes[1] == (boxes[0][0], 1, 1), "operands of different shapes")
        function = "scale"
    else:
        node.support(boxes[0] == boxes[1], "operands that were reshaped differently")
    output = reader.define(node, boxes[0], values[0].dims)
    return [Map(name=node.name, inputs=(values[0].tensor, values[1].tensor), output=output, function=function)]


def identity(node: Node, reader: "Reader") -> list[Layer]:
    """Identity, and Dropout as it is when nobody trains."""
    node.arity(1, 3)
    node.support(not node.input(2), "training_mode")
    value = reader.value(node, 0)
    reader.alias(node, value.tensor, value.dims)
    return []


def reshape(node: Node, reader: "Reader") -> list[Layer]:
    """Flatten, Reshape, Squeeze and Unsqueeze of a sample: its numbers keep their order, nothing moves."""
    value = reader.value(node, 0)
    size = math.prod(value.dims)
    if node.op_type == "Flatten":
        node.support(node.integer("axis", 1) in (1, -len(value.dims)), "another axis")
        dims: tuple[int, ...] = (size,)
    elif node.op_type == "Reshape":
        node.arity(2, 2)
        dims = _reshaped(node, reader, value.dims)
    else:
        dims = _squeezed(node, reader, value.dims)
    node.require(math.prod(dims) == size, f"makes {dims} of {value.dims} a sample")
    box = reader.boxes[value.tensor]
    node.support(len(dims) == 1 or dims == box, f"a reshape of {box} to {dims}")
    reader.alias(node, value.tensor, dims)
    return []


def _reshaped(node: Node, reader: "Reader", dims: tuple[int, ...]) -> tuple[int, ...]:
    wanted = reader.integers(node, 1)
    node.require(all(size >= -1 for size in wanted) and wanted.count(-1) <= 1, f"has the shape {wanted}")
    old = [-1 if reader.batch is None else reader.batch, *dims]
    if not node.integer("allowzero", 0):
        node.require(all(size != 0 or k < len(old) for k, size in enumerate(wanted)), f"has the shape {wanted}")
        wanted = [old[k] if size == 0 else size for k, size in enumerate(wanted)]
    rest, size = wanted[1:], math.prod(dims)
    node.support(len(wanted) >= 2 and 0 not in rest, f"a reshape to {wanted}")
    node.support(wanted[0] in (-1, old[0]), "a reshape of the batch dimension")
    if -1 in rest:
        known = -math.prod(rest)
        node.require(size % known == 0, f"makes {wanted} of {dims} a sample")
        rest[rest.index(-1)] = size // known
    elif wanted[0] == -1:
        node.support(math.prod(rest) == size, "a reshape of the batch dimension")
    return tuple(rest)


def _squeezed(node: Node, reader: "Reader", dims: tuple[int, ...]) -> tuple[int, ...]:
    node.arity(1, 2)
    node.support(bool(node.input(1)), "no axes")
    axes = reader.integers(node, 1)
    rank = 1 + len(dims) + (len(axes) if node.op_type == "Unsqueeze" else 0)
    node.require(all(-rank <= axis < rank for axis in axes), f"has axes {axes}")
    places = sorted({axis % rank for axis in axes})
    node.support(0 not in places, "the batch dimension")
    result = [1, *dims]
    if node.op_type == "Unsqueeze":
        for place in places:
            result.insert(place, 1)
    else:
        node.require(all(result[place] == 1 for place in places), f"removes axes {axes} of {dims}")
        result = [size for place, size in enumerate(result) if place not in places]
    return tuple(result[1:])


def concat(node: Node, reader: "Reader") -> list[Layer]:
    """Concat of channels, or of flattened images: their numbers follow each other in the same order."""
    node.arity(1, 1 << 12)
    values = [reader.value(node, index) for index in range(len(node.inputs))]
    rank = len(values[0].dims)
    node.require(all(len(value.dims) == rank for value in values), "joins tensors of different ranks")
    node.support(rank in (1, 3) and node.axis("axis", 1, rank + 1) == 1, "another axis")
    boxes = [reader.boxes[value.tensor] for value in values]
    node.require(len({value.dims[1:] for value in values}) == 1, f"joins {[value.dims for value in values]}")
    node.support(len({box[1:] for box in boxes}) == 1, "flattened images of different sizes")
    pieces, channels = [], 0
    for k, box in enumerate(boxes):
        pieces.append(Piece(source=k, size=box, to=(channels, 0, 0)))
        channels += box[0]
    output = reader.define(node, (channels, *boxes[0][1:]), (sum(value.dims[0] for value in values), *values[0].dims[1:]))
    return [Assemble(name=node.name, inputs=tuple(value.tensor for value in values), output=output, pieces=tuple(pieces))]


HANDLERS: dict[tuple[str, str], Handler] = {
    ("", "Conv"): conv,
    (DOMAIN, MASKED): conv,
    (DOMAIN, DEPTHWISE): conv,
    (DOMAIN, POINTWISE): conv,
    ("", "Gemm"): gemm,
    ("", "MatMul"): matmul,
    ("", "MaxPool"): pool,
    ("", "AveragePool"): pool,
    ("", "GlobalAveragePool"): mean,
    ("", "ReduceMean"): mean,
    ("", "Relu"): clip,
    ("", "Clip"): clip,
    ("", "Sigmoid"): activation,
    ("", "HardSigmoid"): activation,
    ("", "HardSwish"): activation,
    ("", "BatchNormalization"): batchnorm,
    ("", "Add"): binary,
    ("", "Mul"): binary,
    ("", "Identity"): identity,
    ("", "Dropout"): identity,
    ("", "Flatten"): reshape,
    ("", "Reshape"): reshape,
    ("", "Squeeze"): reshape,
    ("", "Unsqueeze"): reshape,
    ("", "Concat"): concat,
}
"""(domain, operator) -> what makes layers of it; channels.py has those that move channels."""

UNPACKING = (UNPACK_MASK, UNPACK_WEIGHTS)
