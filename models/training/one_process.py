"""The engine of one process: every step of the epoch in order, on the weights of the step before.

A policy (sampling/) may leave samples out of an epoch; it learns from the losses that the steps compute anyway. Nothing random outlives a
batch: order and augmentation follow from (seed, epoch, batch) through the data's generator, and layers that draw numbers (dropout) are
seeded from (seed, epoch, batch) before each step.

A last batch of one single sample is left out of its epoch (a different sample each epoch): BatchNorm has no variance there.
"""

import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from fineprune.common.errors import RunError

from ..state_dict import as_state_of
from .clock import Clock
from .config import TrainConfig
from .device import derive_seed, seed_generators
from .evaluate import Evaluation, NonFiniteLossError, evaluate
from .frozen import frozen_modules, start_training
from .interfaces import BatchLike, SplitLike
from .layout import choose_nhwc, memory_format
from .loop import Run, Task, Trained
from .results import TrainResult
from .sampling.loss_log import LossLog
from .sampling.policies import Policy, Selection, make_policy
from .sampling.time_model import saving_of_run, trained_batches
from .schedule import LearningRate
from .state import FolderStore
from .step import EpochSums, Stepper, diverged, first_nonfinite, make_optimizer

_STEPS_UNCHECKED = 25
"""On accelerators the losses of this many steps are fetched together: fetching each would make the device wait."""


@contextmanager
def opened(task: Task) -> Iterator["OneProcess"]:
    """The engine for `task`; the model is on the task's device from here on."""
    model, config, where = task.model, task.config, task.device
    frozen = frozen_modules(model)
    policy = make_policy(config.policy, samples=len(task.data.train), epochs=config.epochs, seed=config.seed, batch_size=config.batch_size)
    model.to(where)
    nhwc = choose_nhwc(model, task.data, where, config.channels_last, task.progress)
    with memory_format(model, where, nhwc) as layout:
        scaler = torch.amp.GradScaler(where.type, enabled=task.dtype == torch.float16)
        yield OneProcess(
            task=task,
            stepper=Stepper(model, make_optimizer(model, config), scaler, config, where, task.dtype, layout, frozen),
            store=FolderStore(task.output, task.identity),
            policy=policy,
            rate=LearningRate(config),
            log=LossLog(len(task.data.train)) if config.record_losses else None,
        )


@dataclass
class OneProcess:
    """The fields from `policy` on are what a resume restores."""

    task: Task
    stepper: Stepper
    store: FolderStore
    policy: Policy
    rate: LearningRate
    log: LossLog | None
    selection: Selection = field(default_factory=Selection)
    """Of the epoch that runs."""
    epoch: int = 0
    """The one that runs, from 0."""
    batch: int = 0
    """Finished batches of the epoch that runs."""
    sums: EpochSums = field(default_factory=EpochSums)
    clock: Clock = field(default_factory=Clock)
    """The run's."""

    @property
    def config(self) -> TrainConfig:
        return self.task.config

    @property
    def finished(self) -> bool:
        return self.rate.finished

    @property
    def place(self) -> str:
        return f"batch {self.batch + 1}"

    @property
    def batches(self) -> int:
        """Batches of the epoch that runs."""
        chosen = self.selection.indices
        return trained_batches(self.policy.samples if chosen is None else len(chosen), self.config.batch_size)

    def train_epoch(self, run: Run) -> Trained:
        self.epoch, self.clock = run.epoch, run.clock
        if self.batch == 0:
            self._choose_samples()
        total = self.batches
        if self.batch < total:  # else it was stopped between the last batch and the end of validation
            self._train(run, total)
        self._check_weights()
        return Trained(self.sums.loss, self.sums.correct, self.sums.samples, self.stepper.optimizer.param_groups[0]["lr"])

    def _train(self, run: Run, total: int) -> None:
        stepper = self.stepper
        start_training(stepper.model, stepper.frozen)
        rest = itertools.islice(self._stream(), total - self.batch)
        description = f"epoch {self.epoch + 1}/{self.config.epochs}"
        for batch in run.progress(rest, total=total, description=description, start=self.batch):
            self._step(batch, total)
            run.pause()
        if self.batch < total:
            raise RunError(f"the training split gave {self.batch} of {total} batches in epoch {self.epoch + 1}; its length is wrong")
        self._observe()
        self.clock.tick()

    def _stream(self) -> Iterator[BatchLike]:
        """The batches of the epoch that are left."""
        config = self.config
        return self.task.data.train.batches(
            config.batch_size,
            generator=torch.Generator().manual_seed(derive_seed(config.seed, "order", self.epoch)),
            augment=config.augment,
            indices=self.selection.indices,
            workers=config.workers,
            start_batch=self.batch,
        )

    def _step(self, batch: BatchLike, total: int) -> None:
        stepper, weights = self.stepper, self.selection.weights
        seed_generators(stepper.device, derive_seed(self.config.seed, "layers", self.epoch, self.batch))
        for group in stepper.optimizer.param_groups:
            group["lr"] = self.rate.at(self.epoch, self.batch, total)
        factors = None if weights is None else weights[batch.indices]
        self.sums.add(self.batch, stepper.step(batch.images, batch.labels, batch.indices, factors))
        self.batch += 1
        if self.batch % _STEPS_UNCHECKED == 0:
            self._observe()
        elif stepper.device.type == "cpu":
            self._check_losses()

    def _choose_samples(self) -> None:
        with self.clock.choosing():
            self.selection = self.policy.epoch(self.epoch)
        if self.log is not None:
            self.log.start_epoch()

    def _observe(self) -> None:
        """Hand the steps since the last time to the policy: many at once, as one alone meets cold caches after a step."""
        self._check_losses()
        steps = self.sums.take()
        with self.clock.choosing():
            for indices, losses in steps:
                self.policy.observe(indices, losses)
        if self.log is not None:
            for indices, losses in steps:
                self.log.observe(indices, losses)

    def evaluate(self, split: SplitLike, name: str, epoch: int) -> Evaluation:
        config, stepper, progress = self.config, self.stepper, self.task.progress
        description = f"{name} after epoch {epoch + 1}"
        options: dict[str, Any] = {"batch_size": config.batch_size, "workers": config.workers, "device": stepper.device}
        try:
            return evaluate(stepper.model, split, **options, progress=progress, description=description)
        except NonFiniteLossError as error:
            raise diverged(f"the {name} loss", self._where(self.batch - 1)) from error

    def weights(self) -> dict[str, Any]:
        return {"weights": {name: _copy(value) for name, value in self.stepper.model.state_dict().items()}}

    def install(self, weights: Mapping[str, Any]) -> None:
        model = self.stepper.model
        model.load_state_dict(as_state_of(model, weights["weights"]))
        model.eval()

    def close_epoch(self, rate_loss: float | None) -> None:
        if rate_loss is not None:
            self.rate.observe(rate_loss)
        self.epoch += 1
        self.batch, self.sums, self.selection = 0, EpochSums(), Selection()

    def remark(self) -> str:
        return ""

    def result(self, result: TrainResult) -> TrainResult:
        config, policy = self.config, self.policy
        sizes = {"epochs": config.epochs, "samples": policy.samples, "batch_size": config.batch_size}
        losses = self.log.matrix() if self.log is not None else None
        return replace(result, saving=saving_of_run(policy.config, result.history, **sizes), losses=losses)

    def state_dict(self) -> dict[str, Any]:
        self._observe()
        self._check_weights()
        return {
            "batch": self.batch,
            "sums": self.sums.to_json(),
            "policy": self.policy.state_dict(),
            "selection": tuple(self.selection),
            "losses": self.log.rows if self.log is not None else None,
            "rate": self.rate.to_json(),
            "model": self.stepper.model.state_dict(),
            "optimizer": self.stepper.optimizer.state_dict(),
            "scaler": self.stepper.scaler.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        stepper = self.stepper
        stepper.model.load_state_dict(state["model"])
        stepper.optimizer.load_state_dict(state["optimizer"])
        stepper.scaler.load_state_dict(state["scaler"])
        self.policy.load_state_dict(state["policy"])
        self.rate = LearningRate.from_json(self.config, state["rate"])
        self.selection = Selection(*state["selection"])
        if self.log is not None:
            self.log.rows = state["losses"]
        self.epoch, self.batch, self.sums = state["epoch"], state["batch"], EpochSums(**state["sums"])

    def _check_losses(self) -> None:
        broken = self.sums.flush()
        if broken is not None:
            raise diverged("the loss", self._where(broken))

    def _check_weights(self) -> None:
        name = first_nonfinite(self.stepper.model)
        if name is not None:
            raise diverged(name, self._where(max(self.batch - 1, 0)))

    def _where(self, batch: int) -> str:
        total = self.batches
        return f"at epoch {self.epoch + 1}, batch {batch + 1} of {total}, learning rate {self.rate.at(self.epoch, batch, total):.3g}"


def _copy(value: Any) -> Any:
    """An own copy on the CPU, in plain memory order."""
    return value.detach().to("cpu", copy=True).contiguous() if isinstance(value, torch.Tensor) else value
