"""The threads of a program: they wait in compiled code for a while after each job, so that the next one starts within a microsecond.

The caller is thread 0. The others look for a new job in a loop that holds no interpreter lock; after about a millisecond without one
they go to sleep in Python. The next job wakes them, which takes some tens of microseconds, but does not wait for them.
"""

import ctypes
import threading
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fineprune.ops.machine_code import Code, uncompiled

from .. import kept
from ..ir.program import Program, aligned
from . import job

_TAKE_PART = ctypes.CFUNCTYPE(*[ctypes.c_int64] * 5)


class Team:
    """Runs one program, for one caller at a time. Knows nothing of who uses it, so that a finalizer can close it."""

    def __init__(self, program: Program, threads: int) -> None:
        self.threads = threads
        splits = program.splits(threads)
        arena = program.arena + threads * program.scratch
        fields = np.zeros(job.TENSORS + 2 * (len(program.inputs) + len(program.outputs)), np.int64)
        self._arrays: dict[str, NDArray] = {
            "steps": program.steps,
            "meta": program.meta,
            "index": program.index,
            "constants": program.constants,
            "kernels": np.array(_kernels(program.kernels), np.int64),
            "splits": splits,
            "before": np.concatenate([[0], np.cumsum((np.diff(splits, axis=1) > 0).sum(1))]),
            "spaces": np.array([threads, arena, program.arena, program.scratch], np.int64),
            "arenas": aligned(threads * arena),
            "fields": fields,
            "job": np.zeros_like(fields),
            "sleeping": np.zeros(threads, np.int64),
            "sync": np.zeros(job.THREADS + (threads + threads * len(splits)) * job.SPACING, np.int64),
        }
        self._fields, self._sleeping, self._sync = fields, self._arrays["sleeping"], self._arrays["sync"]
        self._table = np.array([n for name in job.TABLE for n in (self._arrays[name].ctypes.data, self._arrays[name].size)], np.int64)
        self._at, self._take_part = self._table.ctypes.data, _take_part()
        self._operations = range(len(program.steps))
        self._wake = [threading.Event() for _ in range(threads)]
        given = (self._take_part, self._table, self._arrays)
        self._workers = [
            threading.Thread(target=_serve, args=(thread, self._wake[thread], *given), name=f"fineprune-{thread}", daemon=True)
            for thread in range(1, threads)
        ]
        for worker in self._workers:
            worker.start()

    def run(self, count: int, tensors: Sequence[NDArray], operations: range | None = None) -> None:
        """A batch of `count` samples: inputs, then outputs, each [count, ...], of the program's types, contiguous; all operations, or
        only some."""
        chosen = self._operations if operations is None else operations
        numbers = [count, chosen.start, chosen.stop, 0, 0, 0]
        for tensor in tensors:
            numbers += (_address(tensor), tensor.nbytes // count)
        self._fields[: len(numbers)] = numbers
        if self._take_part(job.START, 0, 0, self._at):
            for thread in np.flatnonzero(self._sleeping):
                self._wake[thread].set()
            self._take_part(job.GO_ON, 0, 0, self._at)

    def close(self) -> None:
        """Stop and join the threads."""
        self._sync[job.STOP] = 1
        self.run(0, ())
        for worker in self._workers:
            worker.join()
        self._workers = []


def _address(tensor: NDArray) -> int:
    """Of its first number. `tensor.ctypes` takes microseconds, in which small networks compute a layer."""
    if tensor.flags.writeable and tensor.size:
        return ctypes.addressof(ctypes.c_char.from_buffer(tensor))  # type: ignore[arg-type]
    return tensor.ctypes.data


def _kernels(names: Sequence[str]) -> list[int]:
    """The address of each, where it is compiled, else its number."""
    if uncompiled():
        from ..ir.network import KERNELS

        return [list(KERNELS).index(name) for name in names]
    return [kept.address(name, partial(_kernel, name)) for name in names]


def _kernel(name: str) -> Code:
    """Compiled now."""
    from .. import ops  # noqa: F401 - the operations register their kernels
    from ..ir.network import KERNELS

    return KERNELS[name].entry.code()


def _take_part() -> Any:
    """The function of the interpreter."""

    def make() -> Code:
        from .interpreter import take_part

        return take_part.code()

    if uncompiled():
        from .interpreter import take_part

        return take_part
    return _TAKE_PART(kept.address("take_part", make))


def _serve(thread: int, wake: threading.Event, take_part: Any, table: NDArray, arrays: Any) -> None:
    """`arrays`: what the table names, which has to stay."""
    seen = 0
    while True:
        seen = take_part(job.SERVE, thread, seen, table.ctypes.data)
        if seen < 0:
            return
        wake.wait()
        wake.clear()
