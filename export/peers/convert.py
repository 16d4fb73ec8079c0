"""Converters of other runtimes, as processes of their own: they print, and some end the process where they fail."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

from fineprune.common.errors import RunError

TIMEOUT_S = 600


def convert(name: str, command: Sequence[str | Path], folder: Path, wanted: Sequence[Path]) -> None:
    """Run `command` in `folder`; RunError with the last lines of what it said where a wanted file is not there afterwards.

    Exit codes are not looked at: pnnx ends with any.
    """
    try:
        process = subprocess.run([str(part) for part in command], cwd=folder, capture_output=True, text=True, timeout=TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RunError(f"the converter of {name} did not run: {error}; leave {name} out") from error
    if not all(path.is_file() for path in wanted):
        said = " / ".join((process.stdout + process.stderr).strip().splitlines()[-3:])
        raise RunError(f"the converter of {name} wrote no network: {said}; leave {name} out")
