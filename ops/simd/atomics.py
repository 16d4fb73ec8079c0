"""Atomic integers for compiled threads: int64 arrays whose elements are read, written and added to as memory shared between cores.

All are sequentially consistent. With NUMBA_DISABLE_JIT=1 the same names stand for Python twins under a lock.
"""

import threading
import time
from typing import Any

from numpy.typing import NDArray

from ..numba_door import ir
from .declare import Emitter, operation

_BYTES = 8
_LOCK = threading.Lock()


def _place(e: Emitter) -> Any:
    return e.element(e.data(0), e.args[1])


def _changed(e: Emitter, how: str) -> Any:
    return e.builder.atomic_rmw(how, _place(e), e.args[2], "seq_cst")


@operation(lambda e: e.builder.load_atomic(_place(e), "seq_cst", _BYTES))
def load(array: NDArray, position: int) -> int:
    """array[position]"""
    return int(array[position])


def _store(e: Emitter) -> None:
    e.builder.store_atomic(e.args[2], _place(e), "seq_cst", _BYTES)


@operation(_store)
def store(array: NDArray, position: int, value: int) -> None:
    """array[position] = value"""
    array[position] = value


@operation(lambda e: e.builder.add(_changed(e, "add"), e.args[2]))
def add(array: NDArray, position: int, value: int) -> int:
    """array[position] += value; the new value."""
    with _LOCK:
        array[position] += value
        return int(array[position])


@operation(lambda e: _changed(e, "xchg"))
def exchange(array: NDArray, position: int, value: int) -> int:
    """array[position] = value; the old value."""
    with _LOCK:
        old = int(array[position])
        array[position] = value
        return old


@operation(lambda e: _changed(e, "max"))
def raise_to(array: NDArray, position: int, value: int) -> int:
    """array[position] = max(array[position], value); the old value."""
    with _LOCK:
        old = int(array[position])
        array[position] = max(old, value)
        return old


@operation(lambda e: e.builder.extract_value(e.builder.cmpxchg(_place(e), e.args[2], e.args[3], "seq_cst", "seq_cst"), 1))
def compare_exchange(array: NDArray, position: int, expected: int, value: int) -> bool:
    """array[position] = value where it was `expected`; whether it was."""
    with _LOCK:
        same = bool(array[position] == expected)
        if same:
            array[position] = value
        return same


def _pause(e: Emitter) -> None:
    triple = str(e.builder.module.triple)
    if triple.startswith(("x86_64", "i386", "i686")):
        e.call("llvm.x86.sse2.pause", ir.VoidType(), [])
    elif triple.startswith(("aarch64", "arm64")):
        e.call("llvm.aarch64.hint", ir.VoidType(), [ir.Constant(ir.IntType(32), 1)])  # yield


@operation(_pause)
def pause() -> None:
    """Tell the core that this is a waiting loop."""
    time.sleep(0)


def _give_way(e: Emitter) -> None:
    e.call("SwitchToThread" if "windows" in str(e.builder.module.triple) else "sched_yield", ir.IntType(32), [])


@operation(_give_way)
def give_way() -> None:
    """Let another thread run on this core."""
    time.sleep(0)
