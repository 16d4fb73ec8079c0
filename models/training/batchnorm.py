"""Recomputes BatchNorm statistics for weights or masks that changed: exact averages over given batches instead of a moving one.

mean = sum_k n_k * mean_k / sum_k n_k   and the same for the (unbiased) variances, over all calls k of the layer, on n_k samples
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from fineprune.common.errors import RunError
from fineprune.common.progress import Progress, Silent

from .device import resolve_device
from .evaluate import eval_mode
from .frozen import frozen_line, running_norms
from .interfaces import BatchLike
from .passes import forward


def recalibrate_batchnorm(
    model: nn.Module,
    batches: Iterable[BatchLike],
    *,
    device: str | torch.device = "auto",
    progress: Progress = Silent(),  # noqa: B008 - stateless
) -> int:
    """Replace the running statistics of every normalisation layer by the averages over `batches`; the number of samples that entered.

    Layers that no batch reaches and frozen ones (a line of the log names those) keep theirs. Other modules stay in eval mode (no
    dropout), no gradient is computed, flags and momenta come back. A batch of one sample has no variance and is left out. Where there
    is nothing to recompute, nothing runs and 0 comes back. RunError where no batch could be used; the statistics are then as before.
    """
    averages = [_Average(norm) for norm in running_norms(model)]
    if line := frozen_line(model):
        progress.log(line)
    if not averages:
        return 0
    where = resolve_device(device)
    model.to(where)
    seen = 0
    with eval_mode(model), torch.no_grad():
        try:
            for average in averages:
                average.begin()
            for batch in batches:
                if len(batch.images) > 1:
                    seen += len(batch.images)
                    forward(model, batch.images.to(where, copy=True))
            if not seen:
                raise RunError("BatchNorm recalibration got no batch of two images or more; give it some training images")
            if not all(average.is_finite() for average in averages):
                raise RunError("BatchNorm recalibration met activations that are not finite; check the model's weights")
        except BaseException:
            for average in averages:
                average.undo()
            raise
        finally:
            for average in averages:
                average.end()
    return seen


class _Average:
    """Makes the moving average of one layer a plain one over its calls, each weighted by its samples."""

    def __init__(self, norm: _NormBase) -> None:
        self._norm, self._momentum, self._seen = norm, norm.momentum, 0
        self._before = {name: value.clone() for name, value in norm.named_buffers(recurse=False)}

    def begin(self) -> None:
        """Training mode, in which the layer notes its statistics."""
        self._norm.train()
        self._hook = self._norm.register_forward_pre_hook(self._weigh)

    def _weigh(self, norm: nn.Module, inputs: tuple[Any, ...]) -> None:
        if self._seen == 0:
            self._norm.reset_running_stats()  # a NaN of the old statistics would outlive a weight of zero
        x: Tensor = inputs[0]
        self._seen += len(x)
        self._norm.momentum = len(x) / self._seen

    def is_finite(self) -> bool:
        var = self._norm.running_var
        return var is None or bool(var.isfinite().all())

    def undo(self) -> None:
        for name, value in self._before.items():
            getattr(self._norm, name).copy_(value)

    def end(self) -> None:
        self._hook.remove()
        self._norm.eval()
        self._norm.momentum = self._momentum
