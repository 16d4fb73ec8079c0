"""OpenVINO on an ONNX file: float32, or eight-bit integers where the file has grids (QDQ)."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fineprune.common.errors import RunError


class OpenVinoRuntime:
    """One stream, tuned for latency."""

    def __init__(self, name: str, path: Path | str) -> None:
        self.name = name
        self._path = Path(path)
        self._request: Any = None

    def load(self, threads: int) -> None:
        import openvino

        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "INFERENCE_PRECISION_HINT": "f32",  # of what is not on grids: newer processors would take bfloat16
        }
        try:
            self._request = openvino.Core().compile_model(str(self._path), "CPU", settings).create_infer_request()
        except RuntimeError as error:
            raise RunError(f"OpenVINO cannot load {self._path}: {str(error).strip().splitlines()[0]}; leave it out") from error

    def run(self, x: NDArray[np.float32]) -> NDArray:
        return np.array(next(iter(self._request.infer({0: x}).values())))

    def close(self) -> None:
        self._request = None
