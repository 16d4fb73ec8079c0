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
        self._input = ""

    def load(self, threads: int) -> None:
        from .session import Session

        if not self._path.is_file():
            raise UsageError(f"no ONNX file at {self._path}; export one first")
        self._session = Session(self._path, threads, **self._options)
        self._input = self._session.get_inputs()[0].name

    def run(self, x: NDArray[np.float32]) -> NDArray:
        return np.asarray(self._session.run(None, {self._input: x})[0])

    def close(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None
