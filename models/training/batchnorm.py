"""Recomputes BatchNorm statistics for weights or masks that changed: exact averages over given batches instead of a moving one.

mean = sum_k n_k * mean_k / sum_k n_k   and the same for the (unbiased) variances of batches k with n_k samples
"""

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...common.errors import RunError
from .device import resolve_device
from .evaluate import eval_mode
from .interfaces import BatchLike
from .step import forward


def recalibrate_batchnorm(model: nn.Module, batches: Iterable[BatchLike], *, device: str | torch.device = "auto") -> int:
    """Replace the running statistics of every BatchNorm by the averages over `batches`; the number of samples that entered.

    Other modules stay in eval mode (no dropout), no gradient is computed, flags and momenta come back. A batch of one sample has
    no variance and is left out. Without BatchNorm nothing runs and 0 comes back. RunError where no batch could be used.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    if not norms:
        return 0
    where = resolve_device(device)
    model.to(where)
    momenta = [norm.momentum for norm in norms]
    seen = 0
    with eval_mode(model), torch.no_grad():
        for norm in norms:
            norm.reset_running_stats()  # a NaN of the old statistics would outlive a weight of zero
            norm.train()
        try:
            for batch in batches:
                samples = batch.images.shape[0]
                if samples < 2:
                    continue
                seen += samples
                for norm in norms:
                    norm.momentum = samples / seen
                forward(model, batch.images.to(where))
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.eval()
                norm.momentum = momentum
    if not seen:
        raise RunError("BatchNorm recalibration got no batch of two images or more; give it some training images")
    broken = next((n for n in norms if n.running_var is not None and not n.running_var.isfinite().all()), None)
    if broken is not None:
        raise RunError("BatchNorm recalibration met activations that are not finite; check the model's weights")
    return seen
