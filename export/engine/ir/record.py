"""Named integers of a planned operation: declared once, packed by name where it is planned, read by name in compiled code.

    META = Record(x=PLACE, y=PLACE, channels=INT)
    meta = META.pack(x=x.place, y=y.place, channels=5)      where it is planned; every field has to be given
    fields = META.fields                                    a name of the module, for compiled code
    m = fields(meta, op)                                    in the kernel: m.x.start, m.channels, m.constants, m.index

`m` is a pointer into `meta`: making it and handing it on costs nothing, and a field that nobody uses is not loaded. With
NUMBA_DISABLE_JIT=1 it is a view of numpy.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numba import from_dtype, types
from numpy.typing import NDArray

from fineprune.ops.simd.declare import Emitter, operation

INT = np.dtype(np.int64)


def group(*names: str) -> np.dtype:
    """Integers that belong together, as a field of a record."""
    return _named(dict.fromkeys(names, INT))


def _named(fields: Mapping[str, np.dtype]) -> np.dtype:
    taken = [name for name in fields if hasattr(np.record, name)]
    if taken:
        raise ValueError(f"numpy has its own {taken[0]!r}; call the field otherwise")
    return np.dtype((np.record, list(fields.items())))


PLACE = group("start", "channel", "row", "pixel")
"""Where a tensor lies: `View.place`."""
NOWHERE = (-1, 0, 0, 0)
"""The place of a tensor that is not there."""


class Record:
    """The integers of an operation, in the order in which they are declared, behind those of the header: `constants` and `index`."""

    def __init__(self, **fields: np.dtype) -> None:
        self.dtype = _named({"constants": INT, "index": INT, **fields})
        self._names = frozenset(fields)
        self.fields = _reader(self.dtype)

    def pack(self, **values: int | tuple[int, ...]) -> NDArray[np.int64]:
        """The meta of an operation (conv.Op); values: an integer, or integers of a group."""
        if values.keys() != self._names:
            raise TypeError(f"fields {sorted(values.keys() ^ self._names)} are missing or unknown")
        record = np.zeros(1, self.dtype)
        for name, value in values.items():
            record[name] = value
        meta: NDArray[np.int64] = record.view(INT)
        return meta

    def view(self, meta: NDArray) -> Any:
        """What was packed, by name."""
        return meta.view(self.dtype)[0]


def laid_out(**parts: NDArray[np.integer]) -> tuple[NDArray[np.int32], dict[str, int]]:
    """(the parts of an index one after another, where each begins)."""
    starts = np.cumsum([0, *map(len, parts.values())]).tolist()
    return np.concatenate([*parts.values()]).astype(np.int32), dict(zip(parts, starts, strict=False))


def _reader(dtype: np.dtype) -> Any:
    """fields(meta, op): the record that begins at meta[op]."""
    size = dtype.itemsize // INT.itemsize
    record = from_dtype(dtype)

    def pointer(e: Emitter) -> Any:
        return e.builder.bitcast(e.element(e.data(0), e.args[1]), e.context.get_value_type(record))

    @operation(pointer, lambda meta, op: record(meta, types.intp))
    def fields(meta: NDArray, op: int) -> Any:
        return meta[op : op + size].view(dtype)[0]

    return fields
