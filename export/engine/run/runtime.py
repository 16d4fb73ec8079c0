"""The engine as a runtime of parity checks and benchmarks (see runtimes.py)."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fineprune.common.errors import UsageError


class EngineRuntime:
    """The engine on an ONNX file; `options` go to the session."""

    def __init__(self, name: str, path: Path | str, **options: Any) -> None:
        self.name = name
        self._path = Path(path)
        self._options = options
        self._session: Any = None
        self._inputs: list[str] = []

    def load(self, threads: int) -> None:
        from .session import Session

        if not self._path.is_file():
            raise UsageError(f"no ONNX file at {self._path}; export one first")
        self._session = Session(self._path, threads, **self._options)
        self._inputs = [port.name for port in self._session.get_inputs()]

    def run(self, x: NDArray[Any]) -> NDArray:
        return self.outputs(x)[0]

    def outputs(self, *x: NDArray[Any]) -> list[NDArray]:
        """All outputs for all inputs, each [N,...], in their order."""
        return [np.asarray(y) for y in self._session.run(None, dict(zip(self._inputs, x, strict=True)))]

    def close(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None
