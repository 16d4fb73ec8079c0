"""A planned network: programs, one after another, and between them what ONNX Runtime runs.

A program is arrays of numbers, and what each of its operations is:

steps [operations, 4]       start of its meta, work items, whether it reads or overwrites what others may be making, and the number of
                            the tensor of the caller that stands for its constants (-1: none does)
meta, index, constants      numbers of all operations one after another, see conv.py
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .dtypes import SLOT, DType

OP, ITEMS, MEET, TENSOR = range(4)
"""Positions in a step."""
ALIGN = 16
"""Slots of a cache line."""


@dataclass(frozen=True, kw_only=True)
class Operation:
    """What a part of a program is: multiply-adds of convolutions (else 0); `reason`: what its kernel was chosen from; `expected`: the
    seconds that it is to take (None: there was no choice); `limit`: what keeps it from the speed of its multiply-adds."""

    name: str
    kernel: str
    layout: str
    macs_dense: int
    macs: int
    reason: str
    expected: float | None
    limit: str = ""


@dataclass(frozen=True, kw_only=True)
class Program:
    """`kernels`: names, one for each operation. `costs`: expected time of its work items. `operations`: what it is a part of, which
    several that follow each other may have in common."""

    steps: NDArray[np.int64]
    kernels: tuple[str, ...]
    costs: tuple[NDArray[np.float64], ...]
    meta: NDArray[np.int64]
    index: NDArray[np.int32]
    constants: NDArray[np.float32]
    """They begin at a cache line, and so do those of each operation."""
    arena: int
    scratch: int
    operations: tuple[Operation, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    boxes: dict[str, tuple[int, int, int]]
    dtypes: dict[str, DType]

    def splits(self, threads: int) -> NDArray[np.int64]:
        """[operations, threads + 1]: contiguous runs of work items of about equal cost."""
        return np.array([_split(costs, threads) for costs in self.costs], np.int64).reshape(len(self.costs), threads + 1)


@dataclass(frozen=True, kw_only=True)
class Foreign:
    """What ONNX Runtime runs: a serialized ModelProto. `label`: which part of the file that is (empty: all of it); `note`: what to log of
    it; `doubt`: why the engine makes no sense of the file (empty: it does)."""

    model: bytes
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    label: str
    note: str
    doubt: str


Part = Program | Foreign
"""`inputs`, `outputs`: of programs, names of tensors; of what ONNX Runtime runs, names of the file."""


def _split(costs: NDArray[np.float64], threads: int) -> list[int]:
    sums = np.concatenate([[0.0], np.cumsum(costs)])
    wanted = sums[-1] * np.arange(1, threads) / threads
    inner = np.searchsorted(sums, wanted)  # the nearer of the two ends around each wanted sum
    inner -= (inner > 0) & (sums[np.maximum(inner - 1, 0)] + sums[np.minimum(inner, len(costs))] > 2 * wanted)
    return [0, *np.maximum.accumulate(inner).tolist(), len(costs)]


def aligned(count: int) -> NDArray[np.float32]:
    """Zeros whose first begins a cache line; pages that nobody touches take no memory."""
    buffer = np.zeros(count + ALIGN, np.float32)
    shift = (-buffer.ctypes.data // SLOT) % ALIGN
    return buffer[shift : shift + count]
