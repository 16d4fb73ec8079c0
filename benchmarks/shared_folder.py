"""A folder of finished runs that several processes may share: the options of benchmarks that keep one, and who makes which run."""

import argparse
import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch


def add_options(parser: argparse.ArgumentParser, folder: str) -> None:
    """--runs (FOLDER below runs/, unless given), --collect, --json, --threads and --training."""
    parser.add_argument(
        "--training",
        type=json.loads,
        default={},
        metavar="JSON",
        help="Train with these settings of TrainConfig in place of this benchmark's own.",
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="How many threads compute.")
    parser.add_argument("--runs", type=Path, default=Path("runs", folder), metavar="FOLDER", help="Keep the finished runs in this folder.")
    parser.add_argument("--collect", action="store_true", help="Train nothing, and make the table of the runs that are there.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="Write all figures into this JSON file.")


@contextmanager
def claimed(lock: Path) -> Iterator[bool]:
    """Whether this process has `lock` to itself; the kernel frees it when the process ends, however it ends.

    The file goes with the end of the block. Another process may then claim it once more, so look first whether the run is there.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
        lock.unlink(missing_ok=True)
