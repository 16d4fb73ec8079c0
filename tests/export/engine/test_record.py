"""Named integers of operations: packed where they are planned, read in compiled code and without it."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numba import njit

from fineprune.export.engine.ir.record import INT, PLACE, Record, group

META = Record(x=PLACE, rows=group("taps", "stride"), channels=INT)
fields = META.fields


@njit
def read(meta: np.ndarray, op: int) -> tuple[int, ...]:
    m = fields(meta, op)
    return m.constants, m.index, m.x.start, m.x.channel, m.x.row, m.x.pixel, m.rows.taps, m.rows.stride, m.channels


def test_fields_are_read_where_they_were_packed() -> None:
    own = META.pack(channels=9, x=(1, 2, 3, 4), rows=(5, 6))
    assert own.dtype == np.int64
    own[:2] = 7, 8
    assert read(np.concatenate([[-1, -1, -1], own, [-1]]), 3) == (7, 8, 1, 2, 3, 4, 5, 6, 9)


def test_every_field_is_given() -> None:
    with pytest.raises(TypeError, match=r"\['channel', 'channels'\] are missing or unknown"):
        META.pack(channel=9, x=(1, 2, 3, 4), rows=(5, 6))


def test_names_that_numpy_needs_are_refused() -> None:
    with pytest.raises(ValueError, match="'size'"):
        group("size")


def test_uncompiled() -> None:
    code = "import numba; assert numba.config.DISABLE_JIT\nfrom test_record import *\ntest_fields_are_read_where_they_were_packed()"
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "NUMBA_DISABLE_JIT": "1", "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
