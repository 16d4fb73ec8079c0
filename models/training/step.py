"""One optimizer step, and the sums over an epoch's steps. Losses are per sample, with the samples' indices beside them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fineprune.common.errors import RunError
from fineprune.common.inputs import Inputs, laid_out

from ..objective import Objective, moved
from .config import TrainConfig
from .device import autocast
from .interfaces import BatchLike
from .passes import backward, check_logits, forward, widened
from .teacher import Teacher


class DivergedError(RunError):
    """A loss or a weight is not finite; made by `diverged`."""


def diverged(what: str, where: str) -> DivergedError:
    """`what` is not finite `where` (`at epoch 3, batch 7 of 10, learning rate 0.1`), and what helps."""
    return DivergedError(f"{what} is not finite {where}; train with a lower learning rate, a warm-up or max_grad_norm")


class StepResult(NamedTuple):
    """What one step saw, on the device: losses float32 [N] before the update, correct [N], indices int64 [N] into the split.

    The losses are cross-entropies with the labels, whatever else is minimised: what policies and records say of a sample does not depend
    on a teacher. Correct is a bool, or a figure of the user's metric (0 where that is one of a whole set).
    """

    losses: Tensor
    correct: Tensor
    indices: Tensor


@dataclass(frozen=True)
class Stepper:
    """Everything that a step needs besides the batch."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    config: TrainConfig
    device: torch.device
    dtype: torch.dtype
    memory_format: torch.memory_format
    frozen: Sequence[nn.Module]
    """Modules that stay in eval mode."""
    network: nn.Module
    """What computes the model: itself, or what shares the work with other processes."""
    teacher: Teacher | None = None
    objective: Objective | None = None
    """None: classification."""

    def step(self, batch: BatchLike, weights: Tensor | None = None, share: float | None = None) -> StepResult:
        """Forward, backward on the mean of the per-sample losses (or of what the teacher makes of them), update.

        weights: float32 [N], factors of the losses in that mean; the result's losses are without them.
        share: what the sum of the losses is divided by in place of their number: where processes average their gradients, the samples
        of the whole batch over the number of processes.
        """
        images, labels, indices = batch.images, batch.labels, batch.indices
        x = laid_out(images.to(self.device, non_blocking=True), self.memory_format)
        self.optimizer.zero_grad(set_to_none=True)
        with autocast(self.device, self.dtype):
            logits = forward(self.network, x.clone())  # a network may write to its input
        if self.objective is None:
            losses, minimised, target = losses_of(logits, labels, x, self.config, self.teacher)
            figures = logits.detach().argmax(dim=1) == target
        else:
            outputs, targets = widened(logits), moved(labels, self.device)
            losses = minimised = self.objective.losses(outputs, targets, len(x))
            if self.teacher is not None:
                minimised = self.teacher.task(losses, outputs, self.teacher.scores(x))
            whole = self.objective.metric.of_set
            figures = torch.zeros_like(losses) if whole else self.objective.figures(outputs, targets, len(x))
        weighted = minimised if weights is None else minimised * weights.to(self.device, non_blocking=True)
        backward(self.scaler.scale(weighted.mean() if share is None else weighted.sum() / share), len(x))
        if self.config.max_grad_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return StepResult(losses.detach(), figures, indices)


def losses_of(logits: Any, labels: Tensor, x: Inputs, config: TrainConfig, teacher: Teacher | None) -> tuple[Tensor, Tensor, Tensor]:
    """Of each sample, [N]: its cross-entropy, what is minimised (what the teacher makes of it), and its label, on the device of images x.

    labels: int64 [N], on the CPU; those below 0 are none, and the teacher's best class stands for them.
    """
    taught = None if teacher is None else teacher.scores(x)
    if teacher is not None and taught is not None:
        labels = teacher.named(labels, taught)
    check_logits(logits, labels)
    target = labels.to(x.device, non_blocking=True)
    losses = F.cross_entropy(logits.float(), target, reduction="none", label_smoothing=config.label_smoothing)
    return losses, losses if teacher is None or taught is None else teacher.objective(losses, logits.float(), taught), target


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """The configured optimizer over the trainable parameters. RunError where there are none."""
    parameters = trainable_parameters(model)
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov, weight_decay=config.weight_decay
        )
    kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    return kind(parameters, lr=config.lr, weight_decay=config.weight_decay)


def trainable_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Those that require a gradient. RunError where there are none."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise RunError("the model has no trainable parameter: none requires a gradient; nothing to train")
    return parameters


@dataclass
class EpochSums:
    """Running sums over an epoch; steps wait on the device until `flush`, so that a GPU need not be waited for at every step."""

    loss: float = 0.0
    correct: float = 0
    samples: int = 0
    _waiting: list[tuple[int, StepResult]] = field(default_factory=list)
    _seen: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def add(self, batch: int, result: StepResult) -> None:
        """Take in the step of `batch` (0-based)."""
        self._waiting.append((batch, result))

    def flush(self) -> int | None:
        """Bring the sums up to date; the first batch whose loss is not finite, if any. `take` gives the steps before it."""
        if not self._waiting:
            return None
        results = [result for _, result in self._waiting]
        losses = torch.stack([result.losses.sum() for result in results]).tolist()
        corrects = torch.stack([result.correct.sum() for result in results]).tolist()
        each = torch.cat([result.losses for result in results]).cpu().split([len(result.losses) for result in results])
        broken = None
        for (batch, result), loss, correct, own in zip(self._waiting, losses, corrects, each, strict=True):
            if broken is None and not math.isfinite(loss):
                broken = batch
            if broken is None:
                self._seen.append((result.indices, own))
            self.loss, self.correct, self.samples = self.loss + loss, self.correct + correct, self.samples + len(own)
        self._waiting.clear()
        return broken

    def take(self) -> list[tuple[Tensor, Tensor]]:
        """Indices and losses, on the CPU, of each flushed step since the last call, in order."""
        seen, self._seen = self._seen, []
        return seen

    def to_json(self) -> dict[str, Any]:
        """The flushed sums."""
        return {"loss": self.loss, "correct": self.correct, "samples": self.samples}


def first_nonfinite(model: nn.Module) -> str | None:
    """Name of the first parameter or BatchNorm statistic with a NaN or infinity in it (other buffers may hold one on purpose)."""
    statistics = [(name, value) for name, value in model.named_buffers() if name.endswith(("running_mean", "running_var"))]
    named = [*model.named_parameters(), *statistics]
    if not named:
        return None
    with torch.no_grad():  # also for tensors of inference mode, which know no gradient
        finite = torch.stack([value.isfinite().all() for _, value in named]).tolist()
    return next((name for (name, _), fine in zip(named, finite, strict=True) if not fine), None)
