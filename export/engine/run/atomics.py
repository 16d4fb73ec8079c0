"""Atomic integers for compiled threads: int64 arrays whose elements are read, written and added to as memory shared between cores.

    load(a, i)                      store(a, i, v)
    add(a, i, v)                    a[i] += v; returns the new value
    exchange(a, i, v)               returns the old value
    raise_to(a, i, v)               a[i] = max(a[i], v); returns the old value
    compare_exchange(a, i, e, v)    a[i] = v where it was e; returns whether it was
    pause()                         tells the core that this is a waiting loop
    give_way()                      lets another thread run on this core

All are sequentially consistent. With NUMBA_DISABLE_JIT=1 the same names stand for Python twins under a lock.
"""

import threading
import time
from typing import Any

from llvmlite import ir
from numba import config, types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

SPACING = 16
"""int64s between atomics: each has cache lines of its own (two of them, since cores fetch pairs)."""

_BYTES = 8


def _pointer(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    data = context.make_array(signature.args[0])(context, builder, args[0]).data
    return builder.gep(data, [args[1]], inbounds=True)


@intrinsic
def _load(typing: Any, array: Any, position: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load_atomic(_pointer(context, builder, signature, args), "seq_cst", _BYTES)

    return types.int64(array, types.intp), emit


@intrinsic
def _store(typing: Any, array: Any, position: Any, value: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store_atomic(args[2], _pointer(context, builder, signature, args), "seq_cst", _BYTES)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.int64), emit


@intrinsic
def _add(typing: Any, array: Any, position: Any, value: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        old = builder.atomic_rmw("add", _pointer(context, builder, signature, args), args[2], "seq_cst")
        return builder.add(old, args[2])

    return types.int64(array, types.intp, types.int64), emit


@intrinsic
def _exchange(typing: Any, array: Any, position: Any, value: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.atomic_rmw("xchg", _pointer(context, builder, signature, args), args[2], "seq_cst")

    return types.int64(array, types.intp, types.int64), emit


@intrinsic
def _raise_to(typing: Any, array: Any, position: Any, value: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.atomic_rmw("max", _pointer(context, builder, signature, args), args[2], "seq_cst")

    return types.int64(array, types.intp, types.int64), emit


@intrinsic
def _compare_exchange(typing: Any, array: Any, position: Any, expected: Any, value: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = _pointer(context, builder, signature, args)
        return builder.extract_value(builder.cmpxchg(pointer, args[2], args[3], "seq_cst", "seq_cst"), 1)

    return types.boolean(array, types.intp, types.int64, types.int64), emit


@intrinsic
def _pause(typing: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        triple, arguments = str(builder.module.triple), []
        if triple.startswith(("x86_64", "i386", "i686")):
            name = "llvm.x86.sse2.pause"
        elif triple.startswith(("aarch64", "arm64")):
            name, arguments = "llvm.aarch64.hint", [ir.Constant(ir.IntType(32), 1)]  # yield
        else:
            return context.get_dummy_value()
        kind = ir.FunctionType(ir.VoidType(), [argument.type for argument in arguments])
        builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)
        return context.get_dummy_value()

    return types.void(), emit


@intrinsic
def _give_way(typing: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        name = "SwitchToThread" if "windows" in str(builder.module.triple) else "sched_yield"
        kind = ir.FunctionType(ir.IntType(32), [])
        builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [])
        return context.get_dummy_value()

    return types.void(), emit


_LOCK = threading.Lock()


def _python_load(array: NDArray, position: int) -> int:
    return int(array[position])


def _python_store(array: NDArray, position: int, value: int) -> None:
    array[position] = value


def _python_add(array: NDArray, position: int, value: int) -> int:
    with _LOCK:
        array[position] += value
        return int(array[position])


def _python_exchange(array: NDArray, position: int, value: int) -> int:
    with _LOCK:
        old = int(array[position])
        array[position] = value
        return old


def _python_raise_to(array: NDArray, position: int, value: int) -> int:
    with _LOCK:
        old = int(array[position])
        array[position] = max(old, value)
        return old


def _python_compare_exchange(array: NDArray, position: int, expected: int, value: int) -> bool:
    with _LOCK:
        same = bool(array[position] == expected)
        if same:
            array[position] = value
        return same


def _python_wait() -> None:
    time.sleep(0)


load = _python_load if config.DISABLE_JIT else _load
store = _python_store if config.DISABLE_JIT else _store
add = _python_add if config.DISABLE_JIT else _add
exchange = _python_exchange if config.DISABLE_JIT else _exchange
raise_to = _python_raise_to if config.DISABLE_JIT else _raise_to
compare_exchange = _python_compare_exchange if config.DISABLE_JIT else _compare_exchange
pause = _python_wait if config.DISABLE_JIT else _pause
give_way = _python_wait if config.DISABLE_JIT else _give_way
