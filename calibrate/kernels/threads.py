"""Threads of the kernels, and memory that each of them keeps."""

import os
import threading
from collections.abc import Callable, Sequence
from functools import lru_cache
from queue import SimpleQueue

import torch
from numpy.typing import NDArray

_local = threading.local()


def scratch(*sizes: int) -> tuple[NDArray, ...]:
    """Room for numbers of this thread, reused: fresh memory would cost a page fault every 4 KB. Contents are what was left there."""
    kept: list[NDArray] = getattr(_local, "buffers", [])
    for k, size in enumerate(sizes):
        if k == len(kept):
            kept.append(torch.zeros(size).numpy())  # of torch, because it starts at a cache line
        elif len(kept[k]) < size:
            kept[k] = torch.zeros(size).numpy()
    _local.buffers = kept
    return tuple(buffer[:size] for buffer, size in zip(kept, sizes, strict=False))


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
