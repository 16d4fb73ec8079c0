"""A file as a network that computes the same: ONNX Runtime is asked before any work."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fineprune.common.errors import RunError, UsageError, said_by

from .file import Shape, batch_of, input_shape, single
from .importer import build
from .network import OnnxNetwork

TOLERANCE = 1e-4
"""Of the largest output: libraries add up in different orders. A wrong reading is off by far more."""
_GROUPS = 3


def opened(path: Path | str, model: Any) -> tuple[OnnxNetwork, Any]:
    """The network of the file `path` and the graph that builds it, for any number of samples; model: its graph, the input sized.

    Where the batch goes other ways than along the first axis, the graph is read for one sample and mapped over samples. UsageError for
    a file that can't be read, or is for several samples at a time and mixes them up.
    """
    batch = batch_of(model)
    try:
        network = build(model, str(path))
        check_same(network, path, input_shape(model), batch)
    except UsageError:
        if batch not in (None, 1):
            raise
        model = single(model)
        network = build(model, str(path))
        check_same(network, path, input_shape(model), batch)
    return network, model


def check_same(network: nn.Module, path: Path | str, shape: Shape, batch: int | None) -> None:
    """UsageError where `network` differs from the file, which takes `batch` samples of `shape` (C,H,W) at a time (None: any number), on
    samples of noise, or for other batches than the file's; RunError where ONNX Runtime does not run the file."""
    count = _GROUPS * (batch or 1)
    x = torch.randn(count, *(size or 1 for size in shape), generator=torch.Generator().manual_seed(0))
    expected = _run(path, x.numpy(), batch or count)
    if len(expected) != count:
        remedy = f"export it with an output [N,...], a row for each, or {_CODE}"
        raise UsageError(f"{path} gives {len(expected)} rows for {count} samples; {remedy}")
    for samples in (count, 1):
        apart = _apart(_outputs(network, x[:samples]), expected[:samples].astype(np.float64))
        if apart is None:
            remedy = f"export it for one sample or for any number of them (dynamic_axes, dynamic_shapes), or {_CODE}"
            raise UsageError(f"{path} holds the size of a batch in its graph, so that no other can be computed; {remedy}")
        if not apart <= TOLERANCE:
            remedy = f"{_CODE}, or export it in another way"
            raise UsageError(f"{path} was read wrongly: outputs differ from ONNX Runtime's by {apart:.1e} of the largest; {remedy}")


_CODE = "give its PyTorch code (file.py:factory)"


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
