"""The trainer under each policy: what it visits, weighs, records and predicts; the same after a crash."""

import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from fineprune.common.errors import RunError, UsageError
from fineprune.models.data import load_data
from fineprune.models.training import TrainConfig, TrainResult, train
from fineprune.models.training.auto_lr import AutoRateConfig, replay
from fineprune.models.training.results import EpochRecord
from fineprune.models.training.sampling.config import PolicyConfig
from fineprune.models.training.sampling.loss_log import LossLog, SampleFacts, precision_recall
from fineprune.models.training.sampling.policies import make_policy
from fineprune.models.training.sampling.time_model import predicted_saving, saving_of_run, simulate, thesis_formula, trained_batches
from fineprune.models.training.step import Stepper
from fineprune.training_report import auto_rate_figure
from support.fakes import FakeData, Recorder, fake_data, small_network

FINE: dict[str, Any] = {"name": "fine-pruning", "window": 4, "start": 1, "fraction": 0.4}
POLICIES: list[dict[str, Any]] = [
    FINE,
    {**FINE, "rescale": True, "tie_break": "loss", "require_count": True},
    {**FINE, "name": "random"},
    {"name": "infobatch"},
]


def config(**changes: Any) -> TrainConfig:
    return TrainConfig(**{"epochs": 8, "batch_size": 16, "lr": 0.05, "seed": 3, "policy": FINE, **changes})


def run(settings: TrainConfig, data: FakeData | None = None, **options: Any) -> tuple[TrainResult, FakeData, nn.Module]:
    data, model = data or fake_data(), small_network()
    return train(model, data, settings, device="cpu", **options), data, model


def trained_on(data: FakeData) -> list[Tensor]:
    """The batches that steps got: all but the single sample that a run asks for to see whether indices work."""
    return [batch for batch in data.train.seen if len(batch) > 1]


def untimed(result: TrainResult) -> list[Any]:
    times = ("seconds", "cpu_seconds", "validation_seconds", "policy_seconds", "rate_seconds", "rate_cpu_seconds")
    return [replace(record, **dict.fromkeys(times, 0.0)) for record in result.history]  # type: ignore[arg-type]


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


class TestTraining:
    def test_it_visits_what_the_policy_chose_from_the_losses_that_the_steps_saw(self) -> None:
        """The trainer's own observations, replayed from its log into a second policy, choose the same samples."""
        data = fake_data()
        settings = config(record_losses=True, checkpoint_every_s=0.0)
        result, _, _ = run(settings, data)
        visited = iter(trained_on(data))
        policy = make_policy(settings.policy, samples=60, epochs=8, seed=3, batch_size=16)
        seen_losses: list[tuple[Tensor, Tensor]] = []
        original = type(policy).observe

        def spy(self: Any, indices: Tensor, losses: Tensor) -> None:
            seen_losses.append((indices.clone(), losses.clone()))
            original(self, indices, losses)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(policy).__mro__[1], "observe", spy)
            again, _, _ = run(settings)
        assert untimed(again) == untimed(result)
        observed = iter(seen_losses)
        for epoch in range(8):
            chosen = policy.epoch(epoch).indices
            expected = torch.arange(60) if chosen is None else chosen
            batches = [next(visited) for _ in range(-(-len(expected) // 16))]
            assert torch.equal(torch.cat(batches).sort().values, expected)
            for batch in batches:
                indices, losses = next(observed)
                assert torch.equal(indices, batch)
                policy.observe(indices, losses)
        assert [r.visits for r in result.history] == simulate(settings.policy, epochs=8, samples=60)
        assert 36 in [r.visits for r in result.history]

    def test_weights_scale_the_losses_of_a_step(self) -> None:
        data, settings = fake_data(train=8, validation=0), config(epochs=8, batch_size=2, policy={"name": "infobatch"}, augment=False)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            model, state = (nn.Sequential(nn.Flatten(), nn.Linear(108, 3)) for _ in range(2))
        state.load_state_dict(model.state_dict())
        train(model, data, replace(settings, schedule="constant", momentum=0.0, weight_decay=0.0), device="cpu")
        policy = make_policy(settings.policy, samples=8, epochs=8, seed=3, batch_size=2)
        seen, weighted = iter(data.train.seen[1:]), 0
        for epoch in range(8):
            chosen, weights = policy.epoch(epoch)
            for _ in range(trained_batches(8 if chosen is None else len(chosen), 2)):
                batch = next(seen)
                losses = F.cross_entropy(state(data.train.images[batch]), data.train.labels[batch], reduction="none")
                policy.observe(batch, losses.detach())
                factors = torch.ones(len(batch)) if weights is None else weights[batch]
                weighted += int((factors > 1).sum())
                gradients = torch.autograd.grad((losses * factors).mean(), list(state.parameters()))
                with torch.no_grad():
                    for parameter, gradient in zip(state.parameters(), gradients, strict=True):
                        parameter -= 0.05 * gradient
        assert weighted > 5
        torch.testing.assert_close(model[1].weight, state[1].weight)

    def test_threads_that_read_ahead_change_nothing(self, tmp_path: Path) -> None:
        generator = np.random.default_rng(0)
        for part, count in (("train", 16), ("test", 4)):
            for name in ("dark", "light"):
                (tmp_path / part / name).mkdir(parents=True)
                for i in range(count):
                    pixels = generator.integers(0, 120, (100, 100, 3)) + (120 if name == "light" else 0)
                    Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / part / name / f"{i}.png")
        data, results = load_data(f"imagefolder:{tmp_path}", image_size=97), []  # too large to be kept in memory
        for workers in (0, 2):
            settings = config(epochs=3, batch_size=4, policy={**FINE, "start": 0, "block": 3, "prune_epochs": 2}, workers=workers)
            results.append(train(small_network(), data, settings, device="cpu"))
        assert untimed(results[0]) == untimed(results[1])
        assert [record.visits for record in results[0].history] == [16, 16, 28]  # 17 are kept; a last batch of one is left out

    def test_none_is_the_plain_trainer(self) -> None:
        plain, _, one = run(config(policy="none"))
        recorded, _, other = run(config(policy="none", record_losses=True))
        assert untimed(plain) == untimed(recorded) and plain.saving is None
        assert same_weights(one, other)

    def test_the_saving_is_printed_and_returned(self) -> None:
        recorder = Recorder()
        result, _, _ = run(config(), progress=recorder)
        saving = result.saving
        assert saving is not None and saving.visits == sum(r.visits for r in result.history) and saving.regular_visits == 480
        assert recorder.lines[-1] == saving.line()
        assert recorder.lines[-1].startswith(f"fine-pruning: {saving.visits} of 480 sample visits; training time saved: predicted ")
        assert "thesis formula" in saving.line() and "of processor time" in saving.line() and "overhead of the policy" in saving.line()
        json.dumps(result.to_json(), allow_nan=False)

    def test_the_automatic_rate_may_end_a_run(self) -> None:
        data = fake_data(validation=0)
        data.validation = data.test
        settings = config(epochs=40, policy="none", schedule="auto", auto_lr={"interval": 2, "threshold": 0.5, "max_drops": 1})
        result, _, _ = run(settings, data)
        assert len(result.history) == 8  # 2i epochs to the drop, and as many until the rule fires again
        assert [r.lr for r in result.history] == pytest.approx([0.05] * 4 + [0.005] * 4)
        assert (
            result.saving is not None
            and result.saving.policy == "stopped early"
            and result.saving.predicted == pytest.approx(0.8, abs=0.01)
        )
        assert all(r.rate_loss == r.validation_loss for r in result.history)

    def test_the_automatic_rate_follows_parts_of_epochs(self) -> None:
        """Four steps an epoch, a loss after each second one; drops and the end come as the rule replayed on those losses says."""
        rule = {"interval": 3, "parts": 2, "threshold": 0.5, "max_drops": 1}
        data = fake_data(validation=0)
        data.validation = data.test
        settings = config(epochs=40, policy="none", schedule="auto", auto_lr=rule)
        result, _, _ = run(settings, data)
        losses = [loss for record in result.history for loss in record.part_losses]
        assert all(len(record.part_losses) == 2 for record in result.history) and len(set(losses)) == len(losses)
        assert all(0 < r.rate_seconds < r.seconds and 0 < r.rate_cpu_seconds < r.cpu_seconds for r in result.history)
        points = replay(losses, settings.rate_rule, 0.05)
        assert [k for k, point in enumerate(points) if point.fired] == [5, 11]  # 2i losses, and as many again until the rule ends the run
        assert [record.lr for record in result.history] == pytest.approx([0.05] * 3 + [0.005] * 3)
        assert all(record.rate_loss == record.part_losses[-1] == pytest.approx(record.validation_loss) for record in result.history)

    def test_the_rate_drops_within_an_epoch(self) -> None:
        rule = {"interval": 2, "parts": 8, "threshold": 9.0, "max_drops": 1, "stop_early": False}
        rates, step = [], Stepper.step

        def spy(self: Stepper, *args: Any) -> Any:
            rates.append(self.optimizer.param_groups[0]["lr"])
            return step(self, *args)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Stepper, "step", spy)
            run(config(epochs=3, policy="none", schedule="auto", auto_lr=rule, batch_size=6))
        assert rates[:10] == pytest.approx([0.05] * 5 + [0.005] * 5)  # ten steps: losses after 2, 3, 4, 5, ... of them

    def test_losses_of_the_warm_up_are_not_followed(self) -> None:
        settings = config(
            epochs=6, policy="none", schedule="auto", auto_lr={"interval": 2, "parts": 2, "threshold": 9.0}, warmup_epochs=1.5
        )
        result, _, _ = run(settings)
        assert [len(record.part_losses) for record in result.history] == [0, 1, 2, 2, 2, 2]
        assert [round(record.lr, 5) for record in result.history] == [0.03333, 0.05, 0.05, 0.005, 0.005, 0.0005]
        figure = auto_rate_figure(result.history, settings.rate_rule, 0.05)
        assert figure.axes[0].lines[0].get_xdata().tolist() == [2, 2.5, 3, 3.5, 4, 4.5, 5, 5.5, 6]

    def test_the_figure_says_once_that_nothing_is_left_to_try(self) -> None:
        facts: dict[str, Any] = {"train_loss": 1.0, "train_accuracy": 0.5, "validation_loss": 1.0, "validation_accuracy": 0.5, "lr": 0.05}
        history = [EpochRecord(epoch=epoch, **facts, seconds=1.0, part_losses=(1.0,) * 5) for epoch in (1, 2)]
        figure = auto_rate_figure(history, AutoRateConfig(interval=2, parts=5, max_drops=1), 0.05)  # fires at losses 4, 8, 9 and 10
        assert [text.get_text() for text in figure.axes[0].texts] == ["lr × 0.1", "nothing left to try"]

    def test_losses_of_parts_are_always_of_the_same_images(self) -> None:
        data = fake_data(validation=600)
        run(config(epochs=3, policy="none", schedule="auto", auto_lr={"interval": 2, "parts": 2}), data)
        whole, part = -(-600 // 16), -(-300 // 16)
        assert len(data.validation.seen) == 3 * (2 * part + whole)
        assert data.test.seen == []
        starts = [epoch * (2 * part + whole) + number * part for epoch in range(3) for number in range(2)]
        parts = [torch.cat(data.validation.seen[start : start + part]) for start in starts]
        assert len(parts[0].unique()) == 300 and all(torch.equal(other, parts[0]) for other in parts)

    def test_the_automatic_rate_follows_test_data_where_asked(self) -> None:
        result, _, _ = run(config(policy="none", schedule="auto", auto_lr={"interval": 2, "split": "test"}))
        assert all(r.rate_loss is not None and r.rate_loss != r.validation_loss for r in result.history)


class TestRefusals:
    def test_before_training(self) -> None:
        data = fake_data()
        with pytest.raises(UsageError, match="leaves 36 of 60 training images, fewer than a batch of 48"):
            run(config(batch_size=48), data)
        with pytest.raises(UsageError, match="prunes none of the 3 epochs"):
            run(config(epochs=3, policy={"name": "random", "window": 60, "start": 20}), data)
        with pytest.raises(UsageError, match="compares the last 8 losses and there are 8 epochs; lower auto_lr's interval=4"):
            run(config(schedule="auto", auto_lr={"interval": 4}), data)
        with pytest.raises(
            UsageError, match="compares the last 32 losses and there are 8 epochs of 4 losses each; lower auto_lr's interval=16"
        ):
            run(config(schedule="auto", auto_lr={"interval": 16, "parts": 7}), data)
        with pytest.raises(UsageError, match="the auto schedule follows the test loss and there are no test images"):
            run(config(schedule="auto", auto_lr={"split": "test"}), fake_data(test=0))
        with pytest.raises(UsageError, match="record_losses is true or false, got 1"):
            config(record_losses=1)
        assert trained_on(data) == []

    def test_data_without_indices(self) -> None:
        data = fake_data()
        original = data.train.batches

        def nameless(*args: Any, **kwargs: Any) -> Any:
            return (batch[:2] for batch in original(*args, **kwargs))

        data.train.batches = nameless  # type: ignore[method-assign]
        with pytest.raises(UsageError, match="needs data whose batches take and hold `indices`; the training split fails"):
            run(config(), data)
        data.train.batches = lambda size, **kwargs: original(size)  # type: ignore[method-assign]
        with pytest.raises(UsageError, match=r"policy fine-pruning asked the training split for sample \[59\] and got \[0\]"):
            run(config(), data)

    def test_a_nan_loss_names_its_place_and_reaches_no_policy(self, tmp_path: Path) -> None:
        data = fake_data()
        data.train.images[7] = math.nan
        with pytest.raises(RunError, match=r"the loss is not finite at epoch 1, batch \d of 4, learning rate .* lower learning rate"):
            run(config(), data, output=tmp_path)
        state = torch.load(tmp_path / "training.pt", weights_only=True)
        assert state["policy"]["losses"].isfinite().all()


def crashed_and_resumed(settings: TrainConfig, crash_after: int, output: Path) -> tuple[TrainResult, FakeData, nn.Module]:
    """What the same command gives when its first run ended after so many batches of the training split."""
    data = fake_data()
    data.train.fail_at = {crash_after}
    with pytest.raises(ConnectionError):
        run(settings, data, output=output)
    return run(settings, data, output=output)


class TestResume:
    @pytest.mark.parametrize("policy", POLICIES)
    def test_a_crash_at_any_batch_changes_nothing(self, tmp_path: Path, policy: dict[str, Any]) -> None:
        settings = config(policy=policy, epochs=6, checkpoint_every_s=0.0, record_losses=True, schedule="auto", auto_lr={"interval": 2})
        whole = fake_data()
        expected, _, model = run(settings, whole, output=tmp_path / "whole")
        for crash_after in (1, 6, 10, 11):  # at the start, in two pruned epochs, between epochs
            output = tmp_path / str(crash_after)
            result, data, resumed = crashed_and_resumed(settings, crash_after, output)
            assert untimed(result) == untimed(expected) and same_weights(model, resumed)
            assert all(torch.equal(a, b) for a, b in zip(trained_on(data), trained_on(whole), strict=True))
            logs = [torch.load(folder / "training.pt", weights_only=True)["losses"] for folder in (tmp_path / "whole", output)]
            assert all(torch.equal(a.nan_to_num(-1), b.nan_to_num(-1)) for a, b in zip(*logs, strict=True))

    def test_a_crash_between_the_parts_of_an_epoch_changes_nothing(self, tmp_path: Path) -> None:
        rule = {"interval": 3, "parts": 3, "threshold": 0.2}
        settings = config(epochs=6, checkpoint_every_s=0.0, schedule="auto", auto_lr=rule)
        expected, _, model = run(settings, output=tmp_path / "whole")
        assert len({record.lr for record in expected.history}) > 1
        for crash_after in (2, 3, 10):
            result, _, resumed = crashed_and_resumed(settings, crash_after, tmp_path / str(crash_after))
            assert untimed(result) == untimed(expected) and same_weights(model, resumed)

    def test_another_policys_state_is_refused(self, tmp_path: Path) -> None:
        run(config(), output=tmp_path)
        with pytest.raises(RunError, match=r"belongs to another run: config\.policy .*fraction.* there"):
            run(config(policy={**FINE, "fraction": 0.3}), output=tmp_path)


SCRIPT = """
import json, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
sys.path.insert(0, {tests!r})
from support.fakes import fake_data, small_network
from fineprune.models.training import TrainConfig, train
from fineprune.models.training.sampling.policies import Policy

trace = Path({trace!r}).open("a", buffering=1)
original = Policy.observe
def observe(self, indices, losses):
    print(json.dumps([indices.tolist(), losses.tolist()]), file=trace)
    time.sleep({delay})
    original(self, indices, losses)
Policy.observe = observe
config = TrainConfig(epochs=8, batch_size=16, lr=0.1, seed=5, checkpoint_every_s=0.0,
                     policy={{"name": "fine-pruning", "window": 4, "start": 1, "rescale": True}})
model = small_network()
train(model, fake_data(), config, device="cpu", output=Path({output!r}))
torch.save(dict(model.state_dict()), {final!r})
"""


def script(folder: Path, name: str, delay: float) -> list[str]:
    places = {"output": folder / name, "final": folder / f"{name}.pt", "trace": folder / f"{name}.jsonl"}
    text = textwrap.dedent(SCRIPT).format(tests=str(Path(__file__).parents[1]), delay=delay, **{k: str(v) for k, v in places.items()})
    return [sys.executable, "-c", text]


def test_kill_minus_nine_in_the_middle_and_a_resume_see_the_same_indices_and_losses(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(script(tmp_path, "whole", 0.0), check=True, env=environment)
    trace = tmp_path / "killed.jsonl"
    process = subprocess.Popen(script(tmp_path, "killed", 0.05), env=environment)
    deadline = time.monotonic() + 60
    while not trace.exists() or trace.read_text().count("\n") < 14:  # in the fourth epoch, a pruned one
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait(timeout=60) == -signal.SIGKILL
    assert not (tmp_path / "killed.pt").exists()
    lines_before = [line for line in trace.read_text().splitlines() if line.endswith("]]")]
    subprocess.run(script(tmp_path, "killed", 0.0), check=True, env=environment)
    whole, killed = ((tmp_path / f"{name}.jsonl").read_text().splitlines() for name in ("whole", "killed"))
    after = killed[len(lines_before) :]
    redone = len(lines_before) + len(after) - len(whole)  # a step whose state was not saved yet runs again
    assert 0 <= redone <= 1
    assert lines_before == whole[: len(lines_before)] and after == whole[len(lines_before) - redone :]
    one, other = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("whole", "killed"))
    assert all(torch.equal(one[name], other[name]) for name in one)


class TestTimeModel:
    def test_the_simulation_counts_the_schedule(self) -> None:
        policy = PolicyConfig(name="fine-pruning", window=60, start=20)
        visits = simulate(policy, epochs=60, samples=50_000)
        assert sum(v < 50_000 for v in visits) == 30 and set(visits) == {50_000, 37_500}
        assert predicted_saving(visits, epochs=60, samples=50_000, batch_size=128) == pytest.approx(0.125, abs=1e-3)
        assert thesis_formula(policy, epochs=60) == pytest.approx(0.125)
        assert thesis_formula(policy, epochs=160) == pytest.approx(0.25 * 3 * (2 * 10 + 5) / 160)
        assert thesis_formula(PolicyConfig(name="infobatch"), epochs=60) is None
        assert simulate(PolicyConfig(), epochs=3, samples=7) == [7, 7, 7]

    def test_validation_and_overhead_are_not_saved(self) -> None:
        saved = predicted_saving([100, 50], epochs=2, samples=100, batch_size=10, batch_s=2.0, validation_s=10.0, overhead_s=3.0)
        assert saved == pytest.approx(1 - (20 + 10 + 10 + 10 + 3) / 60)

    @pytest.mark.parametrize(("samples", "batch", "batches"), [(33, 16, 2), (34, 16, 3), (16, 16, 1), (5, 16, 1), (1, 16, 1), (5, 1, 5)])
    def test_a_last_batch_of_one_is_not_trained_on(self, samples: int, batch: int, batches: int) -> None:
        assert trained_batches(samples, batch) == batches

    def test_prediction_and_measurement_of_a_run_whose_batches_take_a_known_time(self) -> None:
        """Ten batches of 2 s an epoch, 3 s of validation, 0.5 s of the policy; epochs 1, 2, 4 to 6 visit half of the samples."""
        policy = PolicyConfig(**FINE)
        policy = replace(policy, fraction=0.5)
        visits = simulate(policy, epochs=8, samples=100)
        assert visits == [100, 50, 50, 100, 50, 50, 50, 100]
        history = [
            EpochRecord(
                **{"epoch": e, "train_loss": 1.0, "train_accuracy": 0.5, "validation_loss": 1.0, "validation_accuracy": 0.5, "lr": 0.1},
                **{"seconds": 2.0 * n / 10 + 3.5, "cpu_seconds": 4.0 * n / 10, "validation_seconds": 3.0, "policy_seconds": 0.5},
                visits=n,
            )  # type: ignore[arg-type]
            for e, n in enumerate(visits, start=1)
        ]
        saving = saving_of_run(policy, history, epochs=8, samples=100, batch_size=10)
        assert saving is not None and (saving.visits, saving.regular_visits, saving.overhead_s) == (550, 800, 4.0)
        assert saving.predicted == pytest.approx(1 - (55 * 2 + 8 * 3 + 4) / (8 * 23))
        assert saving.measured == pytest.approx(saving.predicted) and saving.measured_cpu == pytest.approx(1 - 55 / 80)
        following = {"rate_seconds": 1.0, "rate_cpu_seconds": 3.0}  # on several threads
        followed = [replace(r, seconds=r.seconds + 1.0, cpu_seconds=r.cpu_seconds + 3.0, **following) for r in history]
        dearer = saving_of_run(policy, followed, epochs=8, samples=100, batch_size=10)  # a regular epoch measures no losses of parts
        assert dearer is not None and dearer.predicted == pytest.approx(1 - (55 * 2 + 8 * 3 + 4 + 8) / (8 * 23))
        assert dearer.measured == pytest.approx(dearer.predicted) and dearer.measured_cpu == pytest.approx(1 - (220 + 24) / 320)
        never_full = saving_of_run(policy, history[1:3], epochs=2, samples=100, batch_size=10)
        assert never_full is not None and never_full.measured is None and "not measured" in never_full.line()
        assert saving_of_run(policy, history[:1] * 8, epochs=8, samples=100, batch_size=10) is None


class TestLossLog:
    def test_facts_by_hand(self) -> None:
        log = LossLog(4)
        for indices, losses in (([0, 1, 2, 3], [4.0, 1.0, 1.0, 0.0]), ([0, 1], [3.0, 1.0]), ([0, 2], [2.0, 2.5])):
            log.start_epoch()
            log.observe(torch.tensor(indices), torch.tensor(losses))
        facts = SampleFacts.of(log.matrix())
        assert facts.mean_loss.tolist() == [3.0, 1.0, 1.75, 0.0]
        assert facts.pruned.tolist() == [0, 1, 1, 2] and facts.visits.tolist() == [3, 2, 2, 1]
        assert facts.high_share.tolist() == pytest.approx([2 / 3, 0.0, 0.5, 0.0])
        assert facts.order("high-loss").tolist() == [0, 2, 1, 3]
        assert facts.order("most-pruned").tolist() == [3, 2, 1, 0]

    def test_precision_and_recall(self) -> None:
        bad = torch.tensor([True, False, True, False, True])
        assert precision_recall(torch.tensor([0, 1, 2, 3, 4]), bad, 2) == (0.5, 1 / 3)
        assert precision_recall(torch.tensor([0, 2, 4, 1, 3]), bad, 3) == (1.0, 1.0)

    @pytest.mark.parametrize(("order", "least", "most"), [("worst", 0.3, 1.0), ("easiest", 0.0, 0.1)])
    def test_planted_label_noise_has_the_high_losses_and_is_pruned_first(self, order: str, least: float, most: float) -> None:
        data = fake_data(train=240, size=10)
        generator = torch.Generator().manual_seed(1)
        bad = torch.zeros(240, dtype=torch.bool)
        bad[torch.randperm(240, generator=generator)[:24]] = True
        data.train.labels[bad] = (data.train.labels[bad] + 1) % 3
        losses = run(config(epochs=16, record_losses=True, policy={**FINE, "order": order}), data)[0].losses
        assert losses is not None and losses.shape == (16, 240)
        facts = SampleFacts.of(losses)
        precision, recall = precision_recall(facts.order("high-loss"), bad, 24)
        assert precision == recall >= 0.8
        assert least <= precision_recall(facts.order("most-pruned"), bad, 24)[0] <= most
