"""Compiled code is kept on disk, and never used once something that it was made of has changed."""

import os
import subprocess
import sys
from pathlib import Path

KERNELS = """
from pathlib import Path
from numba import types
from helper import COMPILER, add

@COMPILER.jit_cached
def twice(x):
    return add(x, x)

called = COMPILER.callback(types.int64(types.int64), twice.py_func)
print(twice(3), called.ctypes(3), sum(twice._cache_hits.values()), called.cache_hits, COMPILER.keeper.folder)
"""
HELPER = """
from pathlib import Path
from fineprune.ops.jit import Compiler
from fineprune.ops.keeper import Keeper

COMPILER = Compiler(Keeper("tested", Path(__file__).parent))

@COMPILER.part
def add(x, y):
    return x + y
"""


def run(folder: Path, **environment: str) -> list[str]:
    path = os.pathsep.join([str(folder), *sys.path])
    done = subprocess.run(
        [sys.executable, "-B", "-c", "import kernels"],
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_a_change_of_what_a_function_calls_is_noticed(tmp_path: Path) -> None:
    package, kept = tmp_path / "package", tmp_path / "kept"
    package.mkdir()
    (package / "kernels.py").write_text(KERNELS)
    (package / "helper.py").write_text(HELPER)
    assert run(package, NUMBA_CACHE_DIR=str(kept))[:4] == ["6", "6", "0", "0"]
    assert run(package, NUMBA_CACHE_DIR=str(kept))[:4] == ["6", "6", "1", "1"]
    (package / "helper.py").write_text(HELPER.replace("x + y", "x * y"))
    assert run(package, NUMBA_CACHE_DIR=str(kept))[:4] == ["9", "9", "0", "0"]


def test_compiled_code_depends_on_the_operations_that_all_kernels_share() -> None:
    from fineprune.ops import numba_door
    from fineprune.ops.kernels.jit import COMPILER
    from fineprune.ops.simd import atomics, declare, tiles, vectors

    sources = {file.resolve() for file in COMPILER.keeper.sources()}
    assert {Path(module.__file__).resolve() for module in (numba_door, atomics, declare, tiles, vectors) if module.__file__} <= sources


def test_without_a_folder_every_process_compiles(tmp_path: Path) -> None:
    (tmp_path / "kernels.py").write_text(KERNELS)
    (tmp_path / "helper.py").write_text(HELPER)
    nowhere = str(tmp_path / "helper.py" / "folder")
    assert run(tmp_path, NUMBA_CACHE_DIR=nowhere, XDG_CACHE_HOME=nowhere, TMPDIR=nowhere)[:4] == ["6", "6", "0", "0"]
