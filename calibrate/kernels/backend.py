"""From tensors to kernels: index lists (kept as long as their masks live), bands, buffers, threads."""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torch.utils.weak import WeakIdKeyDictionary

from ..geometry import Conv
from ..masked_conv_torch import dense_input_grad, dense_weight_grad
from . import plan
from .convolve import FILTER_TILE, Geometry, forward_kernel, full_weight_grad, input_grad_kernel, sparse_weight_grad
from .layout import Band, Map, band, gather
from .simd import LANES
from .threads import run_shares, scratch, threads_for

MOST_LANES, FEWEST_LANES = 8 * LANES, 4 * LANES
BAND_BYTES = 2 << 20
"""Size of the bands of a task: some rows, which should stay in the second-level cache."""
GAIN_OF_SHARING = 2.0
"""How much faster a multiply-add is in a tile of weights that share what they load."""


def forward(x: Tensor, weight: Tensor, mask: Tensor, weight_mask: Tensor | None, conv: Conv) -> Tensor:
    """y[N,F,oh,ow], channels last, of x[N,C,H,W] and weight[F,C,kh,kw] under mask[C,oh,ow]."""
    if _nothing_to_skip(mask, weight_mask):
        return F.conv2d(x, weight, None, *conv[:3]).contiguous(memory_format=torch.channels_last)
    g = _geometry(x.shape, weight.shape, conv)
    rows = FILTER_TILE if _worth_sharing(weight_mask, "filters") else 1
    lanes = _lanes(x.shape[0], rows)
    xb, yb, tasks = _bands(g, x.shape[0], lanes)
    lists = _entries(weight_mask, weight.shape, ("forward", rows, g.kernel[1], g.dilation[0] * xb.row, g.dilation[1] * xb.column))
    y = x.new_empty(x.shape[0], g.y.height, g.y.width, g.y.channels)
    _convolve(forward_kernel(rows, lanes // LANES), x, weight, lists, mask, y, tasks, xb, yb, g)
    return y.permute(0, 3, 1, 2)


def input_grad(grad: Tensor, weight: Tensor, mask: Tensor, weight_mask: Tensor | None, conv: Conv, size: Sequence[int]) -> Tensor:
    """Gradient in x[N,C,*size], channels last, from that in y."""
    shape = (grad.shape[0], weight.shape[1], *size)
    if _nothing_to_skip(mask, weight_mask):
        return dense_input_grad(grad, weight, conv, shape)
    g = _geometry(shape, weight.shape, conv)
    rows = 3 if g.kernel[1] == 3 and _worth_sharing(weight_mask, "taps") else 1
    lanes = _lanes(shape[0], rows)
    xb, yb, tasks = _input_bands(g, shape[0], lanes)
    lists = _entries(weight_mask, weight.shape, ("input_grad", rows, lanes))
    grad_x = grad.new_empty(shape[0], *size, shape[1])
    _convolve(input_grad_kernel(rows, lanes // LANES), grad, weight, lists, mask, grad_x, tasks, xb, yb, g)
    return grad_x.permute(0, 3, 1, 2)


def weight_grad(grad: Tensor, x: Tensor, mask: Tensor, weight_mask: Tensor | None, conv: Conv, kernel: Sequence[int]) -> Tensor:
    """Gradient in weight[F,C,*kernel] from that in y; zero where weight_mask is False."""
    shape = (grad.shape[1], x.shape[1], *kernel)
    if _nothing_to_skip(mask, weight_mask):
        result = dense_weight_grad(grad, x, conv, shape)
        return result if weight_mask is None else result * weight_mask
    g = _geometry(x.shape, shape, conv)
    xb, yb, tasks = _bands(g, x.shape[0], FEWEST_LANES)
    few = not _worth_sharing(weight_mask, "all")
    tiles = _weight_grad_tiles(weight_mask, shape, g, xb) if few else ()
    kernel_ = sparse_weight_grad if few else full_weight_grad
    kept = _blocks(mask)
    parts = np.array_split(tasks, threads_for(len(tasks)))
    sums = torch.zeros(len(parts), *shape)
    inputs = flat(x), flat(grad), kept.row_starts, kept.columns

    def share(part: NDArray, out: Tensor) -> None:
        kernel_(*inputs, out.view(-1).numpy(), *tiles, part, *_buffers(xb, yb), xb, yb, g)

    # One sum a thread, added in order: the result depends on the number of threads, but not on which is faster.
    run_shares([partial(share, part, out) for part, out in zip(parts, sums, strict=True)])
    result = sums[0] if len(parts) == 1 else sums.sum(0)
    return result if few or weight_mask is None else result * weight_mask


def _convolve(
    kernel: Callable[..., None],
    source: Tensor,
    weight: Tensor,
    lists: plan.Entries,
    mask: Tensor,
    out: Tensor,
    tasks: NDArray,
    xb: Band,
    yb: Band,
    g: Geometry,
) -> None:
    values = torch.empty(len(lists.positions)).numpy()
    gather(weight.detach().contiguous().view(-1).numpy(), lists.positions, values)
    kept = _blocks(mask)
    arrays = (flat(source), values, lists.offsets, lists.segments, kept.starts, kept.active, out.view(-1).numpy())

    def share(part: NDArray) -> None:
        kernel(*arrays, part, *_buffers(xb, yb), xb, yb, g)

    run_shares([partial(share, part) for part in np.array_split(tasks, threads_for(len(tasks)))])


def _geometry(x: Sequence[int], weight: Sequence[int], conv: Conv) -> Geometry:
    output = conv.output(x[2:], weight[2:])
    return Geometry(Map(x[2], x[3], x[1]), Map(*output, weight[0]), (weight[2], weight[3]), *conv[:3])


def _lanes(samples: int, rows: int) -> int:
    """Samples at a time, all of them in the vectors of a tile: the more, the fewer loads of weights, unless rows of the tile share
    these; but not so many that more lanes would idle."""
    choices = (FEWEST_LANES,) if rows > 1 else (MOST_LANES, FEWEST_LANES)
    return min(choices, key=lambda lanes: -(-samples // lanes) * lanes)


def _bands(g: Geometry, samples: int, lanes: int) -> tuple[Band, Band, NDArray]:
    """Bands of x (with its padding) and of y, and tasks [sample, samples, first row of y, rows of y]."""
    height, tasks = _tasks(samples, g.y.height, lanes, _row_bytes(g, g.stride[0], 1, lanes))
    yb = band(height, g.y.width, -(-g.y.channels // FILTER_TILE) * FILTER_TILE, lanes)
    rows, columns = _reach(height, g, 0), max(_reach(g.y.width, g, 1), g.x.width + g.padding[1])
    return band(rows, columns, g.x.channels, lanes, -g.padding[1]), yb, tasks


def _input_bands(g: Geometry, samples: int, lanes: int) -> tuple[Band, Band, NDArray]:
    """Bands of the gradients in x and in y that it depends on, and tasks [sample, samples, first row of x, rows of x]."""
    height, tasks = _tasks(samples, g.x.height, lanes, _row_bytes(g, 1, 1 / g.stride[0], lanes))
    columns = max(_reach(g.y.width, g, 1), g.x.width + g.padding[1])
    rows = min(g.y.height, (height - 1 + (g.kernel[0] - 1) * g.dilation[0]) // g.stride[0] + 2)
    yb = band(rows, g.y.width, -(-g.y.channels // FILTER_TILE) * FILTER_TILE, lanes)
    return band(height, columns, g.x.channels, lanes, -g.padding[1]), yb, tasks


def _reach(count: int, g: Geometry, axis: int) -> int:
    """Rows or columns that `count` output positions read."""
    return (count - 1) * g.stride[axis] + (g.kernel[axis] - 1) * g.dilation[axis] + 1


def _row_bytes(g: Geometry, x_rows: float, y_rows: float, lanes: int) -> float:
    return 4 * lanes * (x_rows * g.x.width * g.x.channels + y_rows * g.y.width * g.y.channels)


def _tasks(samples: int, height: int, lanes: int, row_bytes: float) -> tuple[int, NDArray]:
    """(rows of a band, tasks): about the same number for every thread."""
    chunks, threads = -(-samples // lanes), torch.get_num_threads()
    bands = min(height, -(-height // max(2, int(BAND_BYTES / row_bytes))))
    while chunks * bands % threads and bands < height:
        bands += 1
    rows = -(-height // bands)
    tasks = [(n, min(lanes, samples - n), i, min(rows, height - i)) for n in range(0, samples, lanes) for i in range(0, height, rows)]
    return rows, np.array(tasks, np.int64)


_lists: Any = WeakIdKeyDictionary()


def _of_mask(mask: Tensor, key: Any, make: Callable[[NDArray], Any]) -> Any:
    """make(mask as an array), remembered until the mask changes or is no more."""
    version = 0 if mask.is_inference() else mask._version
    found = _lists.setdefault(mask, {})
    if found.get("version") != version:
        found.clear()
        found["version"] = version
    if key not in found:
        found[key] = make(mask.detach().cpu().numpy())
    return found[key]


def _blocks(mask: Tensor) -> plan.Blocks:
    return _of_mask(mask, "blocks", plan.blocks)


def _nothing_to_skip(mask: Tensor, weight_mask: Tensor | None) -> bool:
    everywhere = _of_mask(mask, "whole", lambda kept: bool(kept.all()))
    return everywhere and _worth_sharing(weight_mask, "all")


def _worth_sharing(weight_mask: Tensor | None, which: str) -> bool:
    """Whether tiles of several weights, of which some may be dropped, beat one weight at a time."""
    if weight_mask is None:
        return True
    shared = {"filters": plan.share_of_filter_tiles, "taps": plan.share_of_tap_rows, "all": lambda kept: 1.0}[which]
    return _of_mask(weight_mask, which, lambda kept: bool(shared(kept) <= GAIN_OF_SHARING * kept.mean()))


def _entries(weight_mask: Tensor | None, shape: Sequence[int], key: tuple) -> plan.Entries:
    if weight_mask is None:
        return _every_entry(tuple(shape), key)
    return _of_mask(weight_mask, key, lambda kept: _make_entries(kept.reshape(*shape[:2], -1), key))


@lru_cache(maxsize=64)
def _every_entry(shape: tuple[int, ...], key: tuple) -> plan.Entries:
    return _make_entries(np.ones((*shape[:2], shape[2] * shape[3]), bool), key)


def _make_entries(kept: NDArray, key: tuple) -> plan.Entries:
    if key[0] == "input_grad":
        return plan.input_grad_entries(kept, *key[1:])
    _, rows, width, row, column = key
    taps = np.arange(kept.shape[2])
    return plan.forward_entries(kept, rows, taps // width * row + taps % width * column)


def _weight_grad_tiles(weight_mask: Tensor | None, shape: Sequence[int], g: Geometry, xb: Band) -> tuple[NDArray, ...]:
    def make(kept: NDArray) -> tuple[NDArray, ...]:
        taps = np.arange(shape[2] * shape[3])
        offsets = taps // shape[3] * g.dilation[0] * xb.row + taps % shape[3] * g.dilation[1] * xb.column
        return tuple(array for tiles in plan.weight_grad_tiles(kept.reshape(*shape[:2], -1), offsets) for array in tiles)

    if weight_mask is None:
        raise ValueError("without a weight mask there are no few taps")
    return _of_mask(weight_mask, ("weight_grad", xb, g.dilation), make)


def flat(t: Tensor) -> NDArray:
    """[N,H,W,C] as one axis; copies a tensor that is not channels last."""
    return t.detach().permute(0, 2, 3, 1).reshape(-1).numpy()


def _buffers(xb: Band, yb: Band) -> tuple[NDArray, ...]:
    """Room for the bands of this thread."""
    # The weight gradient's tile of taps may read past the kernel, never to use it.
    return scratch(xb.size + 3 * xb.row + 3 * xb.column, yb.size + yb.column)
