"""BatchNorm statistics where many workers see a share of the batches each (Async-BN, Algorithm 7, eq. 4.8-4.10).

async        E = (1-d) E + d mean, Var = (1-d) Var + d var, from every worker's every batch; both start as the network's own (new: 0 and 1)
last-worker  each worker averages its own batches in the same way; the model gets those of the worker that reported last
last-batch   the model gets the last reported batch's own statistics, averaged with nothing

Training uses each batch's own statistics, so these decide only what the finished model computes: weights are the same under all three,
and one run measures all. "The server keeps the last worker's statistics" of the source is read as `last-worker`.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..frozen import running_norms
from .config import BatchNormPolicy


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """The BatchNorm layers that keep running statistics and are not frozen."""
    return [norm for norm in running_norms(model) if isinstance(norm, _BatchNorm)]


def read_statistics(norms: list[_BatchNorm]) -> Tensor:
    """All running means, then all running variances, as one float32 vector on the CPU."""
    values = [norm.running_mean for norm in norms] + [norm.running_var for norm in norms]
    return torch.cat([v.detach().float().reshape(-1) for v in values if v is not None]).cpu() if values else torch.empty(0)


def write_statistics(norms: list[_BatchNorm], statistics: Tensor) -> None:
    """The inverse of `read_statistics`."""
    values = [norm.running_mean for norm in norms] + [norm.running_var for norm in norms]
    targets = [value for value in values if value is not None]
    for target, part in zip(targets, statistics.split([target.numel() for target in targets]), strict=True):
        target.copy_(part)


class RunningStatistics:
    """The server's side: `observe` each batch's statistics, `running(policy)` is what a model gets."""

    def __init__(self, initial: Tensor, decay: float) -> None:
        """initial: the network's own, as `read_statistics` gives them."""
        self.decay, self._initial = decay, initial
        self._all = self._initial.clone()
        self._own: dict[int, Tensor] = {}
        self._last_worker = -1
        self._last_batch = self._initial.clone()

    def observe(self, worker: int, batch: Tensor) -> None:
        """Take in the statistics of one batch of `worker`."""
        own = self._own.setdefault(worker, self._initial.clone())
        for average in (self._all, own):
            average.lerp_(batch, self.decay)
        self._last_worker, self._last_batch = worker, batch.clone()

    def running(self, policy: BatchNormPolicy) -> Tensor:
        """The statistics of now, by `policy`."""
        if policy == "async":
            return self._all.clone()
        if policy == "last-batch":
            return self._last_batch.clone()
        return self._own.get(self._last_worker, self._initial).clone()

    def state_dict(self) -> dict[str, Any]:
        """Everything `observe` changed."""
        return {"all": self._all, "own": dict(self._own), "last_worker": self._last_worker, "last_batch": self._last_batch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self._all, self._last_batch = state["all"].clone(), state["last_batch"].clone()
        self._own = {worker: value.clone() for worker, value in state["own"].items()}
        self._last_worker = state["last_worker"]
