"""Training on Ray: what is refused before it starts (everywhere), and real runs with processes killed in the middle (where Ray is)."""

import importlib.util
import os
import signal
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fineprune.common.errors import RunError, UsageError
from fineprune.models.training import TrainConfig, evaluate, train
from fineprune.models.training.distributed import ray_engine
from fineprune.models.training.distributed.config import AsyncConfig
from support.fakes import FakeData, Recorder, fake_data, small_network

needs_ray = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed (pip install 'fineprune[ray]')"),
    pytest.mark.filterwarnings("ignore"),  # Ray's own
]


def config(**changes: object) -> TrainConfig:
    given = {"epochs": 4, "batch_size": 8, "lr": 0.2, "momentum": 0.0, "seed": 3, "checkpoint_every_s": 0.5, **changes}
    return TrainConfig(**given)  # type: ignore[arg-type]


def run(
    data: FakeData,
    recorder: Any = None,
    changes: dict[str, object] | None = None,
    output: Path | None = None,
    teacher: Any = None,
    **settings: object,
) -> tuple[Any, Any]:
    model = small_network()
    chosen = AsyncConfig(engine="ray", **{"algorithm": "asgd", "workers": 2, **settings})  # type: ignore[arg-type]
    asked = config(asynchronous=chosen, **(changes or {}))
    result = train(model, data, asked, device="cpu", progress=recorder or Recorder(), output=output, teacher=teacher)
    return model, result


def test_without_ray_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_engine.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"needs Ray, which is not installed: pip install 'fineprune\[ray\]'"):
        run(fake_data())


def test_an_address_without_a_cluster_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_engine.importlib.util, "find_spec", lambda name: object())
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        started = time.monotonic()
        with pytest.raises(UsageError, match=f"no Ray cluster answers at {address}"):
            run(fake_data(), address=address)
        assert time.monotonic() - started < 5
    with pytest.raises(UsageError, match="is HOST:PORT, got 'somewhere'"):
        run(fake_data(), address="somewhere")


class Killer(Recorder):
    """Kills processes of Ray's, by what they run, once so many gradients have been shown."""

    def __init__(self, after: dict[int, str]) -> None:
        super().__init__()
        self.after, self.shown, self.killed = dict(after), 0, []

    def __call__(self, items: Iterable[Any], *, total: Any, description: Any, start: int = 0) -> Iterator[Any]:
        for item in items:
            self.shown += 1
            if self.shown in self.after:
                self.killed.append(kill_one(self.after[self.shown]))
            yield item


def kill_one(kind: str) -> int:
    """kill -9 a process below this one whose command line names `kind`."""
    pid = next(p for p in sorted(descendants(os.getpid())) if kind in Path(f"/proc/{p}/cmdline").read_text())
    os.kill(pid, signal.SIGKILL)
    return pid


def descendants(root: int) -> set[int]:
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    found = {root}
    while grown := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= grown
    return found - {root}


@pytest.mark.parametrize("settings", [{"algorithm": "lc-asgd"}, {"algorithm": "ssgd"}, {"layerwise": True}, {"shards": "iid"}], ids=str)
class TestOnRay:
    pytestmark = needs_ray

    def test_it_learns(self, settings: dict[str, object]) -> None:
        data = fake_data(240, 60, 300)
        model, result = run(data, **settings)
        assert evaluate(model, data.test, device="cpu").accuracy > 0.8
        facts = result.asynchronous
        assert facts["gradients"] == 120 == sum(facts["staleness"].values()) and facts["refused"] == 0
        assert result.history[-1].train_loss < result.history[0].train_loss
        assert facts["measured"]["compute_s"] > 0

    def test_workers_have_the_teacher(self, settings: dict[str, object]) -> None:
        """It alone teaches: the labels are all one class, and so is no answer of the network."""
        data, teacher = fake_data(240, 0, 300), small_network()
        train(teacher, fake_data(240, 60, seed=0), config(epochs=6), device="cpu")
        data.train.labels.zero_()
        model, _ = run(data, None, {"distill": {"share": 1.0}}, teacher=teacher, **settings)
        assert evaluate(model, data.test, device="cpu").accuracy > 0.8


class TestDeaths:
    pytestmark = needs_ray

    def test_a_killed_worker_and_a_killed_server_lose_nothing(self) -> None:
        data = fake_data(240, 60, 300)
        killer = Killer({100: "ray::WorkerActor", 200: "ray::ServerActor"})
        model, result = run(data, killer, {"epochs": 20}, heartbeat_s=30.0)
        facts = result.asynchronous
        assert len(killer.killed) == 2
        assert facts["worker_restarts"] >= 1 and facts["server_restarts"] == 1
        assert facts["gradients"] == facts["updates"] == sum(facts["staleness"].values()) == 600
        assert len(result.history) == 20 and evaluate(model, data.test, device="cpu").accuracy > 0.9
        assert any("its batch is handed out again" in line for line in killer.lines)
        assert any("goes on from its last save" in line for line in killer.lines)

    def test_a_silent_worker_is_replaced(self) -> None:
        killer = Killer({})
        stopped = threading.Event()

        def stop_one() -> None:
            while killer.shown < 50:
                time.sleep(0.05)
            pid = next(p for p in sorted(descendants(os.getpid())) if "ray::WorkerActor" in Path(f"/proc/{p}/cmdline").read_text())
            os.kill(pid, signal.SIGSTOP)
            stopped.set()

        thread = threading.Thread(target=stop_one)
        thread.start()
        _, result = run(fake_data(240, 60, 30), killer, {"epochs": 20}, heartbeat_s=4.0)
        thread.join()
        assert stopped.is_set() and result.asynchronous["gradients"] == result.asynchronous["updates"] == 600
        assert any("has been silent" in line for line in killer.lines)

    def test_a_run_that_the_rate_ended_early_is_finished_when_it_is_resumed(self, tmp_path: Path) -> None:
        changes = {"epochs": 30, "schedule": "auto", "auto_lr": {"rule": "literal", "interval": 2, "max_drops": 1}}
        data = fake_data(64, 24)
        _, first = run(data, changes=changes, output=tmp_path)
        assert 8 <= len(first.history) < 30
        _, again = run(data, changes=changes, output=tmp_path)
        assert again.history == first.history

    def test_divergence_comes_back_as_one_line(self) -> None:
        with pytest.raises(RunError, match="lower learning rate") as caught:
            run(fake_data(), changes={"lr": 1e12, "momentum": 0.9})
        assert "\n" not in str(caught.value)
