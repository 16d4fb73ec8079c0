"""What LC-ASGD's predictors cost: processor time of the server's answer to a state, by workers, beside that of a worker's iteration.

    python benchmarks/lc_asgd_costs.py [--quick] [--json FILE]

One thread, torch's predictors (`lstm`) beside our kernels (`compiled`). The server is asked by M workers in turn, with random losses; an
answer's time is the mean over the second half of the requests, lessons included, an iteration's the median. All are measured in turn, three
times; medians are shown, of the ratios too, which are those of the time of an answer at M = 8 to that of an iteration.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fineprune.common.files import write_json
from fineprune.export.machine import machine_facts
from fineprune.models.training import TrainConfig
from fineprune.models.training.distributed.config import AsyncConfig, Predictor
from fineprune.models.training.distributed.ledger import Ticket
from fineprune.models.training.distributed.server import Server, State
from fineprune.models.training.distributed.worker import Worker
from fineprune.models.zoo import build

NETWORKS = (("resnet8", 8, (1, 14, 14), 32), ("resnet8", 8, (1, 28, 28), 128), ("resnet20", 16, (3, 32, 32), 128))
"""name, width, input, batch."""
WORKERS = (4, 8, 16, 64)
PREDICTORS: tuple[Predictor, ...] = ("lstm", "compiled")
_PASSES = 3


class Batch(NamedTuple):
    images: Tensor
    labels: Tensor
    indices: Tensor


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="Measure with fewer repetitions.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="Write all figures into this JSON file.")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rounds, repetitions = (40, 5) if arguments.quick else (80, 15)
    answers: dict[tuple[Predictor, int], list[float]] = {(kind, m): [] for m in WORKERS for kind in PREDICTORS}
    steps: list[list[float]] = [[] for _ in NETWORKS]
    for _ in range(_PASSES):
        for kind, m in answers:
            answers[kind, m].append(request_ms(m, rounds * m, kind))
        for times, network in zip(steps, NETWORKS, strict=True):
            times.append(iteration_ms(*network, repetitions))
    requests = {f"{kind} M={m}": statistics.median(values) for (kind, m), values in answers.items()}
    for name, value in requests.items():
        print(f"{name}: {value:.2f} ms an answer")
    iterations = []
    for times, (name, width, shape, batch) in zip(steps, NETWORKS, strict=True):
        pairs = {kind: zip(answers[kind, 8], times, strict=True) for kind in PREDICTORS}
        ratios = {kind: statistics.median(answer / iteration for answer, iteration in pairs[kind]) for kind in PREDICTORS}
        value = statistics.median(times)
        iterations.append({"network": name, "width": width, "input": shape, "batch": batch, "ms": value, "ratios": ratios})
        print(f"{name} width {width}, {shape}, batch {batch}: {value:.1f} ms an iteration; an answer at M=8 is of it", end=" ")
        print(", ".join(f"{ratio:.1%} ({kind})" for kind, ratio in ratios.items()))
    if arguments.json:
        write_json(arguments.json, {"machine": machine_facts(), "request_ms": requests, "iterations": iterations})


def request_ms(workers: int, requests: int, predictor: Predictor) -> float:
    """Mean processor time of `Server.state`."""
    config = TrainConfig(epochs=10, batch_size=32, momentum=0.0)
    server = Server(
        torch.zeros(1), torch.empty(0), config, AsyncConfig(algorithm="lc-asgd", workers=workers, predictor=predictor), [requests]
    )
    generator = torch.Generator().manual_seed(0)
    times = []
    for i in range(requests):
        pulled = server.pull(i % workers)
        if pulled is None:
            raise RuntimeError("the server has a batch for every request")
        loss = 1 + 0.1 * torch.rand(1, generator=generator).item()
        report = State(pulled.lease, loss, 1, 1, torch.empty(0), 0.1, 1.0)
        times.append(_seconds(lambda report=report: server.state(report)))  # type: ignore[misc]
        server.gradient(pulled.lease, torch.zeros(1))
    return 1e3 * statistics.mean(times[requests // 2 :])


def iteration_ms(name: str, width: int, shape: tuple[int, int, int], size: int, repetitions: int) -> float:
    """Median processor time of a worker's forward and backward pass."""
    model = build(name, seed=0, width=width, in_channels=shape[0], num_classes=10)
    config = TrainConfig(batch_size=size, channels_last=False)
    worker = Worker(model, config, torch.device("cpu"), torch.float32, torch.contiguous_format)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(size, *shape, generator=generator)
    batch = Batch(images, torch.randint(0, 10, (size,), generator=generator), torch.arange(size))
    weights = worker.flat.weights()

    def step() -> None:
        worker.forward(weights, batch, Ticket(0, 0, 0, 0))
        worker.backward()

    step()
    return 1e3 * statistics.median(_seconds(step) for _ in range(repetitions))


def _seconds(work: Any) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


if __name__ == "__main__":
    main()
