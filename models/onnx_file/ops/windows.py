"""Where the windows of convolutions and pools lie: kernel, stride, dilation and pads, also those that ONNX computes by itself.

auto_pad SAME: o = ceil(i / s), pads p = max(0, (o - 1) s + (k - 1) d + 1 - i), the odd one at the end (UPPER) or the beginning (LOWER)
"""

from dataclasses import dataclass
from functools import partial

from torch.nn import functional as F

from fineprune.common.errors import UsageError

from ..builder import Builder, Node, Value


@dataclass(frozen=True, kw_only=True)
class Window:
    """Numbers of each axis, first the vertical."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    begin: tuple[int, ...]
    end: tuple[int, ...]


def window(node: Node, x: Value, kernel: tuple[int, ...]) -> Window:
    """The windows of a node on x[N,C,...]."""
    sizes = tuple(x.tensor.shape[2:])
    if tuple(node.attributes.get("kernel_shape", kernel)) != kernel or len(sizes) != len(kernel):
        raise UsageError(f"its kernel_shape is {node.attributes.get('kernel_shape')}, its weight is of {list(kernel)} on {list(sizes)}")
    stride, dilation = (tuple(node.attributes.get(name, [1] * len(kernel))) for name in ("strides", "dilations"))
    how = node.choice("auto_pad", "NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER")
    begin = end = (0,) * len(kernel)
    if how == "NOTSET":
        pads = tuple(node.attributes.get("pads", [0] * 2 * len(kernel)))
        begin, end = pads[: len(kernel)], pads[len(kernel) :]
    elif how != "VALID":
        both = [
            max(0, (-(-size // s) - 1) * s + (k - 1) * d + 1 - size) for size, k, s, d in zip(sizes, kernel, stride, dilation, strict=True)
        ]
        less, more = tuple(p // 2 for p in both), tuple(p - p // 2 for p in both)
        begin, end = (less, more) if how == "SAME_UPPER" else (more, less)
    return Window(kernel=kernel, stride=stride, dilation=dilation, begin=begin, end=end)


def padded(b: Builder, win: Window, x: Value, value: float = 0.0) -> tuple[Value, tuple[int, ...]]:
    """x and the padding that is left to torch's layer, which pads both ends alike; other pads are applied to x."""
    if win.begin == win.end:
        return x, win.begin
    pads = [pad for begin, end in reversed(list(zip(win.begin, win.end, strict=True))) for pad in (begin, end)]
    return b.call(partial(F.pad, pad=pads, value=value), x, by_rows=True), (0,) * len(win.kernel)
