"""Many workers on one machine under a virtual clock: the server's own code, real gradients, only the time is made up.

Each worker: pull -> forward -> state -> (LC-ASGD: answer ->) backward -> gradient, and pull again, with the durations of timing.py. Events
are worked off in the order of their time, equal times by the worker that asked first, so equal settings give equal runs. A worker's
forward and backward pass are computed when its state arrives, on the weights (and under the masks, where those change) that it pulled: one
model serves all workers. Masks change between two updates of the server, on its weights and statistics of then.
"""

import heapq
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn

from ..interfaces import Masking
from .compensation import compensation
from .config import BatchNormPolicy
from .feed import Feed
from .ledger import Lease
from .server import Server, State
from .timing import Durations, durations
from .worker import Worker, install

_PULL, _STATE, _GRADIENT = "pull", "state", "gradient"


class Event(NamedTuple):
    """`kind` happens at the server at `time`; `order` breaks ties."""

    time: float
    order: int
    kind: str
    worker: int


@dataclass
class _Task:
    """What a worker is at: its iteration's lease and durations, then its gradient."""

    lease: Lease
    weights: Tensor
    times: Durations
    gradient: Tensor | None = None
    masks: Any = None
    """That came with the weights, where masks change."""


class Simulator:
    """Call `step` until the server is finished; `clock` is the virtual time in seconds."""

    def __init__(self, server: Server, worker: Worker, feed: Feed, seed: int, masking: Masking | None = None) -> None:
        self.server, self.worker, self.feed, self.seed, self.masking = server, worker, feed, seed, masking
        self.settings = settings = server.settings
        self.clock = 0.0
        self._order = 0
        self._events: list[Event] = []
        self._tasks: dict[int, _Task] = {}
        self._waiting: list[int] = []
        """Workers that the server had nothing for."""
        self._iterations = [0] * settings.workers
        self._compute_s = [0.0] * settings.workers
        """Of each worker's previous iteration."""
        for m in range(settings.workers):
            self._schedule(0.0, _PULL, m)

    def step(self) -> bool:
        """Work off one event; whether it applied a gradient."""
        event = heapq.heappop(self._events)
        self.clock = event.time
        if event.kind == _PULL:
            self._pull(event.worker)
        elif event.kind == _STATE:
            self._compute(event.worker)
        else:
            return self._apply(event.worker)
        return False

    def show(self, policy: BatchNormPolicy | None = None) -> nn.Module:
        """The model with what the server holds: weights, masks, and BatchNorm statistics under a policy (or the settings' own)."""
        if self.masking is not None:
            self.masking.wear(self.masking.masks)
        statistics = self.server.batchnorm.running(policy or self.settings.batchnorm)
        install(self.worker.flat, self.worker.norms, self.server.weights(), statistics)
        return self.worker.model

    def _pull(self, m: int) -> None:
        if self.masking is not None and not self.masking.final:
            self.show()
            self.masking.update(self.server.ledger.done / self.server.ledger.total)
        pulled = self.server.pull(m)
        if pulled is None:
            self._waiting.append(m)
            return
        times = durations(self.settings.time, self.seed, m, self._iterations[m], self.settings.workers)
        self._iterations[m] += 1
        self._tasks[m] = _Task(pulled.lease, pulled.weights, times, masks=None if self.masking is None else self.masking.masks)
        self._schedule(self.clock + times.pull + times.forward + times.state, _STATE, m)

    def _compute(self, m: int) -> None:
        task, settings = self._tasks[m], self.settings
        if self.masking is not None:
            self.masking.wear(task.masks)
        done = self.worker.forward(task.weights, self.feed.batch(task.lease.ticket), task.lease.ticket)
        report = State(task.lease, *done[:3], done.statistics, task.times.pull, self._compute_s[m], done.objective)
        forecast = self.server.state(report)
        compensates = settings.algorithm == "lc-asgd"
        if compensates:
            scaled = compensation(settings.mode, settings.strength, done.objective, forecast, settings.max_scale)
            task.gradient = self.worker.backward(scaled)
        else:
            task.gradient = self.worker.backward()
        self._compute_s[m] = task.times.forward + task.times.backward
        # Who does not wait for the answer started the backward pass when the state left.
        wait = task.times.answer if compensates else -task.times.state
        self._schedule(self.clock + wait + task.times.backward + task.times.push, _GRADIENT, m)

    def _apply(self, m: int) -> bool:
        task = self._tasks.pop(m)
        if task.gradient is None:
            raise RuntimeError("a gradient arrives after it was computed")
        applied = self.server.gradient(task.lease, task.gradient)
        waiting, self._waiting = [*self._waiting, m], []
        for worker in waiting:
            self._pull(worker)
        return applied

    def _schedule(self, time: float, kind: str, worker: int) -> None:
        heapq.heappush(self._events, Event(time, self._order, kind, worker))
        self._order += 1

    def state_dict(self) -> dict[str, Any]:
        """Clock, events and what every worker is at."""
        tasks = {m: [task.weights, list(task.times), task.gradient, task.masks] for m, task in self._tasks.items()}
        return {
            "clock": self.clock,
            "order": self._order,
            "events": [list(event) for event in self._events],
            "tasks": tasks,
            "waiting": list(self._waiting),
            "iterations": list(self._iterations),
            "compute_s": list(self._compute_s),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`; the server's state has been loaded before."""
        self.clock, self._order = state["clock"], state["order"]
        self._events = [Event(*event) for event in state["events"]]
        leases, where = self.server.ledger.leases, self.server.parameter.device
        self._tasks = {
            m: _Task(leases[m], weights.to(where), Durations(*times), None if gradient is None else gradient.to(where), *masks)
            for m, (weights, times, gradient, *masks) in state["tasks"].items()
        }
        self._waiting, self._iterations, self._compute_s = list(state["waiting"]), list(state["iterations"]), list(state["compute_s"])
