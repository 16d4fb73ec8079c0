"""That a network computes what its file computes: asked of ONNX Runtime, before any work."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fineprune.common.errors import RunError, UsageError, said_by

from .file import batch_of, input_shape

TOLERANCE = 1e-4
"""Of the largest output: libraries add up in different orders. A wrong reading is off by far more."""
_GROUPS = 3


def check_same(network: nn.Module, path: Path | str, model: Any) -> None:
    """UsageError where `network`, built of the graph `model` (its input sized), differs from the file on samples of noise, or for other
    batches than the file's; RunError where ONNX Runtime does not run the file."""
    batch = batch_of(model)
    count = _GROUPS * (batch or 1)
    x = torch.randn(count, *(size or 1 for size in input_shape(model)), generator=torch.Generator().manual_seed(0))
    expected = _run(path, x.numpy(), batch or count)
    for samples in (count, 1):
        apart = _apart(_outputs(network, x[:samples]), expected[:samples].astype(np.float64))
        if apart is None:
            raise UsageError(f"{path} holds the size of a batch in its graph, so that no other can be computed; {_REMEDY}")
        if not apart <= TOLERANCE:
            raise UsageError(f"{path} was read wrongly: outputs differ from ONNX Runtime's by {apart:.1e} of the largest; {_REMEDY}")


_REMEDY = "give its PyTorch code (file.py:factory), or export it in another way"


def _outputs(network: nn.Module, x: torch.Tensor) -> np.ndarray | None:
    """None where the network does not take x, which it may only for the size of its batch."""
    try:
        with torch.no_grad():
            return network(x).double().numpy()
    except (RuntimeError, IndexError):
        return None


def _run(path: Path | str, x: np.ndarray, batch: int) -> np.ndarray:
    """The file's outputs for x[N,C,H,W], in ONNX Runtime, `batch` samples at a time."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        return np.concatenate([session.run(None, {name: x[start : start + batch]})[0] for start in range(0, len(x), batch)])
    except Exception as error:  # the library's errors have no common kind
        raise RunError(f"ONNX Runtime does not run {path}: {said_by(error)[:200]}") from error


def _apart(a: np.ndarray | None, b: np.ndarray) -> float | None:
    """The largest difference, of the largest entry of `b`; None where shapes differ, infinite where anything is NaN."""
    if a is None or a.shape != b.shape:
        return None
    if not np.isfinite(a).all() or not np.isfinite(b).all():
        return float("inf")
    return float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-30)) if a.size else 0.0
