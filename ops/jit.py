"""How functions are compiled, and that the compiled code is kept between processes.

Numba keeps the result of a function with `cache=True` as long as the function's own file is unchanged, whatever becomes of the
functions that it calls. Here a result is kept as long as no source of its package, no version and no CPU differs (keeper.py); and a
folder that cannot be written, a full disk or a damaged file mean that functions are compiled again, never that a run fails.
"""

import inspect
from collections.abc import Callable
from typing import Any

from numba import config, njit, types

from . import numba_door
from .keeper import Keeper
from .machine_code import Code

_OPTIONS = {"nogil": True, "boundscheck": False, "error_model": "numpy"}


class Compiler:
    """Compiles functions, all with the same `options` of Numba, for what `keeper` keeps. With NUMBA_DISABLE_JIT=1 they stay as they are."""

    def __init__(self, keeper: Keeper, **options: Any) -> None:
        self.keeper, self._options = keeper, {**_OPTIONS, **options}

    def part(self, function: Callable[..., Any], **options: Any) -> Any:
        """For what compiled functions call, and nobody else: it is compiled as a part of them."""
        return function if config.DISABLE_JIT else numba_door.part(function, {**self._options, **options})

    def jit_cached(self, function: Callable[..., Any]) -> Any:
        """Compile on first use, without the interpreter lock; the result, with everything that it calls, is kept on disk."""
        made = njit(**self._options)(function)
        return made if config.DISABLE_JIT else numba_door.keep(made, self.keeper)

    def callback(self, kind: Any, function: Callable[..., Any]) -> Any:
        """Compile `function` now, as C code calls it; `kind`: its Numba signature. The result is kept on disk."""
        return numba_door.callback(function, kind, self._options, self.keeper)

    def code(self, function: Callable[..., Any]) -> Code:
        """The code of a function of integers that returns one, as C code calls it."""
        return Code(*numba_door.compiled(function, _of_integers(function), self._options))

    def language(self, function: Callable[..., Any], machine: Any) -> str:
        """What LLVM makes that code of, in its language, for one of its target machines."""
        return numba_door.language(function, _of_integers(function), self._options, machine)


def _of_integers(function: Callable[..., Any]) -> Any:
    return types.int64(*[types.int64] * len(inspect.signature(function).parameters))
