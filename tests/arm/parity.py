"""Files that another CPU exported compute the same on this one, in the engine and in ONNX Runtime (files.py makes them)."""

import os
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from fineprune.export.engine import Session
from support.tolerances import ONNX_LOGITS

FILES = sorted(Path(os.environ["FINEPRUNE_FILES"]).glob("*.onnx"))


def close(actual: NDArray, expected: NDArray) -> None:
    np.testing.assert_allclose(actual, expected, rtol=ONNX_LOGITS[0], atol=ONNX_LOGITS[1] * max(1.0, float(np.abs(expected).max())))


def test_there_are_files() -> None:
    assert FILES


@pytest.mark.parametrize("fallback", [False, True])
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_files_compute_what_they_computed_elsewhere(path: Path, fallback: bool) -> None:
    """In the engine alone, and with the layers left to ONNX Runtime that it runs faster."""
    with np.load(path.with_suffix(".npz")) as arrays:
        x, expected = arrays["x"], arrays["y"]
    [here] = onnxruntime.InferenceSession(path).run(None, {"input": x})
    close(here, expected)
    with Session(path, fallback=fallback) as alone, Session(path, threads=2, fallback=fallback) as two:
        for count in (1, 3):
            [y] = alone.run(None, {"input": x[:count]})
            close(y, expected[:count])
            [again] = two.run(None, {"input": x[:count]})
            close(again, expected[:count])
            assert fallback or np.array_equal(again, y)  # last bits of ONNX Runtime's linear layers depend on its threads here
