"""Latency of several runtimes side by side.

All candidates are loaded, warmed up, then measured in rounds: every round gives each candidate one *turn* (an untimed call,
then timed calls for a fixed time; a turn counts as its median call), in an order drawn anew: what disturbs the machine for a while,
or what a candidate leaves to the next one (threads that spin, caches), thus hits all candidates alike. Speed-ups are paired: the
baseline's turn over the candidate's turn of the same round. Medians and quartiles are over rounds.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..common.errors import RunError, UsageError
from ..common.progress import Progress, Silent
from .machine import machine_facts
from .runtimes import Runtime

_PAUSE_S = 0.01
"""Between turns: a runtime's idle threads spin for some milliseconds before they sleep, on the cores the next one needs."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """What to measure: every combination of batch size and thread count, `rounds` turns of `turn_s` seconds each."""

    batch_sizes: tuple[int, ...] = (1,)
    threads: tuple[int, ...] = (1,)
    rounds: int = 15
    turn_s: float = 0.05
    warmup_s: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("batch_sizes", "threads"):
            values = getattr(self, name)
            if not values or any(value < 1 for value in values):
                raise UsageError(f"{name} must be one or more positive integers, got {values}")
        if self.rounds < 1:
            raise UsageError(f"rounds must be at least 1, got {self.rounds}")
        for name in ("turn_s", "warmup_s"):
            if getattr(self, name) < 0:
                raise UsageError(f"{name} must not be negative, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class Latency:
    """One runtime at one batch size and thread count: milliseconds a batch over `rounds` turns, speed-up over the baseline."""

    runtime: str
    batch_size: int
    threads: int
    rounds: int
    median_ms: float
    p25_ms: float
    p75_ms: float
    min_ms: float
    max_ms: float
    speedup: float
    speedup_p25: float
    speedup_p75: float

    @property
    def ms_per_image(self) -> float:
        """Median milliseconds an image."""
        return self.median_ms / self.batch_size


@dataclass(frozen=True, kw_only=True)
class BenchmarkReport:
    """Rows of one benchmark; `baseline` names the runtime that speed-ups refer to."""

    rows: tuple[Latency, ...]
    baseline: str
    input_shape: tuple[int, int, int]
    config: BenchmarkConfig
    machine: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {**asdict(self), "rows": [{**asdict(row), "ms_per_image": row.ms_per_image} for row in self.rows]}

    def latency_ms(self, *, batch_size: int, threads: int) -> dict[str, float]:
        """Median milliseconds a batch by runtime."""
        return {row.runtime: row.median_ms for row in self.rows if (row.batch_size, row.threads) == (batch_size, threads)}

    def table(self) -> str:
        """Text for people, one line a row."""
        width = max(len("runtime"), *(len(row.runtime) for row in self.rows))
        head = f"{'runtime':<{width}}  batch  threads  median ms   quartiles         min     max   speed-up (quartiles)"
        lines = [
            f"{row.runtime:<{width}}  {row.batch_size:5d}  {row.threads:7d}  {row.median_ms:9.3f}  {row.p25_ms:7.3f}-{row.p75_ms:<7.3f} "
            f"{row.min_ms:7.3f} {row.max_ms:7.3f}   x{row.speedup:.2f} ({row.speedup_p25:.2f}-{row.speedup_p75:.2f})"
            for row in self.rows
        ]
        return "\n".join([f"speed-up over {self.baseline}; {self.machine['cpu']}, {self.machine['usable_cores']} cores", head, *lines])


def benchmark(
    runtimes: Sequence[Runtime],
    input_shape: tuple[int, int, int],
    config: BenchmarkConfig | None = None,
    *,
    baseline: str | None = None,
    progress: Progress | None = None,
) -> BenchmarkReport:
    """Measure `runtimes` on normally distributed input x[batch, *input_shape]; speed-ups refer to `baseline` (default: the first).

    Raises UsageError for no runtimes, equal names or an unknown baseline, RunError where outputs differ in shape.
    """
    config, progress = config or BenchmarkConfig(), progress or Silent()
    names = [runtime.name for runtime in runtimes]
    if not names or len(set(names)) < len(names):
        raise UsageError(f"a benchmark needs runtimes of different names, got {names}")
    baseline = names[0] if baseline is None else baseline
    if baseline not in names:
        raise UsageError(f"baseline {baseline!r} is not among the runtimes; choose one of {', '.join(names)}")
    rows: list[Latency] = []
    for threads in config.threads:
        loaded: list[Runtime] = []
        try:
            for runtime in runtimes:
                loaded.append(runtime)
                runtime.load(threads)
            for batch_size in config.batch_sizes:
                x = _input(batch_size, input_shape, config.seed)
                turns = _rounds(runtimes, x, config, progress, f"batch {batch_size}, threads {threads}")
                rows += [_summary(name, turns, baseline, batch_size, threads) for name in names]
        finally:
            for runtime in reversed(loaded):
                runtime.close()
    return BenchmarkReport(rows=tuple(rows), baseline=baseline, input_shape=input_shape, config=config, machine=machine_facts())


def _rounds(
    runtimes: Sequence[Runtime], x: NDArray[np.float32], config: BenchmarkConfig, progress: Progress, description: str
) -> dict[str, NDArray[np.float64]]:
    """Seconds of every turn, by runtime, in the order of the rounds."""
    shapes = {runtime.name: runtime.run(x).shape for runtime in runtimes}
    if len(set(shapes.values())) > 1:
        raise RunError(f"the runtimes give outputs of different shapes ({shapes}), so they do not run the same network")
    for runtime in runtimes:
        _turn(runtime, x, config.warmup_s)
    turns: dict[str, list[float]] = {runtime.name: [] for runtime in runtimes}
    order = np.random.default_rng(config.seed)
    for _ in progress(range(config.rounds), total=config.rounds, description=description):
        for number in order.permutation(len(runtimes)):
            time.sleep(_PAUSE_S)
            turns[runtimes[number].name].append(_turn(runtimes[number], x, config.turn_s))
    return {name: np.array(values) for name, values in turns.items()}


def _turn(runtime: Runtime, x: NDArray[np.float32], seconds: float) -> float:
    """Median seconds of calls over about `seconds`, after one that brings weights and threads back."""
    runtime.run(x)
    calls: list[float] = []
    spent = 0.0
    while not calls or spent < seconds:
        start = time.perf_counter()
        runtime.run(x)
        calls.append(time.perf_counter() - start)
        spent += calls[-1]
    return float(np.median(calls))


def _summary(name: str, turns: dict[str, NDArray[np.float64]], baseline: str, batch_size: int, threads: int) -> Latency:
    milliseconds = turns[name] * 1e3
    ratios = turns[baseline] / turns[name]
    p25, median, p75 = (float(q) for q in np.percentile(milliseconds, (25, 50, 75)))
    speedup_p25, speedup, speedup_p75 = (float(q) for q in np.percentile(ratios, (25, 50, 75)))
    return Latency(
        runtime=name,
        batch_size=batch_size,
        threads=threads,
        rounds=len(milliseconds),
        median_ms=median,
        p25_ms=p25,
        p75_ms=p75,
        min_ms=float(milliseconds.min()),
        max_ms=float(milliseconds.max()),
        speedup=speedup,
        speedup_p25=speedup_p25,
        speedup_p75=speedup_p75,
    )


def _input(batch_size: int, input_shape: tuple[int, int, int], seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((batch_size, *input_shape), dtype=np.float32)
