"""Asynchronous training on Ray (an optional extra): one server, `workers` workers, on this machine or on a cluster by its address.

The driver starts the actors, watches them, validates each epoch's weights and ends with the best. Workers that die or fall silent are
restarted, and what they were at is handed out again; a killed server goes on from its last save, where everything it had handed out since
is open again (see ledger.py). Real times decide the order of updates, so two runs differ; how much of what is done is counted.
"""

import contextlib
import importlib.util
import logging
import os
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fineprune.common.errors import FinepruneError, RunError, UsageError, said_by

from ..evaluate import Evaluation, NonFiniteLossError, evaluate
from ..interfaces import SplitLike
from ..layout import choose_nhwc
from ..loop import Run, Task, Trained
from ..results import TrainResult
from ..state import STATE_FILE, Store, load_state
from ..step import diverged
from .config import AsyncConfig
from .feed import make_feed
from .flat import FlatModel
from .simulated import AsyncResult, asynchronous_settings
from .statistics import batch_norms, read_statistics
from .worker import install

_CONNECT_S, _HEALTH_S = 10.0, 40.0
_POLL_S = 0.05
_RESTART_S, _DRAIN_S, _RATE_S = 180.0, 10.0, 10.0
_MAX_DEATHS = 20
"""Of one worker in a row without a gradient in between: then the fault is not the machine's."""


@contextlib.contextmanager
def opened(task: Task) -> Iterator["RayEngine"]:
    """The engine for `task`. UsageError without Ray, for an address where none answers, or a cluster that is too small."""
    settings = asynchronous_settings(task)
    check_ray(settings.address)
    with ExitStack() as stack:
        output = task.output or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fineprune-ray-")))
        load_state(output, task.identity)  # a state of another run is refused before anything starts
        nhwc = choose_nhwc(task.networks, task.data, task.device, task.config.channels_last, task.progress)
        stack.enter_context(_cluster(settings))
        here = replace(task, config=replace(task.config, channels_last=nhwc), output=output.absolute())
        yield RayEngine(here, settings, output / STATE_FILE, resumable=task.output is not None)


def check_ray(address: str | None) -> None:
    """UsageError where Ray is not installed, or nothing listens at `address`."""
    if importlib.util.find_spec("ray") is None:
        raise UsageError("the ray engine needs Ray, which is not installed: pip install 'fineprune[ray]', or use the simulated engine")
    if address is None:
        return
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not host or not port.isdigit():
        raise UsageError(f"the address of a Ray cluster is HOST:PORT, got {address!r}")
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise UsageError(f"no Ray cluster answers at {address} ({error}); start one there with `ray start --head`") from error
    if address.startswith("ray://"):
        return
    # Ray itself would try for minutes to speak to whatever listens there.
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
    try:
        healthy = subprocess.run(command, capture_output=True, timeout=_HEALTH_S, check=False).returncode == 0
    except subprocess.TimeoutExpired:
        healthy = False
    if not healthy:
        raise UsageError(f"what answers at {address} is no Ray cluster of this version; start one there with `ray start --head`")


@contextlib.contextmanager
def _cluster(settings: AsyncConfig) -> Iterator[None]:
    """Ray for the length of the block; one that the caller had started stays."""
    import ray

    if ray.is_initialized():
        yield
        return
    options: dict[str, Any] = {"namespace": f"fineprune-{uuid.uuid4().hex}", "log_to_driver": False, "logging_level": logging.ERROR}
    if settings.address is None:
        # Workers import what this process can, such as the user's own network beside the script.
        path = {"PYTHONPATH": os.pathsep.join(part for part in sys.path if part)}
        options |= {"address": "local", "num_cpus": settings.workers + 1, "include_dashboard": False, "runtime_env": {"env_vars": path}}
    else:
        options |= {"address": settings.address}
    # Ray's own lines of log go to files, not between the progress; what goes wrong comes back as an exception.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        ray.init(**options)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError, OSError) as error:
        raise UsageError(f"Ray does not start{f' at {settings.address}' if settings.address else ''}: {said_by(error)}") from error
    try:
        cpus = ray.cluster_resources().get("CPU", 0)
        if cpus < settings.workers + 1:
            raise UsageError(f"the Ray cluster has {cpus:.0f} CPUs; {settings.workers} workers and a server need {settings.workers + 1}")
        yield
    finally:
        ray.shutdown()


class RayEngine:
    """The driver of the actors. It is its own store: what it is given to keep, the server keeps with its own state."""

    def __init__(self, task: Task, settings: AsyncConfig, path: Path, *, resumable: bool) -> None:
        self.task, self.settings = task, settings
        self.path: Path | None = path
        self.resumable = resumable
        self.store: Store = self
        self.finished, self.settled = False, True
        self.norms, self.flat = batch_norms(task.model), FlatModel(task.model)
        self.running: dict[Any, int] = {}
        self.deaths = [0] * settings.workers
        self.restarts = self.server_restarts = 0
        self.times: list[tuple[float, float, float]] = []
        self._ended: dict[str, Any] | None = None
        """What the last finished epoch left: sums, rate, weights and statistics."""
        self._closed: tuple[int, float | None] | None = None
        """Number (from 0) and loss of the epoch that is recorded, for the server to hear with the next save."""
        self._kept: int | None = None
        """The epoch of what the server keeps."""
        self._seen: dict[str, Any] = {}
        """The last status."""
        self._counts: list[tuple[float, int]] = []
        """(time, gradients done) of the last seconds."""
        self._make_actors()
        self._status()

    def _make_actors(self) -> None:
        import ray

        from .ray_actors import Job, ServerActor, WorkerActor

        task, model, data, settings = self.task, self.task.model, self.task.data, self.settings
        feed = make_feed(data.train, task.config, settings)
        next(iter(data.train.batches(1)))  # images that are decoded at first use are decoded once, here
        initial = self.flat.weights().cpu().numpy(), read_statistics(self.norms).numpy()
        job = Job(task.config, settings, *initial, feed.batches(), task.output or Path(), task.identity)
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        server = ray.remote(ServerActor).options(num_cpus=1, max_restarts=-1, scheduling_strategy=here)
        on_gpu = task.device.type == "cuda"
        gpus = {"num_gpus": min(1.0, ray.cluster_resources().get("GPU", 0) / settings.workers)} if on_gpu else {}
        worker = ray.remote(WorkerActor).options(num_cpus=1, max_restarts=-1, **gpus)
        _ship_by_value(task.networks, data.train)
        networks = [ray.put(None if network is None else network.cpu()) for network in (model, task.teacher)]
        self.shipped = *networks, ray.put(data.train), ray.put(feed.shards)  # held: a restart needs them again
        self.server = server.remote(job)
        self.workers = [worker.remote(m, *self.shipped, job, str(task.device)) for m in range(settings.workers)]
        model.to(task.device)

    @property
    def place(self) -> str:
        return f"gradient {self._seen['done'] + 1}"

    def train_epoch(self, run: Run) -> Trained:
        """Watch the actors until the server has finished the epoch."""
        if not self.running:
            for m in range(self.settings.workers):
                self._start(m)

        def live() -> str:
            return f"epoch {run.epoch + 1}/{run.config.epochs}, {self._live()}"

        for _ in run.progress(self._gradients(run), total=self._seen["batches"], description=live):
            pass
        ended = self._ended = self._call("ended_epoch", run.epoch)
        self._closed = run.epoch, None
        loss, correct, samples = ended["sums"]
        return Trained(loss, correct, samples, ended["lr"])

    def _gradients(self, run: Run) -> Iterator[int]:
        shown = 0
        while True:
            status = self._status()
            batches = status["batches"]
            done = min(max(status["done"] - run.epoch * batches, 0), batches)
            while shown < done:  # a restarted server does some again: the bar does not go back
                shown += 1
                yield shown
            if status["epochs"] > run.epoch:
                return
            self._watch(status)
            run.pause()
            time.sleep(_POLL_S)

    def evaluate(self, split: SplitLike, name: str, epoch: int) -> Evaluation:
        """The weights at the end of the epoch; the workers are at the next one meanwhile."""
        self.install(self.weights())
        config, progress, description = self.task.config, self.task.progress, f"{name} after epoch {epoch + 1}"
        options: dict[str, Any] = {"batch_size": max(config.batch_size, 256), "device": self.task.device}
        try:
            return evaluate(self.task.model, split, **options, progress=progress, description=description)
        except NonFiniteLossError as error:
            rate = f", learning rate {self._ended['lr']:.3g}" if self._ended else ""
            raise diverged(f"the {name} loss", f"after epoch {epoch + 1}{rate}") from error

    def weights(self) -> dict[str, Any]:
        ended = self._ended or self._call("now")
        return {name: torch.tensor(ended[name]) for name in ("weights", "statistics")}

    def install(self, weights: Mapping[str, Any]) -> None:
        install(self.flat, self.norms, weights["weights"], weights["statistics"])
        self.task.model.eval()

    def close_epoch(self, rate_loss: float | None) -> None:
        if self._closed is not None:
            self._closed = self._closed[0], rate_loss

    def remark(self) -> str:
        return f", {self._live()}"

    def result(self, result: TrainResult) -> AsyncResult:
        self._call("stop")
        self._drain()
        restarts = {"worker_restarts": self.restarts, "server_restarts": self.server_restarts}
        facts = {**self._call("facts"), "measured": measured(self.times), **restarts}
        return AsyncResult(**vars(result), asynchronous=facts)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the server has it."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The server has done so."""

    def load(self) -> dict[str, Any] | None:
        state: dict[str, Any] | None
        state, self.finished = self._call("kept_state")
        return state

    def save(self, state: Mapping[str, Any]) -> None:
        news = dict(state) if state["epoch"] != self._kept else None
        closed = self._closed if news is not None else None
        self.finished = self._call("keep", news, closed)
        self._kept = state["epoch"]

    def _start(self, m: int) -> None:
        self.running[self.workers[m].run.remote(self.server)] = m

    def _watch(self, status: dict[str, Any]) -> None:
        """Restart the workers that died, kill those that are silent, and raise what a worker ended with."""
        import ray
        from ray.exceptions import RayActorError, RayTaskError

        for m, silent_s in status["silent_s"].items():
            if silent_s > self.settings.heartbeat_s and m in self.running.values():
                self.task.progress.log(f"worker {m} has been silent for {silent_s:.0f} s and is replaced")
                ray.kill(self.workers[m], no_restart=False)
                self._call("give_up", m)
        ready, _ = ray.wait(list(self.running), num_returns=max(1, len(self.running)), timeout=0) if self.running else ([], [])
        for ref in ready:
            m = self.running.pop(ref)
            try:
                self.times += ray.get(ref)
            except RayActorError as error:
                self._replace(m, error)
            except RayTaskError as error:
                if isinstance(error.cause, FinepruneError):
                    raise error.cause from None
                raise RunError(f"worker {m} failed: {said_by(error.cause or error)}") from error

    def _replace(self, m: int, error: Exception) -> None:
        self.deaths[m] += 1
        self.restarts += 1
        if getattr(error, "actor_init_failed", False):
            raise RunError(f"worker {m} cannot start: {_last_line(error)}") from error
        if self.deaths[m] > _MAX_DEATHS:
            raise RunError(f"worker {m} died {self.deaths[m]} times, lastly: {said_by(error)}") from error
        self.task.progress.log(f"worker {m} died and is restarted; its batch is handed out again")
        self._call("give_up", m)
        self._start(m)

    def _drain(self) -> None:
        """Wait for the workers to hear that there is nothing left; one that dies now is not missed."""
        import ray
        from ray.exceptions import RayError

        if not self.running:
            return
        ready, _ = ray.wait(list(self.running), num_returns=len(self.running), timeout=_DRAIN_S)
        for ref in ready:
            with contextlib.suppress(RayError):
                self.times += ray.get(ref)

    def _status(self) -> dict[str, Any]:
        status, now = self._call("status"), time.monotonic()
        if self._seen and status["incarnation"] != self._seen["incarnation"]:
            self.server_restarts += 1
            lost = self._seen["done"] - status["done"]
            self.task.progress.log(f"the server died and goes on from its last save, {max(lost, 0)} gradients before; they are done again")
        self._counts = [(at, done) for at, done in self._counts if now - at < _RATE_S] + [(now, status["done"])]
        self._seen = status
        return status

    def _live(self) -> str:
        (since, before), (now, done) = self._counts[0], self._counts[-1]
        rate = max(0, done - before) / max(now - since, _POLL_S)
        return f"{rate:.1f} gradients/s, mean staleness {self._seen['staleness']:.1f}"

    def _call(self, method: str, *arguments: Any) -> Any:
        """A request to the server, again while it is being restarted."""
        import ray
        from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

        deadline = time.monotonic() + _RESTART_S
        while True:
            try:
                return ray.get(getattr(self.server, method).remote(*arguments), timeout=_RESTART_S)
            except RayTaskError as error:
                raise (error.cause if isinstance(error.cause, FinepruneError) else error) from None
            except (RayActorError, GetTimeoutError) as error:
                if time.monotonic() > deadline:
                    raise RunError(f"the server cannot be reached for {_RESTART_S:.0f} s: {said_by(error)}") from error
                time.sleep(_POLL_S)


def measured(times: list[tuple[float, float, float]]) -> dict[str, float]:
    """Mean seconds of a pull, of forward and backward, of state and answer, and the spread of the second: TimeConfig's fields."""
    if not times:
        return {}
    pull, compute, state = torch.tensor(times, dtype=torch.float64).unbind(dim=1)
    spread = float(compute.log().std()) if len(times) > 1 else 0.0
    return {"comm_s": float(pull.mean()), "compute_s": float(compute.mean()), "state_s": float(state.mean()) / 2, "spread": spread}


def _ship_by_value(networks: Sequence[nn.Module], split: Any) -> None:
    """Classes of files that were loaded by path cannot be imported elsewhere: their code travels with the objects."""
    from ray import cloudpickle

    for name in {type(part).__module__ for part in (*(module for network in networks for module in network.modules()), split)}:
        try:
            known = importlib.util.find_spec(name) is not None
        except (ImportError, ValueError):
            known = False
        if not known and name in sys.modules:
            cloudpickle.register_pickle_by_value(sys.modules[name])


def _last_line(error: BaseException) -> str:
    return next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
