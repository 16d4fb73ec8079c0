"""The run loop: epochs, validation, the best weights, records, saving, stopping and resuming, around any engine.

An engine trains one epoch at a time, in this process or in others, and gives the state to save. The loop knows no engine by name.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, Protocol

import torch
from torch import nn

from fineprune.common.errors import RunError
from fineprune.common.processes import Group
from fineprune.common.progress import Progress

from ..objective import better, objective_of
from .clock import Clock
from .config import TrainConfig
from .evaluate import Evaluation
from .interfaces import DataLike, Masking, SplitLike
from .interrupt import Interrupts
from .results import EpochRecord, TrainResult, epoch_line
from .state import Store, restoring
from .step import DivergedError

_SAVING_SHARE = 20
"""Between two saves within an epoch lies at least this many times the seconds that a save takes (large networks)."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What an engine is opened for; everything in it has been checked."""

    model: nn.Module
    teacher: nn.Module | None
    """A copy of the network to learn from, where the config asks for distillation."""
    masking: Masking | None
    """The masks of the model, where they change."""
    data: DataLike
    config: TrainConfig
    device: torch.device
    dtype: torch.dtype
    """Of the forward pass."""
    output: Path | None
    """Folder of the resumable state; None: nothing is kept."""
    identity: dict[str, str]
    """What must agree for a resume."""
    progress: Progress
    group: Group
    """The processes that train together."""

    @property
    def networks(self) -> list[nn.Module]:
        """The model and its teacher, if any."""
        return [self.model, *([] if self.teacher is None else [self.teacher])]


class Trained(NamedTuple):
    """Sums over the steps of a finished epoch, and the learning rate of its last one."""

    loss: float
    correct: float
    samples: float
    lr: float
    part_losses: tuple[float, ...] = ()
    """Those that the learning rate followed within the epoch."""


class Engine(Protocol):
    """Whatever trains. `store` keeps the loop's state and the engine's together, so that they are always of one moment."""

    @property
    def store(self) -> Store: ...

    @property
    def finished(self) -> bool:
        """Whether the learning rate has nothing left to try."""
        ...

    @property
    def settled(self) -> bool:
        """Whether the network is as it is wanted at the end, apart from its weights: an epoch before that is never the best."""
        ...

    @property
    def place(self) -> str:
        """Where within the epoch the next step is, for people: `batch 3`."""
        ...

    def train_epoch(self, run: "Run") -> Trained:
        """Train what is left of the epoch `run.epoch` (from 0), and call `run.pause` after each step. RunError where it diverges."""
        ...

    def evaluate(self, split: SplitLike, name: str, epoch: int) -> Evaluation:
        """Measure the weights at the end of `epoch` (from 0) on the split of that name. `DivergedError` where the loss is not finite."""
        ...

    def weights(self) -> dict[str, Any]:
        """Copies on the CPU of what `install` needs to make the model what it is at the end of the epoch."""
        ...

    def install(self, weights: Mapping[str, Any]) -> None:
        """Give the model the `weights` of an epoch; it is in eval mode after it."""
        ...

    def close_epoch(self, rate_loss: float | None) -> None:
        """The epoch is recorded: take note of the loss that the learning rate may follow, and get ready for the next one."""
        ...

    def remark(self) -> str:
        """What the line of an epoch says besides its results; empty, or with the comma that leads to it."""
        ...

    def result(self, result: TrainResult) -> TrainResult:
        """The finished run's result with what only the engine knows."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers and text from which `load_state_dict` goes on exactly. `DivergedError` where they are not finite."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`, which has the loop's keys in it too."""
        ...


@dataclass
class Run:
    """A run in progress; the fields from `epoch` on are what a resume restores. Use it once, by `finish`."""

    engine: Engine
    data: DataLike
    config: TrainConfig
    progress: Progress
    interrupts: Interrupts
    group: Group
    epoch: int = 0
    """Finished epochs."""
    clock: Clock = field(default_factory=Clock)
    history: list[EpochRecord] = field(default_factory=list)
    best: dict[str, Any] | None = None
    """{"epoch": counted from 1, "accuracy", and the engine's weights}."""
    _saved_at: float = 0.0
    _save_cost: float = 0.0

    @property
    def finished(self) -> bool:
        """All epochs are done, or the learning rate has nothing left to try."""
        return self.epoch >= self.config.epochs or self.engine.finished

    def finish(self, on_epoch: Callable[[EpochRecord], None] | None = None) -> TrainResult:
        """Resume or start, train the epochs that are left and load the best weights."""
        try:
            self._restore()
            return self._result(resumed_finished=self._train(on_epoch))
        except DivergedError as error:
            path = self.engine.store.path
            kept = "" if path is None else f" in another output folder ({path} keeps the last good state)"
            raise RunError(f"{error}{kept}") from error.__cause__
        except KeyboardInterrupt as error:
            if error.args:
                raise
            raise KeyboardInterrupt("interrupted again before the state was saved; the same command resumes from the one before") from None

    def pause(self) -> None:
        """Between two steps: stop where a signal asked for it, save where it is time."""
        self.clock.tick()
        every = self.config.checkpoint_every_s
        interval = max(every, _SAVING_SHARE * self._save_cost) if every else 0.0
        stop, save = self.group.any(self.interrupts.requested, time.monotonic() - self._saved_at >= interval)
        if stop or (save and self.engine.store.path is not None):
            self._save()
        if stop:
            self._stop()

    def _restore(self) -> None:
        """Go to the state that is kept, or write the first one: an unusable folder fails before any work."""
        store = self.engine.store
        state = store.load()
        if state is None or store.path is None:
            self._save()
            return
        with restoring(store.path):
            self.engine.load_state_dict(state)
            self.epoch, self.clock, self.best = state["epoch"], Clock(**state["clock"]), state["best"]
            self.history = [EpochRecord(**record) for record in state["history"]]
        self._saved_at = time.monotonic()
        if not self.finished:
            self.progress.log(f"resuming at epoch {self.epoch + 1}, {self.engine.place} from {store.path}")

    def _train(self, on_epoch: Callable[[EpochRecord], None] | None) -> bool:
        """The epochs that are left; whether there were none."""
        if self.finished:
            return True
        if len(self.data.validation) == 0:
            self.progress.log("no validation images: the last weights are kept, the best cannot be told")
        while not self.finished:
            self.clock.start()
            trained = self.engine.train_epoch(self)
            record = self._close_epoch(trained, *self._validate(trained))
            left = sum(past.seconds for past in self.history) / len(self.history) * (self.config.epochs - self.epoch)
            self.progress.log(epoch_line(record, self.config.epochs, left, objective_of(self.data.train)) + self.engine.remark())
            if on_epoch is not None:
                on_epoch(record)
            if self.group.any(self.interrupts.requested)[0]:
                self._stop()
        return False

    def _validate(self, trained: Trained) -> tuple[Evaluation | None, float | None]:
        """Validation, and the loss that the learning rate follows."""
        validation = self._evaluate(self.data.validation, "validation") if len(self.data.validation) else None
        if trained.part_losses:
            return validation, trained.part_losses[-1]
        if self.config.schedule == "auto" and self.config.auto_lr.split == "test":
            return validation, self._evaluate(getattr(self.data, "test"), "test").loss  # noqa: B009 - not every DataLike has it
        return validation, validation.loss if validation else None

    def _evaluate(self, split: SplitLike, name: str) -> Evaluation:
        """With its time added to the epoch's; an interruption here loses none of the epoch's training."""
        self.clock.start()
        try:
            with ExitStack() as stack:
                if self.group.size == 1:  # one of several processes may not leave what all do together
                    stack.enter_context(self.interrupts.at_once())
                stack.enter_context(self.clock.validating())
                evaluation = self.engine.evaluate(split, name, self.epoch)
        except KeyboardInterrupt:
            self._save()
            self._stop()
        self.clock.tick()
        return evaluation

    def _close_epoch(self, trained: Trained, validation: Evaluation | None, rate_loss: float | None) -> EpochRecord:
        """Record the epoch, keep its weights if they are the best so far, save."""
        self.epoch += 1
        objective = objective_of(self.data.train)
        whole = objective is not None and objective.metric.of_set  # the network changes while an epoch goes over the set
        record = EpochRecord(
            epoch=self.epoch,
            train_loss=trained.loss / trained.samples,
            train_accuracy=None if whole else trained.correct / trained.samples,
            validation_loss=validation.loss if validation else None,
            validation_accuracy=validation.accuracy if validation else None,
            lr=trained.lr,
            seconds=self.clock.wall,
            cpu_seconds=self.clock.cpu,
            validation_seconds=self.clock.validation,
            policy_seconds=self.clock.policy,
            rate_seconds=self.clock.rate,
            rate_cpu_seconds=self.clock.rate_cpu,
            visits=int(trained.samples),
            rate_loss=rate_loss,
            part_losses=trained.part_losses,
        )
        self.history.append(record)
        if validation is not None and self.engine.settled and self._best(validation.accuracy):
            self.best = {"epoch": self.epoch, "accuracy": validation.accuracy, **self.engine.weights()}
        self.engine.close_epoch(rate_loss)
        self.clock = Clock()
        self.clock.start()
        self._save()
        return record

    def _best(self, figure: float) -> bool:
        """Whether the last epoch's figure is at least as good as the best one's."""
        return self.best is None or better(figure, self.best["accuracy"], self.data.validation)

    def _result(self, resumed_finished: bool) -> TrainResult:
        """Of the whole run; the model gets the best weights, or the last ones."""
        best = self.best or {"epoch": len(self.history), "accuracy": None, **self.engine.weights()}
        self.engine.install({key: value for key, value in best.items() if key not in ("epoch", "accuracy")})
        result = self.engine.result(
            TrainResult(
                history=tuple(self.history),
                best_epoch=best["epoch"],
                best_accuracy=best["accuracy"],
                seconds=sum(record.seconds for record in self.history),
            )
        )
        if result.saving is not None and not resumed_finished:
            self.progress.log(result.saving.line())
        return result

    def _save(self) -> None:
        """Write the state of now, if it is kept anywhere."""
        store = self.engine.store
        if store.path is None:
            return
        state = self.engine.state_dict()
        started = time.monotonic()
        history = [asdict(record) for record in self.history]
        store.save({"epoch": self.epoch, "clock": self.clock.to_json(), "history": history, "best": self.best, **state})
        self._saved_at = time.monotonic()
        self._save_cost = self._saved_at - started

    def _stop(self) -> NoReturn:
        remedy = "run the same command to resume" if self.engine.store.resumable else "nothing was saved, as no output folder was given"
        where = f"at epoch {self.epoch + 1}, {self.engine.place}" if not self.finished else "after the last epoch"
        raise KeyboardInterrupt(f"interrupted {where}; {remedy}")
