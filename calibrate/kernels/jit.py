"""How the kernels are compiled."""

from collections.abc import Callable
from typing import Any

from numba import njit

OPTIONS = {"nogil": True, "boundscheck": False, "error_model": "numpy"}


def jit(function: Callable[..., Any]) -> Any:
    """Compile on first use, and keep the result on disk: beside the source, or in the user's cache folder where that is read-only."""
    try:
        return njit(cache=True, **OPTIONS)(function)
    except RuntimeError:  # neither folder can be written
        return njit(**OPTIONS)(function)
