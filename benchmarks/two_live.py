"""The speed of two commits side by side on a machine that is never quiet: two processes live at once and take turns of some milliseconds.

    python benchmarks/two_live.py PATH_A PATH_B [--pairs 40] [--turn 0.06] [--json FILE] [--threads 1 2] [--training] [FILE.onnx ...]

PATH_A and PATH_B are what PYTHONPATH is to be, as in two_commits.py, whose turns are whole benchmarks: within minutes a shared machine
changes by more than the 3 % that are asked for, within a tenth of a second it seldom does. What is run are the files in the engine
(batch 1) and, with --training, the steps of training_step.py (networks and masks of `--quick`). Turns are A B, B A, A B, ...; a row is the
median of time B / time A over the pairs, with its quartiles. Rows beyond 0.97 to 1.03 are marked.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from two_commits import HIGH, LOW, program

TRAINED = ("resnet20-w16", "resnet20-w32")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs=2, type=Path, metavar="PATH", help="What PYTHONPATH is to be for the one and for the other.")
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="Exported networks to run in the engine.")
    parser.add_argument("--pairs", type=int, default=40, help="How many turns each takes in every row (default: 40).")
    parser.add_argument("--turn", type=float, default=0.06, help="Seconds of a turn, or one run where that is longer (default: 0.06).")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="Threads of the engine (default: 1 2).")
    parser.add_argument("--training", action="store_true", help="Training steps as well, on one thread.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="Write the ratio of every pair into this JSON file.")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        serve(dict(runs(arguments.files, arguments.threads, arguments.training, arguments.paths[0])), arguments.turn)
        return
    with closing(Side(arguments.paths[0], arguments)) as one, closing(Side(arguments.paths[1], arguments)) as other:
        ratios = compare((one, other), arguments)
    medians = [statistics.median(found) for found in ratios.values()]
    print(f"| median of {len(medians)} rows | | {statistics.median(medians):.3f} | {min(medians):.3f} to {max(medians):.3f} | |")


class Side:
    """A process of one commit, which runs what it is told."""

    def __init__(self, path: Path, arguments: argparse.Namespace) -> None:
        python, environment = (str(path), {}) if path.is_file() else (sys.executable, {"PYTHONPATH": str(path.resolve())})
        options = ["--worker", str(path), str(path), *map(str, arguments.files), "--turn", str(arguments.turn)]
        options += ["--threads", *map(str, arguments.threads), *(["--training"] if arguments.training else [])]
        self._process = subprocess.Popen(
            [python, __file__, *options],
            env={**os.environ, **environment, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.names: list[str] = self._answer()

    def run(self, name: str) -> float:
        """Seconds of one run, in a turn of them."""
        assert self._process.stdin is not None
        print(name, file=self._process.stdin, flush=True)
        return float(self._answer())

    def close(self) -> None:
        """End the process."""
        self._process.communicate()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())


def compare(sides: tuple[Side, Side], arguments: argparse.Namespace) -> dict[str, list[float]]:
    """The ratios of all pairs by the names of the rows, which are printed as they are made."""
    ratios: dict[str, list[float]] = {}
    for name in sides[0].names:
        for side in sides:
            side.run(name)
        pairs = [paired(sides, name, turn % 2 == 1) for turn in range(arguments.pairs)]
        ratios[name] = [b / a for a, b in pairs]
        print(row(name, ratios[name], statistics.median(a for a, _ in pairs)), flush=True)
        if arguments.json:
            arguments.json.write_text(json.dumps(ratios, indent=1) + "\n")
    return ratios


def paired(sides: tuple[Side, Side], name: str, other_first: bool) -> tuple[float, float]:
    """Seconds of both, one right after the other."""
    found = {number: sides[number].run(name) for number in ((1, 0) if other_first else (0, 1))}
    return found[0], found[1]


def row(name: str, ratios: list[float], seconds: float) -> str:
    """Markdown: milliseconds of A, the median ratio and its quartiles."""
    low, middle, high = statistics.quantiles(ratios, n=4)
    mark = "" if LOW <= middle <= HIGH else "beyond"
    return f"| {name} | {1e3 * seconds:.3f} ms | {middle:.3f} | {low:.3f} to {high:.3f} | {mark} |"


def serve(work: dict[str, Callable[[], object]], turn: float) -> None:
    """Tell the names, then run what is asked for, and say how long one run took."""
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    sys.stdout = sys.stderr
    print(json.dumps(list(work)), file=out, flush=True)
    for line in sys.stdin:
        run, count, begin = work[line.strip()], 0, time.perf_counter()
        while count == 0 or time.perf_counter() - begin < turn:
            run()
            count += 1
        print(json.dumps((time.perf_counter() - begin) / count), file=out, flush=True)


def runs(files: list[Path], threads: list[int], training: bool, path: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    """(name, what to run) in this process."""
    if files:
        import numpy as np

        from fineprune.export.engine import Session
    for file in files:
        for count in threads:
            session = Session(file, threads=count)
            [given] = session.get_inputs()
            feeds = {given.name: np.random.default_rng(0).standard_normal((1, *given.shape[1:]), np.float32)}
            yield f"{file.parent.name}/{file.stem}, {count} thread{'s' * (count > 1)}", partial(session.run, None, feeds)
    if training:
        sys.path.insert(0, str(program(path, "benchmarks/training_step.py").parent))
        import torch
        import training_step as steps

        torch.set_num_threads(1)
        for network in TRAINED:
            for variant in steps.VARIANTS:
                yield f"{network}: step of 32, {variant}", steps._step(steps._variant(network, variant), 32)


if __name__ == "__main__":
    main()
