"""The same bits at two commits: a fixed set of runs as a file of facts, and the comparison of two such files.

    python benchmarks/same_bits.py --output A.json [--only GLOB ...]     # runs the fineprune that Python imports
    python benchmarks/same_bits.py --compare A.json B.json [--except GLOB ...]
    python benchmarks/same_bits.py --list

The runs train (every policy, schedule and parameter server), calibrate (every criterion), compress (every preset and kind of mask), export
and run the exported files in the engine (same_bits_runs.py). Facts are digests of files and outputs, and values such as losses and
multiply-adds; times, versions and machines are left out. Where FINEPRUNE_DATA has the public ResNet-20, it is compressed as well. The
facts of two commits are comparable on one machine, with one torch: another CPU may add up in another order.

Both commits are run by this one script, whatever code is on the path: with the other checkout's package on PYTHONPATH, or by the Python of
the environment where it is installed. Training runs on one thread. The file is written after each run; runs that it has already of the same
commit stay in it. Names for --only, --except are globs of RUN, for --except also of RUN/FACT. Exit status 1 where a run fails, or where
facts differ that no --except names.
"""

import argparse
import contextlib
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Collection
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from same_bits_runs import cases, work_folder

SHOWN = 12
"""Differing facts of one run that are printed."""
ERROR = "error"


def main() -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, metavar="FILE", help="Do the runs, and write their facts into this file.")
    parser.add_argument("--only", nargs="+", default=["*"], metavar="GLOB", help="Do only runs whose names match.")
    parser.add_argument("--compare", nargs=2, type=Path, metavar="FILE", help="Compare the facts of two files instead.")
    parser.add_argument(
        "--except", dest="excepted", nargs="+", default=[], metavar="GLOB", help="What may differ in a comparison, as RUN or RUN/FACT."
    )
    parser.add_argument("--list", action="store_true", help="Print the names of all runs, and do none.")
    arguments = parser.parse_args()
    if arguments.compare:
        first, second = map(read, arguments.compare)
        return compare(first, second, arguments.excepted)
    if arguments.list:
        print("\n".join(cases()))
        return 0
    if arguments.output is None:
        parser.error("give --output, --compare or --list")
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(variable, "1")  # read when torch is imported
    return record(arguments.output.absolute(), arguments.only)


def record(output: Path, only: Collection[str]) -> int:
    """Make the runs that match `only` and keep their facts in `output`; 1 where one of them fails."""
    import torch

    import fineprune

    torch.set_num_threads(1)
    commit = commit_of(Path(fineprune.__file__).resolve().parent)
    results = read(output) if output.is_file() else {"runs": {}}
    if results.get("commit") != commit:
        results = {"runs": {}}
    results |= {"commit": commit, "torch": torch.__version__}
    failed = 0
    for name, run in cases().items():
        if not any(fnmatchcase(name, glob) for glob in only):
            continue
        started, worked = time.perf_counter(), time.process_time()
        with work_folder(), contextlib.redirect_stderr(io.StringIO()):
            try:
                facts = run()
            except Exception as error:  # the other runs still tell something
                facts = {ERROR: f"{type(error).__name__}: {error}"}
                failed += 1
        seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - worked
        results["runs"][name] = {"seconds": round(seconds, 2), "cpu_seconds": round(cpu_seconds, 2), "facts": facts}
        write(output, results)
        what = facts.get(ERROR, f"{len(facts)} facts")
        print(f"{name}: {what}, {seconds:.1f} s, of a processor {cpu_seconds:.1f} s", flush=True)
    return 1 if failed else 0


def compare(a: dict[str, Any], b: dict[str, Any], excepted: Collection[str]) -> int:
    """Print which facts of two files are equal; 1 where some are not that `excepted` does not name, or where nothing was compared."""
    print(f"A: {a['commit']}, torch {a['torch']}\nB: {b['commit']}, torch {b['torch']}\n")
    print("| run | equal | excepted | different |\n|---|---:|---:|---:|")
    lines, equal, wrong = [], 0, 0
    for name in {**a["runs"], **b["runs"]}:
        left, right = (results["runs"].get(name, {}).get("facts", {ERROR: "not run"}) for results in (a, b))
        changed = differences(left, right)
        faults = [fact for fact in changed if not any(fnmatchcase(text, glob) for glob in excepted for text in (name, f"{name}/{fact}"))]
        same = len({**left, **right}) - len(changed)
        print(f"| {name} | {same} | {len(changed) - len(faults)} | {len(faults)} |")
        equal, wrong = equal + same, wrong + len(faults)
        lines += [f"{name}/{fact}: {_short(left, fact)} | {_short(right, fact)}" for fact in faults[:SHOWN]]
        lines += [f"{name}: and {len(faults) - SHOWN} more"] if len(faults) > SHOWN else []
    print("\n" + "\n".join([*lines, f"{equal} facts are equal, {wrong} are not"]))
    return 1 if wrong or not equal else 0


def differences(left: dict[str, Any], right: dict[str, Any]) -> list[str]:
    """Names of facts that are not equal, or of one side only, or errors: two runs that fail alike prove nothing."""
    names = {**left, **right}
    return [fact for fact in names if fact == ERROR or fact not in left or fact not in right or left[fact] != right[fact]]


def _short(facts: dict[str, Any], fact: str) -> str:
    text = json.dumps(facts[fact]) if fact in facts else "absent"
    return text if len(text) <= 72 else f"{text[:69]}..."


def commit_of(folder: Path) -> str:
    """The commit of the checkout that holds `folder`, with a word where it has changes; "unknown" outside a checkout."""
    command = ["git", "-C", str(folder), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=, changed"]
    found = subprocess.run(command, capture_output=True, text=True)
    return found.stdout.strip() or "unknown"


def read(path: Path) -> dict[str, Any]:
    """A file of facts."""
    results: dict[str, Any] = json.loads(path.read_text())
    return results


def write(path: Path, results: dict[str, Any]) -> None:
    """A file of facts, whole or not at all."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(results, indent=1) + "\n")
    part.replace(path)


if __name__ == "__main__":
    sys.exit(main())
