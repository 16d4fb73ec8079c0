"""What every operation of a program takes: run one after another on one thread, over and over."""

import itertools
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from ..ir.program import Operation, Program
from .threads import Team


@dataclass(frozen=True, kw_only=True)
class Record(Operation):
    """An operation and its median seconds a sample."""

    seconds: float


def profile(program: Program, inputs: Sequence[NDArray], repeats: int) -> list[Record]:
    """Records of the operations in order; `inputs`: one sample [1, ...] of each tensor that the program reads."""
    team = Team(program, 1)
    outputs = [np.empty((1, *program.boxes[name]), program.dtypes[name]) for name in program.outputs]
    tensors = [*inputs, *outputs]
    team.run(1, tensors)
    spans = []
    for _, group in itertools.groupby(range(len(program.operations)), lambda k: id(program.operations[k])):
        numbers = list(group)
        spans.append((program.operations[numbers[0]], range(numbers[0], numbers[-1] + 1)))
    seconds: list[list[float]] = [[] for _ in spans]
    calls = [_turn(team, tensors, range(0)) for _ in range(max(5, repeats))]
    call = float(np.median(calls))
    for _ in range(repeats):
        for samples, (_, operations) in zip(seconds, spans, strict=True):
            samples.append(_turn(team, tensors, operations) - call)
    records = []
    for (operation, _), samples in zip(spans, seconds, strict=True):
        records.append(Record(**asdict(operation), seconds=max(0.0, float(np.median(samples)))))
    return records


def _turn(team: Team, tensors: Sequence[NDArray], operations: range) -> float:
    started = time.perf_counter()
    team.run(1, tensors, operations)
    return time.perf_counter() - started
