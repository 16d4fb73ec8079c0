"""Products that torch's counter of floating point operations leaves out: their formulas, and the names of those that have none.

A multiply-add is two of the counter's operations. Products are counted as they are written; x1 * w * x2 of a bilinear form is one each.
"""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_aten = torch.ops.aten
_Shape = Sequence[int]


def _mv(matrix: _Shape, *_: Any, **__: Any) -> int:
    return 2 * prod(matrix)


def _addmv(_: _Shape, matrix: _Shape, *__: Any, **___: Any) -> int:
    return 2 * prod(matrix)


def _addbmm(_: _Shape, a: _Shape, b: _Shape, *__: Any, **___: Any) -> int:
    return 2 * prod(a) * b[2]


def _trilinear(a: _Shape, b: _Shape, c: _Shape, *axes: Sequence[int], **_: Any) -> int:
    """Sum of a * b * c, each spread over the axes that are named for it."""
    spread = []
    for shape, new in zip((a, b, c), axes, strict=False):
        sizes = list(shape)
        for axis in sorted(new):
            sizes.insert(axis, 1)
        spread.append(sizes)
    return 2 * prod(max(sizes) for sizes in zip(*spread, strict=True))


def _distances(a: _Shape, b: _Shape, *_: Any, **__: Any) -> int:
    return 2 * prod(a) * b[-2]


FORMULAS: dict[Any, Callable[..., int]] = {
    **dict.fromkeys((_aten.mv, _aten.dot, _aten.vdot), _mv),
    **{_aten.addmv: _addmv, _aten.addbmm: _addbmm, _aten._trilinear: _trilinear},
    **dict.fromkeys((_aten._cdist_forward, _aten._euclidean_dist), _distances),
}
"""For `FlopCounterMode(custom_mapping=...)`: operations of the shapes of an operator's arguments."""

_PRODUCTS = ("fft", "lstm", "gru", "rnn", "mm", "conv", "linear", "matmul", "attention", "linalg", "cholesky", "solve", "inverse", "svd")
_NO_PRODUCTS = ("upsample", "grid_sampler", "norm")


class Uncounted(TorchDispatchMode):
    """Notes (`where()`, operator) of each product that the counter above it, whose formulas are `counted`, does not know."""

    def __init__(self, counted: Any, where: Callable[[], str | None]) -> None:
        super().__init__()
        self.counted, self.where = counted, where
        self.seen: dict[tuple[str, str], None] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator; one of another library than torch may be a product too."""
        namespace, _, name = func._schema.name.partition("::")
        foreign = namespace not in ("aten", "prim", "prims", "inductor", "profiler")
        product = any(part in name for part in _PRODUCTS) and not any(part in name for part in _NO_PRODUCTS)
        known = func._overloadpacket in self.counted or namespace == "fineprune"  # whose masked convolution is a layer's, counted there
        if (foreign or product) and not known and (where := self.where()) is not None:
            self.seen[where, f"{namespace}.{name}" if foreign else name] = None
        return func(*args, **(kwargs or {}))
