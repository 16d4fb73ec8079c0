"""What is made once and kept between processes: files in a folder of our own, each valid for exactly these sources, versions and CPU.

    file = SHA-256 of (stamp, content), filled up to a cache line, content

The stamp is a digest of all that the content was made with, so that a file of other sources and one that is damaged are the same: not
there, to be made again. A folder that cannot be written or a full disk mean that nothing is kept, never that a run fails.
"""

import contextlib
import hashlib
import itertools
import logging
import os
import platform
import stat
import sys
import tempfile
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from fineprune.common.errors import RunError
from fineprune.common.files import atomic_path

from . import machine_code

_LOG = logging.getLogger(__name__)
_HERE = Path(__file__).parent
_SHARED = ("jit.py", "machine_code.py", "numba_door.py")
_LINE = 64
_NOT_OF_CODE = ("NUMBA_CACHE_DIR", "NUMBA_NUM_THREADS")
"""What the environment tells Numba that changes no code."""


class Keeper:
    """Of what the package in the folder `package` makes; `name` is that of the folder where it lies. `uses`: further folders whose
    sources it is made of."""

    def __init__(self, name: str, package: Path, *uses: Path) -> None:
        self._name, self._package, self._uses = name, package, uses

    def read(self, name: str) -> memoryview | None:
        """What was kept under a name by the same sources, versions and CPU; it begins at a cache line."""
        if self.folder is None:
            return None
        try:
            with self._path(name).open("rb") as file:
                sealed = _room(os.fstat(file.fileno()).st_size)
                whole = file.readinto(sealed) == len(sealed)
        except OSError:
            return None
        content = sealed[_LINE:]
        return content if whole and sealed[:_LINE] == self._seal(content) else None

    def write(self, name: str, *parts: Any) -> None:
        """Keep bytes (or what holds such), one part after the other, if that can be done."""
        if self.folder is not None:
            try:
                with atomic_path(self._path(name)) as path, path.open("wb") as file:
                    file.write(self._seal(*parts))
                    file.writelines(parts)
            except (RunError, OSError) as error:
                _LOG.warning("%s is not kept, and made again the next time: %s", name, error)

    def used(self, name: str) -> None:
        """It is the newest now."""
        if self.folder is not None:
            with contextlib.suppress(OSError):
                os.utime(self._path(name))

    def bound(self, kind: str, files: int, size: int) -> None:
        """Of those whose name begins with `kind`, for whatever sources, the newest stay: so many files, and bytes in all."""
        if self.folder is not None:
            with contextlib.suppress(OSError):
                facts = sorted(((path.stat(), path) for path in self.folder.glob(f"{kind}-*")), key=lambda found: -found[0].st_mtime_ns)
                sizes = itertools.accumulate(fact.st_size for fact, _ in facts)
                for number, (total, (_, path)) in enumerate(zip(sizes, facts, strict=True)):
                    if number >= files or total > size:
                        path.unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        assert self.folder is not None  # for the type checker
        return self.folder / f"{name}-{self._cpu}"

    def _seal(self, *parts: Any) -> bytes:
        digest = hashlib.sha256(self.stamp.encode())
        for part in parts:
            digest.update(part)
        return digest.digest().ljust(_LINE, b"\0")

    @cached_property
    def stamp(self) -> str:
        """Digest of everything that what is kept depends on, except the CPU."""
        digest = hashlib.sha256()
        for source in self.sources():
            digest.update(source.read_bytes())
        digest.update(repr((*(version(name) for name in ("numba", "llvmlite", "numpy")), sys.version)).encode())
        return digest.hexdigest()

    @cached_property
    def _cpu(self) -> str:
        """What is kept for several CPUs, or as the environment tells Numba to see this one, lies side by side."""
        told = sorted(f"{key}={value}" for key, value in os.environ.items() if key.startswith("NUMBA_") and key not in _NOT_OF_CODE)
        return hashlib.sha256(repr((platform.machine(), machine_code.cpu(), told)).encode()).hexdigest()[:12]

    def sources(self) -> list[Path]:
        """Files whose change changes what is made: the package's, those of what it calls, the operations that all share."""
        folders = (self._package.rglob("*.py"), *(folder.glob("*.py") for folder in self._uses), (_HERE / "simd").glob("*.py"))
        return [*(file for files in folders for file in sorted(files)), *(_HERE / name for name in _SHARED)]

    @cached_property
    def folder(self) -> Path | None:
        """The first that can be written of NUMBA_CACHE_DIR, the user's cache folder (XDG_CACHE_HOME), a folder for temporary files."""
        told = os.environ.get("NUMBA_CACHE_DIR", "")
        places = [*([Path(told)] if told else []), user_cache_folder("fineprune"), Path(tempfile.gettempdir()) / f"fineprune-{_user()}"]
        installation = hashlib.sha256(str(self._package).encode()).hexdigest()[:12]  # two installations do not overwrite each other's code
        for place in places:
            folder = place / f"{self._name}-{installation}"
            with contextlib.suppress(OSError):
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                tempfile.TemporaryFile(dir=folder).close()
                if _is_ours(folder):
                    return folder
        _LOG.warning("no folder for compiled code can be written (tried %s); every process compiles anew", ", ".join(map(str, places)))
        return None


def _room(size: int) -> memoryview:
    """Bytes that begin at a cache line. Numpy asks for large pages, where there are many."""
    room = np.empty(size + _LINE, np.uint8)
    start = -room.ctypes.data % _LINE
    return memoryview(room[start : start + size])  # type: ignore[arg-type]


def user_cache_folder(application: str) -> Path:
    """Where this user's applications keep what they can make again."""
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData/Local") / application / "Cache"
    if sys.platform == "darwin":
        return Path.home() / "Library/Caches" / application
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / application


def _user() -> str:
    return str(os.getuid()) if hasattr(os, "getuid") else "user"


def _is_ours(folder: Path) -> bool:
    """Compiled code is loaded from the folder: nobody else may write there."""
    facts = folder.stat()
    return not hasattr(os, "getuid") or (facts.st_uid == os.getuid() and not facts.st_mode & stat.S_IWOTH)
