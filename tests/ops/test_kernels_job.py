"""Jobs: every part is done once, by however many threads of whichever kind."""

import os
from typing import Any

import numpy as np
import pytest
import torch

from fineprune.ops.kernels import threads
from fineprune.ops.kernels.job import Job, Kernel, enter, floats, ints, longs, take

PARTS = 5000


@Kernel
def tally(job: Any) -> None:
    """Adds to each of the given numbers the sum of two arrays; counts the threads."""
    done, entered, small, large = floats(job, 0), floats(job, 1), ints(job, 2), longs(job, 3)
    entered[enter(job)] += 1
    while True:
        part = take(job)
        if part >= len(done):
            break
        done[part] += small[part % len(small)] + large[0]


def run(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    done, entered = torch.zeros(PARTS), torch.zeros(8)
    job = Job(tally, 2, (np.array([1, 2, 3], np.int32), np.array([1 << 20], np.int64)))
    job.run(count, done, entered)
    job.run(count, done, entered)
    return done, entered


def check(count: int) -> None:
    done, entered = run(count)
    assert torch.equal(done, 2.0 * (torch.arange(PARTS) % 3 + 1 + (1 << 20)))
    assert entered.tolist() == [2.0] * count + [0.0] * (8 - count)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_every_part_is_done_once(count: int) -> None:
    check(count)


def test_without_an_openmp_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_openmp", lambda _: None)
    torch.set_num_threads(3)
    try:
        check(3)
    finally:
        torch.set_num_threads(1)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_process_does_without_the_runtime() -> None:
    assert threads._openmp(os.getpid() + 1) is None
