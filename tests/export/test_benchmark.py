"""The measuring itself, with runtimes whose speed is known, and once with real ones."""

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fineprune.common.errors import RunError, UsageError
from fineprune.export.benchmark import BenchmarkConfig, benchmark
from fineprune.export.machine import machine_facts
from fineprune.export.runtimes import OnnxRuntime, TorchRuntime
from support.fakes import Recorder

FAST = {"rounds": 3, "turn_s": 0.0, "warmup_s": 0.0}


@dataclass
class Clock:
    """Time that passes only when somebody lets it."""

    now: float = 0.0
    cpu: float = 0.0
    share: float = 1.0

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.cpu += seconds * self.share

    def process_time(self) -> float:
        return self.cpu


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The benchmark's clock, in the test's hand."""
    fake = Clock()
    monkeypatch.setattr("fineprune.export.benchmark.time", fake)
    return fake


class Sleeper:
    """Takes given times, in turn; logs what happens to it in a list shared with others."""

    def __init__(
        self, name: str, log: list[tuple[str, str]], clock: Clock | None = None, seconds: Sequence[float] = (0,), classes: int = 5
    ) -> None:
        self.name, self.log, self.clock, self.classes = name, log, clock, classes
        self.seconds = itertools.cycle(seconds)

    def load(self, threads: int) -> None:
        self.log.append(("load", f"{self.name}@{threads}"))

    def run(self, x: NDArray) -> NDArray:
        self.log.append(("run", self.name))
        if self.clock is not None:
            self.clock.sleep(next(self.seconds))
        return np.zeros((len(x), self.classes))

    def close(self) -> None:
        self.log.append(("close", self.name))


def test_speedups_refer_to_the_baseline(clock: Clock) -> None:
    runtimes = [Sleeper("slow", [], clock, [0.5]), Sleeper("quick", [], clock, [0.125])]
    report = benchmark(runtimes, (3, 5, 7), BenchmarkConfig(**FAST))
    slow, quick = report.rows
    assert report.baseline == "slow" and (slow.speedup, quick.speedup) == (1, 4)
    assert (slow.median_ms, slow.min_ms, slow.max_ms, quick.median_ms) == (500, 500, 500, 125)
    other = benchmark(runtimes, (3, 5, 7), BenchmarkConfig(**FAST), baseline="quick")
    assert [row.speedup for row in other.rows] == [0.25, 1] and [row.speedup_rival for row in other.rows] == [None, None]


def test_a_second_baseline_is_shown_beside_the_first(clock: Clock) -> None:
    runtimes = [Sleeper("slow", [], clock, [0.5]), Sleeper("quick", [], clock, [0.125]), Sleeper("int8", [], clock, [0.25])]
    report = benchmark(runtimes, (3, 5, 7), BenchmarkConfig(**FAST), rival="int8")
    assert [(row.speedup, row.speedup_rival) for row in report.rows] == [(1, 0.5), (4, 2), (2, 1)]
    assert "over int8" in report.table() and "x4.00 (4.00-4.00)   x2.00" in report.table()
    with pytest.raises(UsageError, match="rival 'int4' is not among the runtimes"):
        benchmark(runtimes, (3, 5, 7), rival="int4")


def test_statistics_are_over_turns_and_the_first_call_of_a_turn_is_not_counted(clock: Clock) -> None:
    # Runs: one for the shapes, two to warm up, then for each of three turns an untimed one and a timed one.
    runtime = Sleeper("a", [], clock, [9, 9, 9, 64, 1, 64, 2, 64, 4])
    (row,) = benchmark([runtime], (3, 5, 7), BenchmarkConfig(**FAST)).rows
    assert (row.min_ms, row.p25_ms, row.median_ms, row.p75_ms, row.max_ms) == (1000, 1500, 2000, 3000, 4000)


def test_a_turn_lasts_as_long_as_asked_and_counts_as_its_median(clock: Clock) -> None:
    log: list[tuple[str, str]] = []
    runtime = Sleeper("a", log, clock, [1, 1, 1, 1, 2, 1, 8])
    config = BenchmarkConfig(rounds=1, turn_s=11.0, warmup_s=0.0)
    (row,) = benchmark([runtime], (3, 5, 7), config).rows
    assert len([event for event, _ in log if event == "run"]) == 3 + 1 + 3  # timed: 2, 1 and 8 seconds
    assert row.median_ms == 2000


def test_rounds_are_interleaved_and_neighbours_change() -> None:
    log: list[tuple[str, str]] = []
    benchmark([Sleeper(name, log) for name in "abc"], (3, 5, 7), BenchmarkConfig(**{**FAST, "rounds": 20}))
    runs = [name for event, name in log if event == "run"]
    # Every turn is one untimed and one timed call; the first three runs compare shapes, the next three turns warm up.
    timed = "".join(runs[3 + 6 :: 2])
    rounds = [timed[k : k + 3] for k in range(0, len(timed), 3)]
    assert len(rounds) == 20 and all(sorted(one) == ["a", "b", "c"] for one in rounds)
    assert {"ab", "ba", "ac", "ca", "bc", "cb"} <= {one[k : k + 2] for one in rounds for k in (0, 1)}
    assert [event for event, _ in log].count("load") == 3 and log[-3:] == [("close", "c"), ("close", "b"), ("close", "a")]


def test_every_combination_has_a_row() -> None:
    log: list[tuple[str, str]] = []
    config = BenchmarkConfig(batch_sizes=(1, 3), threads=(1, 2), **FAST)
    report = benchmark([Sleeper("a", log)], (3, 5, 7), config)
    assert [(row.threads, row.batch_size) for row in report.rows] == [(1, 1), (1, 3), (2, 1), (2, 3)]
    assert [name for event, name in log if event == "load"] == ["a@1", "a@2"]
    assert report.latency_ms(batch_size=3, threads=2) == {"a": report.rows[3].median_ms}
    assert report.rows[1].ms_per_image == report.rows[1].median_ms / 3


class Broken(Sleeper):
    """Fails in `load`, or in the call of that number."""

    def __init__(self, name: str, log: list[tuple[str, str]], when: str | int) -> None:
        super().__init__(name, log)
        self.when, self.calls = when, 0

    def load(self, threads: int) -> None:
        super().load(threads)
        if self.when == "load":
            raise ValueError("no kernel for Mish\nin node 17")

    def run(self, x: NDArray) -> NDArray:
        self.calls += 1
        if self.calls == self.when:
            raise RuntimeError("arena is full")
        return super().run(x)


@pytest.mark.parametrize("when", ["load", 1, 2, 6])
def test_a_runtime_that_fails_is_left_out_and_the_rest_measured(when: str | int) -> None:
    log: list[tuple[str, str]] = []
    progress = Recorder()
    runtimes = [Sleeper("a", log), Broken("b", log, when), Sleeper("c", log)]
    report = benchmark(runtimes, (3, 5, 7), BenchmarkConfig(**FAST), progress=progress)
    assert [row.runtime for row in report.rows] == ["a", "c"]
    assert f"b is left out: {'no kernel for Mish' if when == 'load' else 'arena is full'}" in progress.lines
    assert sorted(name for event, name in log if event == "close") == ["a", "b", "c"]


def test_a_runtime_of_another_network_is_left_out() -> None:
    progress = Recorder()
    report = benchmark([Sleeper("a", []), Sleeper("b", [], classes=7)], (3, 5, 7), BenchmarkConfig(**FAST), progress=progress)
    assert [row.runtime for row in report.rows] == ["a"]
    assert "b is left out: its outputs have shape (1, 7), those of a (1, 5), so it does not run the same network" in progress.lines


@pytest.mark.parametrize("when", ["load", 1, 6])
def test_all_are_closed_when_the_baseline_fails(when: str | int) -> None:
    log: list[tuple[str, str]] = []
    with pytest.raises(RunError, match=r"the baseline b cannot be measured: (no kernel for Mish$|arena is full)"):
        benchmark([Sleeper("a", log), Broken("b", log, when)], (3, 5, 7), BenchmarkConfig(**FAST), baseline="b")
    assert log[-2:] == [("close", "b"), ("close", "a")]


@pytest.mark.parametrize(("share", "reliable"), [(1.0, True), (3.6, True), (0.95, True), (0.6, False)])
def test_figures_of_a_busy_machine_are_called_worthless(clock: Clock, share: float, reliable: bool) -> None:
    """Others have the processor: a call gets less processor time than it lasts (several threads get more)."""
    clock.share, progress = share, Recorder()
    report = benchmark([Sleeper("a", [], clock, [0.5])], (3, 5, 7), BenchmarkConfig(**FAST), progress=progress)
    assert report.rows[0].cpu_share == pytest.approx(share) and report.rows[0].reliable is reliable
    assert report.to_json()["rows"][0]["reliable"] is reliable
    assert progress.lines == ([] if reliable else [report.warning]) and report.to_json()["warning"] == report.warning
    if not reliable:
        assert (
            "the machine was busy (calls had 60% of a processor, quartiles are up to 0% apart), so 1 of 1 rows are worthless"
            in report.warning
        )
        assert report.table().splitlines()[2].endswith("worthless") and report.table().endswith(report.warning)


def test_turns_that_differ_widely_are_called_worthless(clock: Clock) -> None:
    steady, unsteady = Sleeper("a", [], clock, [1]), Sleeper("b", [], clock, [1, 1, 1, 1, 1, 1, 2, 1, 4])
    report = benchmark([steady, unsteady], (3, 5, 7), BenchmarkConfig(**FAST))
    assert [row.reliable for row in report.rows] == [True, False]
    assert "quartiles are up to 75% apart), so 1 of 2 rows are worthless" in report.warning


@pytest.mark.parametrize(
    ("bad", "text"),
    [
        ({"rounds": 0}, "rounds must be at least 1, got 0"),
        ({"threads": ()}, r"threads must be one or more positive integers, got \(\)"),
        ({"batch_sizes": (1, 0)}, "batch_sizes must be one or more positive integers"),
        ({"turn_s": -1.0}, "turn_s must not be negative"),
    ],
)
def test_bad_configs(bad: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        BenchmarkConfig(**bad)


def test_bad_runtimes() -> None:
    with pytest.raises(UsageError, match="runtimes of different names, got"):
        benchmark([Sleeper("a", []), Sleeper("a", [])], (3, 5, 7))
    with pytest.raises(UsageError, match="baseline 'b' is not among the runtimes; choose one of a"):
        benchmark([Sleeper("a", [])], (3, 5, 7), baseline="b")


def test_real_runtimes_side_by_side(packed: Any, dense: Any) -> None:
    before = torch.get_num_threads()
    runtimes = [
        OnnxRuntime("onnxruntime dense", dense.path),
        OnnxRuntime("onnxruntime pruned", packed.path),
        TorchRuntime("torch dense", dense.model),
    ]
    report = benchmark(runtimes, (3, 11, 7), BenchmarkConfig(batch_sizes=(1, 2), **FAST))
    assert len(report.rows) == 6 and torch.get_num_threads() == before
    content = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert {"median_ms", "p25_ms", "p75_ms", "speedup", "ms_per_image"} <= set(content["rows"][0])
    assert content["machine"]["packages"]["torch"] == version("torch")
    table = report.table().splitlines()
    assert len(table) == 2 + 6 + bool(report.warning) and table[2].startswith("onnxruntime dense ")


def test_machine_facts_name_the_processor() -> None:
    facts = machine_facts()
    assert facts["cpu"] and facts["cores"] >= facts["usable_cores"] >= 1
    assert {"fineprune", "torch", "onnxruntime", "numpy"} <= set(facts["packages"])
    assert facts["commit"] is None or len(facts["commit"].removesuffix("+changes")) == 40
