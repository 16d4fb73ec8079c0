"""Types of the numbers in a tensor: what can be declared, planned and copied. The engine computes with FLOAT32, and with QUAD.

A tensor on an eight-bit grid has uint8 numbers where the engine reads or returns it, and within programs one QUAD for four channels of a
position: a word of 32 bits, whose byte k is channel 4c + k; the last may have bytes that stand for nothing. Such a tensor is one of
ceil(C/4) channels of words, always in layout NCHW.

An arena, and the constants of a program, are arrays of *slots* of SLOT bytes, float32 ones. Numbers of another type lie in the same
slots: a kernel sees them through a view of the array (arena.view(np.int8)), in which positions count numbers of that type.
"""

from typing import Any

import numpy as np

DType = np.dtype[Any]

FLOAT32, INT32, INT8, UINT8 = (np.dtype(name) for name in ("float32", "int32", "int8", "uint8"))
DTYPES = (FLOAT32, INT32, INT8, UINT8)
QUAD = np.dtype("uint32")
"""Four channels of uint8 together; no file declares it."""
SLOT = 4
"""Bytes; no type has more, and a slot holds a whole number of any."""


def per_slot(dtype: DType) -> int:
    """Numbers of a type in a slot."""
    return SLOT // dtype.itemsize


def slots(numbers: np.ndarray) -> np.ndarray:
    """One-dimensional numbers of any type as float32 slots, bit for bit; the last slot is filled up with zeros."""
    content = np.pad(numbers.view(np.uint8), (0, -numbers.nbytes % SLOT)) if numbers.nbytes % SLOT else numbers
    return content.view(np.float32)
