"""ONNX Runtime in int8: the dense file quantised statically (QDQ, weights per channel), calibrated on a few samples.

Not the same function: its outputs are near those of the float32 network, and its accuracy is its own.
"""

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fineprune.common.errors import RunError

from ..runtimes import OnnxRuntime


class Int8Runtime(OnnxRuntime):
    """samples[N,C,H,W] calibrate the ranges of the activations."""

    def __init__(self, name: str, path: Path | str, samples: NDArray[np.float32]) -> None:
        super().__init__(name, path)
        self._dense = Path(path)
        self._samples = samples

    def load(self, threads: int) -> None:
        with tempfile.TemporaryDirectory(prefix="fineprune-int8-") as folder:
            self._path = Path(folder) / "int8.onnx"
            quantise(self._dense, self._path, self._samples)
            super().load(threads)


def quantise(dense: Path, path: Path, samples: NDArray[np.float32]) -> None:
    """Write `dense` quantised to `path`: unsigned activations, signed weights, which x86 and ARM both have instructions for.

    Weights have seven bits: sums of products of eight and eight overflow 16 bits on x86 CPUs without VNNI, and outputs are wrong there.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Samples(CalibrationDataReader):
        def __init__(self) -> None:
            self._feeds = iter([{_input_name(dense): sample[None]} for sample in samples])

        def get_next(self) -> Any:
            return next(self._feeds, None)

    with _quiet():
        try:
            quantize_static(
                dense,
                path,
                Samples(),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                reduce_range=True,
            )
        except Exception as error:  # its exceptions share no base class
            raise RunError(f"ONNX Runtime cannot quantise {dense}: {str(error).splitlines()[0]}; leave int8 out") from error


def _input_name(path: Path) -> str:
    import onnx

    return str(onnx.load(path, load_external_data=False).graph.input[0].name)


@contextmanager
def _quiet() -> Iterator[None]:
    """It advises through the root logger to optimise first, which the exporter has done."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(disabled)
