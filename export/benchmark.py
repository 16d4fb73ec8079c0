"""Latency of several runtimes side by side.

All candidates are loaded, warmed up, then measured in rounds: every round gives each candidate one *turn* (an untimed call,
then timed calls for a fixed time; a turn counts as its median call), in an order drawn anew: what disturbs the machine for a while,
or what a candidate leaves to the next one (threads that spin, caches), thus hits all candidates alike. Speed-ups are paired: the
baseline's turn over the candidate's turn of the same round; those over a second baseline, the rival, too. Medians and quartiles are over
rounds.

Where other programs take the processor away, figures are those of the scheduler. Two signs: a call gets less processor time than it
lasts, and turns of the same work differ widely. Such rows are not `reliable`, and the report says so.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from fineprune.common.errors import RunError, UsageError, said_by
from fineprune.common.inputs import Shape, Structured
from fineprune.common.progress import Progress, Silent
from fineprune.common.seeds import check_seed

from .flat import arrays_of
from .machine import machine_facts
from .runtimes import Runtime, answer

T = TypeVar("T")

_PAUSE_S = 0.01
"""Between turns: a runtime's idle threads spin for some milliseconds before they sleep, on the cores the next one needs."""

LEAST_SHARE = 0.9
"""Of a call's time that the process was on a processor (more than 1 with several threads): below it, others had the processor."""

LARGEST_SPREAD = 0.5
"""Difference of the quartiles over the median. Quiet machines are below 0.1, servers shared with others reach 0.25."""

_CPU_CLOCK_IS_FINE = time.get_clock_info("process_time").resolution < 1e-4


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
        check_seed(self.seed)
        for name in ("turn_s", "warmup_s"):
            if getattr(self, name) < 0:
                raise UsageError(f"{name} must not be negative, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class Latency:
    """One runtime at one batch size and thread count: milliseconds a batch over `rounds` turns, speed-up over the baseline.

    speedup_rival: median speed-up over the rival (None: there is none).
    cpu_share: processor time of the process over the time of a call (median over turns; None where the system's clock is too coarse).
    """

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
    speedup_rival: float | None
    cpu_share: float | None

    @property
    def reliable(self) -> bool:
        """Whether the machine was quiet enough for the figures to say something about the runtime."""
        starved = self.cpu_share is not None and self.cpu_share < LEAST_SHARE
        return not starved and self.p75_ms - self.p25_ms <= LARGEST_SPREAD * self.median_ms

    @property
    def ms_per_image(self) -> float:
        """Median milliseconds an image."""
        return self.median_ms / self.batch_size


@dataclass(frozen=True, kw_only=True)
class BenchmarkReport:
    """Rows of one benchmark; `baseline` names the runtime that speed-ups refer to, `rival` a second one."""

    rows: tuple[Latency, ...]
    baseline: str
    rival: str | None
    input_shape: tuple[int, ...]
    """() where inputs are structured."""
    config: BenchmarkConfig
    machine: dict[str, Any]
    file_bytes: dict[str, int] = field(default_factory=dict)
    """Sizes of the files that were measured, where the caller knows them: "dense", "compressed", "compressed int8"."""

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        rows = [{**asdict(row), "ms_per_image": row.ms_per_image, "reliable": row.reliable} for row in self.rows]
        return {**asdict(self), "rows": rows, "warning": self.warning}

    @property
    def warning(self) -> str:
        """What to tell the user where rows are not reliable, else an empty text."""
        bad = [row for row in self.rows if not row.reliable]
        if not bad:
            return ""
        shares = [row.cpu_share for row in bad if row.cpu_share is not None]
        spread = max((row.p75_ms - row.p25_ms) / row.median_ms for row in bad)
        got = f"calls had {min(shares):.0%} of a processor, " if shares else ""
        return (
            f"warning: the machine was busy ({got}quartiles are up to {spread:.0%} apart), so {len(bad)} of {len(self.rows)} rows are "
            "worthless: they time the scheduler, not the runtimes; measure again while nothing else runs"
        )

    def latency_ms(self, *, batch_size: int, threads: int) -> dict[str, float]:
        """Median milliseconds a batch by runtime."""
        return {row.runtime: row.median_ms for row in self.rows if (row.batch_size, row.threads) == (batch_size, threads)}

    def table(self) -> str:
        """Text for people, one line a row."""
        width = max(len("runtime"), *(len(row.runtime) for row in self.rows))
        head = f"{'runtime':<{width}}  batch  threads  median ms   quartiles         min     max   speed-up (quartiles)"
        head += f"   over {self.rival}" if self.rival else ""
        lines = [
            f"{row.runtime:<{width}}  {row.batch_size:5d}  {row.threads:7d}  {row.median_ms:9.3f}  {row.p25_ms:7.3f}-{row.p75_ms:<7.3f} "
            f"{row.min_ms:7.3f} {row.max_ms:7.3f}   x{row.speedup:.2f} ({row.speedup_p25:.2f}-{row.speedup_p75:.2f})"
            f"{'' if row.speedup_rival is None else f'   x{row.speedup_rival:.2f}'}"
            f"{'' if row.reliable else '  worthless'}"
            for row in self.rows
        ]
        about = f"speed-up over {self.baseline}; {self.machine['cpu']}, {self.machine['usable_cores']} cores"
        return "\n".join([about, head, *lines, *filter(None, [self.warning])])


def benchmark(
    runtimes: Sequence[Runtime],
    input_shape: Shape,
    config: BenchmarkConfig | None = None,
    *,
    baseline: str | None = None,
    rival: str | None = None,
    progress: Progress | None = None,
) -> BenchmarkReport:
    """Measure `runtimes` on normally distributed input x[batch, *input_shape], or on the samples of a `Structured`; speed-ups refer to
    `baseline` (default: the first), and to `rival`, where one is named.

    A runtime that fails, or whose outputs have another shape than the baseline's, is left out with a line of the log.
    Raises UsageError for no runtimes, equal names or an unknown baseline or rival, RunError where the baseline fails.
    """
    config, progress = config or BenchmarkConfig(), progress or Silent()
    names = [runtime.name for runtime in runtimes]
    if not names or len(set(names)) < len(names):
        raise UsageError(f"a benchmark needs runtimes of different names, got {names}")
    baseline = names[0] if baseline is None else baseline
    for what, name in (("baseline", baseline), ("rival", rival)):
        if name is not None and name not in names:
            raise UsageError(f"{what} {name!r} is not among the runtimes; choose one of {', '.join(names)}")
    rows: list[Latency] = []
    for threads in config.threads:
        field = _Field(baseline, progress)
        try:
            for runtime in runtimes:
                field.enter(runtime, threads)
            for batch_size in config.batch_sizes:
                x = _input(batch_size, input_shape, config.seed)
                turns = _rounds(field, x, config, progress, f"batch {batch_size}, threads {threads}")
                rows += [_summary(name, turns, (baseline, rival), batch_size, threads) for name in names if name in turns]
        finally:
            field.close()
    report = BenchmarkReport(
        rows=tuple(rows),
        baseline=baseline,
        rival=rival,
        input_shape=() if isinstance(input_shape, Structured) else tuple(input_shape),
        config=config,
        machine=machine_facts(),
    )
    if report.warning:
        progress.log(report.warning)
    return report


class _Turn(NamedTuple):
    """Seconds of the median call of a turn, and seconds of processor time of one."""

    seconds: float
    cpu_seconds: float


class _Field:
    """The runtimes that still run; one that fails is closed and named, unless it is the baseline: then all is over."""

    def __init__(self, baseline: str, progress: Progress) -> None:
        self.runtimes: list[Runtime] = []
        self.baseline, self._progress = baseline, progress

    def enter(self, runtime: Runtime, threads: int) -> None:
        self.runtimes.append(runtime)
        self.attempt(runtime, lambda one: one.load(threads))

    def attempt(self, runtime: Runtime, step: Callable[[Runtime], T]) -> T | None:
        """What `step` gives; None where it fails and the runtime is out."""
        try:
            return step(runtime)
        except Exception as error:  # runtimes are foreign code
            self.leave(runtime, said_by(error), error)
            return None

    def leave(self, runtime: Runtime, reason: str, error: Exception | None = None) -> None:
        if runtime.name == self.baseline:
            raise RunError(f"the baseline {runtime.name} cannot be measured: {reason}") from error
        self._progress.log(f"{runtime.name} is left out: {reason}")
        self.runtimes.remove(runtime)
        runtime.close()

    def close(self) -> None:
        for runtime in reversed(self.runtimes):
            runtime.close()


def _rounds(field: _Field, x: Sequence[NDArray], config: BenchmarkConfig, progress: Progress, description: str) -> dict[str, list[_Turn]]:
    """Every turn, by runtime, in the order of the rounds."""
    _drop_other_networks(field, x)
    for runtime in list(field.runtimes):
        field.attempt(runtime, lambda one: _turn(one, x, config.warmup_s))
    turns: dict[str, list[_Turn]] = {runtime.name: [] for runtime in field.runtimes}
    order = np.random.default_rng(config.seed)
    for _ in progress(range(config.rounds), total=config.rounds, description=description):
        runtimes = list(field.runtimes)
        for number in order.permutation(len(runtimes)):
            time.sleep(_PAUSE_S)
            if turn := field.attempt(runtimes[number], lambda one: _turn(one, x, config.turn_s)):
                turns[runtimes[number].name].append(turn)
    return {name: values for name, values in turns.items() if len(values) == config.rounds}


def _drop_other_networks(field: _Field, x: Sequence[NDArray]) -> None:
    """Run each runtime once; those whose outputs are not shaped as the baseline's do not run the same network."""
    shapes = {runtime.name: field.attempt(runtime, lambda one: answer(one, x).shape) for runtime in list(field.runtimes)}
    right = shapes[field.baseline]
    for runtime in list(field.runtimes):
        if (shape := shapes[runtime.name]) != right:
            field.leave(runtime, f"its outputs have shape {shape}, those of {field.baseline} {right}, so it does not run the same network")


def _turn(runtime: Runtime, x: Sequence[NDArray], seconds: float) -> _Turn:
    """Calls over about `seconds`, after one that brings weights and threads back."""
    answer(runtime, x)
    calls: list[float] = []
    cpu: list[float] = []
    spent = 0.0
    while not calls or spent < seconds:
        cpu_start, start = time.process_time(), time.perf_counter()
        answer(runtime, x)
        calls.append(time.perf_counter() - start)
        cpu.append(time.process_time() - cpu_start)
        spent += calls[-1]
    return _Turn(float(np.median(calls)), float(np.median(cpu)))


def _summary(name: str, turns: dict[str, list[_Turn]], others: tuple[str, str | None], batch_size: int, threads: int) -> Latency:
    """others: the baseline, and the rival."""
    baseline, rival = others
    seconds, cpu_seconds = np.array(turns[name]).T
    milliseconds = seconds * 1e3
    ratios = np.array(turns[baseline])[:, 0] / seconds
    beside = np.array(turns[rival])[:, 0] / seconds if rival in turns else None
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
        speedup_rival=None if beside is None else float(np.median(beside)),
        cpu_share=float(np.median(cpu_seconds / seconds)) if _CPU_CLOCK_IS_FINE else None,
    )


def _input(batch_size: int, input_shape: Shape, seed: int) -> tuple[NDArray, ...]:
    if isinstance(input_shape, Structured):
        order = np.arange(batch_size) % len(input_shape)
        return tuple(one[order] for one in arrays_of(input_shape))
    return (np.random.default_rng(seed).standard_normal((batch_size, *input_shape), dtype=np.float32),)
