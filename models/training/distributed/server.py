"""The parameter server as a state machine (Algorithms 5-7), free of any engine: three requests, each of a worker, each answered at once.

pull       the weights of now under a lease on a batch; None while there is nothing for the worker to do
state      loss, BatchNorm statistics and times of a forward pass -> the forecast for LC-ASGD's compensated loss
gradient   the update by the algorithm's rule; SSGD waits for every worker's before it makes one
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fineprune.common.errors import RunError

from ..config import TrainConfig
from ..schedule import LearningRate
from ..step import make_optimizer
from .compensation import LEAST_LOSS, Forecast
from .compiled_lstm import CompiledLSTM
from .config import AsyncConfig, Predictor
from .ledger import Lease, Ledger
from .lstm import OnlineNetwork, TorchLSTM
from .predictors import LossPredictor, StepPredictor
from .rules import adaptive_lambda, delay_compensated, mean_gradient, mean_square
from .statistics import RunningStatistics
from .telemetry import Arrival, Telemetry

_NETWORKS: dict[Predictor, type[OnlineNetwork] | None] = {"lstm": TorchLSTM, "compiled": CompiledLSTM, "last": None}
"""None: nothing learns."""


class Pull(NamedTuple):
    """What a worker starts from; the weights are its own copy."""

    lease: Lease
    version: int
    weights: Tensor


class State(NamedTuple):
    """What a worker reports after its forward pass; losses in nats, times in seconds."""

    lease: Lease
    loss: float
    """Mean cross-entropy, for the records."""
    correct: int
    samples: int
    statistics: Tensor
    t_comm: float
    t_comp: float
    objective: float | None = None
    """What the worker minimises, and LC-ASGD predicts; None: the loss."""

    @property
    def minimised(self) -> float:
        """The objective, resolved."""
        return self.loss if self.objective is None else self.objective


class Server:
    """`version` counts updates, `ledger.done` gradients; `sums` are loss, hits and samples of the gradients since they were last reset."""

    def __init__(
        self, weights: Tensor, statistics: Tensor, config: TrainConfig, settings: AsyncConfig, batches: Sequence[int], incarnation: int = 0
    ) -> None:
        """weights: [P], copied; statistics: of the network's BatchNorm layers; batches: of one epoch of each shard."""
        self.config, self.settings = config, settings
        self.epoch_batches = sum(batches)
        self.parameter = nn.Parameter(weights.detach().clone())
        self.optimizer = make_optimizer(nn.ParameterList([self.parameter]), config)
        self.rate = LearningRate(config)
        self.ledger = Ledger(config.epochs * self.epoch_batches, batches, incarnation)
        self.batchnorm = RunningStatistics(statistics, settings.batchnorm_decay)
        self.telemetry = Telemetry()
        self.version = 0
        self.sums = [0.0, 0.0, 0.0]
        kind = _NETWORKS[settings.predictor]
        learner: dict[str, Any] = {"learns": kind is not None, "network": kind or TorchLSTM}
        if kind is not None and settings.algorithm == "lc-asgd":
            kind.prepare()
        every = settings.learns_every
        self.steps = StepPredictor(settings.workers, settings.window, every, settings.step_limit, config.seed, **learner)
        self.losses = LossPredictor(settings.window, every, config.seed, **learner)
        self._pulled: dict[int, tuple[int, Tensor]] = {}
        """By worker: version and weights that it computes on."""
        self._reports: dict[int, State] = {}
        self._round: dict[int, Tensor] = {}
        """SSGD: gradients that wait for the others."""
        self._mean_square = torch.zeros_like(weights) if settings.adaptive else torch.empty(0)
        self._arrivals = 0
        self._arrived: dict[int, int] = {}
        """By worker: value of `_arrivals` at its last state."""
        self._last_staleness: dict[int, int] = {}
        self._due: dict[str, Any] = {"loss": None, "last_loss": None, "steps": {}, "last_steps": {}}
        """Predictions not yet compared with what came."""

    @property
    def finished(self) -> bool:
        """Whether every batch of every epoch has been applied."""
        return self.ledger.finished and not self._round

    def pull(self, worker: int) -> Pull | None:
        """The weights and a batch to use them on; None: ask again when an update was made, or stop if `finished`."""
        if worker in self._round:
            return None
        lease = self.ledger.issue(worker)
        if lease is None:
            return None
        weights = self.parameter.detach().clone()
        self._pulled[worker] = self.version, weights
        return Pull(lease, self.version, weights)

    def state(self, report: State) -> Forecast:
        """Take note of a forward pass. RunError where its loss is not finite."""
        worker = report.lease.worker
        if self.ledger.leases.get(worker) != report.lease:
            return Forecast()  # its gradient will be refused
        if not math.isfinite(report.minimised):
            raise RunError(
                f"the loss of worker {worker} is {report.minimised} after {self.version} updates, "
                f"learning rate {self._rate(self.ledger.done):.3g}; train with a lower learning rate, a warm-up or max_grad_norm"
            )
        self._reports[worker] = report
        self.batchnorm.observe(worker, report.statistics)
        steps = self._arrivals - self._arrived.get(worker, self._arrivals) - 1 if worker in self._arrived else None
        self._arrivals += 1
        self._arrived[worker] = self._arrivals - 1
        if self.settings.algorithm != "lc-asgd":
            return Forecast()
        return self._forecast(report, steps)

    def gradient(self, lease: Lease, gradient: Tensor) -> bool:
        """Apply a gradient; False where it is not wanted any more (its lease was given up, or it came before)."""
        if not self.ledger.complete(lease):
            return False
        worker = lease.worker
        version, pulled = self._pulled.pop(worker)
        report = self._reports.pop(worker)
        for i, value in enumerate((report.loss * report.samples, report.correct, report.samples)):
            self.sums[i] += value
        self.telemetry.staleness[self.version - version] += 1
        self._last_staleness[worker] = self.version - version
        with self.telemetry.timed("update"):
            if self.settings.algorithm == "ssgd":
                self._round[worker] = gradient
                self._close_round()
            else:
                self._update(self._corrected(gradient, pulled), self.ledger.done - 1)
        return True

    def give_up(self, worker: int) -> None:
        """The worker is dead: what it computes on is handed out again."""
        self.ledger.give_up(worker)
        self._pulled.pop(worker, None)
        self._reports.pop(worker, None)

    def weights(self) -> Tensor:
        """A copy of the weights of now."""
        return self.parameter.detach().clone()

    def lr(self) -> float:
        """Learning rate of the last update."""
        return self.optimizer.param_groups[0]["lr"]

    def _corrected(self, gradient: Tensor, pulled: Tensor) -> Tensor:
        settings = self.settings
        if settings.algorithm != "dc-asgd":
            return gradient
        lam: float | Tensor = settings.strength
        if settings.adaptive:
            self._mean_square = mean_square(self._mean_square, gradient)
            lam = adaptive_lambda(settings.strength, self._mean_square)
        return delay_compensated(gradient, self.parameter.detach(), pulled, lam)

    def _close_round(self) -> None:
        """SSGD: update once every worker that can bring a gradient has brought it."""
        ledger = self.ledger
        missing = [w for w in range(self.settings.workers) if w not in self._round and (w in ledger.leases or ledger.available(w))]
        if not missing:
            gradients = [self._round[worker] for worker in sorted(self._round)]
            self._round = {}
            self._update(mean_gradient(gradients), ledger.done - len(gradients))

    def _update(self, gradient: Tensor, position: int) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate(position)
        self.parameter.grad = gradient
        self.optimizer.step()
        self.version += 1

    def _rate(self, position: int) -> float:
        epoch, batch = divmod(min(position, self.ledger.total - 1), self.epoch_batches)
        return self.rate.at(epoch, batch, self.epoch_batches)

    def _forecast(self, report: State, steps: int | None) -> Forecast:
        worker, due, telemetry = report.lease.worker, self._due, self.telemetry
        if due["loss"] is not None:
            telemetry.error("loss", due["loss"], due["last_loss"], report.minimised)
        if steps is not None and worker in due["steps"]:
            telemetry.error("steps", due["steps"][worker], due["last_steps"][worker], steps)
        if telemetry.trace is not None:
            telemetry.trace.append(Arrival(worker, report.minimised, due["loss"], steps or 0, due["steps"].get(worker)))
        k = 0
        if steps is not None:  # a worker's first report has nothing before it to count from
            label = self._last_staleness.get(worker, 0) if self.settings.step_label == "versions" else steps
            with telemetry.timed("step predictor"):
                self.steps.observe(worker, label, report.t_comm, report.t_comp)
                k = self.steps.predict(worker)
        with telemetry.timed("loss predictor"):
            self.losses.observe(report.minimised)
            losses = self.losses.forecast(k)
            slope = self.losses.slope(k) if self.settings.mode == "chain" else 0.0
        due["loss"], due["last_loss"] = losses[0] if losses else None, report.minimised
        if steps is not None:
            due["steps"][worker], due["last_steps"][worker] = k, steps
        delay = math.fsum(losses)
        telemetry.forecast(k, delay / max(report.minimised, LEAST_LOSS))
        return Forecast(delay, k, slope)

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes, as tensors, numbers and text."""
        return {
            "weights": self.parameter.detach(),
            "optimizer": self.optimizer.state_dict(),
            "rate": self.rate.to_json(),
            "ledger": self.ledger.state_dict(),
            "batchnorm": self.batchnorm.state_dict(),
            "telemetry": self.telemetry.state_dict(),
            "steps": self.steps.state_dict(),
            "losses": self.losses.state_dict(),
            "round": dict(self._round),
            "pulled": {worker: list(pair) for worker, pair in self._pulled.items()},
            "reports": {worker: list(report[1:]) for worker, report in self._reports.items()},
            "mean_square": self._mean_square,
            "counters": [self.version, self._arrivals, dict(self._arrived), dict(self._last_staleness), list(self.sums)],
            "due": self._due,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`: workers may go on with the leases that they hold."""
        with torch.no_grad():
            self.parameter.copy_(state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.rate = LearningRate.from_json(self.config, state["rate"])
        for name in ("ledger", "batchnorm", "telemetry", "steps", "losses"):
            getattr(self, name).load_state_dict(state[name])
        where = self.parameter.device  # states are read on the CPU
        self._round = {worker: gradient.to(where) for worker, gradient in state["round"].items()}
        self._pulled = {worker: (version, weights.to(where)) for worker, (version, weights) in state["pulled"].items()}
        self._mean_square, self._due = state["mean_square"].to(where), state["due"]
        self.version, self._arrivals, self._arrived, self._last_staleness, self.sums = state["counters"]
        leases = self.ledger.leases
        self._reports = {worker: State(leases[worker], *report) for worker, report in state["reports"].items()}

    def forget_workers(self) -> None:
        """After a restart whose workers are gone: all that was handed out is open again."""
        for worker in list(self.ledger.leases):
            self.give_up(worker)
