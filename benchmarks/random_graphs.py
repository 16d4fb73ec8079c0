"""Random ONNX graphs in the engine and in ONNX Runtime: equal, or refused with a reason.

    python benchmarks/random_graphs.py [--graphs 50000] [--seed 0] [--json FILE] [--processes 1] [--grids]

Graphs are those of tests/support/random_graphs.py, the comparison is that of tests/support/onnx_comparison.py; with --grids they
are networks on eight-bit grids, whose integers are known (tests/support/random_grids.py). Each runs with a batch of 1 to 4, those on
grids of 3; every sixteenth on two threads as well. They run in processes of their own: one that crashes or takes more than a minute
is counted and the next graph is tried. Faults are printed; their models are saved beside FILE (else in the current folder). Where FILE
is there from an earlier run with the same --seed, the run goes on from where that one ended. Exit status 1 if there is any fault.
"""

import argparse
import json
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
CHUNK = 250
"""Graphs that one process tries."""
PATIENCE_S, FIRST_PATIENCE_S = 60.0, 900.0
"""For a graph, and for the first of a process, which may have to compile the engine."""
SAVED = "random-graphs"


def main() -> int:
    """1 if there is any fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--graphs", type=int, default=50_000, help="How many graphs to run.")
    parser.add_argument("--seed", type=int, default=0, help="The seed of the first graph.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="Keep the counts in this JSON file, and go on from what it has.")
    parser.add_argument("--processes", type=int, default=1, help="How many processes run at a time.")
    parser.add_argument("--grids", action="store_true", help="Networks on eight-bit grids.")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        return _work(arguments.seed, arguments.graphs, arguments.grids)
    tally = Tally(arguments.json, arguments.seed, arguments.grids)
    chunks = [(seed, min(CHUNK, arguments.seed + arguments.graphs - seed)) for seed in tally.missing(arguments.seed + arguments.graphs)]
    with ThreadPoolExecutor(arguments.processes) as pool:
        for _ in pool.map(lambda chunk: _chunk(tally, *chunk), chunks):
            tally.write()
    print(tally.summary())
    return 1 if tally.faults else 0


class Tally:
    """What was found so far, kept in a file if there is one."""

    def __init__(self, path: Path | None, seed: int, grids: bool) -> None:
        self._path, self._seed, self._started, self._lock, self.grids = path, seed, time.monotonic(), threading.Lock(), grids
        old = json.loads(path.read_text()) if path and path.exists() else {"seed": seed, "grids": grids}
        if old["seed"] != seed or old.get("grids", False) != grids:
            raise SystemExit(f"{path} is of --seed {old['seed']}{' --grids' * old.get('grids', False)}; give another file, or remove it")
        self.done: set[int] = set(old.get("chunks", []))
        """First seeds of the chunks that have ended."""
        self.counts, self.faults = Counter(old.get("counts", {})), list(old.get("faults", []))
        self.reasons, self.seconds = Counter(old.get("reasons", {})), float(old.get("seconds", 0))

    def missing(self, end: int) -> list[int]:
        """First seeds of the chunks that are still to be run."""
        return [seed for seed in range(self._seed, end, CHUNK) if seed not in self.done]

    def add(self, first: int, results: list[dict[str, Any]]) -> None:
        """The results of a whole chunk."""
        with self._lock:
            self.done.add(first)
            for result in results:
                self.counts[result["kind"]] += 1
                if result["fault"]:
                    self.faults.append(result)
                    print(f"graph {result['seed']}: {result['kind']}: {result['why']}", flush=True)
                elif result["why"]:
                    self.reasons[f"{result['kind']}: {result['why']}"] += 1

    def write(self) -> None:
        """Keep everything, and say how far it is."""
        with self._lock:
            total = sum(self.counts.values())
            if self._path:
                kept = {
                    "seed": self._seed,
                    "grids": self.grids,
                    "graphs": total,
                    "counts": self.counts,
                    "faults": self.faults,
                    "reasons": self.reasons,
                }
                seconds = self.seconds + time.monotonic() - self._started
                self._path.write_text(json.dumps({**kept, "seconds": round(seconds, 1), "chunks": sorted(self.done)}, indent=1))
            if total % (20 * CHUNK) == 0:
                print(self.summary(), flush=True)

    def summary(self) -> str:
        """One line."""
        counts = ", ".join(f"{count} {kind}" for kind, count in self.counts.most_common())
        seconds = self.seconds + time.monotonic() - self._started
        return f"{sum(self.counts.values())} graphs: {counts}; {len(self.faults)} faults; {seconds:.0f} s"

    def save(self, seed: int) -> None:
        """The model of a seed, made without loading anything but onnx."""
        folder = (self._path.parent if self._path else Path()) / SAVED
        folder.mkdir(exist_ok=True)
        (folder / f"{seed}.onnx").write_bytes(_content(seed, self.grids))


def _chunk(tally: Tally, first: int, graphs: int) -> None:
    results: list[dict[str, Any]] = []
    while len(results) < graphs:
        begin = first + len(results)
        with _started(begin, first + graphs - begin, tally.grids) as process:
            results += _read(process)
        if len(results) < graphs:
            kind = "crash" if process.returncode not in (0, -9) else "takes too long"
            results.append({"seed": first + len(results), "kind": kind, "why": f"status {process.returncode}", "fault": True})
    for result in results:
        if result["fault"]:
            tally.save(result["seed"])
    tally.add(first, results)


def _started(seed: int, graphs: int, grids: bool) -> subprocess.Popen:
    command = [sys.executable, __file__, "--worker", "--seed", str(seed), "--graphs", str(graphs), *["--grids"] * grids]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def _read(process: subprocess.Popen) -> list[dict[str, Any]]:
    """Results as they come; the process is ended where nothing comes for long."""
    results = []
    while True:
        guard = threading.Timer(PATIENCE_S if results else FIRST_PATIENCE_S, process.kill)
        guard.start()
        line = process.stdout.readline() if process.stdout else ""
        guard.cancel()
        if not line.startswith("{"):
            process.wait()
            return results
        results.append(json.loads(line))


def _graph(seed: int) -> Any:
    from support.random_graphs import RandomGraph

    return RandomGraph(seed)


def _on_grids(seed: int) -> Any:
    from support.random_grids import RandomGrids

    return RandomGrids(seed, 2 + seed % 20)


def _content(seed: int, grids: bool) -> bytes:
    content: bytes = _on_grids(seed).serialized() if grids else _graph(seed).model.SerializeToString()
    return content


def _outcome(number: int, grids: bool) -> Any:
    from support.onnx_comparison import compare, compare_grids

    threads = (1, 2) if number % 16 == 0 else (1,)
    if grids:
        return compare_grids(_on_grids(number), threads)
    graph = _graph(number)
    return compare(graph.model.SerializeToString(), [graph.feeds(1 + number % 4, number)], threads)


def _work(seed: int, graphs: int, grids: bool) -> int:
    from dataclasses import asdict

    for number in range(seed, seed + graphs):
        outcome = _outcome(number, grids)
        print(json.dumps({"seed": number, **asdict(outcome), "fault": outcome.fault}), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
