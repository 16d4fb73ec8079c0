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
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fineprune.common.errors import FinepruneError, RunError, UsageError
from fineprune.common.progress import Progress, Silent

from ..config import TrainConfig
from ..device import private_randomness, resolve_device, resolve_precision
from ..evaluate import NonFiniteLossError, evaluate
from ..interfaces import DataLike
from ..interrupt import Interrupts, deferred_interrupts
from ..layout import choose_nhwc
from ..results import EpochRecord, epoch_line
from ..state import load_state, run_identity
from .config import AsyncConfig
from .feed import make_feed
from .flat import FlatModel
from .statistics import batch_norms
from .trainer import AsyncResult, check_asynchronous, install

_CONNECT_S, _HEALTH_S = 10.0, 40.0
_POLL_S = 0.05
_RESTART_S, _DRAIN_S, _RATE_S = 180.0, 10.0, 10.0
_MAX_DEATHS = 20
"""Of one worker in a row without a gradient in between: then the fault is not the machine's."""


def train_on_ray(
    model: nn.Module,
    data: DataLike,
    config: TrainConfig,
    settings: AsyncConfig,
    *,
    output: Path | None = None,
    device: str | torch.device = "auto",
    progress: Progress = Silent(),  # noqa: B008 - stateless
    on_epoch: Callable[[EpochRecord], None] | None = None,
    identity: Mapping[str, Any] | None = None,
) -> AsyncResult:
    """As `train_async`, by Ray actors. UsageError without Ray, for an address where none answers, or a cluster that is too small."""
    config = replace(config, asynchronous=settings)
    where = resolve_device(device)
    check_asynchronous(model, data, config, resolve_precision(config.precision, where), progress)
    check_ray(settings.address)
    with ExitStack() as stack:
        stack.enter_context(private_randomness(where))
        resumable = output is not None
        if output is None:
            output = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fineprune-ray-")))
        names = run_identity(model, data, config, identity)
        load_state(output, names)  # a state of another run is refused before anything starts
        config = replace(config, channels_last=choose_nhwc(model.to(where), data, where, config.channels_last, progress))
        stack.enter_context(_cluster(settings))
        interrupts = stack.enter_context(deferred_interrupts())
        return _Driver(model, data, config, settings, output.absolute(), names, where, progress, interrupts).run(on_epoch, resumable)


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
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(f"Ray does not start{f' at {settings.address}' if settings.address else ''}: {reason}") from error
    try:
        cpus = ray.cluster_resources().get("CPU", 0)
        if cpus < settings.workers + 1:
            raise UsageError(f"the Ray cluster has {cpus:.0f} CPUs; {settings.workers} workers and a server need {settings.workers + 1}")
        yield
    finally:
        ray.shutdown()


class _Driver:
    def __init__(
        self,
        model: nn.Module,
        data: DataLike,
        config: TrainConfig,
        settings: AsyncConfig,
        output: Path,
        identity: dict[str, str],
        device: torch.device,
        progress: Progress,
        interrupts: Interrupts,
    ) -> None:
        import ray

        from .ray_actors import Job, ServerActor, WorkerActor

        self.model, self.data, self.config, self.settings = model, data, config, settings
        self.device, self.progress, self.interrupts = device, progress, interrupts
        self.norms = batch_norms(model)
        self.flat = FlatModel(model)
        feed = make_feed(data.train, config, settings)
        next(iter(data.train.batches(1)))  # images that are decoded at first use are decoded once, here
        length = sum(2 * norm.num_features for norm in self.norms)
        job = Job(config, settings, self.flat.weights().cpu().numpy(), length, feed.batches(), output, identity)
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        server = ray.remote(ServerActor).options(num_cpus=1, max_restarts=-1, scheduling_strategy=here)
        gpus = {"num_gpus": min(1.0, ray.cluster_resources().get("GPU", 0) / settings.workers)} if device.type == "cuda" else {}
        worker = ray.remote(WorkerActor).options(num_cpus=1, max_restarts=-1, **gpus)
        _ship_by_value(model, data.train)
        self.shipped = ray.put(model.cpu()), ray.put(data.train), ray.put(feed.shards)  # held: a restart needs them again
        self.server = server.remote(job)
        self.workers = [worker.remote(m, *self.shipped, job, str(device)) for m in range(settings.workers)]
        model.to(device)
        self.running: dict[Any, int] = {}
        self.deaths = [0] * settings.workers
        self.restarts = 0
        self.server_restarts = 0
        self.times: list[tuple[float, float, float]] = []
        self._seen: dict[str, Any] = {}
        """The last status."""
        self._counts: list[tuple[float, int]] = []
        """(time, gradients done) of the last seconds."""

    def run(self, on_epoch: Callable[[EpochRecord], None] | None, resumable: bool) -> AsyncResult:
        """Until every gradient of every epoch is applied and every epoch validated."""
        self._status()
        for m in range(self.settings.workers):
            self._start(m)
        epochs, number, started = self.config.epochs, 0, time.monotonic()
        history: list[EpochRecord] = []
        while number < epochs:
            self._await_epoch(number, resumable)
            epoch = self._call("epoch", number)
            if epoch is None:
                continue
            if "record" in epoch:
                history.append(EpochRecord(**epoch["record"]))
            else:
                record = self._validate(number, epoch)
                if not self._call("close_epoch", number, asdict(record), self._is_best(record, history)):
                    continue
                history.append(record)
                left = (time.monotonic() - started) / (number + 1) * (epochs - number - 1)
                self.progress.log(f"{epoch_line(record, epochs, left)}, {self._live()}")
                if on_epoch is not None:
                    on_epoch(record)
            number += 1
        self._drain()
        result = self._call("result")
        kept = result["kept"]
        install(self.flat, self.norms, torch.tensor(kept["weights"]), torch.tensor(kept["statistics"]))
        self.model.eval()
        restarts = {"worker_restarts": self.restarts, "server_restarts": self.server_restarts}
        return AsyncResult(
            history=tuple(history),
            best_epoch=kept["epoch"],
            best_accuracy=kept["accuracy"],
            seconds=sum(record.seconds for record in history),
            asynchronous={**result["asynchronous"], "measured": measured(self.times), **restarts},
        )

    def _await_epoch(self, number: int, resumable: bool) -> None:
        """Watch the actors until the server has finished epoch `number`."""
        items = self._gradients(number, resumable)
        total = self._seen["batches"]
        for _ in self.progress(items, total=total, description=lambda: f"epoch {number + 1}/{self.config.epochs}, {self._live()}"):
            pass

    def _gradients(self, number: int, resumable: bool) -> Iterator[int]:
        shown = 0
        while True:
            status = self._status()
            batches = status["batches"]
            done = min(max(status["done"] - number * batches, 0), batches)
            while shown < done:  # a restarted server does some again: the bar does not go back
                shown += 1
                yield shown
            if status["epochs"] > number:
                return
            self._watch(status)
            if self.interrupts.requested:
                self._call("save")
                remedy = "run the same command to resume" if resumable else "nothing was saved, as no output folder was given"
                raise KeyboardInterrupt(f"interrupted at epoch {number + 1}, gradient {status['done'] + 1}; {remedy}")
            time.sleep(_POLL_S)

    def _validate(self, number: int, epoch: dict[str, Any]) -> EpochRecord:
        started = time.monotonic()
        install(self.flat, self.norms, torch.tensor(epoch["weights"]), torch.tensor(epoch["statistics"]))
        validation = None
        if len(self.data.validation):
            try:
                validation = evaluate(
                    self.model,
                    self.data.validation,
                    batch_size=max(self.config.batch_size, 256),
                    device=self.device,
                    progress=self.progress,
                    description=f"validation after epoch {number + 1}",
                )
            except NonFiniteLossError as error:
                raise RunError(
                    f"the validation loss is not finite after epoch {number + 1}, learning rate {epoch['lr']:.3g}; "
                    "train with a lower learning rate, a warm-up or max_grad_norm"
                ) from error
        loss, correct, samples = epoch["sums"]
        return EpochRecord(
            epoch=number + 1,
            train_loss=loss / samples,
            train_accuracy=correct / samples,
            validation_loss=validation.loss if validation else None,
            validation_accuracy=validation.accuracy if validation else None,
            lr=epoch["lr"],
            seconds=epoch["seconds"] + time.monotonic() - started,
        )

    def _is_best(self, record: EpochRecord, history: list[EpochRecord]) -> bool:
        accuracies = [past.validation_accuracy for past in history]
        return record.validation_accuracy is not None and all(a is None or record.validation_accuracy >= a for a in accuracies)

    def _start(self, m: int) -> None:
        self.running[self.workers[m].run.remote(self.server)] = m

    def _watch(self, status: dict[str, Any]) -> None:
        """Restart the workers that died, kill those that are silent, and raise what a worker ended with."""
        import ray
        from ray.exceptions import RayActorError, RayTaskError

        for m, silent_s in status["silent_s"].items():
            if silent_s > self.settings.heartbeat_s and m in self.running.values():
                self.progress.log(f"worker {m} has been silent for {silent_s:.0f} s and is replaced")
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
                raise RunError(f"worker {m} failed: {_first_line(error.cause or error)}") from error

    def _replace(self, m: int, error: Exception) -> None:
        self.deaths[m] += 1
        self.restarts += 1
        if getattr(error, "actor_init_failed", False):
            raise RunError(f"worker {m} cannot start: {_last_line(error)}") from error
        if self.deaths[m] > _MAX_DEATHS:
            raise RunError(f"worker {m} died {self.deaths[m]} times, lastly: {_first_line(error)}") from error
        self.progress.log(f"worker {m} died and is restarted; its batch is handed out again")
        self._call("give_up", m)
        self._start(m)

    def _drain(self) -> None:
        """Wait for the workers to hear that there is nothing left; one that dies now is not missed."""
        import ray
        from ray.exceptions import RayError

        ready, _ = ray.wait(list(self.running), num_returns=len(self.running), timeout=_DRAIN_S)
        for ref in ready:
            with contextlib.suppress(RayError):
                self.times += ray.get(ref)

    def _status(self) -> dict[str, Any]:
        status, now = self._call("status"), time.monotonic()
        if self._seen and status["incarnation"] != self._seen["incarnation"]:
            self.server_restarts += 1
            lost = self._seen["done"] - status["done"]
            self.progress.log(f"the server died and goes on from its last save, {max(lost, 0)} gradients before; they are done again")
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
                    raise RunError(f"the server cannot be reached for {_RESTART_S:.0f} s: {_first_line(error)}") from error
                time.sleep(_POLL_S)


def measured(times: list[tuple[float, float, float]]) -> dict[str, float]:
    """Mean seconds of a pull, of forward and backward, of state and answer, and the spread of the second: TimeConfig's fields."""
    if not times:
        return {}
    pull, compute, state = torch.tensor(times, dtype=torch.float64).unbind(dim=1)
    spread = float(compute.log().std()) if len(times) > 1 else 0.0
    return {"comm_s": float(pull.mean()), "compute_s": float(compute.mean()), "state_s": float(state.mean()) / 2, "spread": spread}


def _ship_by_value(model: nn.Module, split: Any) -> None:
    """Classes of files that were loaded by path cannot be imported elsewhere: their code travels with the objects."""
    from ray import cloudpickle

    for name in {type(part).__module__ for part in (*model.modules(), split)}:
        try:
            known = importlib.util.find_spec(name) is not None
        except (ImportError, ValueError):
            known = False
        if not known and name in sys.modules:
            cloudpickle.register_pickle_by_value(sys.modules[name])


def _last_line(error: BaseException) -> str:
    return next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)


def _first_line(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
