"""Asynchronous training of a model: epochs, validation, the best weights and a state to resume from, around one of the engines.

An epoch is as many gradients as the training split has batches. The simulated run is a function of its settings: killed at any moment and
started again, it ends with the same weights (bit for bit on a CPU), as the plain trainer does; with one worker and plain SGD it is the
plain trainer.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fineprune.common.errors import RunError, UsageError
from fineprune.common.progress import Progress, Silent

from ..checks import check_request
from ..config import TrainConfig
from ..device import private_randomness, reproducible_kernels, resolve_device, resolve_precision
from ..evaluate import Evaluation, NonFiniteLossError, evaluate
from ..frozen import frozen_line
from ..interfaces import DataLike
from ..interrupt import Interrupts, deferred_interrupts
from ..layout import choose_nhwc, memory_format
from ..results import EpochRecord, TrainResult, epoch_line
from ..state import load_state, restoring, run_identity, save_state
from .config import AsyncConfig, BatchNormPolicy
from .feed import make_feed
from .flat import FlatModel
from .server import Server
from .simulator import Simulator
from .statistics import write_statistics
from .worker import Worker


@dataclass(frozen=True, kw_only=True)
class AsyncResult(TrainResult):
    """A finished asynchronous run; `asynchronous` holds its virtual seconds, staleness, predictor errors and server costs."""

    asynchronous: dict[str, Any]


def train_async(
    model: nn.Module,
    data: DataLike,
    config: TrainConfig,
    settings: AsyncConfig,
    *,
    output: Path | None = None,
    device: str | torch.device = "auto",
    progress: Progress = Silent(),  # noqa: B008 - stateless
    on_epoch: Callable[[EpochRecord, "SimulatedRun"], None] | None = None,
    identity: Mapping[str, Any] | None = None,
    trace: bool = False,
) -> AsyncResult:
    """Train `model` in place as `train` does, with the workers and the server of `settings`; arguments and errors are those of `train`.

    on_epoch also gets the run, whose `validate` measures under any BatchNorm policy. trace: keep every arrival in its server's telemetry.
    """
    config = replace(config, asynchronous=settings)
    where = resolve_device(device)
    dtype = resolve_precision(config.precision, where)
    check_asynchronous(model, data, config, dtype, progress)
    with ExitStack() as stack:
        stack.enter_context(private_randomness(where))
        stack.enter_context(reproducible_kernels())
        interrupts = stack.enter_context(deferred_interrupts())
        model.to(where)
        layout = stack.enter_context(memory_format(model, where, choose_nhwc(model, data, where, config.channels_last, progress)))
        worker = Worker(model, config, where, dtype, layout)
        feed = make_feed(data.train, config, settings)
        length = sum(2 * norm.num_features for norm in worker.norms)
        server = Server(worker.flat.weights(), length, config, settings, feed.batches())
        server.telemetry.trace = [] if trace else None
        run = SimulatedRun(
            simulator=Simulator(server, worker, feed, settings, config.seed),
            data=data,
            output=output,
            identity=run_identity(model, data, config, identity),
            interrupts=interrupts,
            progress=progress,
        )
        run.restore()
        return run.finish(on_epoch)


def install(flat: FlatModel, norms: list[_BatchNorm], weights: Tensor, statistics: Tensor) -> None:
    """Give a model what a server holds."""
    flat.load(weights)
    write_statistics(norms, statistics)
    for norm in norms:
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked.zero_()  # of a worker's own copy it says nothing here


def check_asynchronous(model: nn.Module, data: DataLike, config: TrainConfig, dtype: torch.dtype, progress: Progress) -> None:
    """RunError or UsageError for what cannot be trained, before any work; a line of the log names what is frozen."""
    check_request(model, data, config, progress)
    if line := frozen_line(model):
        progress.log(line)
    if dtype == torch.float16:
        raise UsageError("asynchronous training has no float16 (its loss scaling belongs to one optimizer); use float32 or bfloat16")


@dataclass
class SimulatedRun:
    """A simulated run in progress; the fields after `progress` and the simulator are what a resume restores."""

    simulator: Simulator
    data: DataLike
    output: Path | None
    identity: dict[str, str]
    interrupts: Interrupts
    progress: Progress
    epoch: int = 0
    """Finished epochs."""
    epoch_seconds: float = 0.0
    history: list[EpochRecord] = field(default_factory=list)
    clocks: list[float] = field(default_factory=list)
    """Virtual time at the end of each epoch."""
    best: dict[str, Any] | None = None
    """{"epoch": counted from 1, "accuracy", "weights", "statistics"}."""
    _saved_at: float = 0.0

    @property
    def server(self) -> Server:
        """The simulator's."""
        return self.simulator.server

    def restore(self) -> None:
        """Go to the state in the output folder, or write the first one: an unusable folder fails before any work."""
        if self.output is None:
            return
        state = load_state(self.output, self.identity)
        if state is None:
            self._save()
            return
        with restoring(self.output):
            self.server.load_state_dict(state["server"])
            self.simulator.load_state_dict(state["simulator"])
            self.epoch, self.epoch_seconds, self.clocks, self.best = state["epoch"], state["epoch_seconds"], state["clocks"], state["best"]
            self.history = [EpochRecord(**record) for record in state["history"]]
        self._saved_at = time.monotonic()
        if self.epoch < self.server.config.epochs:
            self.progress.log(f"resuming at epoch {self.epoch + 1}, gradient {self.server.ledger.done + 1}")

    def finish(self, on_epoch: "Callable[[EpochRecord, SimulatedRun], None] | None" = None) -> AsyncResult:
        """Train the epochs that are left and load the best weights."""
        epochs = self.server.config.epochs
        while self.epoch < epochs and not self.server.rate.finished:
            self._train_epoch()
            record = self._close_epoch()
            left = sum(r.seconds for r in self.history) / len(self.history) * (epochs - self.epoch)
            staleness = self.server.telemetry.mean_staleness()
            self.progress.log(
                f"{epoch_line(record, epochs, left)}, virtual time {self.simulator.clock:.0f} s, mean staleness {staleness:.1f}"
            )
            if on_epoch is not None:
                on_epoch(record, self)
            if self.interrupts.requested:
                self._stop()
        best = self.best or {"epoch": self.epoch, "accuracy": None, "weights": self.server.weights(), "statistics": None}
        self.install(best["weights"], best["statistics"])
        self.simulator.worker.model.eval()
        return AsyncResult(
            history=tuple(self.history),
            best_epoch=best["epoch"],
            best_accuracy=best["accuracy"],
            seconds=sum(record.seconds for record in self.history),
            asynchronous={"virtual_seconds": self.clocks, "updates": self.server.version, **self.server.telemetry.to_json()},
        )

    def install(self, weights: Tensor | None = None, statistics: Tensor | None = None) -> None:
        """Give the model the server's weights and statistics of now, or others."""
        worker, server = self.simulator.worker, self.server
        running = server.batchnorm.running(server.settings.batchnorm) if statistics is None else statistics
        install(worker.flat, worker.norms, server.weights() if weights is None else weights, running)

    def validate(self, policy: BatchNormPolicy | None = None, split: Any = None) -> Evaluation:
        """The server's weights of now on the validation split (or `split`), under a BatchNorm policy (or the settings' own)."""
        server, config = self.server, self.server.config
        self.install(statistics=server.batchnorm.running(policy or server.settings.batchnorm))
        try:
            return evaluate(
                self.simulator.worker.model,
                self.data.validation if split is None else split,
                batch_size=max(config.batch_size, 256),
                device=self.simulator.worker.device,
                progress=self.progress,
                description=f"validation after epoch {self.epoch + 1}",
            )
        except NonFiniteLossError as error:
            raise RunError(
                f"the validation loss is not finite after {server.version} updates, learning rate {server.lr():.3g}; "
                "train with a lower learning rate, a warm-up or max_grad_norm"
            ) from error

    def _train_epoch(self) -> None:
        ledger, total = self.server.ledger, self.server.epoch_batches
        started = time.monotonic() - self.epoch_seconds
        done = ledger.done - self.epoch * total
        left = range(done, total)
        for _ in self.progress(left, total=total, description=self._live, start=done):
            while not self.simulator.step():
                pass
            self.epoch_seconds = time.monotonic() - started
            if self.interrupts.requested:
                self._save()
                self._stop()
            if self.output is not None and time.monotonic() - self._saved_at >= max(self.server.config.checkpoint_every_s, 1e-3):
                self._save()

    def _live(self) -> str:
        staleness = self.server.telemetry.mean_staleness()
        return f"epoch {self.epoch + 1}/{self.server.config.epochs}, mean staleness {staleness:.1f}"

    def _close_epoch(self) -> EpochRecord:
        started, server = time.monotonic(), self.server
        validation = self.validate() if len(self.data.validation) else None
        loss, correct, samples = server.sums
        self.epoch += 1
        record = EpochRecord(
            epoch=self.epoch,
            train_loss=loss / samples,
            train_accuracy=correct / samples,
            validation_loss=validation.loss if validation else None,
            validation_accuracy=validation.accuracy if validation else None,
            lr=server.lr(),
            seconds=self.epoch_seconds + time.monotonic() - started,
        )
        self.history.append(record)
        self.clocks.append(self.simulator.clock)
        if validation is not None:
            server.rate.observe(validation.loss)
            if self.best is None or validation.accuracy >= self.best["accuracy"]:
                statistics = server.batchnorm.running(server.settings.batchnorm)
                self.best = {
                    "epoch": self.epoch,
                    "accuracy": validation.accuracy,
                    "weights": server.weights().cpu(),
                    "statistics": statistics,
                }
        self.epoch_seconds, server.sums = 0.0, [0.0, 0.0, 0.0]
        self._save()
        return record

    def _save(self) -> None:
        if self.output is None or not bool(self.server.parameter.isfinite().all()):
            return
        state = {
            "server": self.server.state_dict(),
            "simulator": self.simulator.state_dict(),
            "epoch": self.epoch,
            "epoch_seconds": self.epoch_seconds,
            "history": [asdict(record) for record in self.history],
            "clocks": self.clocks,
            "best": self.best,
        }
        save_state(self.output, self.identity, state)
        self._saved_at = time.monotonic()

    def _stop(self) -> None:
        remedy = "run the same command to resume" if self.output is not None else "nothing was saved, as no output folder was given"
        raise KeyboardInterrupt(f"interrupted at epoch {self.epoch + 1}, gradient {self.server.ledger.done + 1}; {remedy}")
