"""Loaders under damaged files: each is accepted or refused in one clear line, within 20 s and 1 GiB; anything else is a fault.

    python benchmarks/mutated_files.py [--inputs 20000] [--seed 0] [--kinds statistics,recipes,...] [--workers 2] [--json FILE]

Sound files of every kind (mutated_kinds.py) are damaged (mutations.py) and read as a user's command reads them, in processes whose
address space may grow by 1 GiB. Counted: accepted, refused (a FinepruneError), raw (any other exception, or the process died), memory
(more than 1 GiB wanted), time (more than 20 s). Input n of a seed is always the same; FILE keeps the counts and an example of each fault,
and the same command goes on from it. The exit code is 1 where there is a fault.
"""

import argparse
import json
import multiprocessing
import re
import resource
import shutil
import sys
import tempfile
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import Any

SECONDS = 20
GROWTH = 1 << 30
CHUNK = 250
OUTCOMES = ("accepted", "refused", "raw", "memory", "time")
FAULTS = OUTCOMES[2:]
EXAMPLES = 8


@dataclass
class Tally:
    """Counts of one kind, and examples of each different fault by its place."""

    done: int = 0
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(OUTCOMES, 0))
    examples: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, outcome: str, place: str, number: int) -> None:
        self.counts[outcome] += 1
        if outcome in FAULTS:
            example = self.examples.setdefault(f"{outcome}: {place}", {"inputs": [], "count": 0})
            example["count"] += 1
            example["inputs"] = [*example["inputs"], number][:EXAMPLES]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=20_000, help="How many damaged files to read, shared among the kinds.")
    parser.add_argument("--seed", type=int, default=0, help="The seed that every damage follows from.")
    parser.add_argument(
        "--kinds", default="all", help="Read only these kinds: some of statistics,bundles,recipes,npz,checkpoints,images,networks,onnx."
    )
    parser.add_argument("--workers", type=int, default=2, help="How many processes read at a time.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="Keep the counts in this JSON file, and go on from what it has.")
    parser.add_argument("--show", metavar="KIND:N", help="Read only this one input, in this process, and show its traceback.")
    arguments = parser.parse_args()
    from mutated_kinds import KINDS

    if arguments.show:
        kind, _, number = arguments.show.partition(":")
        print(*read_one(kind, int(number), arguments.seed, KINDS[kind].sound(), show=True))
        return
    kinds = list(KINDS) if arguments.kinds == "all" else arguments.kinds.split(",")
    tallies = _earlier(arguments.json, arguments.seed, kinds)
    share = -(-arguments.inputs // len(kinds))
    for kind in kinds:
        for tally in run(kind, tallies[kind], share, arguments.seed, arguments.workers):
            if arguments.json:
                facts = {"seed": arguments.seed, "kinds": {name: vars(value) for name, value in tallies.items()}}
                arguments.json.write_text(json.dumps(facts, indent=2) + "\n")
            print(f"{kind} {tally.done}/{share}: {tally.counts}", file=sys.stderr, flush=True)
    print(f"{'kind':12}" + "".join(f"{outcome:>10}" for outcome in OUTCOMES))
    for kind in kinds:
        print(f"{kind:12}" + "".join(f"{tallies[kind].counts[outcome]:10,}" for outcome in OUTCOMES))
    for kind in kinds:
        for place, example in tallies[kind].examples.items():
            print(f"{kind}: {example['count']} x {place} (--show {kind}:{example['inputs'][0]})")
    sys.exit(any(tallies[kind].counts[fault] for kind in kinds for fault in FAULTS))


def _earlier(file: Path | None, seed: int, kinds: list[str]) -> dict[str, Tally]:
    """What an earlier run with this seed left in the file."""
    facts = json.loads(file.read_text()) if file is not None and file.exists() else {"seed": seed, "kinds": {}}
    found = facts["kinds"] if facts["seed"] == seed else {}
    return {**{kind: Tally() for kind in kinds}, **{kind: Tally(**value) for kind, value in found.items()}}


def run(kind: str, tally: Tally, inputs: int, seed: int, workers: int) -> Iterator[Tally]:
    """Add inputs up to number `inputs` to the tally, chunk by chunk."""
    starts = range(tally.done, inputs, CHUNK)
    with ThreadPoolExecutor(workers) as pool:
        for results in pool.map(lambda start: _chunk(kind, range(start, min(start + CHUNK, inputs)), seed), starts):
            for number, outcome, place in results:
                tally.add(outcome, place, number)
            tally.done += len(results)
            yield tally


def read_one(kind: str, number: int, seed: int, sound: list[Any], *, show: bool = False) -> tuple[str, str]:
    """What becomes of one input: the outcome and, for a fault, where it arose."""
    from mutated_kinds import KINDS, damaged, write

    from fineprune.common.errors import FinepruneError

    folder = Path(tempfile.mkdtemp(prefix="fineprune-mutated-"))
    try:
        write(damaged(KINDS[kind], sound, Random(f"{seed} {kind} {number}")), folder)
        KINDS[kind].read(folder)
    except BaseException as error:
        if show:
            traceback.print_exc()
        if _wanted_memory(error):
            return "memory", _place(error)
        if not isinstance(error, FinepruneError) or "\n" in str(error).strip() or len(str(error)) > 3000:
            return "raw", _place(error)
        return "refused", str(error) if show else ""
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return "accepted", ""


def _wanted_memory(error: BaseException | None) -> bool:
    """Whether the address space was too small for it, in whatever it was wrapped."""
    while error is not None:
        if isinstance(error, MemoryError) or "can't allocate memory" in str(error) or "Unable to allocate" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _place(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    message = re.sub(r"\d+", "N", str(error))[:80]
    ours = [frame for frame in frames if "/fineprune/" in frame.filename] or frames
    return f"{type(error).__name__} at {'/'.join(Path(ours[-1].filename).parts[-2:])}:{ours[-1].lineno} {message!r}"


def _chunk(kind: str, numbers: range, seed: int) -> list[tuple[int, str, str]]:
    """Read these inputs in a process of their own, and in another one after each that it does not survive."""
    results: list[tuple[int, str, str]] = []
    context = multiprocessing.get_context("spawn")
    while len(results) < len(numbers):
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs, kind, numbers[len(results) :], seed), daemon=True)
        process.start()
        theirs.close()
        patience: float = 600  # imports, and making the sound files
        try:
            while len(results) < len(numbers):
                if not ours.poll(patience):
                    results.append((numbers[len(results)], "time", f"more than {patience:g} s"))
                    break
                if (result := ours.recv()) is not None:
                    results.append(result)
                patience = SECONDS
        except (EOFError, ConnectionResetError):
            process.join()
            results.append((numbers[len(results)], "raw", f"the process ended with {process.exitcode}"))
        process.kill()
        process.join()
    return results


def _work(results: Connection, kind: str, numbers: range, seed: int) -> None:
    from mutated_kinds import KINDS, quiet

    quiet()
    import torch

    torch.set_num_threads(1)
    sound = KINDS[kind].sound()
    for number in range(-3, 0):  # so that what is imported, compiled and kept once is there
        read_one(kind, number, seed, sound)
    limit_memory()
    results.send(None)
    for number in numbers:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        outcome, place = read_one(kind, number, seed, sound)
        if (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) * 1024 > GROWTH:
            outcome, place = "memory", "by its peak"
        results.send((number, outcome, place))


def limit_memory() -> None:
    """The address space may grow by GROWTH from what it is now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + GROWTH,) * 2)


if __name__ == "__main__":
    main()
