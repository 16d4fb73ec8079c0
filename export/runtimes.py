"""What runs a network: one small class a runtime, all alike to parity checks and benchmarks.

A further runtime is a class with a `name`, `load(threads)`, `run(x)` and `close()`; nothing else needs to know it. One that also has
`outputs(*x)` runs networks of several inputs and is compared by all that they give.
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

    def run(self, x: NDArray[Any]) -> NDArray:
        """Logits of x[N,C,H,W]: the first output of a network of one input."""
        ...

    def close(self) -> None:
        """Give back what `load` took, process-wide settings included."""
        ...


class Whole(Runtime, Protocol):
    """One that runs any network."""

    def outputs(self, *x: NDArray[Any]) -> list[NDArray]:
        """All outputs for all inputs, each [N,...], in their order."""
        ...


def answer(runtime: Runtime, x: Sequence[NDArray[Any]]) -> NDArray:
    """The first output for the inputs `x`; RunError where there are several and the runtime takes one."""
    if len(x) == 1:
        return runtime.run(x[0])
    if not hasattr(runtime, "outputs"):
        raise RunError(f"it is given one input, and the network takes {len(x)}")
    found: NDArray = runtime.outputs(*x)[0]
    return found


class OnnxRuntime:
    """ONNX Runtime on an ONNX file."""

    def __init__(self, name: str, path: Path | str, *, providers: Sequence[str] = ("CPUExecutionProvider",)) -> None:
        self.name = name
        self._path = Path(path)
        self._providers = list(providers)
        self._session: Any = None
        self._inputs: list[str] = []

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
        self._inputs = [port.name for port in self._session.get_inputs()]

    def run(self, x: NDArray[Any]) -> NDArray:
        return self.outputs(x)[0]

    def outputs(self, *x: NDArray[Any]) -> list[NDArray]:
        try:
            return [np.asarray(y) for y in self._session.run(None, dict(zip(self._inputs, x, strict=True)))]
        except Exception as error:
            raise RunError(f"ONNX Runtime cannot run {self._path} on {_shapes(x)}: {said_by(error)}") from error

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

    def run(self, x: NDArray[Any]) -> NDArray:
        return self.outputs(x)[0]

    def outputs(self, *x: NDArray[Any]) -> list[NDArray]:
        try:
            return [np.asarray(y) for y in self._evaluator.run(None, dict(zip(self._evaluator.input_names, x, strict=True)))]
        except Exception as error:  # its operators raise anything
            raise RunError(f"onnx.reference cannot run {self._path}: {said_by(error)}") from error

    def close(self) -> None:
        self._evaluator = None
        gc.collect()  # its nodes refer to each other and to the weights


class TorchRuntime:
    """PyTorch on the CPU, eager, float32; the model takes tensors alone (flat.py)."""

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

    def run(self, x: NDArray[Any]) -> NDArray:
        return self.outputs(x)[0]

    def outputs(self, *x: NDArray[Any]) -> list[NDArray]:
        import torch

        from fineprune.common.inputs import tensors

        try:
            with torch.inference_mode():
                # Copies: a network may change its input in place, and answer with a tensor that it keeps and fills again.
                found = [np.array(y.numpy()) for y in tensors(self._model(*(torch.from_numpy(one.copy()) for one in x)))]
        except Exception as error:  # the network's own code may raise anything
            raise RunError(f"PyTorch cannot run the network on {_shapes(x)}: {said_by(error)}") from error
        # A network that ends in squeeze() takes the batch axis away from a single sample.
        return [y[None] if len(x[0]) == 1 and y.shape[:1] != (1,) else y for y in found]

    def close(self) -> None:
        import torch

        if self._threads_before is not None:
            torch.set_num_threads(self._threads_before)
            self._threads_before = None


def _shapes(x: Sequence[NDArray[Any]]) -> str:
    return " and ".join(str(one.shape) for one in x)
