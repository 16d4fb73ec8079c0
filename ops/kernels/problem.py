"""The numbers that a kernel is given: sizes of the convolution and of its bands, and tasks, each a band of some samples.

numbers = [band of x, band of y, map of x, map of y, kernel, stride, padding, dilation, number of tasks,
           floats of the buffers for x, for y and for weights, parts,
           sample, samples, first row, rows of task 0, sample, ...]                                         int64
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..simd import LANES
from .jit import jit
from .job import enter, floats, longs
from .layout import Band, Map


class Geometry(NamedTuple):
    """Sizes of a convolution and of its maps (before padding)."""

    x: Map
    y: Map
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]


_HEADER = 33
PARTS = _HEADER - 1
"""Position of the number of parts in the numbers of a job."""


def numbers_of(xb: Band, yb: Band, g: Geometry, tasks: NDArray, parts: int = 1, bands: int = 1, weights: int = 0) -> NDArray:
    """Everything that a kernel has to know but the lists; its buffers hold so many bands of each map and so many weights."""
    # The gradients in the weights may read past the kernel, never to use it.
    rooms = _room(bands * xb.size + 3 * xb.row + 3 * xb.column), _room(bands * yb.size + yb.column), _room(weights)
    header = [*xb, *yb, *g.x, *g.y, *g.kernel, *g.stride, *g.padding, *g.dilation, len(tasks), *rooms, parts]
    return np.concatenate([np.array(header, np.int64), tasks.reshape(-1)])


def _room(size: int) -> int:
    """Buffers begin at cache lines."""
    return -(-size // LANES) * LANES


def room(numbers: NDArray) -> int:
    """Floats of the buffers of a thread."""
    return int(numbers[29:32].sum())


@jit
def opened(job: Any) -> tuple[NDArray, Band, Band, Geometry, NDArray, NDArray, NDArray]:
    """What every kernel begins with: the numbers and the sizes of its job, whose arrays 4 and 3 are the numbers and the buffers, and the
    buffers of this thread for bands of x, for bands of y, and for weights."""
    numbers = longs(job, 4)
    xb, yb, g = sizes(numbers)
    return numbers, xb, yb, g, *buffers(floats(job, 3), enter(job), numbers)


@jit
def sizes(n: NDArray) -> tuple[Band, Band, Geometry]:
    maps = Map(n[14], n[15], n[16]), Map(n[17], n[18], n[19])
    return (
        Band(n[0], n[1], n[2], n[3], n[4], n[5], n[6]),
        Band(n[7], n[8], n[9], n[10], n[11], n[12], n[13]),
        Geometry(maps[0], maps[1], (n[20], n[21]), (n[22], n[23]), (n[24], n[25]), (n[26], n[27])),
    )


@jit
def buffers(rooms: NDArray, thread: int, n: NDArray) -> tuple[NDArray, NDArray, NDArray]:
    """The buffers of a thread for bands of x, for bands of y, and for weights."""
    x = thread * (n[29] + n[30] + n[31])
    y = x + n[29]
    return rooms[x:y], rooms[y : y + n[30]], rooms[y + n[30] : y + n[30] + n[31]]


@jit
def task(n: NDArray, k: int) -> tuple[int, int, int, int]:
    """Sample, samples, first row, rows of task k; no samples where there are not so many tasks."""
    at_k = _HEADER + 4 * k
    if k >= n[28]:
        return 0, 0, 0, 0
    return n[at_k], n[at_k + 1], n[at_k + 2], n[at_k + 3]


@jit
def tasks_of(part: int, n: NDArray) -> tuple[int, int]:
    """First and last task of a part."""
    return part * n[28] // n[PARTS], (part + 1) * n[28] // n[PARTS]


@jit
def part_of(sums: NDArray, part: int, n: NDArray) -> NDArray:
    """The sums of a part."""
    size = len(sums) // n[PARTS]
    return sums[part * size : (part + 1) * size]
