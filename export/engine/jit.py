"""How the engine's functions are compiled."""

import ctypes
from collections.abc import Callable
from typing import Any

from fineprune.ops.jit import Compiler
from fineprune.ops.machine_code import Code, uncompiled

from .kept import KEEPER, address

COMPILER = Compiler(KEEPER)

jit = COMPILER.part
"""For what entries call: each is compiled with all that it calls, and a part of nothing is not compiled."""


def jit_merged(function: Callable[..., Any]) -> Any:
    """`jit` for what LLVM is to make part of every function that calls it."""
    return COMPILER.part(function, forceinline=True)


class Entry:
    """A function of integers, which may be addresses, that returns one: it is compiled by itself, kept on disk under its name, and called
    by its address."""

    def __init__(self, name: str, function: Callable[..., int]) -> None:
        self.name, self.function = name, function

    def code(self) -> Code:
        """Compile it."""
        return COMPILER.code(self.function)

    def __call__(self, *numbers: int) -> int:
        """From Python; slower than needs be, since its address is looked up."""
        if uncompiled():
            return self.function(*numbers)
        kind = ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * len(numbers))
        return int(kind(address(self.name, self.code))(*numbers))
