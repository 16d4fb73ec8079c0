"""A kernel as the interpreter calls it: a compiled function of its own, kept on disk by itself."""

from collections.abc import Callable

from numpy.typing import NDArray

from fineprune.ops.machine_code import uncompiled
from fineprune.ops.simd.vectors import floats, ints, longs

from ..jit import Entry, jit

_ALL = 1 << 40
"""Stands for the length of arrays, which nobody asks."""


class Kernel:
    """`run`: a function of the signature in conv.py, as it is in Python; `entry`: what of it is compiled when it is needed."""

    def __init__(self, name: str, run: Callable[..., None]) -> None:
        self.run, part = run, jit(run)

        def entry(first: int, last: int, scratch: int, arena: int, constants: int, index: int, meta: int, op: int) -> int:
            part(first, last, scratch, floats(arena, _ALL), floats(constants, _ALL), ints(index, _ALL), longs(meta, _ALL), op)
            return 0

        self.entry = Entry(name, entry)

    def __call__(self, first: int, last: int, scratch: int, *given: NDArray | int) -> None:
        """From Python; given: arena, constants, index, meta, op."""
        if uncompiled():
            self.run(first, last, scratch, *given)
        else:
            self.entry(first, last, scratch, *(number if isinstance(number, int) else number.ctypes.data for number in given))
