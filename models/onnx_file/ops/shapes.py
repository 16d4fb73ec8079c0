"""Operators that move values and compute nothing, and those that compute shapes."""

from collections.abc import Sequence
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fineprune.common.errors import UsageError

from ..builder import Builder, Node, Value, Values, bounded
from .table import onnx


def reshaped(x: Tensor, *, shape: Sequence[int], batch: bool) -> Tensor:
    """x in `shape`, of which 0 copies the size of x. batch: the first size is that of x, whatever it says."""
    sizes = [x.shape[axis] if size == 0 or (batch and axis == 0) else size for axis, size in enumerate(shape)]
    return x.reshape(sizes)


def expanded(x: Tensor, like: Tensor, *, shape: Sequence[int]) -> Tensor:
    """x broadcast to `shape`, its first size that of `like`."""
    return x.expand(like.shape[0], *shape[1:])


def joined(*parts: Tensor, dim: int) -> Tensor:
    """torch.cat of any number."""
    return torch.cat(parts, dim)


def for_each(x: Tensor, like: Tensor, *, rows: int) -> Tensor:
    """A constant x once for each sample of `like`, which has `rows` rows of each."""
    return x.repeat(like.shape[0] // rows, *[1] * (x.dim() - 1))


def taken(x: Tensor, positions: Tensor, *, axis: int) -> Tensor:
    """x at `positions` of an axis, which become axes in its place."""
    return x.index_select(axis, positions.reshape(-1)).unflatten(axis, positions.shape)


def sliced(x: Tensor, *, slices: tuple[slice, ...]) -> Tensor:
    """x[slices]."""
    return x[slices]


def without(x: Tensor, *, axes: Sequence[int]) -> Tensor:
    """x without axes of one element."""
    return x.squeeze(tuple(axes))


def with_axes(x: Tensor, *, axes: Sequence[int]) -> Tensor:
    """x with new axes, numbered in the result."""
    for axis in sorted(axes):
        x = x.unsqueeze(axis)
    return x


def depth_to_space(x: Tensor, *, block: int, depth_first: bool) -> Tensor:
    """x[N,b*b*C,H,W] -> [N,C,b*H,b*W]; depth_first: the blocks' offsets come before the channels (DCR)."""
    if not depth_first:
        return F.pixel_shuffle(x, block)
    n, c, h, w = x.shape
    parts = x.reshape(n, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return parts.reshape(n, c // block**2, h * block, w * block)


@onnx("Identity")
def identity(b: Builder, node: Node) -> Value:
    """The same value."""
    return node[0]


@onnx("Constant")
def constant(b: Builder, node: Node) -> Value:
    """A tensor, a number or a list of them."""
    from ..file import array

    [(name, value)] = node.attributes.items()
    if name == "value":
        return Value(tensor=torch.from_numpy(array(value)), name=node.name)
    kinds = {"value_float": torch.float32, "value_floats": torch.float32, "value_int": torch.int64, "value_ints": torch.int64}
    if name not in kinds:
        raise UsageError(f"it holds a {name}, which is no tensor of numbers")
    return Value(tensor=torch.tensor(value, dtype=kinds[name]))


@onnx("ConstantOfShape")
def constant_of_shape(b: Builder, node: Node) -> Value:
    """One number everywhere."""
    from ..file import array

    value = torch.from_numpy(array(node.attributes["value"])) if "value" in node.attributes else torch.zeros(1)
    shape = bounded(node.constant(0).tolist())
    return Value(tensor=value.reshape(()).expand(shape).clone())


@onnx("Shape")
def shape(b: Builder, node: Node) -> Value:
    """The sizes of the example."""
    sizes = list(node[0].tensor.shape)[node.attributes.get("start", 0) : node.attributes.get("end")]
    return Value(tensor=torch.tensor(sizes, dtype=torch.int64))


@onnx("Reshape")
def reshape(b: Builder, node: Node) -> Value:
    """A first size that is the batch of the example stands for the batch."""
    sizes, x = node.attributes.get("shape") or node.constant(1).tolist(), node[0]
    if node.attributes.get("allowzero") and 0 in sizes:
        raise UsageError("it makes a value without elements (allowzero)")
    batch = not x.constant and bool(sizes) and sizes[0] == x.tensor.shape[0]
    return b.call(partial(reshaped, shape=tuple(sizes), batch=batch), x, by_rows=batch)


@onnx("Flatten")
def flatten(b: Builder, node: Node) -> Value:
    """[d0 ... d(axis-1), d(axis) ...]."""
    x = node[0]
    axis = node.attributes.get("axis", 1)
    axis = axis + x.tensor.dim() if axis < 0 else axis
    if axis == 1:
        return b.call(partial(torch.flatten, start_dim=1), x, by_rows=True)
    return b.call(partial(reshaped, shape=(prod(x.tensor.shape[:axis]), -1), batch=False), x)


@onnx("Transpose")
def transpose(b: Builder, node: Node) -> Value:
    """Axes in another order, the reverse by default."""
    order = node.attributes.get("perm") or list(reversed(range(node[0].tensor.dim())))
    return b.call(partial(torch.permute, dims=tuple(order)), node[0], by_rows=order[0] == 0)


@onnx("Concat")
def concat(b: Builder, node: Node) -> Value:
    """One after the other along an axis."""
    parts = [node[position] for position in range(len(node.inputs))]
    axis = node.attributes["axis"] % parts[0].tensor.dim()
    if all(part.constant for part in parts):
        return b.call(partial(joined, dim=axis), *parts)
    if axis == 0 and b.single:
        return b.call(_SWAP, _joined(b, [b.call(_SWAP, part) for part in parts], 1))
    return _joined(b, parts, axis)


_SWAP = partial(torch.transpose, dim0=0, dim1=1)
"""torch.vmap takes the number of samples for a constant where it joins values or chooses among them: that is done beside the rows."""


def _joined(b: Builder, parts: Sequence[Value], axis: int) -> Value:
    like = next(part for part in parts if not part.constant)
    rows = len(like.tensor)
    each = [b.call(partial(for_each, rows=rows), part, like, by_rows=rows == 1) if part.constant else part for part in parts]
    return b.call(partial(joined, dim=axis), *each, by_rows=axis > 0)


@onnx("Squeeze")
def squeeze(b: Builder, node: Node) -> Value:
    """Without given axes, by default all of one element but the batch."""
    axes = node.setting("axes", 1)
    if axes is None:
        axes = [axis for axis, size in enumerate(node[0].tensor.shape) if size == 1 and (axis or node[0].constant)]
    return b.call(partial(without, axes=tuple(axes)), node[0], by_rows=all(axis % node[0].tensor.dim() for axis in axes))


@onnx("Unsqueeze")
def unsqueeze(b: Builder, node: Node) -> Value:
    """With new axes."""
    axes = node.setting("axes", 1)
    dims = node[0].tensor.dim() + len(axes)
    return b.call(partial(with_axes, axes=tuple(axis % dims for axis in axes)), node[0], by_rows=all(axis % dims for axis in axes))


@onnx("Split")
def split(b: Builder, node: Node) -> Values:
    """Parts of given sizes, or alike."""
    axis, sizes = node.attributes.get("axis", 0), node.setting("split", 1)
    part = -(-node[0].tensor.shape[axis] // node.outputs)
    return b.calls(partial(torch.split, split_size_or_sections=sizes or part, dim=axis), node[0], by_rows=axis % node[0].tensor.dim() > 0)


@onnx("Slice")
def slice_(b: Builder, node: Node) -> Value:
    """Every step-th from start to end, along some axes."""
    starts, ends = node.setting("starts", 1), node.setting("ends", 2)
    axes, steps = node.setting("axes", 3) or list(range(len(starts))), node.setting("steps", 4) or [1] * len(starts)
    if any(step < 1 for step in steps):
        raise UsageError(f"its steps are {steps}, and torch has none backwards")
    slices = [slice(None)] * node[0].tensor.dim()
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        size = node[0].tensor.shape[axis]
        begin, stop, _ = slice(start, end).indices(size)
        slices[axis] = slice(None, None, step) if (begin, stop) == (0, size) else slice(begin, stop, step)
    return b.call(partial(sliced, slices=tuple(slices)), node[0], by_rows=slices[0] == slice(None))


@onnx("Gather")
def gather(b: Builder, node: Node) -> Value:
    """By constant positions: one takes its axis away."""
    x, positions = node[0], node.constant(1)
    axis = node.attributes.get("axis", 0) % x.tensor.dim()
    positions = positions % x.tensor.shape[axis]
    if positions.dim() == 0:
        return b.call(partial(torch.select, dim=axis, index=int(positions)), x, by_rows=axis > 0)
    chosen = Value(tensor=positions)
    if axis == 0 and b.single and positions.dim() == 1 and not x.constant:
        return b.call(_SWAP, b.call(partial(taken, axis=1), b.call(_SWAP, x), chosen, by_rows=True))
    return b.call(partial(taken, axis=axis), x, chosen, by_rows=axis > 0)


@onnx("Range")
def range_(b: Builder, node: Node) -> Value:
    """Numbers from a start to a limit."""
    start, limit, step = (node.constant(position) for position in range(3))
    bounded([max(0, int((limit - start) / step) + 1)])
    return Value(tensor=torch.arange(start.item(), limit.item(), step.item(), dtype=start.dtype))


@onnx("Where")
def where(b: Builder, node: Node) -> Value:
    """One or the other."""
    return b.call(torch.where, node[0], node[1], node[2], by_rows=True)


@onnx("Expand")
def expand(b: Builder, node: Node) -> Value:
    """Repeated along axes of one element."""
    x = node[0]
    sizes = bounded(torch.broadcast_shapes(x.tensor.shape, node.constant(1).tolist()))
    if x.constant or sizes[0] != x.tensor.shape[0] or len(sizes) != x.tensor.dim():
        return b.call(partial(torch.Tensor.expand, size=sizes), x)
    return b.call(partial(expanded, shape=tuple(sizes)), x, x, by_rows=True)


@onnx("Pad")
def pad(b: Builder, node: Node) -> Value:
    """Constants, edges or reflections around the last axes."""
    x, pads, axes = node[0], node.setting("pads", 1), node.setting("axes", 3)
    value = node.attributes.get("value", 0.0) if "pads" in node.attributes else float(node.constant(2)) if node.given(2) else 0.0
    mode = {"constant": "constant", "edge": "replicate", "reflect": "reflect"}[node.choice("mode", "constant", "edge", "reflect")]
    count, dims = len(pads) // 2, x.tensor.dim()
    both = {axis % dims: (pads[i], pads[i + count]) for i, axis in enumerate(range(dims) if axes is None else axes)}
    first = min((axis for axis, (begin, end) in both.items() if begin or end), default=dims)
    around = [side for axis in reversed(range(first, dims)) for side in both.get(axis, (0, 0))]
    bounded([size + sum(both.get(axis, (0, 0))) for axis, size in enumerate(x.tensor.shape)])
    settings: dict[str, Any] = {"value": value} if mode == "constant" else {}
    return b.call(partial(F.pad, pad=around, mode=mode, **settings), x, by_rows=first > 0) if around else x


@onnx("DepthToSpace")
def depth_to_space_node(b: Builder, node: Node) -> Value:
    """Blocks of channels become blocks of positions."""
    depth_first = node.choice("mode", "DCR", "CRD") == "DCR"
    return b.call(partial(depth_to_space, block=node.attributes["blocksize"], depth_first=depth_first), node[0], by_rows=True)


@onnx("Resize", "Upsample")
def resize(b: Builder, node: Node) -> Value:
    """Nearest, linear or cubic, to sizes that scales or a shape give."""
    x = node[0]
    old = node.kind == "Upsample" or node.opset < 11
    scales, sizes = node.setting("scales", 1 if old else 2), None if old else node.setting("sizes", 3)
    if not sizes and not scales:
        raise UsageError("it has neither scales nor sizes")
    target = sizes or [int(size * scale) for size, scale in zip(x.tensor.shape, scales or (), strict=True)]
    if x.tensor.dim() != 4 or list(target[:2]) != list(x.tensor.shape[:2]):
        raise UsageError("it resizes other axes than height and width")
    where = "asymmetric" if old else node.attributes.get("coordinate_transformation_mode", "half_pixel")
    how = (node.attributes.get("mode", "nearest"), where)
    known: dict[tuple[str, str], dict[str, Any]] = {
        ("nearest", "asymmetric"): {"mode": "nearest"},
        ("nearest", "half_pixel"): {"mode": "nearest-exact"},
        **{("linear", name): {"mode": "bilinear", "align_corners": False} for name in ("half_pixel", "pytorch_half_pixel")},
        ("linear", "align_corners"): {"mode": "bilinear", "align_corners": True},
        ("cubic", "half_pixel"): {"mode": "bicubic", "align_corners": False},
        ("cubic", "align_corners"): {"mode": "bicubic", "align_corners": True},
    }
    if how not in known:
        raise UsageError(f"it resizes by {how[0]} values at {how[1]} coordinates, which torch has not")
    return b.call(partial(F.interpolate, size=tuple(bounded(target)[2:]), **known[how]), x, by_rows=True)
