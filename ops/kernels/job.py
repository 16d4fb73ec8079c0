"""What a compiled function that any number of threads run together is given: a table with its arrays, and what of it has been taken.

    table = [parts taken, threads entered, address of array 0, its length, address of array 1, ...]           int64

Threads take parts until there are none left, so one that comes late, or never, holds nobody up. With NUMBA_DISABLE_JIT=1 the function is
plain Python, the table a list of arrays.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numba import config, types
from numpy.typing import NDArray
from torch import Tensor

from .. import numba_door
from ..numba_door import ir
from ..simd.declare import Emitter, operation
from .jit import COMPILER
from .threads import run_together

_TABLE = types.CPointer(types.int64)
_TAKEN, _ENTERED, _ARRAYS = 0, 1, 2


class Kernel:
    """function(table), compiled when it is first needed; the result is kept on disk where that can be written."""

    def __init__(self, function: Callable[[Any], None]) -> None:
        self.function = function

    @cached_property
    def address(self) -> int:
        self._compiled = COMPILER.callback(types.void(_TABLE), self.function)
        return int(self._compiled.address)


@dataclass(frozen=True)
class Job:
    """A call of a kernel: `given` arrays that differ from call to call, then those that do not."""

    kernel: Kernel
    given: int
    arrays: tuple[NDArray, ...]

    def __post_init__(self) -> None:
        addresses = [number for array in self.arrays for number in (array.ctypes.data, array.size)]
        object.__setattr__(self, "_table", np.array([0] * (_ARRAYS + 2 * self.given) + addresses, np.int64))

    def run(self, threads: int, *given: Tensor) -> None:
        """Until every part is done. The numbers of a tensor lie as they do in memory."""
        if config.DISABLE_JIT:
            self.kernel.function([[0, 0], *(t.detach().as_strided((t.numel(),), (1,)).numpy() for t in given), *self.arrays])
            return
        table = self._table.copy()  # type: ignore[attr-defined]
        table[_ARRAYS : _ARRAYS + 2 * len(given)] = [number for t in given for number in (t.data_ptr(), t.numel())]
        run_together(self.kernel.address, table.ctypes.data, threads)


def _array(dtype: Any) -> Any:
    kind = types.Array(dtype, 1, "C")

    def emit(e: Emitter) -> Any:
        at = e.builder.add(e.builder.mul(e.args[1], e.args[1].type(2)), e.args[1].type(_ARRAYS))
        address, length = (e.builder.load(e.builder.gep(e.args[0], [e.builder.add(at, at.type(k))])) for k in (0, 1))
        return numba_door.array_at(e.context, e.builder, kind, address, length)

    return operation(emit, lambda table, position: kind(table, types.intp))


def _counter(e: Emitter, position: int) -> Any:
    return e.builder.atomic_rmw("add", e.builder.gep(e.args[0], [ir.IntType(64)(position)]), ir.IntType(64)(1), "seq_cst")


def _counted(table: Any, position: int) -> int:
    table[0][position] += 1
    return int(table[0][position]) - 1


@_array(types.float32)
def floats(table: Any, position: int) -> Any:
    """Array number `position`, of float32 numbers."""
    return table[1 + position]


@_array(types.int32)
def ints(table: Any, position: int) -> Any:
    """Array number `position`, of int32 numbers."""
    return table[1 + position]


@_array(types.int64)
def longs(table: Any, position: int) -> Any:
    """Array number `position`, of int64 numbers."""
    return table[1 + position]


@operation(lambda e: _counter(e, _TAKEN))
def take(table: Any) -> int:
    """The number of the next part; the caller stops where there are not so many."""
    return _counted(table, _TAKEN)


@operation(lambda e: _counter(e, _ENTERED))
def enter(table: Any) -> int:
    """The number of this thread."""
    return _counted(table, _ENTERED)
