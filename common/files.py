"""Files that are either whole or absent: write beside the target, flush to disk, then rename.

Each writer works in a scratch folder `.TARGET.xxxxxxxx` beside its target, locked while the writer lives. What a killed one left
is removed by the next that writes the same target.
"""

import contextlib
import glob
import hashlib
import json
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import RunError

if sys.platform != "win32":
    import fcntl

_ASIDE = "replaced"
_LONGEST_TEXT = 16 << 20
"""Bytes; what is written here stays far below."""
_DEEPEST = 50
"""Levels of tables and lists within each other."""


@contextmanager
def atomic_path(target: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `target`; on success it replaces `target`, on any error it is removed.

    Works for a file or for a folder that the caller creates at the yielded path.
    Raises RunError where the folder cannot be written or the disk is full.
    """
    target = Path(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(target)
        with _scratch(target.name, target.parent) as scratch:
            temporary = scratch / target.name
            yield temporary
            _sync(temporary)
            _replace(temporary, target, scratch)
    except OSError as error:
        raise _unwritable(target, error) from error


def remove_leftovers(target: Path | str) -> None:
    """Remove what killed writers of `target` left beside it; a folder that one of them was just replacing is put in its place."""
    target = Path(target)
    if sys.platform == "win32":  # folders have no locks there: whose they are cannot be told
        return
    for scratch in target.parent.glob(f".{glob.escape(target.name)}.*"):
        with contextlib.suppress(OSError):  # a live writer's lock, or one that is just going
            _remove_leftover(scratch, target)


def _remove_leftover(scratch: Path, target: Path) -> None:
    if scratch.is_symlink() or not {path.name for path in scratch.iterdir()} <= {target.name, _ASIDE}:
        return  # not of a writer's making
    descriptor = os.open(scratch, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if (scratch / _ASIDE).exists() and not target.exists():
            (scratch / target.name).rename(target)  # it was whole: the old one had stepped aside for it
        shutil.rmtree(scratch)
    finally:
        os.close(descriptor)


@contextmanager
def _scratch(name: str, folder: Path) -> Iterator[Path]:
    """A folder of one's own in `folder`, removed on leaving. Its lock ends with the process, however that ends."""
    if sys.platform == "win32":
        with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=folder, ignore_cleanup_errors=True) as own:
            yield Path(own)
        return
    while True:
        scratch = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=folder))
        try:
            descriptor = os.open(scratch, os.O_RDONLY)
        except FileNotFoundError:
            continue  # another writer took it for a leftover before it was locked
        try:
            with contextlib.suppress(OSError):  # a file system without locks: nobody can lock it, so nobody removes it
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if scratch.exists():
                yield scratch
                return
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
            os.close(descriptor)


def write_bytes(target: Path | str, content: bytes) -> None:
    """Write `content` to `target` atomically."""
    with atomic_path(target) as temporary:
        temporary.write_bytes(content)


def check_writable(target: Path | str) -> None:
    """RunError when `target` could not be written: asked before work that takes long. Nothing is left behind."""
    target = Path(target)
    folder = target.absolute().parent
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        with _scratch(target.name, folder):
            pass
    except OSError as error:
        raise _unwritable(target, error) from error


def write_json(target: Path | str, value: Any) -> None:
    """Write `value` as indented JSON to `target` atomically; NaN is refused, as JSON has none."""
    write_bytes(target, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def as_stored(value: Any) -> Any:
    """`value` as a file of JSON gives it back: lists for tuples."""
    return json.loads(json.dumps(value))


def read_json(source: Path | str) -> Any:
    """Read a JSON file; RunError names it when it is missing, malformed or unlike any that is written here (see `check_plain`)."""
    try:
        value = json.loads(read_text(source))
        check_plain(value)
    except OSError as error:
        raise RunError(f"cannot read {source}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise RunError(f"{source} is not valid JSON ({parsing_fault(error)}); it was truncated or edited, write it again") from error
    return value


def parsing_fault(error: Exception) -> str:
    """What was wrong with a text, without Python's advice to programmers."""
    return "it nests without end" if isinstance(error, RecursionError) else str(error).partition("; use sys.")[0]


def read_text(source: Path | str) -> str:
    """A text file; ValueError where it is too long or not UTF-8, OSError where it cannot be read."""
    with Path(source).open("rb") as stream:
        content = stream.read(_LONGEST_TEXT + 1)
    if len(content) > _LONGEST_TEXT:
        raise ValueError(f"it is longer than {_LONGEST_TEXT >> 20} MiB")
    return content.decode()


def check_plain(value: Any) -> None:
    """ValueError where what JSON or TOML held has numbers that no setting or figure can have, or nests without end."""
    level = [value]
    for _ in range(_DEEPEST):
        for item in level:
            if isinstance(item, float) and not math.isfinite(item):
                raise ValueError(f"it holds the number {item}")
            if isinstance(item, int) and not -(2**63) <= item < 2**64:
                raise ValueError("it holds a whole number of more than 64 bits")
        level = [part for item in level if isinstance(item, dict | list) for part in (item.values() if isinstance(item, dict) else item)]
        if not level:
            return
    raise ValueError(f"it nests more than {_DEEPEST} levels")


def own_file(folder: Path, name: str) -> Path:
    """FOLDER/NAME; RunError where that is a link out of the folder: who sends a folder must not choose what else is read."""
    path = folder / name
    if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
        raise RunError(f"{path} is a link to {path.resolve()}, outside its folder; put the file itself there")
    if path.exists() and not path.is_file():
        raise RunError(f"{path} is not an ordinary file; put the file itself there")
    return path


def sha256(path: Path | str) -> str:
    """Hex digest of a file's content."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _unwritable(target: Path, error: OSError) -> RunError:
    return RunError(f"cannot write {target}: {error.strerror or error}; check its folder's permissions and free space")


def _replace(temporary: Path, target: Path, scratch: Path) -> None:
    """Rename into place; a folder cannot be replaced in one step, so the old one steps aside first."""
    if target.is_dir() and temporary.is_dir():
        aside = scratch / _ASIDE
        target.rename(aside)
        try:
            temporary.rename(target)
        except OSError:
            aside.rename(target)
            raise
    else:
        temporary.replace(target)


def _sync(path: Path) -> None:
    for file in [path] if path.is_file() else sorted(path.rglob("*")):
        if file.is_file():
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
