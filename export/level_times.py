"""What each layer takes in the engine, in several files of one network: the same layers under other masks.

All files take turns in rounds, on one thread and one sample, so that what disturbs the machine for a while meets all alike; a layer's
time is that of its quieter rounds, with all operations that its convolution was fused with.
"""

from collections.abc import Collection, Hashable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from fineprune.common.progress import Progress, Silent

from .engine.run.session import Session

File = TypeVar("File", bound=Hashable)
ROUNDS, REPEATS = 15, 3
"""Turns of each file, and runs of each turn."""
QUIET = 25
"""Percentile of the rounds that counts: others had the processor in slower ones."""


def layer_seconds(
    files: Mapping[File, Path],
    names: Collection[str],
    x: NDArray[np.float32],
    *,
    rounds: int = ROUNDS,
    repeats: int = REPEATS,
    progress: Progress | None = None,
) -> dict[File, dict[str, float]]:
    """Seconds of the layers `names`, by file, for x[1,C,H,W]; a layer that ONNX Runtime computes in a file has none there.

    The engine is asked to compute all that it can: what it would leave to ONNX Runtime as faster there, it is timed on, too.
    """
    progress = progress or Silent()
    with ExitStack() as stack:
        sessions = {file: stack.enter_context(Session(path, fallback="needed")) for file, path in files.items()}
        turns: dict[File, dict[str, list[float]]] = {file: {} for file in files}
        for _ in progress(range(rounds), total=rounds, description="timing layers"):
            for file, session in sessions.items():
                seconds: dict[str, float] = {}
                for record in session.profile(x, repeats=repeats):
                    if record.name in names:
                        seconds[record.name] = seconds.get(record.name, 0.0) + record.seconds
                for name, value in seconds.items():
                    turns[file].setdefault(name, []).append(value)
    return {file: {name: float(np.percentile(values, QUIET)) for name, values in of_file.items()} for file, of_file in turns.items()}
