"""How functions are compiled, and where the compiled code is kept between processes.

Numba keeps the result of a function with `cache=True` as long as the function's own file is unchanged, whatever becomes of the
functions that it calls. Here a result is kept as long as no source of its package, no version and no CPU differs; and a folder that
cannot be written, a full disk or a damaged file mean that functions are compiled again, never that a run fails.
"""

import contextlib
import hashlib
import logging
import os
import stat
import tempfile
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from numba import config, njit

from . import numba_door

_LOG = logging.getLogger(__name__)
_HERE = Path(__file__).parent
_OPTIONS = {"nogil": True, "boundscheck": False, "error_model": "numpy"}


class Compiler:
    """Compiles the functions of the package in the folder `package`, all with the same `options` of Numba; `name` is that of its folder
    of results. `uses`: further folders whose compiled functions it calls.

    With NUMBA_DISABLE_JIT=1 functions stay as they are.
    """

    def __init__(self, name: str, package: Path, *uses: Path, **options: Any) -> None:
        self._name, self._package, self._uses, self._options = name, package, uses, {**_OPTIONS, **options}

    def jit(self, function: Callable[..., Any]) -> Any:
        """Compile `function` on first use, without the interpreter lock."""
        return njit(**self._options)(function)

    def jit_inlined(self, function: Callable[..., Any]) -> Any:
        """`jit` for what is called at one place: it becomes part of the caller, which saves translating all that it calls twice."""
        return njit(inline="always", **self._options)(function)

    def jit_cached(self, function: Callable[..., Any]) -> Any:
        """`jit`, and the result, with everything that it calls, is kept on disk."""
        return self.jit(function) if config.DISABLE_JIT else numba_door.keep(self.jit(function), self)

    def callback(self, kind: Any, function: Callable[..., Any]) -> Any:
        """Compile `function` now, as C code calls it; `kind`: its Numba signature. The result is kept on disk."""
        return numba_door.callback(function, kind, self._options, self)

    @cached_property
    def stamp(self) -> str:
        """Digest of everything that compiled code depends on, except the CPU, which Numba adds itself."""
        digest = hashlib.sha256(repr(sorted(self._options.items(), key=str)).encode())
        for source in self.sources():
            digest.update(source.read_bytes())
        for version in numba_door.versions():
            digest.update(version.encode())
        return digest.hexdigest()

    def sources(self) -> list[Path]:
        """Files whose change changes what is compiled: the package's, those of what it calls, the operations that all share."""
        folders = (self._package.rglob("*.py"), *(folder.glob("*.py") for folder in self._uses), (_HERE / "simd").glob("*.py"))
        return [*(file for files in folders for file in sorted(files)), _HERE / "numba_door.py"]

    @cached_property
    def folder(self) -> Path | None:
        """The first that can be written of NUMBA_CACHE_DIR, the user's cache folder (XDG_CACHE_HOME), a folder for temporary files."""
        places = [Path(config.CACHE_DIR)] if config.CACHE_DIR else []
        places += [numba_door.user_cache_folder("fineprune"), Path(tempfile.gettempdir()) / f"fineprune-{_user()}"]
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


def _user() -> str:
    return str(os.getuid()) if hasattr(os, "getuid") else "user"


def _is_ours(folder: Path) -> bool:
    """Compiled code is loaded from the folder: nobody else may write there."""
    facts = folder.stat()
    return not hasattr(os, "getuid") or (facts.st_uid == os.getuid() and not facts.st_mode & stat.S_IWOTH)
