"""A worker's step (Algorithm 4) in two halves: what it does before it hears from the server, and what after.

pull w -> forward: l_m, BatchNorm statistics -> state to the server, its answer -> backward of the compensated loss -> gradient
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fineprune.common.inputs import laid_out

from ..config import TrainConfig
from ..device import autocast, derive_seed, seed_generators
from ..frozen import frozen_modules, start_training
from ..interfaces import BatchLike
from ..passes import forward
from ..step import losses_of
from ..teacher import Teacher
from .compensation import Compensation
from .flat import FlatModel
from .ledger import Ticket
from .statistics import batch_norms, read_statistics, write_statistics


class Forward(NamedTuple):
    """Of one batch: mean cross-entropy in nats, hits, samples, and the BatchNorm layers' batch means and unbiased variances."""

    loss: float
    correct: int
    samples: int
    objective: float
    """What is minimised: the loss, or what a teacher makes of it."""
    statistics: Tensor


class Worker:
    """Computes on `model`, which is its own between `forward` and `backward` and free in between iterations."""

    def __init__(
        self,
        model: nn.Module,
        config: TrainConfig,
        device: torch.device,
        dtype: torch.dtype,
        layout: torch.memory_format,
        teacher: Teacher | None = None,
    ) -> None:
        self.teacher = teacher
        self.model, self.config, self.device, self.dtype, self.layout = model, config, device, dtype, layout
        self.flat = FlatModel(model)
        self.norms, self.frozen = batch_norms(model), frozen_modules(model)
        self._objective: Tensor | None = None

    def forward(self, weights: Tensor, batch: BatchLike, ticket: Ticket) -> Forward:
        """The loss of `weights` on the batch; its graph is kept for `backward`."""
        self.flat.load(weights)
        return self.evaluate(batch, ticket)

    def evaluate(self, batch: BatchLike, ticket: Ticket) -> Forward:
        """`forward` with the weights that the model holds."""
        config, shard = self.config, () if ticket.shard == 0 else (ticket.shard,)
        start_training(self.model, self.frozen)
        seed_generators(self.device, derive_seed(config.seed, "layers", ticket.epoch, ticket.batch, *shard))
        x = laid_out(batch.images.to(self.device, non_blocking=True), self.layout)
        momenta = [norm.momentum for norm in self.norms]
        try:
            for norm in self.norms:
                norm.momentum = 1.0  # running statistics become the batch's own
            with autocast(self.device, self.dtype):
                logits = forward(self.model, x.clone())  # a network may write to its input
        finally:
            for norm, momentum in zip(self.norms, momenta, strict=True):
                norm.momentum = momentum
        losses, minimised, target = losses_of(logits, batch.labels, x, config, self.teacher)
        self._objective = minimised.mean()
        correct = int((logits.detach().argmax(dim=1) == target).sum())
        return Forward(losses.mean().item(), correct, len(target), self._objective.item(), read_statistics(self.norms))

    def backward(self, compensation: Compensation = Compensation()) -> Tensor:  # noqa: B008 - immutable
        """The gradient of scale * objective + offset, as one vector on the worker's device."""
        if self._objective is None:
            raise RuntimeError("backward follows forward, once")
        for parameter in self.flat.parameters:
            parameter.grad = None
        objective, self._objective = self._objective, None
        (objective * compensation.scale + compensation.offset).backward()
        if self.config.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(self.flat.parameters, self.config.max_grad_norm)
        return self.flat.gradient()


def install(flat: FlatModel, norms: list[_BatchNorm], weights: Tensor, statistics: Tensor) -> None:
    """Give a model what a server holds."""
    flat.load(weights)
    write_statistics(norms, statistics)
    for norm in norms:
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked.zero_()  # of a worker's own copy it says nothing here
