"""Another runtime in int8: the dense file quantised statically (QDQ, weights per channel) by ONNX Runtime, calibrated on a few samples.

Not the same function: its outputs are near those of the float32 network, and its accuracy is its own. OpenVINO runs such files in
integers, too: it reads each pair of QuantizeLinear and DequantizeLinear as a FakeQuantize, of which it makes uint8 tensors.
"""

import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fineprune.common.errors import RunError

from ..runtimes import OnnxRuntime, Runtime


class Int8Runtime:
    """samples[N,C,H,W] calibrate the ranges of the activations; `runtime` makes what runs the file in int8, of its name and path."""

    def __init__(
        self, name: str, path: Path | str, samples: NDArray[np.float32], runtime: Callable[[str, Path], Runtime] = OnnxRuntime
    ) -> None:
        self.name = name
        self._dense, self._samples, self._make = Path(path), samples, runtime
        self._runtime: Any = None

    def load(self, threads: int) -> None:
        with tempfile.TemporaryDirectory(prefix="fineprune-int8-") as folder:
            path = Path(folder) / "int8.onnx"
            quantise(self._dense, path, self._samples)
            self._runtime = self._make(self.name, path)
            self._runtime.load(threads)

    def run(self, x: NDArray[np.float32]) -> NDArray:
        result: NDArray = self._runtime.run(x)
        return result

    def close(self) -> None:
        if self._runtime is not None:
            self._runtime.close()
            self._runtime = None


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
