"""The same server and worker as Ray actors: this module only moves their messages. Imported where Ray is installed, never otherwise.

Weights and gradients travel as NumPy arrays: above Ray's inlining limit they lie in shared memory and are read there, not copied. A
worker has one message under way at a time and waits for its answer, so the server's queue is never longer than the number of workers.
"""

import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from ray.exceptions import RayError, RayTaskError
from torch import Tensor, nn

from fineprune.common.errors import FinepruneError

from ..config import TrainConfig
from ..device import reproducible_kernels, resolve_device, resolve_precision
from ..interfaces import SplitLike
from ..layout import memory_format
from ..state import STATE_FILE, load_state, restoring, save_state
from ..teacher import teaching
from .compensation import compensation
from .config import AsyncConfig
from .feed import Feed
from .flat import FlatModel
from .ledger import Lease
from .server import Server, State
from .worker import Forward, Worker

_RETRY_S, _ATTEMPTS = 0.2, 300
"""A server that restarts is waited for so long: a minute."""
_IDLE_S = 0.005
"""Before a worker that the server has nothing for asks again."""


class Job(NamedTuple):
    """What the actors are made from; `weights` and `statistics` are the initial ones."""

    config: TrainConfig
    settings: AsyncConfig
    weights: NDArray[np.float32]
    statistics: NDArray[np.float32]
    batches: list[int]
    output: Path
    identity: dict[str, str]


class ServerActor:
    """Answers workers, keeps the epochs' weights for the driver, saves itself. Made again by Ray, it goes on from its last save."""

    def __init__(self, job: Job) -> None:
        self.job = job
        incarnation = time.time_ns()
        initial = torch.tensor(job.weights), torch.tensor(job.statistics)
        self.server = Server(*initial, job.config, job.settings, job.batches, incarnation)
        self.ended: dict[int, dict[str, Any]] = {}
        """Of each finished epoch (from 0) that the driver has not recorded: sums, rate, weights and statistics."""
        self.kept: dict[str, Any] | None = None
        """What the driver gave to keep."""
        self.stopped = False
        self.beats: dict[int, float] = {}
        state = load_state(job.output, job.identity)
        if state is not None:
            with restoring(job.output / STATE_FILE):
                self.server.load_state_dict(state["server"])
                self.server.forget_workers()
                self.ended, self.kept = state["ended"], state["kept"]

    def pull(self, worker: int) -> tuple[Any, NDArray[np.float32]] | str:
        """(lease, weights), or what to do instead: wait or stop."""
        self.beat(worker)
        if self.server.finished or self.stopped:
            return "stop"
        pulled = self.server.pull(worker)
        return "wait" if pulled is None else (pulled.lease, pulled.weights.numpy())

    def pull_layers(self, worker: int, ends: list[int]) -> Iterator[Any]:
        """`pull` in pieces: the lease (or what to do instead) first, then the weights up to each of `ends`."""
        answer = self.pull(worker)
        if isinstance(answer, str):
            yield answer
            return
        yield answer[0]
        for part in np.split(answer[1], ends[:-1]):  # noqa: UP028 - Ray sends into the generator
            yield part

    def state(
        self, lease: Lease, forward: tuple[float, int, int, float], statistics: NDArray[np.float32], times: tuple[float, float]
    ) -> Any:
        """As `Server.state`; forward: loss, hits, samples and objective; times: of communication and computation."""
        self.beat(lease.worker)
        return self.server.state(State(lease, *forward[:3], torch.tensor(statistics), *times, forward[3]))

    def gradient(self, lease: Lease, gradient: NDArray[np.float32]) -> bool:
        """As `Server.gradient`; ends an epoch where its last gradient is in, and saves it: an epoch that was ended stays so."""
        self.beat(lease.worker)
        server = self.server
        applied = server.gradient(lease, _tensor(gradient))
        if applied and server.ledger.done % server.epoch_batches == 0:
            self.ended[server.ledger.done // server.epoch_batches - 1] = {"sums": server.sums, "lr": server.lr(), **self._weights()}
            server.sums = [0.0, 0.0, 0.0]
            self.save()
        return applied

    def beat(self, worker: int) -> None:
        """The worker is alive."""
        self.beats[worker] = time.monotonic()

    def give_up(self, worker: int) -> None:
        """The worker is dead: hand its batch out again."""
        self.server.give_up(worker)
        self.beats.pop(worker, None)

    def status(self) -> dict[str, Any]:
        """For the driver's display and watch."""
        server, now = self.server, time.monotonic()
        return {
            "done": server.ledger.done,
            "refused": server.ledger.refused,
            "version": server.version,
            "finished": server.finished,
            "epochs": server.ledger.done // server.epoch_batches,
            "batches": server.epoch_batches,
            "staleness": server.telemetry.mean_staleness(),
            "silent_s": {worker: now - at for worker, at in self.beats.items()},
            "incarnation": server.ledger.incarnation,
            "pid": os.getpid(),
        }

    def ended_epoch(self, number: int) -> dict[str, Any]:
        """What the finished epoch `number` (from 0) left."""
        return _arrays(self.ended[number])

    def now(self) -> dict[str, Any]:
        """Weights and statistics of now."""
        return _arrays(self._weights())

    def kept_state(self) -> tuple[dict[str, Any] | None, bool]:
        """What the driver gave to keep, perhaps to an earlier incarnation; whether the learning rate has nothing left to try."""
        return self.kept, self.server.rate.finished

    def keep(self, state: dict[str, Any] | None, closed: tuple[int, float | None] | None) -> bool:
        """Save, with the driver's `state` where there is a new one; whether the learning rate has nothing left to try.

        closed: an epoch that the driver has recorded, and the loss that the rate may follow. Asked again it changes nothing more.
        """
        self.kept = self.kept if state is None else state
        if closed is not None and self.ended.pop(closed[0], None) is not None and closed[1] is not None:
            self.server.rate.observe(closed[1])
        self.save()
        return self.server.rate.finished

    def save(self) -> None:
        """Write the state that the next incarnation starts from."""
        if bool(self.server.parameter.isfinite().all()):
            state = {"server": self.server.state_dict(), "ended": self.ended, "kept": self.kept}
            save_state(self.job.output, self.job.identity, state)

    def stop(self) -> None:
        """Workers that ask from now on are sent home."""
        self.stopped = True

    def facts(self) -> dict[str, Any]:
        """Counts and telemetry."""
        server = self.server
        counts = {"updates": server.version, "gradients": server.ledger.done, "refused": server.ledger.refused}
        return {**counts, **server.telemetry.to_json()}

    def _weights(self) -> dict[str, Tensor]:
        return {"weights": self.server.weights(), "statistics": self.server.batchnorm.running(self.job.settings.batchnorm)}


class WorkerActor:
    """Runs a worker's loop until the server says stop, over restarts of the server."""

    def __init__(
        self, index: int, model: nn.Module, teacher: nn.Module | None, split: SplitLike, shards: Any, job: Job, device: str
    ) -> None:
        self.index, self.job = index, job
        where = resolve_device(device)
        layout = memory_format(model.to(where), where, job.config.channels_last).__enter__()
        reproducible_kernels().__enter__()  # for the life of the process
        dtype = resolve_precision(job.config.precision, where)
        self._teaching = teaching(teacher, model, job.config, where, dtype, layout)
        self.worker = Worker(model, job.config, where, dtype, layout, self._teaching.__enter__())
        self.feed = Feed(split, job.config, shards)
        self.layers = LayerPull(self.worker.flat) if job.settings.layerwise else None
        self.times: list[tuple[float, float, float]] = []
        """(pull, forward and backward, state and answer) of each iteration, in seconds."""

    def pid(self) -> int:
        """Of its process."""
        return os.getpid()

    def run(self, server: Any) -> list[tuple[float, float, float]]:
        """Work until there is nothing left; the times. Errors of the server's rules come out as what they were."""
        stop = threading.Event()
        threading.Thread(target=self._beat, args=(server, stop), daemon=True).start()
        failures = 0
        try:
            while failures < _ATTEMPTS:
                try:
                    if not self._iterate(server):
                        return self.times
                    failures = 0
                except RayTaskError:
                    raise
                except RayError:  # the server is being restarted: this batch will be handed out again
                    failures += 1
                    time.sleep(_RETRY_S)
            raise ConnectionError(f"worker {self.index} has not reached the server for {_RETRY_S * _ATTEMPTS:.0f} s")
        except RayTaskError as error:
            cause = error.cause
            raise (cause if isinstance(cause, FinepruneError) else error) from None
        finally:
            stop.set()

    def _iterate(self, server: Any) -> bool:
        started = time.perf_counter()
        answer = self.layers.pull(server, self.index) if self.layers else ray.get(server.pull.remote(self.index))
        if isinstance(answer, str):
            time.sleep(_IDLE_S)
            return answer != "stop"
        lease, weights = answer[0], answer[1]
        batch = self.feed.batch(lease.ticket)
        pulled = time.perf_counter()
        if self.layers:
            done = self.layers.forward(lambda: self.worker.evaluate(batch, lease.ticket), weights)
        else:
            done = self.worker.forward(_tensor(weights), batch, lease.ticket)
        forwarded = time.perf_counter()
        gradient, answered = self._finish(server, lease, done, pulled - started)
        ended = time.perf_counter()
        ray.get(server.gradient.remote(lease, gradient))
        self.times.append((pulled - started, forwarded - pulled + ended - answered, answered - forwarded))
        return True

    def _finish(self, server: Any, lease: Lease, done: Forward, t_comm: float) -> tuple[NDArray[np.float32], float]:
        """State, then the gradient; and when the answer was there. Only LC-ASGD waits for it."""
        t_comp = self.times[-1][1] if self.times else 0.0
        settings = self.job.settings
        answer = server.state.remote(lease, done[:4], done.statistics.numpy(), (t_comm, t_comp))
        if settings.algorithm != "lc-asgd":
            answered = time.perf_counter()
            gradient = self.worker.backward().cpu().numpy()
            ray.get(answer)  # its loss may have been refused
            return gradient, answered
        forecast = ray.get(answer)
        answered = time.perf_counter()
        scaled = compensation(settings.mode, settings.strength, done.objective, forecast, settings.max_scale)
        return self.worker.backward(scaled).cpu().numpy(), answered

    def _beat(self, server: Any, stop: threading.Event) -> None:
        while not stop.wait(self.job.settings.heartbeat_s / 3):
            server.beat.remote(self.index)


class LayerPull:
    """Layer-wise pull: a module's weights are waited for when the forward pass reaches it, while later ones are still on their way."""

    def __init__(self, flat: FlatModel) -> None:
        self.flat = flat
        owners = {id(p): module for module in flat.model.modules() for p in module.parameters(recurse=False)}
        self.parts: list[tuple[nn.Module, list[tuple[nn.Parameter, int, int]]]] = []
        for span in flat.spans():
            owner = owners[id(span[0])]
            if not self.parts or self.parts[-1][0] is not owner:
                self.parts.append((owner, []))
            self.parts[-1][1].append(span)
        self._called: set[nn.Module] = set()
        self._pending: dict[nn.Module, list[int]] = {}
        self._refs: list[Any] = []
        for module in {part[0] for part in self.parts}:
            module.register_forward_pre_hook(self._load)

    def pull(self, server: Any, worker: int) -> Any:
        """The lease and references to the parts, or what to do instead."""
        ends = [spans[-1][2] for _, spans in self.parts]
        pieces = iter(server.pull_layers.options(num_returns="streaming").remote(worker, ends))
        first = ray.get(next(pieces))
        return first if isinstance(first, str) else (first, list(pieces))

    def forward(self, run: Callable[[], Forward], refs: list[Any]) -> Forward:
        """`run` with the parts loaded as its modules are reached; at first, and for modules never reached, before it."""
        self._refs, self._pending = refs, {}
        for i, (module, _) in enumerate(self.parts):
            self._pending.setdefault(module, []).append(i)
        ray.wait(refs, num_returns=len(refs), timeout=0, fetch_local=True)
        for module in [module for module in self._pending if module not in self._called]:
            self._load_parts(module)
        return run()

    def _load(self, module: nn.Module, _: Any) -> None:
        self._called.add(module)
        self._load_parts(module)

    def _load_parts(self, module: nn.Module) -> None:
        for i in self._pending.pop(module, ()):
            spans = self.parts[i][1]
            values, start = _tensor(ray.get(self._refs[i])), spans[0][1]
            with torch.no_grad():
                for parameter, first, last in spans:
                    parameter.copy_(values[first - start : last - start].view(parameter.shape))


def _tensor(array: NDArray[np.float32]) -> Tensor:
    """A tensor on the array's own memory, which may be read-only and is only read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(array)


def _arrays(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value.numpy() if isinstance(value, Tensor) else value for key, value in values.items()}
