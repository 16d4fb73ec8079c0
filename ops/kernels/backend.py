"""From tensors to kernels: index lists and jobs (kept as long as their masks live), bands, buffers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torch.utils.weak import TensorWeakRef

from ..geometry import Conv
from ..mask_facts import keeps_everything, of_mask, version
from ..masked_conv_torch import dense_backward
from ..simd import LANES
from . import plan
from .convolve import FILTER_TILE, forward_kernel, input_grad_kernel, sparse_weight_grad
from .job import Job, Kernel
from .layout import Band, Map, band
from .problem import Geometry, numbers_of, room
from .threads import shared_scratch
from .weight_grad import SIDE, places_of, tiles_of, weight_grad_kernel

MOST_LANES, FEWEST_LANES = 8 * LANES, 4 * LANES
BAND_BYTES = 1 << 20
"""Size of the bands of a task: some rows, which should stay in the second-level cache."""
STRIP_PIXELS = 256
"""Positions that the weight gradient takes at a time, for the first-level cache."""
CHANNEL_BYTES = 32 << 10
"""Size of what the gradient in few weights reads of a channel and of a filter at a time: some rows, in the first-level cache."""
GAIN_OF_SHARING = 2.0
"""How much faster a multiply-add is in a tile of weights that share what they load."""


@dataclass(frozen=True)
class _Plan:
    """A kernel with all that it is given but the maps, for so many threads, each with a buffer of `room` floats."""

    job: Job
    threads: int
    room: int
    parts: int = 1
    """Of a gradient in the weights."""
    vectors: int = 0
    """Of filters in a tile of the gradient in all weights, 0 where it is that in the kept ones."""

    def run(self, *maps: Tensor) -> None:
        self.job.run(self.threads, *maps, shared_scratch(self.threads * self.room))


def forward(x: Tensor, weight: Tensor, mask: Tensor, weight_mask: Tensor | None, conv: Conv) -> Tensor:
    """y[N,F,oh,ow], channels last, of x[N,C,H,W] and weight[F,C,kh,kw] under mask[C,oh,ow]."""
    if _nothing_to_skip(mask, weight_mask):
        return _channels_last(F.conv2d(x, weight, None, *conv[:3]))
    weight, output = _without_gaps(weight), conv.output(x.shape[2:], weight.shape[2:])
    planned = _planned(_plan_forward, mask, weight_mask, x.shape, weight, conv)
    y = torch.empty(x.shape[0], weight.shape[0], *output, memory_format=torch.channels_last)
    planned.run(_channels_last(x), weight, y)
    return y


def backward(
    grad: Tensor, x: Tensor, weight: Tensor, mask: Tensor, weight_mask: Tensor | None, conv: Conv, wanted: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients in x[N,C,H,W], channels last, and in weight[F,C,kh,kw], zero where weight_mask is False; None where not wanted."""
    if not _nothing_to_skip(mask, weight_mask):
        return (
            _input_grad(grad, weight, mask, weight_mask, conv, x.shape) if wanted[0] else None,
            _weight_grad(grad, x, mask, weight_mask, conv, weight) if wanted[1] else None,
        )
    grad_x, grad_weight, _ = dense_backward(grad, x, weight, conv, [*wanted, False])
    if wanted[1]:
        grad_weight = grad_weight.contiguous() if weight_mask is None else (grad_weight * weight_mask).contiguous()
    return _channels_last(grad_x) if wanted[0] else None, grad_weight if wanted[1] else None


def _input_grad(grad: Tensor, weight: Tensor, mask: Tensor, weight_mask: Tensor | None, conv: Conv, shape: torch.Size) -> Tensor:
    weight = _without_gaps(weight)
    planned = _planned(_plan_input_grad, mask, weight_mask, shape, weight, conv)
    grad_x = torch.empty(shape, memory_format=torch.channels_last)
    planned.run(_channels_last(grad), weight, grad_x)
    return grad_x


def _weight_grad(grad: Tensor, x: Tensor, mask: Tensor, weight_mask: Tensor | None, conv: Conv, weight: Tensor) -> Tensor:
    planned = _planned(_plan_weight_grad, mask, weight_mask, x.shape, weight, conv)
    filters, channels, *kernel = weight.shape
    lanes, tiles = planned.vectors * LANES, tiles_of((kernel[0], kernel[1]))
    blocks = (-(-filters // lanes), channels, *tiles, SIDE, SIDE, lanes) if planned.vectors else weight.shape
    # One sum a part, added in order: the result depends on the number of threads, but not on which is faster.
    sums = torch.zeros(planned.parts, *blocks)
    planned.run(_channels_last(x), _channels_last(grad), sums)
    total = sums[0] if planned.parts == 1 else sums.sum(0)
    if not planned.vectors:
        return total
    taps = total.permute(0, 6, 1, 2, 4, 3, 5).reshape(-1, channels, SIDE * tiles[0], SIDE * tiles[1])
    result = taps[:filters, :, : kernel[0], : kernel[1]]
    return result.contiguous() if weight_mask is None else (result * weight_mask).contiguous()


def _planned(make: Callable[..., _Plan], mask: Tensor, weight_mask: Tensor | None, x: torch.Size, weight: Tensor, conv: Conv) -> _Plan:
    """The plan of a convolution of maps and weights like these, remembered until a mask changes or is no more."""
    plans = of_mask(mask, "plans", lambda _: {})
    key = make, x, weight.shape, weight.stride(), weight_mask is None, conv, torch.get_num_threads()
    reference, before, found = plans.get(key, (None, 0, None))
    same = reference is not None and (weight_mask is None or reference() is weight_mask)
    if not same or before != version(weight_mask):
        found = make(mask, weight_mask, weight.stride(), _geometry(x, weight.shape, conv), x[0])
        plans[key] = TensorWeakRef(mask if weight_mask is None else weight_mask), version(weight_mask), found
    return found


def _plan_forward(mask: Tensor, weight_mask: Tensor | None, strides: Sequence[int], g: Geometry, samples: int) -> _Plan:
    rows = FILTER_TILE if _worth_sharing(weight_mask, "filters") else 1
    lanes = _lanes(samples, rows)
    xb, yb, tasks = _bands(g, samples, lanes)
    lists = _entries(weight_mask, _weight(g), ("forward", rows, g.kernel[1], g.dilation[0] * xb.row, g.dilation[1] * xb.column))
    return _plan_convolution(forward_kernel(rows, lanes // LANES), lists, mask, strides, tasks, xb, yb, g)


def _plan_input_grad(mask: Tensor, weight_mask: Tensor | None, strides: Sequence[int], g: Geometry, samples: int) -> _Plan:
    rows = 3 if g.kernel[1] == 3 and _worth_sharing(weight_mask, "taps") else 1
    lanes = _lanes(samples, rows)
    xb, yb, tasks = _input_bands(g, samples, lanes)
    lists = _entries(weight_mask, _weight(g), ("input_grad", rows, lanes))
    return _plan_convolution(input_grad_kernel(rows, lanes // LANES), lists, mask, strides, tasks, xb, yb, g)


def _plan_convolution(
    kernel: Kernel, lists: plan.Entries, mask: Tensor, strides: Sequence[int], tasks: NDArray, xb: Band, yb: Band, g: Geometry
) -> _Plan:
    kept = _blocks(mask)
    numbers = numbers_of(xb, yb, g, tasks, weights=len(lists.positions))
    places = np.unravel_index(np.maximum(lists.positions, 0), _weight(g))
    positions = np.where(lists.positions < 0, -1, sum(place * stride for place, stride in zip(places, strides, strict=True)))
    arrays = numbers, lists.offsets, lists.segments, kept.starts, kept.active, positions.astype(np.int32)
    return _Plan(Job(kernel, 4, arrays), torch.get_num_threads(), room(numbers))


def _plan_weight_grad(mask: Tensor, weight_mask: Tensor | None, strides: Sequence[int], g: Geometry, samples: int) -> _Plan:
    if weight_mask is not None and not _worth_sharing(weight_mask, "all"):
        return _plan_sparse_weight_grad(mask, weight_mask, g, samples)
    threads, vectors = torch.get_num_threads(), 1 if g.y.channels <= LANES else 2
    parts, rows = min(threads, samples), max(1, min(g.y.height, STRIP_PIXELS // g.y.width))
    at_once = max(1, STRIP_PIXELS // (rows * g.y.width))
    # Channels of pixels a power of two apart would compete for the same few lines of the first-level cache.
    column = g.x.channels + (LANES if g.x.channels % (4 * LANES) == 0 else 0)
    columns = max(_reach(g.y.width, g, 1), g.x.width + g.padding[1])
    xb = Band(_reach(rows, g, 0), columns, g.x.channels, at_once, column, columns * column, -g.padding[1])
    yb = Band(rows, g.y.width, vectors * LANES, at_once, vectors * LANES, g.y.width * vectors * LANES, 0)
    bounds = [samples * part // parts for part in range(parts + 1)]
    tasks = [(n, m - n, top, min(rows, g.y.height - top)) for n, m in pairwise(bounds) for top in range(0, g.y.height, rows)]
    numbers = numbers_of(xb, yb, g, np.array(tasks, np.int64), parts, at_once)
    job = Job(weight_grad_kernel(vectors), 4, (numbers, *places_of(mask.detach().numpy(), rows, g, xb, yb)))
    return _Plan(job, threads, room(numbers), parts, vectors)


def _plan_sparse_weight_grad(mask: Tensor, weight_mask: Tensor, g: Geometry, samples: int) -> _Plan:
    threads, lanes, kept = torch.get_num_threads(), FEWEST_LANES, _blocks(mask)
    # As many rows as leave what a channel and a filter have in the first-level cache, where all filters of a block pass a channel by.
    row = 4 * lanes * (g.stride[0] * g.x.width + g.y.width)
    halo = 4 * lanes * (g.kernel[0] - 1) * g.dilation[0] * g.x.width
    xb, yb, tasks = _bands(g, samples, lanes, min(g.y.height, max(1, (CHANNEL_BYTES - halo) // row)))
    parts = min(threads, len(tasks))
    numbers, tiles = numbers_of(xb, yb, g, tasks, parts), _weight_grad_tiles(weight_mask, _weight(g), g, xb)
    job = Job(sparse_weight_grad, 4, (numbers, kept.row_starts, kept.columns, *tiles))
    return _Plan(job, threads, room(numbers), parts)


def _without_gaps(weight: Tensor) -> Tensor:
    """Weights that take weight.numel() numbers of memory, in whatever order."""
    whole = weight.is_contiguous() or weight.is_contiguous(memory_format=torch.channels_last)
    return weight if whole else weight.contiguous()


def _channels_last(t: Tensor) -> Tensor:
    return t.contiguous(memory_format=torch.channels_last)


def _weight(g: Geometry) -> tuple[int, ...]:
    return g.y.channels, g.x.channels, *g.kernel


def _geometry(x: Sequence[int], weight: Sequence[int], conv: Conv) -> Geometry:
    output = conv.output(x[2:], weight[2:])
    return Geometry(Map(x[2], x[3], x[1]), Map(*output, weight[0]), (weight[2], weight[3]), *conv[:3])


def _lanes(samples: int, rows: int) -> int:
    """Samples at a time, all of them in the vectors of a tile: the more, the fewer loads of weights, unless rows of the tile share
    these; but not so many that more lanes would idle."""
    choices = (FEWEST_LANES,) if rows > 1 else (MOST_LANES, FEWEST_LANES)
    return min(choices, key=lambda lanes: -(-samples // lanes) * lanes)


def _bands(g: Geometry, samples: int, lanes: int, most_rows: int = 1 << 30) -> tuple[Band, Band, NDArray]:
    """Bands of x (with its padding) and of y, and tasks [sample, samples, first row of y, rows of y]."""
    height, tasks = _tasks(samples, g.y.height, lanes, min(most_rows, max(2, int(BAND_BYTES / _row_bytes(g, g.stride[0], 1, lanes)))))
    yb = band(height, g.y.width, -(-g.y.channels // FILTER_TILE) * FILTER_TILE, lanes)
    rows, columns = _reach(height, g, 0), max(_reach(g.y.width, g, 1), g.x.width + g.padding[1])
    return band(rows, columns, g.x.channels, lanes, -g.padding[1]), yb, tasks


def _input_bands(g: Geometry, samples: int, lanes: int) -> tuple[Band, Band, NDArray]:
    """Bands of the gradients in x and in y that it depends on, and tasks [sample, samples, first row of x, rows of x]."""
    height, tasks = _tasks(samples, g.x.height, lanes, max(2, int(BAND_BYTES / _row_bytes(g, 1, 1 / g.stride[0], lanes))))
    columns = max(_reach(g.y.width, g, 1), g.x.width + g.padding[1])
    rows = min(g.y.height, (height - 1 + (g.kernel[0] - 1) * g.dilation[0]) // g.stride[0] + 2)
    yb = band(rows, g.y.width, -(-g.y.channels // FILTER_TILE) * FILTER_TILE, lanes)
    return band(height, columns, g.x.channels, lanes, -g.padding[1]), yb, tasks


def _reach(count: int, g: Geometry, axis: int) -> int:
    """Rows or columns that `count` output positions read."""
    return (count - 1) * g.stride[axis] + (g.kernel[axis] - 1) * g.dilation[axis] + 1


def _row_bytes(g: Geometry, x_rows: float, y_rows: float, lanes: int) -> float:
    return 4 * lanes * (x_rows * g.x.width * g.x.channels + y_rows * g.y.width * g.y.channels)


def _tasks(samples: int, height: int, lanes: int, most_rows: int) -> tuple[int, NDArray]:
    """(rows of a band, tasks): about the same number for every thread."""
    chunks, threads = -(-samples // lanes), torch.get_num_threads()
    bands = -(-height // min(height, most_rows))
    while chunks * bands % threads and bands < height:
        bands += 1
    rows = -(-height // bands)
    tasks = [(n, min(lanes, samples - n), i, min(rows, height - i)) for n in range(0, samples, lanes) for i in range(0, height, rows)]
    return rows, np.array(tasks, np.int64)


def _of_mask(mask: Tensor, key: Any, make: Callable[[NDArray], Any]) -> Any:
    """make(mask as an array), made once."""
    return of_mask(mask, key, lambda kept: make(kept.cpu().numpy()))


def _blocks(mask: Tensor) -> plan.Blocks:
    return _of_mask(mask, "blocks", plan.blocks)


def _nothing_to_skip(mask: Tensor, weight_mask: Tensor | None) -> bool:
    return keeps_everything(mask) and _worth_sharing(weight_mask, "all")


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
