"""MNN on an ONNX file, float32.

MNN's converter is called by its native module: the Python module around it (MNN.tools.mnnconvert) installs a package by itself and
reports its use to a server.
"""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .convert import convert

_CONVERT = "import sys, _tools; _tools.mnnconvert(['mnnconvert', *sys.argv[1:]])"


class MnnRuntime:
    """`precision` "high": float32 throughout."""

    def __init__(self, name: str, path: Path | str) -> None:
        self.name = name
        self._path = Path(path).resolve()
        self._module: Any = None

    def load(self, threads: int) -> None:
        import onnx

        with _quiet():  # it prints the processor's features when it is imported
            import MNN.nn

        graph = onnx.load(self._path, load_external_data=False).graph
        with tempfile.TemporaryDirectory(prefix="fineprune-mnn-") as folder, _quiet():
            network = Path(folder) / "network.mnn"
            arguments: list[str | Path] = ["-f", "ONNX", "--modelFile", self._path, "--MNNModel", network, "--bizCode", "fineprune"]
            convert("MNN", [sys.executable, "-c", _CONVERT, *arguments], Path(folder), [network])
            manager = MNN.nn.create_runtime_manager(({"backend": "CPU", "numThread": threads, "precision": "high"},))
            inputs, outputs = [graph.input[0].name], [graph.output[0].name]
            self._module = MNN.nn.load_module_from_file(str(network), inputs, outputs, runtime_manager=manager)

    def run(self, x: NDArray[np.float32]) -> NDArray:
        from MNN import expr

        (y,) = self._module.forward([expr.const(x, x.shape, expr.NCHW)])
        return np.array(expr.convert(y, expr.NCHW).read())

    def close(self) -> None:
        self._module = None


@contextmanager
def _quiet() -> Iterator[None]:
    """Standard output of native code goes nowhere: ours may be a pipe that expects JSON."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
