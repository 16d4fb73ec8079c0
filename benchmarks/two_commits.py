"""The speed of two commits side by side: a benchmark runs in turns from two checkouts, and each of its figures becomes a ratio.

    python benchmarks/two_commits.py PATH_A PATH_B [--rounds 3] [--json FILE] -- benchmarks/engine.py --quick --peers

PATH_A and PATH_B are what PYTHONPATH is to be: folders from which `import fineprune` gives the one and the other (or the Python of an
environment where one is installed). Each runs the benchmark of its own checkout, if that has one of this name: benchmarks may import what
has moved. The program must take --json FILE: engine.py and training_step.py do. Turns are A B, B A, A B, ..., so that a machine which
becomes slower meets both. For a machine that is never quiet, engine.py has a second row for each runtime: its time in times of dense ONNX
Runtime's of the same round. A row is the median over the rounds of time B / time A; rows beyond 0.97 to 1.03 are marked. The first turn of
each compiles, and is not counted (--warm leaves it out).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

LOW, HIGH = 0.97, 1.03


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs=2, type=Path, metavar="PATH", help="What PYTHONPATH is to be for the one and for the other.")
    parser.add_argument("--rounds", type=int, default=3, help="How many runs of each are counted.")
    parser.add_argument("--warm", action="store_true", help="Count the first run of each as well: compiled code is kept from before.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="Write every figure of every round into this JSON file.")
    parser.add_argument("command", nargs="+", metavar="PROGRAM", help="What to run in each: a program after --, with its options.")
    arguments = parser.parse_args()
    rounds: list[list[dict[str, float]]] = []
    for number in range(arguments.rounds + (not arguments.warm)):
        order = (0, 1) if number % 2 == 0 else (1, 0)
        found = {side: run(arguments.paths[side], arguments.command) for side in order}
        if arguments.warm or number:
            rounds.append([found[0], found[1]])
            if arguments.json:
                arguments.json.write_text(json.dumps(rounds, indent=1) + "\n")
    print(table(rounds))


def run(path: Path, command: list[str]) -> dict[str, float]:
    """The times of one run, by the names of its rows; the program's own output goes to stderr."""
    python, environment = (str(path), {}) if path.is_file() else (sys.executable, {"PYTHONPATH": str(path.resolve())})
    with tempfile.TemporaryDirectory(prefix="fineprune-two-") as folder:
        results = Path(folder) / "results.json"
        arguments = [python, str(program(path, command[0])), *command[1:], "--json", str(results)]
        subprocess.run(arguments, env={**os.environ, **environment}, stdout=sys.stderr, check=True)
        return dict(times(json.loads(results.read_text())))


def program(path: Path, name: str) -> Path:
    """The benchmark of the checkout that `path` leads to, or else the one that is named."""
    package = path / "fineprune" / "__init__.py"
    for folder in package.resolve().parents if package.exists() else ():
        if (folder / name).is_file():
            return folder / name
    return Path(name)


def times(results: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """(row, seconds or milliseconds): of engine.py latencies and layers, of training_step.py steps and calibration passes."""
    for network, facts in results.get("networks", {}).items():
        for row in facts["latency"]:
            name = f"{network}: {row['runtime']}, batch {row['batch_size']}, threads {row['threads']}"
            yield name, row["median_ms"]
            yield f"{name}, in times of the baseline", 1 / row["speedup"]
    for row in results.get("rows", []):
        yield f"{row['network']}: step, {row['variant']}", row["seconds"]
    for row in results.get("calibration", []):
        yield f"{row['network']}: {row['pass']}", 1 / row["samples_per_second"]


def table(rounds: list[list[dict[str, float]]]) -> str:
    """Markdown: the median ratio of each row, its least and largest, and the median of all rows."""
    lines, medians = ["| row | B / A | of the rounds | |", "|---|---:|---:|---|"], []
    for name in rounds[0][0]:
        ratios = sorted(b[name] / a[name] for a, b in rounds if name in a and name in b)
        if ratios:
            medians.append(statistics.median(ratios))
            mark = "" if LOW <= medians[-1] <= HIGH else "beyond"
            lines.append(f"| {name} | {medians[-1]:.3f} | {ratios[0]:.3f} to {ratios[-1]:.3f} | {mark} |")
    lines.append(f"| median of {len(medians)} rows | {statistics.median(medians):.3f} | {min(medians):.3f} to {max(medians):.3f} | |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
