"""Where an interrupted job goes on: a folder beside its output, kept as long as it holds something of this very job."""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fineprune.common.errors import RunError, UsageError
from fineprune.common.files import read_json, write_json

_MARKER = "job.json"


@contextmanager
def work_folder(output: Path | str | None, key: Mapping[str, Any]) -> Iterator[Path | None]:
    """OUTPUT.work, emptied when it belongs to a job with another `key`; None without an output.

    It is removed after success, and after a failure before anything was worth keeping.
    """
    if output is None:
        yield None
        return
    folder = Path(f"{Path(output)}.work")
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    marker = folder / _MARKER
    if folder.exists() and not marker.is_file() and not _only_leftovers(folder):
        raise UsageError(f"{folder} exists and is not the work folder of an earlier run; remove it or choose another output folder")
    if marker.is_file() and _digest_in(marker) != digest:
        shutil.rmtree(folder, ignore_errors=True)
    write_json(marker, {"sha256": digest})
    try:
        yield folder
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        if _only_leftovers(folder):
            shutil.rmtree(folder, ignore_errors=True)


def _only_leftovers(folder: Path) -> bool:
    """Whether a job stopped before it left anything but its marker, perhaps not whole."""
    return folder.is_dir() and all(path.name == _MARKER or path.name.startswith(f".{_MARKER}.") for path in folder.iterdir())


def _digest_in(marker: Path) -> str | None:
    try:
        found = read_json(marker)
    except RunError:
        return None
    return found.get("sha256") if isinstance(found, dict) else None
