"""The threads of a program: they wait in compiled code for a while after each job, so that the next one starts within a microsecond.

The caller is thread 0. The others look for a new job in a loop that holds no interpreter lock; after about a millisecond without one
they go to sleep in Python. The next job wakes them, which takes some tens of microseconds, but does not wait for them.
"""

import threading
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fineprune.ops.simd.atomics import SPACING

from ..passes.program import Program
from . import interpreter


class Team:
    """Runs one program, for one caller at a time. Knows nothing of who uses it, so that a finalizer can close it."""

    def __init__(self, program: Program, threads: int) -> None:
        self.threads = threads
        splits = program.splits(threads)
        before = np.concatenate([[0], np.cumsum((np.diff(splits, axis=1) > 0).sum(1))])
        arenas = _aligned(threads, program.arena + threads * program.scratch)
        self._fields = np.zeros(interpreter.TENSORS + 2 * (len(program.inputs) + len(program.outputs)), np.int64)
        job, self._sleeping = np.zeros_like(self._fields), np.zeros(threads, np.int64)
        self._sync = np.zeros(interpreter.THREADS + (threads + splits[:, 1:].size) * SPACING, np.int64)
        spaces = np.array([program.arena, program.scratch], np.int64)
        tables = (program.steps, splits, before, spaces, program.meta, program.index, program.constants)
        self._tables = (self._fields, self._sleeping, *tables, arenas, job, self._sync)
        self._operations = range(len(program.steps))
        self._wake = [threading.Event() for _ in range(threads)]
        interpreter.place(self._fields, interpreter.TENSORS, arenas[0], 1)
        self.run(0, ())  # with `place`, compiles what this machine has not compiled before
        self._workers = [
            threading.Thread(
                target=_serve, args=(thread, threads, self._tables, self._wake[thread]), name=f"fineprune-{thread}", daemon=True
            )
            for thread in range(1, threads)
        ]
        for worker in self._workers:
            worker.start()

    def run(self, count: int, tensors: Sequence[NDArray], operations: range | None = None) -> None:
        """A batch of `count` samples: inputs, then outputs, each [count, ...], of the program's types, contiguous; all operations, or
        only some."""
        chosen = self._operations if operations is None else operations
        self._fields[interpreter.COUNT] = count
        self._fields[interpreter.BEGIN], self._fields[interpreter.END] = chosen.start, chosen.stop
        for at, tensor in enumerate(tensors):
            interpreter.place(self._fields, interpreter.TENSORS + 2 * at, tensor.reshape(-1), count)
        if interpreter.take_part(interpreter.START, 0, self.threads, 0, *self._tables):
            for thread in np.flatnonzero(self._sleeping):
                self._wake[thread].set()
            interpreter.take_part(interpreter.GO_ON, 0, self.threads, 0, *self._tables)

    def close(self) -> None:
        """Stop and join the threads."""
        interpreter.halt(self._sync)
        self.run(0, ())
        for worker in self._workers:
            worker.join()
        self._workers = []


def _aligned(rows: int, columns: int) -> NDArray[np.float32]:
    """Zeros [rows, columns] whose first element begins a cache line; pages that nobody touches take no memory."""
    buffer = np.zeros(rows * columns + 16, np.float32)
    shift = (-buffer.ctypes.data // 4) % 16
    return buffer[shift : shift + rows * columns].reshape(rows, columns)


def _serve(thread: int, threads: int, tables: tuple[NDArray, ...], wake: threading.Event) -> None:
    seen = 0
    while True:
        seen = interpreter.take_part(interpreter.SERVE, thread, threads, seen, *tables)
        if seen < 0:
            return
        wake.wait()
        wake.clear()
