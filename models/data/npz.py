"""Arrays of an npz file, whose sizes are checked before memory is taken and whose Python objects are never loaded."""

import math
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from fineprune.common.errors import RunError

_FREE_BYTES = 256 << 20
_USUAL_EXPANSION = 100
"""A file may hold 256 MiB, or a hundred times its own size where that is more; photographs shrink to a half."""
_KINDS = "biufUS"


def load_arrays(path: Path, wanted: Collection[str]) -> dict[str, NDArray]:
    """The arrays of `path` that are `wanted`; the others are listed and empty.

    Raises RunError for a file that is damaged, holds Python objects under a wanted name, or would take more memory than its size explains.
    """
    try:
        with path.open("rb") as stream:
            if stream.read(len(npy.MAGIC_PREFIX)) == npy.MAGIC_PREFIX:
                raise ValueError("it is a single array; save images and labels together with numpy.savez")
        with zipfile.ZipFile(path) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            taken = sum(_checked_size(archive, info, path) for name, info in members.items() if name in wanted)
            if taken > max(_FREE_BYTES, _USUAL_EXPANSION * path.stat().st_size):
                raise RunError(f"{path} would take {taken / 2**20:,.0f} MiB, far more than its size; save the arrays with numpy.savez")
            return {name: _read(archive, info) if name in wanted else np.empty(0) for name, info in members.items()}
    except RunError:
        raise
    except Exception as error:  # damaged files fail in many ways in zipfile, the decompressors and the parser of headers
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise RunError(f"{path} is truncated or not an npz file ({reason}); write it again") from error


def _checked_size(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> int:
    """Bytes of a member's array, as its header and the archive's directory agree on them."""
    with archive.open(info) as stream:
        shape, dtype = _header(stream)
        header = stream.tell()
    if dtype.hasobject:
        raise RunError(f"{path} holds Python objects, which are not loaded because they can run code; save plain arrays")
    if dtype.kind not in _KINDS or not dtype.itemsize:
        raise RunError(f"{path}: {info.filename} holds values of type {dtype}; images and labels are plain numbers")
    size = math.prod(shape) * dtype.itemsize
    if header + size != info.file_size:
        raise ValueError(f"{info.filename} is not of the size that its header says")
    return size


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = npy.read_magic(stream)
    read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(version)
    if read is None:
        raise ValueError(f"an array of format {version}")
    shape, _, dtype = read(stream)
    if not all(type(side) is int and side >= 0 for side in shape) or len(shape) > 8:
        raise ValueError("an array of odd shape")
    return shape, dtype


def _read(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> NDArray:
    with archive.open(info) as stream:
        return npy.read_array(stream, allow_pickle=False)
