"""What LC-ASGD's step predictor makes of its inputs, beside averages of the counts themselves.

    python benchmarks/lc_asgd_inputs.py [--quick] [--json FILE]

Arrivals under the virtual clock, without any training (the counts do not depend on it): mean absolute error of the predicted number of
states that other workers send before a worker's next one, over all but the first 800 arrivals. Inputs that are left out are zero.
"""

import argparse
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fineprune.common.files import write_json
from fineprune.models.training import TrainConfig
from fineprune.models.training.distributed.config import AsyncConfig
from fineprune.models.training.distributed.predictors import StepPredictor
from fineprune.models.training.distributed.server import Server
from fineprune.models.training.distributed.simulator import Simulator
from fineprune.models.training.distributed.telemetry import Arrival
from fineprune.models.training.distributed.worker import Forward

INPUTS = {"all inputs": (0, 1, 2), "steps": (0,), "times": (1, 2), "steps and t_comp": (0, 2)}
"""Columns of (step_m, t_comm, t_comp)."""
CLOCKS = ("lognormal", "stragglers", "heterogeneous")
_FIRST = 800


class Masked(StepPredictor):
    """A step predictor that sees some of its inputs only."""

    columns: tuple[int, ...] = (0, 1, 2)

    def _inputs(self, history: list[tuple[float, float, float]]) -> Any:
        seen = np.zeros(self.INPUTS, np.float32)
        seen[list(self.columns)] = 1
        return super()._inputs(history) * seen


class Idle:
    """A worker, and its batches, of which only the time matters."""

    def forward(self, *_: object) -> Forward:
        """A loss of one."""
        return Forward(1.0, 1, 1, torch.empty(0))

    def backward(self, *_: object) -> Tensor:
        """No gradient."""
        return torch.zeros(1)

    def batch(self, *_: object) -> None:
        """None."""


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="Simulate fewer arrivals.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="Write all figures into this JSON file.")
    arguments = parser.parse_args()
    rows = []
    for workers in (8, 16):
        for clock in CLOCKS:
            traces = {name: arrivals(workers, clock, columns, 1500 if arguments.quick else 5000) for name, columns in INPUTS.items()}
            errors = {name: predictor_error(trace) for name, trace in traces.items()} | average_errors(traces["all inputs"], workers)
            rows.append({"workers": workers, "clock": clock, **errors})
            print(f"M={workers:2} {clock:13} " + ", ".join(f"{name} {error:.2f}" for name, error in errors.items()), flush=True)
    if arguments.json:
        write_json(arguments.json, {"rows": rows})


def arrivals(workers: int, clock: str, columns: tuple[int, ...], count: int) -> list[Arrival]:
    """`count` states, with what had been predicted for each."""
    settings = AsyncConfig(algorithm="lc-asgd", workers=workers, time={"distribution": clock})  # type: ignore[arg-type]
    server = Server(torch.zeros(1), torch.empty(0), TrainConfig(epochs=1, batch_size=1, momentum=0.0), settings, [count])
    server.steps = Masked(workers, settings.window, settings.learns_every, settings.step_limit, 0)
    server.steps.columns = columns
    server.telemetry.trace = trace = []
    simulator = Simulator(server, Idle(), Idle(), 0)  # type: ignore[arg-type]
    while not server.finished:
        simulator.step()
    return trace


def predictor_error(trace: list[Arrival]) -> float:
    """Mean absolute error, in steps."""
    return statistics.mean(abs(a.steps - a.predicted_steps) for a in trace[_FIRST:] if a.predicted_steps is not None)


def average_errors(trace: list[Arrival], workers: int) -> dict[str, float]:
    """The same of what a server could say without a network."""
    before: dict[int, list[int]] = defaultdict(list)
    errors: dict[str, list[float]] = defaultdict(list)
    for i, arrival in enumerate(trace):
        counts = before[arrival.worker]
        if i >= _FIRST and counts:
            guesses = {"last": counts[-1], "M - 1": workers - 1, "worker's mean": round(statistics.mean(counts))}
            for name, guess in guesses.items():
                errors[name].append(abs(arrival.steps - guess))
        counts.append(arrival.steps)
    return {name: statistics.mean(values) for name, values in errors.items()}


if __name__ == "__main__":
    main()
