"""The engine that makes every step in order, on the weights of the step before: in this process, or in several by DistributedDataParallel.

A policy (sampling/) may leave samples out of an epoch; it learns from the losses that the steps compute anyway. Nothing random outlives a
batch: order and augmentation follow from (seed, epoch, batch) through the data's generator, and layers that draw numbers (dropout) are
seeded from (seed, epoch, batch) before each step.

A last batch of one single sample is left out of its epoch (a different sample each epoch): BatchNorm has no variance there.

Of several processes each computes its share of every batch, and the gradient is that of the mean over the whole batch, however it was
shared: the settings mean what they mean in one process. A last batch that leaves a process fewer than two samples is left out, so that all
make equally many steps. BatchNorm normalises by the statistics of the process's own share; the running ones are those of the first process.
"""

import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fineprune.common.errors import RunError
from fineprune.common.progress import Progress, Silent

from ..objective import objective_of
from ..state_dict import as_state_of
from .clock import Clock
from .config import TrainConfig
from .device import derive_seed, seed_generators
from .evaluate import Evaluation, NonFiniteLossError, PartOf, evaluate
from .frozen import frozen_modules, start_training
from .interfaces import BatchLike, SplitLike
from .layout import choose_nhwc, memory_format
from .loop import Run, Task, Trained
from .parallel import share_buffers, shared_network
from .quantised import Quantised, quantised
from .results import TrainResult
from .sampling.loss_log import LossLog
from .sampling.policies import Policy, Selection, make_policy
from .sampling.time_model import saving_of_run, trained_batches
from .schedule import LearningRate
from .state import FolderStore
from .step import EpochSums, Stepper, diverged, first_nonfinite, make_optimizer
from .teacher import teaching

_STEPS_UNCHECKED = 25
"""On accelerators the losses of this many steps are fetched together: fetching each would make the device wait."""


@contextmanager
def opened(task: Task) -> Iterator["Synchronous"]:
    """The engine for `task`; the model is on the task's device from here on."""
    model, config, where = task.model, task.config, task.device
    frozen = frozen_modules(model)
    policy = make_policy(config.policy, samples=len(task.data.train), epochs=config.epochs, seed=config.seed, batch_size=config.batch_size)
    model.to(where)
    nhwc = choose_nhwc(task.networks, task.data, where, config.channels_last, task.progress)
    with (
        memory_format(model, where, nhwc) as layout,
        teaching(task.teacher, model, config, where, task.dtype, layout) as teacher,
        quantised(task) as on_grids,
    ):
        scaler = torch.amp.GradScaler(where.type, enabled=task.dtype == torch.float16)
        network = shared_network(model, task)
        yield Synchronous(
            task=task,
            stepper=Stepper(
                model,
                make_optimizer(model, config),
                scaler,
                config,
                where,
                task.dtype,
                layout,
                frozen,
                network,
                teacher,
                objective_of(task.data.train),
            ),
            store=FolderStore(task.output, task.identity, task.group),
            quantised=on_grids,
            policy=policy,
            rate=LearningRate(config),
            log=LossLog(len(task.data.train)) if config.record_losses else None,
        )


@dataclass
class Synchronous:
    """The fields from `quantised` on are what a resume restores."""

    task: Task
    stepper: Stepper
    store: FolderStore
    quantised: Quantised | None
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
    part_losses: list[float] = field(default_factory=list)
    """That the learning rate followed in the epoch that runs."""
    clock: Clock = field(default_factory=Clock)
    """The run's."""

    @property
    def config(self) -> TrainConfig:
        return self.task.config

    @property
    def finished(self) -> bool:
        return self.rate.finished and self.settled

    @property
    def settled(self) -> bool:
        masking = self.task.masking
        return (masking is None or masking.final) and (self.quantised is None or self.quantised.begun)

    @property
    def place(self) -> str:
        return f"batch {self.batch + 1}"

    @property
    def batches(self) -> int:
        """Batches of the epoch that runs."""
        return trained_batches(self.samples, self.config.batch_size, self.task.group.size)

    @property
    def samples(self) -> int:
        """Samples that the epoch that runs was given."""
        chosen = self.selection.indices
        return self.policy.samples if chosen is None else len(chosen)

    def train_epoch(self, run: Run) -> Trained:
        self.epoch, self.clock = run.epoch, run.clock
        if self.batch == 0:
            self._choose_samples()
        total = self.batches
        if self.batch < total:  # else it was stopped between the last batch and the end of validation
            self._train(run, total)
        share_buffers(self.stepper.model, self.task.group)
        self._check_weights()
        sums = self._total()
        return Trained(sums.loss, sums.correct, sums.samples, self.stepper.optimizer.param_groups[0]["lr"], tuple(self.part_losses))

    def _train(self, run: Run, total: int) -> None:
        stepper = self.stepper
        start_training(stepper.model, stepper.frozen)
        rest = itertools.islice(self._stream(), total - self.batch)
        description = f"epoch {self.epoch + 1}/{self.config.epochs}"
        for batch in run.progress(rest, total=total, description=description, start=self.batch):
            self._step(batch, total)
            if self.rate.part_ends(self.epoch, self.batch, total):
                self._follow()
            run.pause()
        if self.batch < total:
            raise RunError(f"the training split gave {self.batch} of {total} batches in epoch {self.epoch + 1}; its length is wrong")
        self._observe()
        self.clock.tick()

    def _stream(self) -> Iterator[BatchLike]:
        """This process's share of the batches of the epoch that are left."""
        config, group = self.config, self.task.group
        part: dict[str, Any] = {"part": (group.rank, group.size)} if group.size > 1 else {}
        return self.task.data.train.batches(
            config.batch_size,
            generator=torch.Generator().manual_seed(derive_seed(config.seed, "order", self.epoch)),
            augment=config.augment,
            indices=self.selection.indices,
            workers=config.workers,
            start_batch=self.batch,
            **part,
        )

    def _step(self, batch: BatchLike, total: int) -> None:
        stepper, weights = self.stepper, self.selection.weights
        if self.task.masking is not None:
            self.task.masking.update((self.epoch + self.batch / total) / self.config.epochs)
        if self.quantised is not None and self.batch == 0:
            self.quantised.begin(self.epoch)
        rank = self.task.group.rank
        seed_generators(stepper.device, derive_seed(self.config.seed, "layers", self.epoch, self.batch, *([rank] if rank else [])))
        for group in stepper.optimizer.param_groups:
            group["lr"] = self.rate.at(self.epoch, self.batch, total)
        factors = None if weights is None else weights[batch.indices]
        size = self.config.batch_size
        whole = min(size, self.samples - self.batch * size)
        share = None if self.task.group.size == 1 else whole / self.task.group.size
        self.sums.add(self.batch, stepper.step(batch, factors, share))
        self.batch += 1
        if self.batch % _STEPS_UNCHECKED == 0:
            self._observe()
        elif stepper.device.type == "cpu":
            self._check_losses()

    @cached_property
    def _followed(self) -> PartOf:
        """The held-out images whose loss the learning rate follows within an epoch: always the same ones."""
        rule = self.config.rate_rule
        split: SplitLike = getattr(self.task.data, rule.split)
        some = torch.randperm(len(split), generator=torch.Generator().manual_seed(derive_seed(self.config.seed, "rate")))
        return PartOf(split, some[: rule.images(len(split))].sort().values)

    def _follow(self) -> None:
        """Measure the loss that the learning rate follows within an epoch."""
        share_buffers(self.stepper.model, self.task.group)
        self._check_weights()
        with self.clock.following():
            loss = self._measure(self._followed, self.config.auto_lr.split, Silent()).loss
        self.part_losses.append(loss)
        self.rate.observe(loss)

    def _choose_samples(self) -> None:
        with self.clock.choosing():
            self.selection = self.policy.epoch(self.epoch)
        if self.log is not None:
            self.log.start_epoch()

    def _observe(self) -> None:
        """Hand the steps since the last time to the policy: many at once, as one alone meets cold caches after a step."""
        self._check_losses()
        steps = self._of_all(self.sums.take())
        with self.clock.choosing():
            for indices, losses in steps:
                self.policy.observe(indices, losses)
        if self.log is not None:
            for indices, losses in steps:
                self.log.observe(indices, losses)

    def _of_all(self, steps: list[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
        """The same steps with the samples of all processes, where somebody wants to know them."""
        group = self.task.group
        if group.size == 1 or (self.policy.config.name == "none" and self.log is None):
            return steps
        shares = zip(*group.gather(steps), strict=True)
        return [(torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])) for parts in shares]

    def _total(self) -> EpochSums:
        """The sums of all processes."""
        own = torch.tensor([self.sums.loss, self.sums.correct, self.sums.samples], dtype=torch.float64)
        loss, correct, samples = self.task.group.total(own).tolist()
        return EpochSums(loss, correct, int(samples))

    def evaluate(self, split: SplitLike, name: str, epoch: int) -> Evaluation:
        return self._measure(split, name, self.task.progress)

    def _measure(self, split: SplitLike, name: str, progress: Progress) -> Evaluation:
        config, stepper = self.config, self.stepper
        description = f"{name} after epoch {self.epoch + 1}"
        options: dict[str, Any] = {
            "batch_size": config.batch_size,
            "workers": config.workers,
            "device": stepper.device,
            "group": self.task.group,
        }
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
        if rate_loss is not None and self.rate.parts == 1:
            self.rate.observe(rate_loss)
        self.epoch += 1
        self.batch, self.sums, self.selection, self.part_losses = 0, EpochSums(), Selection(), []

    def remark(self) -> str:
        return ", on int8 grids" if self.quantised is not None and self.quantised.begun else ""

    def result(self, result: TrainResult) -> TrainResult:
        config, policy = self.config, self.policy
        sizes = {"epochs": config.epochs, "samples": policy.samples, "batch_size": config.batch_size, "processes": self.task.group.size}
        losses = self.log.matrix() if self.log is not None else None
        return replace(result, saving=saving_of_run(policy.config, result.history, **sizes), losses=losses)

    def state_dict(self) -> dict[str, Any]:
        self._observe()
        self._check_weights()
        return {
            "batch": self.batch,
            "sums": self._total().to_json(),
            "policy": self.policy.state_dict(),
            "selection": tuple(self.selection),
            "losses": self.log.rows if self.log is not None else None,
            "rate": self.rate.to_json(),
            "part_losses": self.part_losses,
            "model": self.stepper.model.state_dict(),
            "optimizer": self.stepper.optimizer.state_dict(),
            "scaler": self.stepper.scaler.state_dict(),
            **({} if self.task.masking is None else {"masking": self.task.masking.state_dict()}),
            **({} if self.quantised is None else {"quantised": self.quantised.state_dict()}),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        stepper = self.stepper
        if self.task.masking is not None:
            self.task.masking.load_state_dict(state["masking"])
        if self.quantised is not None:
            self.quantised.load_state_dict(state["quantised"])
        stepper.model.load_state_dict(state["model"])
        stepper.optimizer.load_state_dict(state["optimizer"])
        stepper.scaler.load_state_dict(state["scaler"])
        self.policy.load_state_dict(state["policy"])
        self.rate = LearningRate.from_json(self.config, state["rate"])
        self.part_losses = state.get("part_losses", [])
        self.selection = Selection(*state["selection"])
        if self.log is not None:
            self.log.rows = state["losses"]
        self.epoch, self.batch = state["epoch"], state["batch"]
        self.sums = EpochSums(**state["sums"]) if self.task.group.first else EpochSums()

    def _check_losses(self) -> None:
        broken = self.sums.flush()
        if self.task.group.any(broken is not None)[0]:
            raise diverged("the loss", self._where(max(self.batch - 1, 0) if broken is None else broken))

    def _check_weights(self) -> None:
        name = first_nonfinite(self.stepper.model)
        if self.task.group.any(name is not None)[0]:
            raise diverged(name or "a weight", self._where(max(self.batch - 1, 0)))

    def _where(self, batch: int) -> str:
        total = self.batches
        return f"at epoch {self.epoch + 1}, batch {batch + 1} of {total}, learning rate {self.rate.at(self.epoch, batch, total):.3g}"


def _copy(value: Any) -> Any:
    """An own copy on the CPU, in plain memory order."""
    return value.detach().to("cpu", copy=True).contiguous() if isinstance(value, torch.Tensor) else value
