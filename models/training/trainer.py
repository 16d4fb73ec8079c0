"""The trainer: minimises the mean cross-entropy over epochs and ends with the weights that validated best.

A policy (sampling/) may leave samples out of an epoch; it learns from the losses that the steps compute anyway.

A run with an `output` folder can be killed at any moment and started again: it goes on from the last saved batch and ends, for the
same seed, with the same weights as if it had never stopped (bit for bit on a CPU). Nothing random outlives a batch: order and
augmentation follow from (seed, epoch, batch) through the data's generator, and layers that draw numbers (dropout) are seeded from
(seed, epoch, batch) before each step. The caller's global random state is left alone.

A last batch of one single sample is left out of its epoch (a different sample each epoch): BatchNorm has no variance there.
"""

import itertools
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn

from fineprune.common.errors import RunError
from fineprune.common.progress import Progress, Silent

from ..state_dict import as_state_of
from .checks import check_request, trainable
from .clock import Clock
from .config import TrainConfig
from .device import derive_seed, private_randomness, reproducible_kernels, resolve_device, resolve_precision, seed_generators
from .evaluate import Evaluation, NonFiniteLossError, evaluate
from .frozen import frozen_line, frozen_modules, start_training
from .interfaces import DataLike, SplitLike
from .interrupt import Interrupts, deferred_interrupts
from .layout import choose_nhwc, memory_format
from .results import EpochRecord, TrainResult, epoch_line
from .sampling.loss_log import LossLog
from .sampling.policies import Policy, Selection, make_policy
from .sampling.time_model import saving_of_run, trained_batches
from .schedule import LearningRate
from .state import STATE_FILE, load_state, restoring, run_identity, save_state
from .step import EpochSums, Stepper, first_nonfinite, make_optimizer

_SAVING_SHARE = 20
"""Between two saves within an epoch lies at least this many times the seconds that a save takes (large networks)."""

_STEPS_UNCHECKED = 25
"""On accelerators the losses of this many steps are fetched together: fetching each would make the device wait."""


def train(
    model: nn.Module,
    data: DataLike,
    config: TrainConfig,
    *,
    output: Path | None = None,
    device: str | torch.device = "auto",
    progress: Progress = Silent(),  # noqa: B008 - stateless
    on_epoch: Callable[[EpochRecord], None] | None = None,
    identity: Mapping[str, Any] | None = None,
) -> TrainResult:
    """Train `model` in place on `data.train`; it ends on `device`, in eval mode, with the weights of the best validation accuracy.

    Parameters that require no gradient stay as they are, and so do `frozen_modules`. Of a wrapped model the network inside is trained.
    output: folder of the resumable state; a finished state returns its result at once. None: nothing is saved.
    identity: further facts (JSON values) that must agree for a resume, such as the hash of the weights that training starts from.
    Raises RunError for too few samples, a model that does not fit the data, a loss or weight that is not finite, a state of another
    run or an unwritable folder; UsageError for settings that cannot be met here. On SIGINT or SIGTERM the step that runs is
    finished, the state saved, and KeyboardInterrupt raised with a message that says where it stopped.
    """
    model = trainable(model, progress)
    if config.asynchronous is not None:
        from .distributed.start import train_asynchronously

        rest: dict[str, Any] = {"progress": progress, "on_epoch": on_epoch, "identity": identity}
        return train_asynchronously(model, data, config, output=output, device=device, **rest)
    where = resolve_device(device)
    dtype = resolve_precision(config.precision, where)
    check_request(model, data, config, progress)
    frozen = frozen_modules(model)
    if line := frozen_line(model):
        progress.log(line)
    policy = make_policy(config.policy, samples=len(data.train), epochs=config.epochs, seed=config.seed, batch_size=config.batch_size)
    with ExitStack() as stack:
        stack.enter_context(private_randomness(where))
        stack.enter_context(reproducible_kernels())
        interrupts = stack.enter_context(deferred_interrupts())
        model.to(where)
        nhwc = choose_nhwc(model, data, where, config.channels_last, progress)
        layout = stack.enter_context(memory_format(model, where, nhwc))
        scaler = torch.amp.GradScaler(where.type, enabled=dtype == torch.float16)
        run = _Run(
            stepper=Stepper(model, make_optimizer(model, config), scaler, config, where, dtype, layout, frozen),
            data=data,
            output=output,
            identity=run_identity(model, data, config, identity),
            interrupts=interrupts,
            progress=progress,
            policy=policy,
            rate=LearningRate(config),
            log=LossLog(len(data.train)) if config.record_losses else None,
        )
        try:
            run.restore()
            return run.finish(on_epoch)
        except KeyboardInterrupt as error:
            if error.args:
                raise
            raise KeyboardInterrupt("interrupted again before the state was saved; the same command resumes from the one before") from None


@dataclass
class _Run:
    """A run in progress: the fields from `policy` on are what a resume restores."""

    stepper: Stepper
    data: DataLike
    output: Path | None
    identity: dict[str, str]
    interrupts: Interrupts
    progress: Progress
    policy: Policy
    rate: LearningRate
    log: LossLog | None
    selection: Selection = field(default_factory=Selection)
    """Of the epoch that runs."""
    epoch: int = 0
    """Finished epochs."""
    batch: int = 0
    """Finished batches of the epoch that runs."""
    sums: EpochSums = field(default_factory=EpochSums)
    clock: Clock = field(default_factory=Clock)
    history: list[EpochRecord] = field(default_factory=list)
    best: dict[str, Any] | None = None
    """{"epoch": counted from 1, "accuracy", "weights": state dict on the CPU}."""
    _saved_at: float = 0.0
    _save_cost: float = 0.0

    @property
    def config(self) -> TrainConfig:
        return self.stepper.config

    @property
    def batches(self) -> int:
        """Batches of the epoch that runs."""
        chosen = self.selection.indices
        return trained_batches(self.policy.samples if chosen is None else len(chosen), self.config.batch_size)

    @property
    def finished(self) -> bool:
        """All epochs are done, or the learning rate has nothing left to try."""
        return self.epoch >= self.config.epochs or self.rate.finished

    def restore(self) -> None:
        """Go to the state in the output folder, or write the first one: an unusable folder fails before any work."""
        if self.output is None:
            return
        state = load_state(self.output, self.identity)
        if state is None:
            self._save()
            return
        stepper = self.stepper
        with restoring(self.output):
            stepper.model.load_state_dict(state["model"])
            stepper.optimizer.load_state_dict(state["optimizer"])
            stepper.scaler.load_state_dict(state["scaler"])
            self.policy.load_state_dict(state["policy"])
            self.rate = LearningRate.from_json(self.config, state["rate"])
            self.selection = Selection(*state["selection"])
            if self.log is not None:
                self.log.rows = state["losses"]
            self.epoch, self.batch, self.clock = state["epoch"], state["batch"], Clock(**state["clock"])
            self.sums = EpochSums(**state["sums"])
            self.history = [EpochRecord(**record) for record in state["history"]]
            self.best = state["best"]
        self._saved_at = time.monotonic()
        if not self.finished:
            self.progress.log(f"resuming at epoch {self.epoch + 1}, batch {self.batch + 1} from {self.output / STATE_FILE}")

    def finish(self, on_epoch: Callable[[EpochRecord], None] | None) -> TrainResult:
        """Train the epochs that are left and load the best weights."""
        model = self.stepper.model
        done = self.finished
        if len(self.data.validation) == 0 and not done:
            self.progress.log("no validation images: the last weights are kept, the best cannot be told")
        while not self.finished:
            self._train_epoch()
            record = self._close_epoch(*self._validate())
            self.progress.log(epoch_line(record, self.config.epochs, self._seconds_left()))
            if on_epoch is not None:
                on_epoch(record)
            if self.interrupts.requested:
                self._stop()
        if self.best is not None:
            model.load_state_dict(as_state_of(model, self.best["weights"]))
        model.eval()
        saving = saving_of_run(
            self.policy.config, self.history, epochs=self.config.epochs, samples=self.policy.samples, batch_size=self.config.batch_size
        )
        if saving is not None and not done:
            self.progress.log(saving.line())
        return TrainResult(
            history=tuple(self.history),
            best_epoch=self.best["epoch"] if self.best else len(self.history),
            best_accuracy=self.best["accuracy"] if self.best else None,
            seconds=sum(record.seconds for record in self.history),
            saving=saving,
            losses=self.log.matrix() if self.log is not None else None,
        )

    def _train_epoch(self) -> None:
        config, stepper, split = self.config, self.stepper, self.data.train
        self.clock.start()
        if self.batch == 0:
            self._choose_samples()
        total = self.batches
        if self.batch >= total:  # stopped between the last batch and the end of validation
            return
        start_training(stepper.model, stepper.frozen)
        indices, weights = self.selection
        generator = torch.Generator().manual_seed(derive_seed(config.seed, "order", self.epoch))
        batches = split.batches(
            config.batch_size,
            generator=generator,
            augment=config.augment,
            indices=indices,
            workers=config.workers,
            start_batch=self.batch,
        )
        rest = itertools.islice(batches, total - self.batch)
        for batch in self.progress(rest, total=total, description=f"epoch {self.epoch + 1}/{config.epochs}", start=self.batch):
            seed_generators(stepper.device, derive_seed(config.seed, "layers", self.epoch, self.batch))
            for group in stepper.optimizer.param_groups:
                group["lr"] = self.rate.at(self.epoch, self.batch, total)
            factors = None if weights is None else weights[batch.indices]
            self.sums.add(self.batch, stepper.step(batch.images, batch.labels, batch.indices, factors))
            self.batch += 1
            self.clock.tick()
            self._after_step()
        if self.batch < total:
            raise RunError(f"the training split gave {self.batch} of {total} batches in epoch {self.epoch + 1}; its length is wrong")
        self._observe()
        self.clock.tick()

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

    def _after_step(self) -> None:
        if self.batch % _STEPS_UNCHECKED == 0:
            self._observe()
        elif self.stepper.device.type == "cpu":
            self._check_losses()
        if self.interrupts.requested:
            self._save()
            self._stop()
        every = self.config.checkpoint_every_s
        interval = max(every, _SAVING_SHARE * self._save_cost) if every else 0.0
        if self.output is not None and time.monotonic() - self._saved_at >= interval:
            self._save()

    def _validate(self) -> tuple[Evaluation | None, float | None]:
        """Validation, and the loss that the learning rate follows."""
        self._check_weights()
        validation = self._evaluate(self.data.validation, "validation") if len(self.data.validation) else None
        if self.config.schedule == "auto" and self.config.auto_lr.split == "test":
            return validation, self._evaluate(getattr(self.data, "test"), "test").loss  # noqa: B009 - not every DataLike has it
        return validation, validation.loss if validation else None

    def _evaluate(self, split: SplitLike, name: str) -> Evaluation:
        """With its time added to the epoch's; an interruption here loses none of the epoch's training."""
        self.clock.start()
        try:
            with self.interrupts.at_once(), self.clock.validating():
                evaluation = evaluate(
                    self.stepper.model,
                    split,
                    batch_size=self.config.batch_size,
                    device=self.stepper.device,
                    workers=self.config.workers,
                    progress=self.progress,
                    description=f"{name} after epoch {self.epoch + 1}",
                )
        except KeyboardInterrupt:
            self._save()
            self._stop()
        except NonFiniteLossError:
            self._diverged(f"the {name} loss is not finite", self.batch - 1)
        self.clock.tick()
        return evaluation

    def _close_epoch(self, validation: Evaluation | None, rate_loss: float | None) -> EpochRecord:
        """Record the epoch, keep its weights if they are the best so far, save."""
        last_lr = self.stepper.optimizer.param_groups[0]["lr"]
        self.epoch += 1
        record = EpochRecord(
            epoch=self.epoch,
            train_loss=self.sums.loss / self.sums.samples,
            train_accuracy=self.sums.correct / self.sums.samples,
            validation_loss=validation.loss if validation else None,
            validation_accuracy=validation.accuracy if validation else None,
            lr=last_lr,
            seconds=self.clock.wall,
            cpu_seconds=self.clock.cpu,
            validation_seconds=self.clock.validation,
            policy_seconds=self.clock.policy,
            visits=self.sums.samples,
            rate_loss=rate_loss,
        )
        self.history.append(record)
        if rate_loss is not None:
            self.rate.observe(rate_loss)
        if validation is not None and (self.best is None or validation.accuracy >= self.best["accuracy"]):
            weights = {name: _copy(value) for name, value in self.stepper.model.state_dict().items()}
            self.best = {"epoch": self.epoch, "accuracy": validation.accuracy, "weights": weights}
        self.batch, self.sums, self.clock, self.selection = 0, EpochSums(), Clock(), Selection()
        self._save()
        return record

    def _save(self) -> None:
        """Write the state, if there is a folder for it; never one that is not finite."""
        if self.output is None:
            return
        self._observe()
        self._check_weights()
        started = time.monotonic()
        state = {
            "epoch": self.epoch,
            "batch": self.batch,
            "clock": self.clock.to_json(),
            "sums": self.sums.to_json(),
            "policy": self.policy.state_dict(),
            "selection": tuple(self.selection),
            "losses": self.log.rows if self.log is not None else None,
            "rate": self.rate.to_json(),
            "history": [asdict(record) for record in self.history],
            "best": self.best,
            "model": self.stepper.model.state_dict(),
            "optimizer": self.stepper.optimizer.state_dict(),
            "scaler": self.stepper.scaler.state_dict(),
        }
        save_state(self.output, self.identity, state)
        self._saved_at = time.monotonic()
        self._save_cost = self._saved_at - started

    def _check_losses(self) -> None:
        broken = self.sums.flush()
        if broken is not None:
            self._diverged("the loss is not finite", broken)

    def _check_weights(self) -> None:
        name = first_nonfinite(self.stepper.model)
        if name is not None:
            self._diverged(f"{name} is not finite", max(self.batch - 1, 0))

    def _diverged(self, what: str, batch: int) -> NoReturn:
        total = self.batches
        kept = "" if self.output is None else f" in another output folder ({self.output / STATE_FILE} keeps the last good state)"
        raise RunError(
            f"{what} at epoch {self.epoch + 1}, batch {batch + 1} of {total}, learning rate {self.rate.at(self.epoch, batch, total):.3g}; "
            f"train with a lower learning rate, a warm-up or max_grad_norm{kept}"
        )

    def _stop(self) -> NoReturn:
        remedy = "run the same command to resume" if self.output is not None else "nothing was saved, as no output folder was given"
        where = f"at epoch {self.epoch + 1}, batch {self.batch + 1}" if not self.finished else "after the last epoch"
        raise KeyboardInterrupt(f"interrupted {where}; {remedy}")

    def _seconds_left(self) -> float:
        return sum(record.seconds for record in self.history) / len(self.history) * (self.config.epochs - self.epoch)


def _copy(value: Any) -> Any:
    """An own copy on the CPU, in plain memory order."""
    return value.detach().to("cpu", copy=True).contiguous() if isinstance(value, torch.Tensor) else value
