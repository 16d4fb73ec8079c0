"""What a compiled function that any number of threads run together is given: a table with its arrays, and what of it has been taken.

    table = [parts taken, threads entered, address of array 0, its length, address of array 1, ...]           int64

Threads take parts until there are none left, so one that comes late, or never, holds nobody up. With NUMBA_DISABLE_JIT=1 the function is
plain Python, the table a list of arrays.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from llvmlite import ir
from numba import config, types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import make_array, populate_array
from numpy.typing import NDArray
from torch import Tensor

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

    @intrinsic
    def array(typing: Any, table: Any, position: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            at = builder.add(builder.mul(args[1], args[1].type(2)), args[1].type(_ARRAYS))
            address, length = (builder.load(builder.gep(args[0], [builder.add(at, at.type(k))])) for k in (0, 1))
            result = make_array(kind)(context, builder)
            item = context.get_abi_sizeof(context.get_data_type(dtype))
            populate_array(
                result,
                data=builder.inttoptr(address, result.data.type),
                shape=cgutils.pack_array(builder, [length]),
                strides=cgutils.pack_array(builder, [length.type(item)]),
                itemsize=length.type(item),
                meminfo=None,
            )
            return result._getvalue()

        return kind(table, types.intp), emit

    return array


def _counter(position: int) -> Any:
    @intrinsic
    def count(typing: Any, table: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            pointer = builder.gep(args[0], [ir.IntType(64)(position)])
            return builder.atomic_rmw("add", pointer, ir.IntType(64)(1), "seq_cst")

        return types.int64(table), emit

    return count


def _python_array(table: Sequence[Any], position: int) -> Any:
    return table[1 + position]


def _python_counter(position: int) -> Callable[[Sequence[Any]], int]:
    def count(table: Sequence[Any]) -> int:
        table[0][position] += 1
        return int(table[0][position]) - 1

    return count


floats = _python_array if config.DISABLE_JIT else _array(types.float32)
"""floats(table, k): array k, of float32 numbers."""
ints = _python_array if config.DISABLE_JIT else _array(types.int32)
"""ints(table, k): array k, of int32 numbers."""
longs = _python_array if config.DISABLE_JIT else _array(types.int64)
"""longs(table, k): array k, of int64 numbers."""
take = _python_counter(_TAKEN) if config.DISABLE_JIT else _counter(_TAKEN)
"""take(table): the number of the next part; the caller stops where there are not so many."""
enter = _python_counter(_ENTERED) if config.DISABLE_JIT else _counter(_ENTERED)
"""enter(table): the number of this thread."""
