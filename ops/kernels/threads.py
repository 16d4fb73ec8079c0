"""Threads of the kernels, and memory that each of them keeps.

Compiled functions run in the OpenMP threads of torch: these are awake between the operations of a training step, where threads of our own
would have to be woken for each convolution while torch's still wait on the same cores.

The engine's team (export/engine/run/threads.py) is another thing: it runs where there is no torch, and waits in compiled code. Both hand
out work by atomic counters, and share nothing else.
"""

import ctypes
import os
import threading
from collections.abc import Callable, Sequence
from functools import lru_cache
from queue import SimpleQueue
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

_local = threading.local()


def scratch(*sizes: int) -> tuple[NDArray, ...]:
    """Room for numbers of this thread, reused: fresh memory would cost a page fault every 4 KB. Contents are what was left there."""
    return tuple(shared_scratch(size, k)[:size].numpy() for k, size in enumerate(sizes))


def shared_scratch(size: int, which: int = 0) -> Tensor:
    """At least so much room, for threads that this one runs together with."""
    kept: list[Tensor] = _local.__dict__.setdefault("buffers", [])
    while len(kept) <= which:
        kept.append(torch.empty(0))
    if len(kept[which]) < size:
        kept[which] = torch.zeros(size)  # of torch, because it starts at a cache line
    return kept[which]


def run_together(function: int, argument: int, threads: int) -> None:
    """Call the compiled function at an address, with an address as its argument, in so many threads, this being one of them."""
    call = _callable(function)
    if threads == 1:
        call(argument)
        return
    parallel = _openmp(os.getpid())
    if parallel is None:
        run_shares([lambda: call(argument)] * threads)
    else:
        parallel(function, argument, threads, 0)


@lru_cache
def _callable(function: int) -> Any:
    return ctypes.CFUNCTYPE(None, ctypes.c_void_p)(function)


_FIRST = os.getpid()


@lru_cache
def _openmp(process: int) -> Any:
    """What starts a parallel region in torch's OpenMP runtime; None where that has no such function, and after a fork, which leaves
    the runtime without its threads."""
    parallel = getattr(ctypes.CDLL(torch._C.__file__), "GOMP_parallel", None)
    if parallel is None or process != _FIRST:
        return None
    parallel.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    parallel.restype = None
    return parallel


def threads_for(tasks: int) -> int:
    """How many threads should share that many tasks."""
    return max(1, min(torch.get_num_threads(), tasks))


def run_shares(shares: Sequence[Callable[[], None]]) -> None:
    """All shares, each in a thread of its own, the first in this one; the first error of any is raised."""
    finished: SimpleQueue[BaseException | None] = SimpleQueue()
    for share in shares[1:]:
        # By process, because threads do not survive a fork.
        _workers(torch.get_num_threads() - 1, os.getpid()).put((share, finished))
    errors = [_outcome(shares[0]), *(finished.get() for _ in shares[1:])]
    for error in errors:
        if error is not None:
            raise error


@lru_cache
def _workers(count: int, process: int) -> "SimpleQueue[tuple[Callable[[], None], SimpleQueue]]":
    """Where `count` threads wait for work. Simple queues wake a thread twice as fast as concurrent.futures."""
    waiting: SimpleQueue[tuple[Callable[[], None], SimpleQueue]] = SimpleQueue()

    def work() -> None:
        while True:
            share, finished = waiting.get()
            finished.put(_outcome(share))

    for _ in range(count):
        threading.Thread(target=work, name="fineprune", daemon=True).start()
    return waiting


def _outcome(share: Callable[[], None]) -> BaseException | None:
    try:
        share()
    except BaseException as error:
        return error
    return None
