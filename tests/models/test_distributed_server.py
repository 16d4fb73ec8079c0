"""The parameter server by hand: golden traces of each update rule, leases, BatchNorm policies."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fineprune.common.errors import RunError
from fineprune.models.training import TrainConfig
from fineprune.models.training.distributed.compensation import Compensation, Forecast, compensation
from fineprune.models.training.distributed.config import AsyncConfig
from fineprune.models.training.distributed.ledger import Ledger
from fineprune.models.training.distributed.rules import adaptive_lambda, delay_compensated, mean_square
from fineprune.models.training.distributed.server import Server, State
from fineprune.models.training.distributed.statistics import RunningStatistics

LR = 0.5


def server(algorithm: str, batches: int = 8, **settings: object) -> Server:
    config = TrainConfig(epochs=1, batch_size=4, lr=LR, momentum=0.0, weight_decay=0.0, schedule="constant")
    workers = settings.pop("workers", 1 if algorithm == "sgd" else 2)
    chosen = AsyncConfig(algorithm=algorithm, workers=workers, **settings)  # type: ignore[arg-type]
    return Server(torch.tensor([1.0, -2.0]), torch.tensor([0.0, 1.0]), config, chosen, [batches])


def report(lease: object, loss: float = 1.0) -> State:
    return State(lease, loss, 3, 4, torch.tensor([0.5, 2.0]), 0.1, 1.0)  # type: ignore[arg-type]


def push(to: Server, pulled: object, *gradient: float) -> bool:
    to.state(report(pulled.lease))  # type: ignore[attr-defined]
    return to.gradient(pulled.lease, torch.tensor(gradient))  # type: ignore[attr-defined]


def test_asgd_applies_a_late_gradient_to_the_weights_of_now() -> None:
    s = server("asgd")
    a, b = s.pull(0), s.pull(1)
    assert push(s, a, 1.0, 0.0)
    assert s.weights().tolist() == [0.5, -2.0]
    assert push(s, b, 1.0, 2.0)
    assert s.weights().tolist() == [0.0, -3.0]
    assert dict(s.telemetry.staleness) == {0: 1, 1: 1}
    assert b.weights.tolist() == [1.0, -2.0], "what a worker pulled is its own"


def test_dc_asgd_carries_a_late_gradient_to_the_weights_of_now() -> None:
    s = server("dc-asgd", lam=0.25)
    a, b = s.pull(0), s.pull(1)
    push(s, a, 2.0, 0.0)  # w = [0, -2]
    push(s, b, 2.0, 4.0)  # g + 0.25 g^2 (w - [1, -2]) = [2 - 1, 4]
    assert s.weights().tolist() == [-0.5, -4.0]


def test_adaptive_dc_asgd_divides_by_the_root_mean_square() -> None:
    s = server("dc-asgd", adaptive=True)
    a, b = s.pull(0), s.pull(1)
    push(s, a, 2.0, 1.0)
    first, second = torch.tensor([2.0, 1.0]), torch.tensor([1.0, 3.0])
    push(s, b, *second.tolist())
    ms = 0.95 * 0.05 * first**2 + 0.05 * second**2
    now = torch.tensor([1.0, -2.0]) - LR * first
    corrected = second + 2 / (ms + 1e-7).sqrt() * second**2 * (now - torch.tensor([1.0, -2.0]))
    torch.testing.assert_close(s.weights(), now - LR * corrected)


def test_ssgd_waits_for_all_and_applies_the_mean_once() -> None:
    s = server("ssgd", batches=3)
    a, b = s.pull(0), s.pull(1)
    push(s, a, 1.0, 0.0)
    assert s.weights().tolist() == [1.0, -2.0] and s.pull(0) is None
    push(s, b, 3.0, 2.0)
    assert s.weights().tolist() == [0.0, -2.5] and s.version == 1
    c = s.pull(1)
    assert s.pull(0) is None, "the third of three batches is the other worker's"
    assert not s.finished
    push(s, c, 0.0, 1.0)
    assert s.weights().tolist() == [0.0, -3.0] and s.finished and s.version == 2


def test_sgd_rates_follow_the_schedule_of_the_gradients() -> None:
    config = TrainConfig(epochs=2, lr=1.0, momentum=0.0, weight_decay=0.0, schedule="multistep", milestones=(1,))
    s = Server(torch.zeros(1), torch.empty(0), config, AsyncConfig(algorithm="asgd", workers=2), [2])
    steps = []
    for _ in range(4):
        before = s.weights()
        pulled = s.pull(0)
        s.state(State(pulled.lease, 1.0, 0, 1, torch.empty(0), 0.0, 0.0))
        s.gradient(pulled.lease, torch.ones(1))
        steps.append(round((before - s.weights()).item(), 6))
    assert steps == [1.0, 1.0, 0.1, 0.1] and s.finished and s.pull(0) is None


def test_a_gradient_counts_once_and_one_of_a_worker_given_up_never() -> None:
    s = server("asgd", batches=2)
    a = s.pull(0)
    assert push(s, a, 1.0, 1.0)
    assert not s.gradient(a.lease, torch.ones(2)) and s.ledger.refused == 1
    lost = s.pull(1)
    s.give_up(1)
    assert not push(s, lost, 1.0, 1.0) and s.ledger.done == 1
    again = s.pull(0)
    assert again.lease.ticket == lost.lease.ticket and again.lease != lost.lease
    assert push(s, again, 0.0, 0.0) and s.finished


def test_a_loss_that_is_not_finite_names_worker_and_rate() -> None:
    s = server("asgd")
    with pytest.raises(RunError, match=r"the loss of worker 1 is nan after 0 updates, learning rate 0.5; train with a lower"):
        s.state(report(s.pull(1).lease, math.nan))


def test_steps_between_two_states_of_a_worker_are_counted_and_summed_losses_predicted() -> None:
    """With the networks off: k is the last count, each predicted loss the last one."""
    s = server("lc-asgd", batches=20, workers=3, predictor="last")
    forecasts = []
    for worker, loss in [(0, 1.0), (1, 2.0), (2, 3.0), (0, 4.0), (0, 5.0), (1, 6.0)]:
        pulled = s.pull(worker)
        forecasts.append(tuple(s.state(report(pulled.lease, loss))))
        s.gradient(pulled.lease, torch.zeros(2))
    assert forecasts == [(0, 0, 0), (0, 0, 0), (0, 0, 0), (8.0, 2, 0), (0, 0, 0), (18.0, 3, 0)]


def test_a_saved_server_goes_on_as_if_it_had_not_stopped() -> None:
    def feed(s: Server, start: int, stop: int) -> list[Forecast]:
        answers = []
        for i in range(start, stop):
            pulled = s.pull(i % 3)
            answers.append(s.state(report(pulled.lease, 1 + math.sin(i))))
            s.gradient(pulled.lease, torch.tensor([math.cos(i), 0.1]))
        return answers

    settings = {"batches": 200, "workers": 3, "window": 4}
    whole = server("lc-asgd", **settings)  # type: ignore[arg-type]
    feed(whole, 0, 120)
    half = server("lc-asgd", **settings)  # type: ignore[arg-type]
    half.load_state_dict(whole.state_dict())
    half.load_state_dict(torch.load(_saved(whole.state_dict()), weights_only=True))
    assert feed(whole, 120, 150) == feed(half, 120, 150)
    assert torch.equal(whole.weights(), half.weights())
    assert torch.equal(whole.batchnorm.running("last-worker"), half.batchnorm.running("last-worker"))


def _saved(state: object) -> object:
    import io

    stream = io.BytesIO()
    torch.save(state, stream)
    stream.seek(0)
    return stream


def test_rules_on_numbers() -> None:
    g, w, bak = torch.tensor([2.0, -1.0]), torch.tensor([1.0, 1.0]), torch.tensor([0.5, 3.0])
    assert delay_compensated(g, w, bak, 0.5).tolist() == [2 + 0.5 * 4 * 0.5, -1 + 0.5 * 1 * -2]
    assert delay_compensated(g, w, w, 9.0).tolist() == g.tolist()
    ms = mean_square(torch.tensor([1.0]), torch.tensor([2.0]))
    assert ms.item() == pytest.approx(0.95 + 0.05 * 4) and adaptive_lambda(2.0, ms).item() == pytest.approx(2 / (1.15 + 1e-7) ** 0.5)


def test_compensation_modes() -> None:
    forecast = Forecast(delay=6.0, steps=4, slope=1.5)
    assert compensation("literal", 0.5, 2.0, forecast, 10) == Compensation(1.0, 3.0)
    assert compensation("ratio", 0.5, 2.0, forecast, 10) == Compensation(2.5, 0.0)
    assert compensation("chain", 0.5, 2.0, forecast, 10) == Compensation(1.75, 0.0)
    assert compensation("normalised", 0.5, 2.0, forecast, 10).scale == pytest.approx(2.5 / 3)
    assert compensation("damped", 0.5, 2.0, forecast, 10) == Compensation(1 / 2.5, 0.0)
    assert compensation("ratio", 0.5, 2.0, Forecast(), 10) == Compensation(1.0, 0.0)
    assert compensation("ratio", 1.0, 0.0, forecast, 10).scale == 10
    assert compensation("chain", 1.0, 1.0, Forecast(1.0, 1, -5.0), 10).scale == 0


def test_batchnorm_policies() -> None:
    running = RunningStatistics(torch.tensor([0.0, 1.0]), 0.1)
    for worker, mean, variance in [(0, 1.0, 3.0), (1, 2.0, 5.0), (0, -1.0, 1.0)]:
        running.observe(worker, torch.tensor([mean, variance]))

    def average(values: list[float], start: float) -> float:
        for value in values:
            start = 0.9 * start + 0.1 * value
        return start

    torch.testing.assert_close(running.running("async"), torch.tensor([average([1, 2, -1], 0), average([3, 5, 1], 1)]))
    torch.testing.assert_close(running.running("last-worker"), torch.tensor([average([1, -1], 0), average([3, 1], 1)]))
    assert running.running("last-batch").tolist() == [-1.0, 1.0]


@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from(["work", "die", "repeat"])), max_size=60), st.booleans())
def test_every_ticket_is_done_exactly_once_whatever_dies(events: list[tuple[int, str]], sharded: bool) -> None:
    ledger = Ledger(12, [2, 1, 1] if sharded else [4])
    done = []

    def work(worker: int) -> None:
        lease = ledger.leases.get(worker) or ledger.issue(worker)
        if lease is not None and ledger.complete(lease):
            done.append(lease.ticket)
            refused = ledger.refused
            assert not ledger.complete(lease) and ledger.refused == refused + 1

    for worker, event in events:
        if event == "die":
            ledger.issue(worker)
            ledger.give_up(worker)
        elif event == "repeat":
            ledger.load_state_dict(ledger.state_dict())
        else:
            work(worker)
    while not ledger.finished:
        for worker in range(3):
            work(worker)
    assert len(done) == len(set(done)) == ledger.done == 12
    if not sharded:
        assert sorted(ticket.position for ticket in done) == list(range(12))
        assert sorted((ticket.epoch, ticket.batch) for ticket in done) == [(e, b) for e in range(3) for b in range(4)]


def test_an_empty_shard_is_refused() -> None:
    with pytest.raises(RunError, match="the shard of worker 1 has no batch"):
        Ledger(4, [2, 0])
