"""Tensors from safetensors files: read only as far as the file goes, and of types that arithmetic knows."""

from pathlib import Path
from typing import TYPE_CHECKING

from .errors import RunError

if TYPE_CHECKING:
    from torch import Tensor

_TYPES = ("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32", "float64")
_LONGEST = 2**31
"""More than any axis of an array here has. An array with another axis of 0 holds nothing, so its file's size bounds none of them."""


def read_tensors(path: Path, remedy: str) -> "dict[str, Tensor]":
    """What a safetensors file holds; RunError names the file, and the tensor that is of no use."""
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except Exception as error:  # of the reader, of torch where it makes tensors of what was read, of the disk
        raise RunError(f"{path} is damaged or not a safetensors file ({' '.join(str(error).split()):.120}); {remedy}") from error
    for name, value in tensors.items():
        kind = str(value.dtype).removeprefix("torch.")
        if kind not in _TYPES:
            raise RunError(f"{path}: {name} is of type {kind}, which is not computed with here; {remedy}")
        if max(value.shape, default=0) >= _LONGEST:
            raise RunError(f"{path}: {name} has an axis of {max(value.shape)}; {remedy}")
    return tensors
