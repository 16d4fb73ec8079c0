"""The measuring itself, with runtimes whose speed is known, and once with real ones."""

import json
import time
from importlib.metadata import version
from typing import Any

import numpy as np
import pytest
import torch
from fineprune.export.benchmark import BenchmarkConfig, benchmark
from fineprune.export.machine import machine_facts
from fineprune.export.runtimes import OnnxRuntime, TorchRuntime
from numpy.typing import NDArray

from fineprune.common.errors import RunError, UsageError

FAST = {"rounds": 3, "turn_s": 0.0, "warmup_s": 0.0}


class Sleeper:
    """Takes a given time; logs what happens to it in a list shared with others."""

    def __init__(self, name: str, seconds: float, log: list[tuple[str, str]], classes: int = 5) -> None:
        self.name, self.seconds, self.log, self.classes = name, seconds, log, classes

    def load(self, threads: int) -> None:
        self.log.append(("load", f"{self.name}@{threads}"))

    def run(self, x: NDArray) -> NDArray:
        self.log.append(("run", self.name))
        time.sleep(self.seconds)
        return np.zeros((len(x), self.classes))

    def close(self) -> None:
        self.log.append(("close", self.name))


def test_speedups_refer_to_the_baseline() -> None:
    log: list[tuple[str, str]] = []
    runtimes = [Sleeper("slow", 0.02, log), Sleeper("quick", 0.002, log)]
    report = benchmark(runtimes, (3, 5, 7), BenchmarkConfig(**FAST))
    slow, quick = report.rows
    assert report.baseline == "slow" and slow.speedup == 1
    assert 4 < quick.speedup < 11
    assert 20 <= slow.min_ms <= slow.p25_ms <= slow.median_ms <= slow.p75_ms <= slow.max_ms
    other = benchmark(runtimes, (3, 5, 7), BenchmarkConfig(**FAST), baseline="quick")
    assert 1 / 11 < other.rows[0].speedup < 1 / 4


def test_rounds_are_interleaved_and_the_order_rotates() -> None:
    log: list[tuple[str, str]] = []
    benchmark([Sleeper(name, 0.0, log) for name in "abc"], (3, 5, 7), BenchmarkConfig(**FAST))
    runs = [name for event, name in log if event == "run"]
    # Every turn is one untimed and one timed call; the first three runs compare shapes, the next three turns warm up.
    assert "".join(runs[3 + 6 :: 2]) == "abc" + "bca" + "cab"
    assert [event for event, _ in log].count("load") == 3 and log[-3:] == [("close", "c"), ("close", "b"), ("close", "a")]


def test_every_combination_has_a_row() -> None:
    log: list[tuple[str, str]] = []
    config = BenchmarkConfig(batch_sizes=(1, 3), threads=(1, 2), **FAST)
    report = benchmark([Sleeper("a", 0.0, log)], (3, 5, 7), config)
    assert [(row.threads, row.batch_size) for row in report.rows] == [(1, 1), (1, 3), (2, 1), (2, 3)]
    assert [name for event, name in log if event == "load"] == ["a@1", "a@2"]
    assert report.latency_ms(batch_size=3, threads=2) == {"a": report.rows[3].median_ms}
    assert report.rows[1].ms_per_image == report.rows[1].median_ms / 3


def test_all_are_closed_when_one_fails() -> None:
    log: list[tuple[str, str]] = []
    with pytest.raises(RunError, match="outputs of different shapes"):
        benchmark([Sleeper("a", 0, log), Sleeper("b", 0, log, classes=7)], (3, 5, 7), BenchmarkConfig(**FAST))
    assert log[-2:] == [("close", "b"), ("close", "a")]


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
        benchmark([Sleeper("a", 0, []), Sleeper("a", 0, [])], (3, 5, 7))
    with pytest.raises(UsageError, match="baseline 'b' is not among the runtimes; choose one of a"):
        benchmark([Sleeper("a", 0, [])], (3, 5, 7), baseline="b")


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
    assert len(table) == 2 + 6 and table[2].startswith("onnxruntime dense ")


def test_machine_facts_name_the_processor() -> None:
    facts = machine_facts()
    assert facts["cpu"] and facts["cores"] >= facts["usable_cores"] >= 1
    assert {"fineprune", "torch", "onnxruntime", "numpy"} <= set(facts["packages"])
    assert facts["commit"] is None or len(facts["commit"].removesuffix("+changes")) == 40
