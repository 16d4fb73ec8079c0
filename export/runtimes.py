"""What runs a network: one small class a runtime, all alike to parity checks and benchmarks.

A further runtime is a class with a `name`, `load(threads)`, `run(x)` and `close()`; nothing else needs to know it.
"""

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fineprune.common.errors import RunError, UsageError, said_by

if TYPE_CHECKING:
    from torch import nn


class Runtime(Protocol):
    """Runs one network. `load` comes first and may come again after `close`."""

    name: str

    def load(self, threads: int) -> None:
        """Make the network ready to run on `threads` threads."""
        ...

    def run(self, x: NDArray[np.float32]) -> NDArray:
        """Logits of x[N,C,H,W]."""
        ...

    def close(self) -> None:
        """Give back what `load` took, process-wide settings included."""
        ...


class OnnxRuntime:
    """ONNX Runtime on an ONNX file."""

    def __init__(self, name: str, path: Path | str, *, providers: Sequence[str] = ("CPUExecutionProvider",)) -> None:
        self.name = name
        self._path = Path(path)
        self._providers = list(providers)
        self._session: Any = None
        self._input = ""

    def load(self, threads: int) -> None:
        import onnxruntime

        if not self._path.is_file():
            raise UsageError(f"no ONNX file at {self._path}; export one first")
        missing = sorted(set(self._providers) - set(onnxruntime.get_available_providers()))
        if missing:
            known = ", ".join(onnxruntime.get_available_providers())
            raise UsageError(f"ONNX Runtime has no provider {', '.join(missing)} here; available: {known}")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(str(self._path), options, providers=self._providers)
        except Exception as error:  # its exceptions share no base class of their own
            raise RunError(f"ONNX Runtime cannot load {self._path}: {said_by(error)}; export it again") from error
        self._input = self._session.get_inputs()[0].name

    def run(self, x: NDArray[np.float32]) -> NDArray:
        try:
            return np.asarray(self._session.run(None, {self._input: x})[0])
        except Exception as error:
            raise RunError(f"ONNX Runtime cannot run {self._path} on {x.shape}: {said_by(error)}") from error

    def close(self) -> None:
        self._session = None


class OnnxReference:
    """onnx.reference, the specification in Python, on an ONNX file: slow, for a few samples."""

    def __init__(self, name: str, path: Path | str) -> None:
        self.name = name
        self._path = Path(path)
        self._evaluator: Any = None

    def load(self, threads: int) -> None:
        from onnx.reference import ReferenceEvaluator

        if not self._path.is_file():
            raise UsageError(f"no ONNX file at {self._path}; export one first")
        try:
            self._evaluator = ReferenceEvaluator(str(self._path))
        except Exception as error:
            raise RunError(f"onnx.reference cannot load {self._path}: {said_by(error)}") from error

    def run(self, x: NDArray[np.float32]) -> NDArray:
        try:
            return np.asarray(self._evaluator.run(None, {self._evaluator.input_names[0]: x})[0])
        except Exception as error:  # its operators raise anything
            raise RunError(f"onnx.reference cannot run {self._path}: {said_by(error)}") from error

    def close(self) -> None:
        self._evaluator = None
        gc.collect()  # its nodes refer to each other and to the weights


class TorchRuntime:
    """PyTorch on the CPU, eager, float32."""

    def __init__(self, name: str, model: "nn.Module") -> None:
        self.name = name
        self._model = model
        self._threads_before: int | None = None

    def load(self, threads: int) -> None:
        import torch

        tensors = [*self._model.parameters(), *self._model.buffers()]
        if any(tensor.device.type != "cpu" for tensor in tensors):
            raise UsageError(f"{self.name}: the model is not on the CPU; move it with model.cpu()")
        if any(module.training for module in self._model.modules()):
            raise UsageError(f"{self.name}: the model is in training mode; call model.eval() first")
        self._threads_before = torch.get_num_threads()
        torch.set_num_threads(threads)

    def run(self, x: NDArray[np.float32]) -> NDArray:
        import torch

        try:
            with torch.inference_mode():
                # Copies: a network may change its input in place, and answer with a tensor that it keeps and fills again.
                y = np.array(self._model(torch.from_numpy(x.copy())).numpy())
        except Exception as error:  # the network's own code may raise anything
            raise RunError(f"PyTorch cannot run the network on {x.shape}: {said_by(error)}") from error
        # A network that ends in squeeze() takes the batch axis away from a single sample.
        return y[None] if len(x) == 1 and y.shape[:1] != (1,) else y

    def close(self) -> None:
        import torch

        if self._threads_before is not None:
            torch.set_num_threads(self._threads_before)
            self._threads_before = None
