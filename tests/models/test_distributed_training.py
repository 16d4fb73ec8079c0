"""Simulated asynchronous training: what must equal what, to the bit, and what the clock says."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fineprune.common.errors import RunError, UsageError
from fineprune.models.training import TrainConfig, evaluate, train
from fineprune.models.training.distributed.config import AsyncConfig, TimeConfig
from fineprune.models.training.distributed.ledger import Ticket
from fineprune.models.training.distributed.shards import dirichlet, iid
from fineprune.models.training.distributed.simulated import AsyncResult
from fineprune.models.training.distributed.timing import durations
from fineprune.models.training.distributed.worker import Worker
from support.fakes import FakeData, Recorder, fake_data, small_network

CONSTANT = {"distribution": "constant", "state_s": 0.0}


def config(**changes: object) -> TrainConfig:
    return TrainConfig(**{"epochs": 3, "batch_size": 8, "lr": 0.05, "seed": 3, **changes})  # type: ignore[arg-type]


def run(algorithm: str, changes: dict[str, object] | None = None, **chosen: object) -> tuple[Tensor, AsyncResult]:
    model = small_network()
    workers = chosen.pop("workers", 1 if algorithm == "sgd" else 4)
    asked = AsyncConfig(algorithm=algorithm, workers=workers, **chosen)  # type: ignore[arg-type]
    result = train_async(model, fake_data(100, 24), config(**(changes or {})), asked, device="cpu")
    return flat(model), result


def train_async(model: nn.Module, data: FakeData, plain: TrainConfig, settings: AsyncConfig, **rest: Any) -> AsyncResult:
    result = train(model, data, replace(plain, asynchronous=settings), **rest)
    assert isinstance(result, AsyncResult)
    return result


def flat(model: nn.Module) -> Tensor:
    return torch.cat([value.detach().float().reshape(-1) for value in model.parameters()])


@pytest.mark.parametrize("changes", [{}, {"optimizer": "adam", "lr": 0.01}, {"nesterov": True, "max_grad_norm": 0.5, "warmup_epochs": 1}])
def test_sgd_and_ssgd_with_one_worker_are_the_plain_trainer_to_the_bit(changes: dict[str, object]) -> None:
    plain = small_network()
    expected = train(plain, fake_data(100, 24), config(**changes), device="cpu")
    for algorithm in ("sgd", "ssgd"):
        weights, result = run(algorithm, changes, workers=1)
        assert torch.equal(weights, flat(plain))
        assert result.best_accuracy == expected.best_accuracy
        assert [r.lr for r in result.history] == [r.lr for r in expected.history]
        assert result.history[-1].train_loss == pytest.approx(expected.history[-1].train_loss, rel=1e-6)


def test_batchnorm_statistics_of_a_trained_network_are_where_they_start() -> None:
    """One worker averages as the plain trainer does, so that few steps of fine-tuning do not lose what was there."""
    models = small_network(), small_network()
    for model in models:
        model[1].running_mean.fill_(3.0)  # type: ignore[union-attr, operator]
        model[1].running_var.fill_(5.0)  # type: ignore[union-attr, operator]
    few = config(epochs=1, batch_size=50)
    train(models[0], fake_data(100, 0), few, device="cpu")
    train_async(models[1], fake_data(100, 0), few, AsyncConfig(algorithm="sgd", workers=1), device="cpu")
    for name in ("running_mean", "running_var"):
        expected, value = (getattr(model[1], name) for model in models)
        torch.testing.assert_close(value, expected)
        assert value.min() > 1, "two steps leave most of it"


@pytest.mark.parametrize("times", [CONSTANT, {"distribution": "stragglers", "spread": 0.5, "state_s": 0.0}])
def test_literal_is_asgd_to_the_bit(times: dict[str, object]) -> None:
    asgd, first = run("asgd", time=times)
    literal, second = run("lc-asgd", mode="literal", lam=0.7, time=times)
    ratio, _ = run("lc-asgd", mode="ratio", lam=0.7, time=times)
    assert torch.equal(asgd, literal) and not torch.equal(asgd, ratio)
    assert first.asynchronous["staleness"] == second.asynchronous["staleness"]


def test_compensation_of_nothing_is_asgd() -> None:
    asgd, _ = run("asgd", time=CONSTANT)
    for mode in ("ratio", "chain", "normalised", "damped"):
        assert torch.equal(asgd, run("lc-asgd", mode=mode, lam=0.0, time=CONSTANT)[0])
    assert torch.equal(asgd, run("dc-asgd", lam=0.0, time=CONSTANT)[0])


def test_one_worker_is_never_late() -> None:
    sgd, _ = run("sgd")
    for algorithm in ("asgd", "dc-asgd", "lc-asgd"):
        weights, result = run(algorithm, workers=1, time=CONSTANT)
        assert torch.equal(weights, sgd) and result.asynchronous["staleness"] == {"0": 39}


def test_golden_trace_of_equal_workers() -> None:
    """Four workers of equal speed: staleness 0, 1, 2, 3, then always 3; a round takes 0.1 + 1 + 0.1 s, ten rounds 39 gradients."""
    _, result = run("asgd", time={"distribution": "constant"})
    assert result.asynchronous["staleness"] == {"0": 1, "1": 1, "2": 1, "3": 36}
    assert result.asynchronous["virtual_seconds"][-1] == pytest.approx(10 * 1.2)
    _, result = run("ssgd", time={"distribution": "constant"})
    assert result.asynchronous["staleness"] == {"0": 39} and result.asynchronous["updates"] == 10
    _, result = run("lc-asgd", time={"distribution": "constant", "server_s": 0.05})
    assert result.asynchronous["virtual_seconds"][-1] == pytest.approx(10 * (1.2 + 2 * 0.01 + 0.05))


@pytest.mark.parametrize("workers", [2, 5])
@pytest.mark.parametrize("distribution", ["lognormal", "stragglers", "heterogeneous"])
def test_sums_of_staleness_add_up(workers: int, distribution: str) -> None:
    """Each update makes every gradient that is under way one older: M - 1 of them, less those that had no batch left."""
    _, result = run("asgd", workers=workers, time={"distribution": distribution, "spread": 0.6})
    total = sum(int(k) * n for k, n in result.asynchronous["staleness"].items())
    updates = result.asynchronous["updates"]
    assert updates == 39 == sum(result.asynchronous["staleness"].values())
    assert total == (workers - 1) * (updates - workers) + sum(range(workers))


def test_slow_workers_are_late_and_barriers_wait_for_them() -> None:
    constant, slow = ({"distribution": "constant"}, {"distribution": "heterogeneous", "spread": 0.0, "slowest": 4.0})
    waits = [run("ssgd", time=times)[1].asynchronous["virtual_seconds"][-1] for times in (constant, slow)]
    goes_on = [run("asgd", time=times)[1].asynchronous["virtual_seconds"][-1] for times in (constant, slow)]
    # The last of ten rounds has three batches left, so it does not wait for the slowest.
    assert waits == pytest.approx([10 * 1.2, 9 * (0.2 + 4) + 0.2 + 3])
    assert goes_on[1] / goes_on[0] < 0.6 * waits[1] / waits[0]
    assert max(map(int, run("asgd", time=slow)[1].asynchronous["staleness"])) > 3


@pytest.mark.parametrize("algorithm", ["ssgd", "asgd", "dc-asgd", "lc-asgd"])
def test_every_algorithm_learns_and_equal_seeds_have_equal_runs(algorithm: str) -> None:
    data, model = fake_data(120, 0, 300), small_network()
    changes = config(epochs=6, batch_size=4, lr=0.8 if algorithm == "ssgd" else 0.3, momentum=0.0)
    result = train_async(model, data, changes, AsyncConfig(algorithm=algorithm, lam=0.05), device="cpu")  # type: ignore[arg-type]
    assert evaluate(model, data.test, device="cpu").accuracy > 0.85
    assert result.history[-1].train_loss < result.history[0].train_loss and not model.training
    assert torch.equal(run(algorithm)[0], run(algorithm)[0])


def test_a_run_that_stops_anywhere_ends_as_if_it_had_not(tmp_path: Path) -> None:
    chosen = AsyncConfig(algorithm="lc-asgd", workers=3, window=3)
    whole = small_network()
    expected = train_async(whole, fake_data(), config(), chosen, device="cpu")
    model, data = small_network(), fake_data()
    data.train.fail_at = {5, 13, 20}
    recorder = Recorder()
    for _ in range(3):
        with pytest.raises(ConnectionError):
            train_async(model, data, config(checkpoint_every_s=0), chosen, output=tmp_path, device="cpu")
        model = small_network()
    result = train_async(model, data, config(checkpoint_every_s=0), chosen, output=tmp_path, device="cpu", progress=recorder)
    assert torch.equal(flat(model), flat(whole))
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), whole.buffers(), strict=True))
    assert result.asynchronous["staleness"] == expected.asynchronous["staleness"]
    assert result.asynchronous["virtual_seconds"] == expected.asynchronous["virtual_seconds"]
    assert any(line.startswith("resuming at epoch") for line in recorder.lines)
    assert any("virtual time" in line and "mean staleness" in line for line in recorder.lines)
    with pytest.raises(RunError, match=r"belongs to another run: config\.asynchronous\.workers 3 there, 4 now"):
        train_async(small_network(), fake_data(), config(), AsyncConfig(window=3), output=tmp_path, device="cpu")


def test_the_batchnorm_policy_decides_statistics_and_nothing_else() -> None:
    models = {}
    for policy in ("async", "last-worker", "last-batch"):
        models[policy] = small_network()
        data = fake_data(validation=0)
        train_async(models[policy], data, config(), AsyncConfig(algorithm="asgd", batchnorm=policy), device="cpu")  # type: ignore[arg-type]
    assert torch.equal(flat(models["async"]), flat(models["last-worker"]))
    statistics = [next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d)).running_mean for model in models.values()]
    assert not torch.equal(statistics[0], statistics[1]) and not torch.equal(statistics[1], statistics[2])
    assert next(m for m in models["async"].modules() if isinstance(m, nn.BatchNorm2d)).momentum == 0.1


def test_a_worker_reports_its_batchs_own_statistics_with_unbiased_variances() -> None:
    model, data = small_network(), fake_data(16)
    convolution = model[0]
    worker = Worker(model, config(), torch.device("cpu"), torch.float32, torch.contiguous_format)
    batch = next(iter(data.train.batches(16)))
    for scale in (1.0, 2.0):  # the second must not remember the first
        done = worker.forward(worker.flat.weights() * scale, batch, Ticket(0, 0, 0, 0))
        worker.backward()
        x = convolution(batch.images).detach().transpose(0, 1).flatten(1)
        torch.testing.assert_close(done.statistics, torch.cat([x.mean(1), x.var(1)]))


def test_masked_and_frozen_parameters_stay() -> None:
    model = small_network()
    frozen = next(model.parameters())
    frozen.requires_grad_(False)
    before = frozen.detach().clone()
    train_async(model, fake_data(), config(epochs=1), AsyncConfig(algorithm="asgd"), device="cpu")
    assert torch.equal(frozen, before)


def test_divergence_is_one_line() -> None:
    with pytest.raises(RunError, match=r"not finite|is nan|is inf") as caught:
        run("asgd", {"lr": 1e12, "momentum": 0.9})
    assert "lower learning rate" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"workers": 0}, "workers is a whole number of at least 1, got 0"),
        ({"lam": -0.1}, "lam is at least 0, got -0.1"),
        ({"algorithm": "xsgd"}, "algorithm is one of sgd, ssgd, asgd, dc-asgd, lc-asgd, got 'xsgd'"),
        ({"algorithm": "sgd"}, "sgd has one worker, got 4"),
        ({"mode": "half"}, "mode is one of ratio, chain, normalised, damped, literal"),
        ({"alpha": 0.0}, "alpha is above 0"),
        ({"address": "10.0.0.1:6379"}, "an address belongs to the ray engine"),
        ({"time": {"spread": -1}}, "time: spread is at least 0"),
        ({"time": {"speed": 1}}, "time is a table of compute_s"),
        ({"batchnorm_decay": float("nan")}, "batchnorm_decay is in"),
    ],
)
def test_bad_settings_fail_before_any_work(settings: dict[str, object], text: str) -> None:
    with pytest.raises(UsageError) as caught:
        AsyncConfig(**settings)  # type: ignore[arg-type]
    assert text in str(caught.value)


def test_what_it_cannot_do_is_refused() -> None:
    for more in ({"policy": "random"}, {"record_losses": True}):
        with pytest.raises(UsageError, match="visits every sample"):
            config(asynchronous={"algorithm": "asgd"}, **more)
        with pytest.raises(UsageError, match="visits every sample"):
            run("asgd", more)
    with pytest.raises(UsageError, match="do not make 90 shards"):
        run("asgd", workers=90, shards="iid")


@pytest.mark.parametrize("shards", ["iid", "dirichlet"])
def test_shards_train_on_their_own_samples_only(shards: str) -> None:
    data = fake_data(90, 24)
    data.train.labels  # noqa: B018 - Dirichlet shards need them
    recorder: list[Tensor] = data.train.seen
    result = train_async(small_network(), data, config(), AsyncConfig(algorithm="asgd", shards=shards, alpha=1.0), device="cpu")  # type: ignore[arg-type]
    seen = Counter(torch.cat(recorder).tolist())
    assert result.asynchronous["updates"] == sum(result.asynchronous["staleness"].values()) >= 33
    assert len(seen) == 90


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 6), st.integers(0, 1000), st.sampled_from([0.1, 1.0, 100.0]))
def test_shards_are_a_partition(workers: int, seed: int, alpha: float) -> None:
    labels = torch.arange(200) % 5
    for parts in (iid(200, workers, seed), dirichlet(labels, workers, alpha, seed)):
        assert len(parts) == workers
        assert torch.equal(torch.cat(parts).sort().values, torch.arange(200))


def test_alpha_decides_how_unequal_shards_are() -> None:
    labels = torch.arange(2000) % 10

    def unevenness(alpha: float) -> float:
        counts = [np.bincount(labels[part].numpy(), minlength=10) / len(part) for part in dirichlet(labels, 4, alpha, 0)]
        return float(np.std(counts))

    assert unevenness(0.1) > 2 * unevenness(1.0) > 4 * unevenness(100.0)
    with pytest.raises(RunError, match="use a larger alpha"):
        dirichlet(labels[:20], 12, 0.001, 0)


@pytest.mark.parametrize("distribution", ["constant", "lognormal", "stragglers", "heterogeneous"])
def test_durations_have_the_mean_that_was_asked_for(distribution: str) -> None:
    times = TimeConfig(distribution=distribution, spread=0.5, compute_s=2.0, comm_s=0.3)  # type: ignore[arg-type]
    drawn = [durations(times, 0, worker, i, 3) for worker in range(3) for i in range(1500)]
    compute = np.mean([d.forward + d.backward for d in drawn])
    factor = {"stragglers": 1 + 0.05 * 4, "heterogeneous": 2.0}.get(distribution, 1.0)
    assert compute == pytest.approx(2.0 * factor, rel=0.06)
    assert np.mean([d.pull for d in drawn]) == pytest.approx(0.3, rel=0.06)
    assert durations(times, 0, 1, 7, 3) == durations(times, 0, 1, 7, 3)
    assert min(d.answer for d in drawn) >= 0
