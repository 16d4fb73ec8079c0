"""Stopped anywhere and started again, a run ends with the same bits."""

import os
import resource
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fineprune.common.errors import RunError
from fineprune.compressor.bake import bake
from fineprune.models.training import TrainConfig, TrainResult, synchronous, train
from fineprune.models.training.interfaces import Beside
from fineprune.models.training.state import run_identity
from fineprune.models.training.trainer import opened
from support.fakes import FakeData, Recorder, fake_data, small_network

CONFIG = TrainConfig(epochs=3, batch_size=16, lr=0.1, seed=5, warmup_epochs=0.5, checkpoint_every_s=0)


def outcome(result: TrainResult, model: nn.Module) -> tuple:
    history = [replace(record, seconds=0.0, cpu_seconds=0.0, validation_seconds=0.0, policy_seconds=0.0) for record in result.history]
    return history, result.best_epoch, result.best_accuracy, {name: value.clone() for name, value in model.state_dict().items()}


def assert_same(one: tuple, other: tuple) -> None:
    assert one[:3] == other[:3]
    assert one[3].keys() == other[3].keys()
    assert all(torch.equal(one[3][name], other[3][name]) for name in one[3])


def uninterrupted(config: TrainConfig = CONFIG) -> tuple:
    model = small_network()
    return outcome(train(model, fake_data(), config, device="cpu"), model)


@pytest.mark.parametrize(
    "changes", [{}, {"optimizer": "adamw", "lr": 0.01, "schedule": "plateau", "patience_epochs": 0}, {"momentum": 0.0}]
)
def test_a_crash_at_any_batch_changes_nothing(tmp_path: Path, changes: dict) -> None:
    config = replace(CONFIG, **changes)
    expected = uninterrupted(config)
    for crash_after in (0, 1, 3, 4, 6, 11):
        output, data = tmp_path / str(crash_after), fake_data()
        data.train.fail_at = {crash_after}
        with pytest.raises(ConnectionError):
            train(small_network(), data, config, device="cpu", output=output)
        recorder, model = Recorder(), small_network(seed=99)  # whatever the weights are, the state's count
        result = train(model, data, config, device="cpu", output=output, progress=recorder)
        assert_same(outcome(result, model), expected)
        assert data.train.handed_out == 12  # nothing was done twice
        assert recorder.lines[0].startswith(f"resuming at epoch {crash_after // 4 + 1}, batch {crash_after % 4 + 1} from ")


def test_many_crashes_with_rare_saves(tmp_path: Path) -> None:
    config = replace(CONFIG, checkpoint_every_s=1000)  # epoch ends only
    data = fake_data()
    data.train.fail_at = {2, 5, 8, 13}
    for _ in range(4):
        with pytest.raises(ConnectionError):
            train(small_network(), data, config, device="cpu", output=tmp_path)
    model = small_network()
    result = train(model, data, config, device="cpu", output=tmp_path)
    assert_same(outcome(result, model), uninterrupted())


def test_a_finished_run_returns_its_result_without_training(tmp_path: Path) -> None:
    model, data = small_network(), fake_data()
    first = outcome(train(model, data, CONFIG, device="cpu", output=tmp_path), model)
    again, done = small_network(seed=8), data.train.handed_out
    recorder = Recorder()
    assert_same(outcome(train(again, data, CONFIG, device="cpu", output=tmp_path, progress=recorder), again), first)
    assert data.train.handed_out == done and recorder.lines == []


def send(number: int) -> None:
    os.kill(os.getpid(), number)


def stop_in_training(data: FakeData, number: int, after: int) -> None:
    original = data.train.batches

    def batches(*args, **kwargs):
        for batch in original(*args, **kwargs):
            yield batch
            if data.train.handed_out == after:
                send(number)

    data.train.batches = batches  # type: ignore[method-assign]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_step_saves_and_says_where(tmp_path: Path, number: int) -> None:
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    config = replace(CONFIG, checkpoint_every_s=1000)
    data = fake_data()
    stop_in_training(data, number, after=6)
    with pytest.raises(KeyboardInterrupt, match=r"^interrupted at epoch 2, batch 4; run the same command to resume$"):
        train(small_network(), data, config, device="cpu", output=tmp_path)
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert [(s["epoch"], s["batch"]) for s in [torch.load(tmp_path / "training.pt", weights_only=True)]] == [(1, 3)]
    model, rest = small_network(), fake_data()
    assert_same(outcome(train(model, rest, config, device="cpu", output=tmp_path), model), uninterrupted())
    assert rest.train.handed_out == 5


def test_a_signal_in_validation_keeps_the_epochs_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(CONFIG, checkpoint_every_s=1000)
    real: Callable = synchronous.evaluate

    def interrupted_once(*args, **kwargs):
        monkeypatch.setattr(synchronous, "evaluate", real)
        send(signal.SIGINT)
        return real(*args, **kwargs)

    monkeypatch.setattr(synchronous, "evaluate", interrupted_once)
    with pytest.raises(KeyboardInterrupt, match="interrupted at epoch 1, batch 5; run the same command"):
        train(small_network(), fake_data(), config, device="cpu", output=tmp_path)
    model, rest = small_network(), fake_data()
    assert_same(outcome(train(model, rest, config, device="cpu", output=tmp_path), model), uninterrupted())
    assert rest.train.handed_out == 8


def test_a_second_signal_does_not_wait(tmp_path: Path) -> None:
    data = fake_data()
    original = data.train.batches

    def batches(*args, **kwargs):
        send(signal.SIGINT)
        send(signal.SIGINT)
        yield from original(*args, **kwargs)

    data.train.batches = batches  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt, match="interrupted again before the state was saved"):
        train(small_network(), data, CONFIG, device="cpu", output=tmp_path)


def test_without_an_output_folder_the_message_says_that_nothing_was_saved() -> None:
    data = fake_data()
    stop_in_training(data, signal.SIGINT, after=1)
    with pytest.raises(KeyboardInterrupt, match="nothing was saved, as no output folder was given"):
        train(small_network(), data, CONFIG, device="cpu")


def masked_network(keep: int) -> nn.Module:
    model = small_network()
    model[0].register_buffer("mask", torch.arange(9) < keep, persistent=False)
    return model


@pytest.mark.parametrize(
    ("model", "data", "config", "identity", "difference"),
    [
        (masked_network(5), fake_data(), replace(CONFIG, lr=0.05), None, r"config\.lr 0\.1 there, 0\.05 now;"),
        (masked_network(5), fake_data(spec="other"), CONFIG, None, r'data\.spec "fake" there, "other" now;'),
        (masked_network(5), fake_data(train=59), CONFIG, None, r"data\.train_images 60 there, 59 now;"),
        (masked_network(4), fake_data(), CONFIG, None, r"mask 0\.mask \"\w+\" there"),
        (nn.Sequential(nn.Flatten(), nn.Linear(108, 3)), fake_data(), CONFIG, None, r"there, absent now; .* and \d+ more;"),
        (masked_network(5), fake_data(), CONFIG, {"start": "abc"}, r'start absent there, "abc" now;'),
    ],
)
def test_another_runs_state_is_refused(
    tmp_path: Path, model: nn.Module, data: FakeData, config: TrainConfig, identity: dict | None, difference: str
) -> None:
    train(masked_network(5), fake_data(), CONFIG, device="cpu", output=tmp_path)
    said = r"belongs to another run: .*" + difference + r".*another output folder, or delete the file"
    changed = opened(model, data, config, device="cpu", output=tmp_path, beside=Beside(identity=identity or {}))
    with pytest.raises(RunError, match=said), changed as run:
        run.finish()


def test_settings_without_effect_on_the_result_may_change(tmp_path: Path) -> None:
    data = fake_data()
    data.train.fail_at = {5}
    with pytest.raises(ConnectionError):
        train(small_network(), data, CONFIG, device="cpu", output=tmp_path)
    model = small_network()
    result = train(model, data, replace(CONFIG, checkpoint_every_s=9.0), device="cpu", output=tmp_path)
    assert_same(outcome(result, model), uninterrupted())


def test_a_damaged_state_is_named_with_the_remedy(tmp_path: Path) -> None:
    train(small_network(), fake_data(), CONFIG, device="cpu", output=tmp_path)
    path = tmp_path / "training.pt"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(RunError, match=r"training\.pt is not a whole training state \(.*\); delete it to train from the start"):
        train(small_network(), fake_data(), CONFIG, device="cpu", output=tmp_path)


def test_an_unusable_folder_fails_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    data = fake_data()
    with pytest.raises(RunError, match=r"cannot write .*training\.pt"):
        train(small_network(), data, CONFIG, device="cpu", output=tmp_path / "file" / "run")
    assert data.train.handed_out == 0


@pytest.mark.parametrize("limit", [0, 100, 2000, 5000])
def test_a_disk_that_fills_up_keeps_the_previous_state(tmp_path: Path, limit: int) -> None:
    """Files that may not grow beyond a limit fail as a full disk does, at the start or within torch's archive."""
    data = fake_data()
    data.train.fail_at = {5}
    with pytest.raises(ConnectionError):
        train(small_network(), data, CONFIG, device="cpu", output=tmp_path)
    before = (tmp_path / "training.pt").read_bytes()
    assert len(before) > 5000
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(RunError, match=r"cannot write .*training\.pt: File too large; check its folder's permissions and free space"):
            train(small_network(), data, CONFIG, device="cpu", output=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["training.pt"]
    assert (tmp_path / "training.pt").read_bytes() == before
    model = small_network()
    result = train(model, fake_data(), CONFIG, device="cpu", output=tmp_path)
    assert_same(outcome(result, model), uninterrupted())


def test_a_state_that_torch_cannot_write_is_no_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(value: object, stream: object) -> None:
        raise RuntimeError("torch.save has no storage for this\nC++ frames")

    monkeypatch.setattr(torch, "save", refuse)
    with pytest.raises(RuntimeError, match=r"^torch\.save has no storage for this"):
        train(small_network(), fake_data(), CONFIG, device="cpu", output=tmp_path)
    assert not list(tmp_path.iterdir())


def test_leftovers_of_a_killed_writer_disappear(tmp_path: Path) -> None:
    leftover = tmp_path / ".training.pt.abcd"
    leftover.mkdir()
    (leftover / "training.pt").write_bytes(b"half")
    train(small_network(), fake_data(), CONFIG, device="cpu", output=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["training.pt"]


SCRIPT = """
import sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
sys.path.insert(0, {tests!r})
from support.fakes import fake_data, small_network
from fineprune.models.training import TrainConfig, train

data = fake_data(train=400)
original = data.train.batches
def slow(*args, **kwargs):
    for batch in original(*args, **kwargs):
        time.sleep({delay})
        yield batch
data.train.batches = slow
config = TrainConfig(epochs=4, batch_size=16, lr=0.1, seed=5, checkpoint_every_s=0.0)
model = small_network()
result = train(model, data, config, device="cpu", output=Path({output!r}))
torch.save(dict(model.state_dict()), {final!r})
"""


def script(output: Path, final: Path, delay: float) -> list[str]:
    tests = str(Path(__file__).parents[1])
    return [sys.executable, "-c", textwrap.dedent(SCRIPT).format(tests=tests, output=str(output), final=str(final), delay=delay)]


@pytest.mark.slow
def test_kill_minus_nine_at_random_moments(tmp_path: Path) -> None:
    subprocess.run(script(tmp_path / "straight", tmp_path / "straight.pt", 0.0), check=True)
    final, state, kills = tmp_path / "killed.pt", tmp_path / "killed" / "training.pt", 0
    while not final.exists():
        process = subprocess.Popen(script(tmp_path / "killed", final, 0.02))
        before = state.stat().st_mtime_ns if state.exists() else 0
        deadline = time.monotonic() + 60
        while process.poll() is None and (not state.exists() or state.stat().st_mtime_ns == before):
            assert time.monotonic() < deadline, "the run writes no state"
            time.sleep(0.005)
        if kills < 4:
            time.sleep(0.11 + 0.137 * kills)
            process.kill()
            kills += 1
        assert process.wait(timeout=120) in (0, -signal.SIGKILL)
    straight, killed = (torch.load(path, weights_only=True) for path in (tmp_path / "straight.pt", final))
    assert kills == 4
    assert all(torch.equal(straight[name], killed[name]) for name in straight)


def test_masks_in_a_networks_state_leave_its_identity_as_it_was() -> None:
    """Runs that an earlier version began, which kept no masks in the state dict, go on."""
    mask = torch.ones(5, 3, 3, 3, dtype=torch.bool)
    mask[0] = False
    masked = bake(small_network(), {"fwp": {"0": mask}})
    dense, own = (run_identity(model, fake_data(), TrainConfig(epochs=1), None) for model in (small_network(), masked))
    assert own.keys() - dense.keys() == {"mask 0.fwp_mask"}


@pytest.mark.parametrize("change", [{"model": {}}, {"epoch": None, "history": [{"nothing": 1}]}, {"clock": 3}, {"optimizer": {"state": 1}}])
def test_a_state_with_other_things_in_it_is_named(change: dict[str, Any], tmp_path: Path) -> None:
    train(small_network(), fake_data(), TrainConfig(epochs=1, batch_size=16), output=tmp_path)
    state = torch.load(tmp_path / "training.pt", weights_only=True)
    torch.save({**state, **change}, tmp_path / "training.pt")
    with pytest.raises(RunError, match=r"training\.pt is not a whole training state \(\w+"):
        train(small_network(), fake_data(), TrainConfig(epochs=1, batch_size=16), output=tmp_path)
