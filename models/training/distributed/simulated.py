"""The engine of simulated asynchronous training: a server and many workers under a virtual clock, in this process.

An epoch is as many gradients as the training split has batches. The simulated run is a function of its settings: killed at any moment and
started again, it ends with the same weights (bit for bit on a CPU), as the plain trainer does; with one worker and plain SGD it is the
plain trainer.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from fineprune.common.errors import UsageError
from fineprune.common.progress import Progress

from ..evaluate import Evaluation, NonFiniteLossError, evaluate
from ..interfaces import SplitLike
from ..layout import choose_nhwc, memory_format
from ..loop import Run, Task, Trained
from ..results import TrainResult
from ..state import FolderStore
from ..step import diverged
from ..teacher import teaching
from .config import AsyncConfig, BatchNormPolicy
from .feed import make_feed
from .server import Server
from .simulator import Simulator
from .statistics import read_statistics
from .worker import Worker, install


@dataclass(frozen=True, kw_only=True)
class AsyncResult(TrainResult):
    """A finished asynchronous run; `asynchronous` holds its virtual seconds, staleness, predictor errors and server costs."""

    asynchronous: dict[str, Any]


@contextmanager
def opened(task: Task) -> Iterator["Simulated"]:
    """The engine for `task`; the model is on the task's device from here on."""
    model, config, settings = task.model, task.config, asynchronous_settings(task)
    model.to(task.device)
    nhwc = choose_nhwc(task.networks, task.data, task.device, config.channels_last, task.progress)
    with (
        memory_format(model, task.device, nhwc) as layout,
        teaching(task.teacher, model, config, task.device, task.dtype, layout) as teacher,
    ):
        worker = Worker(model, config, task.device, task.dtype, layout, teacher)
        feed = make_feed(task.data.train, config, settings)
        server = Server(worker.flat.weights(), read_statistics(worker.norms), config, settings, feed.batches())
        simulator = Simulator(server, worker, feed, config.seed, task.masking)
        yield Simulated(simulator=simulator, store=FolderStore(task.output, task.identity), progress=task.progress)


def asynchronous_settings(task: Task) -> AsyncConfig:
    """Those of a task that asks for a server and workers. UsageError where they cannot be met."""
    settings = task.config.asynchronous
    if settings is None:
        raise UsageError("the config asks for no asynchronous training; set asynchronous")
    if task.dtype == torch.float16:
        raise UsageError("asynchronous training has no float16 (its loss scaling belongs to one optimizer); use float32 or bfloat16")
    return settings


@dataclass
class Simulated:
    """The simulator and the virtual times are what a resume restores."""

    simulator: Simulator
    store: FolderStore
    progress: Progress
    clocks: list[float] = field(default_factory=list)
    """Virtual time at the end of each epoch."""

    @property
    def server(self) -> Server:
        """The simulator's."""
        return self.simulator.server

    @property
    def finished(self) -> bool:
        return self.server.rate.finished and self.settled

    @property
    def settled(self) -> bool:
        masking = self.simulator.masking
        return masking is None or masking.final

    @property
    def place(self) -> str:
        return f"gradient {self.server.ledger.done + 1}"

    def train_epoch(self, run: Run) -> Trained:
        server, total = self.server, self.server.epoch_batches
        done = server.ledger.done - run.epoch * total

        def live() -> str:
            return f"epoch {run.epoch + 1}/{server.config.epochs}, mean staleness {server.telemetry.mean_staleness():.1f}"

        for _ in run.progress(range(done, total), total=total, description=live, start=done):
            while not self.simulator.step():
                pass
            run.pause()
        loss, correct, samples = server.sums
        return Trained(loss, correct, samples, server.lr())

    def evaluate(self, split: SplitLike, name: str, epoch: int, policy: BatchNormPolicy | None = None) -> Evaluation:
        """The server's weights of now, under a BatchNorm policy (or the settings' own)."""
        options: dict[str, Any] = {"batch_size": max(self.server.config.batch_size, 256), "device": self.simulator.worker.device}
        model, description = self.simulator.show(policy), f"{name} after epoch {epoch + 1}"
        try:
            return evaluate(model, split, **options, progress=self.progress, description=description)
        except NonFiniteLossError as error:
            raise diverged(f"the {name} loss", self._where()) from error

    def weights(self) -> dict[str, Any]:
        server = self.server
        return {"weights": server.weights().cpu(), "statistics": server.batchnorm.running(server.settings.batchnorm)}

    def install(self, weights: Mapping[str, Any]) -> None:
        self.simulator.show()
        worker = self.simulator.worker
        install(worker.flat, worker.norms, weights["weights"], weights["statistics"])
        worker.model.eval()

    def close_epoch(self, rate_loss: float | None) -> None:
        self.clocks.append(self.simulator.clock)
        if rate_loss is not None:
            self.server.rate.observe(rate_loss)
        self.server.sums = [0.0, 0.0, 0.0]

    def remark(self) -> str:
        return f", virtual time {self.simulator.clock:.0f} s, mean staleness {self.server.telemetry.mean_staleness():.1f}"

    def result(self, result: TrainResult) -> AsyncResult:
        facts = {"virtual_seconds": self.clocks, "updates": self.server.version, **self.server.telemetry.to_json()}
        return AsyncResult(**vars(result), asynchronous=facts)

    def state_dict(self) -> dict[str, Any]:
        if not bool(self.server.parameter.isfinite().all()):
            raise diverged("a weight", self._where())
        masking = self.simulator.masking
        masks = {} if masking is None else {"masking": masking.state_dict()}
        return {"server": self.server.state_dict(), "simulator": self.simulator.state_dict(), "clocks": self.clocks, **masks}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if self.simulator.masking is not None:
            self.simulator.masking.load_state_dict(state["masking"])
        self.server.load_state_dict(state["server"])
        self.simulator.load_state_dict(state["simulator"])
        self.clocks = state["clocks"]

    def _where(self) -> str:
        return f"after {self.server.version} updates, learning rate {self.server.lr():.3g}"
