"""The online LSTMs: their arithmetic against torch's, what they learn, what they cost."""

import math

import pytest
import torch

from fineprune.models.training.distributed.lstm import OnlineLSTM
from fineprune.models.training.distributed.predictors import LossPredictor, StepPredictor


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_rollout_is_the_network_on_its_own_outputs(steps: int) -> None:
    network = OnlineLSTM(1, 5, seed=3)
    x = torch.randn(4, 1, generator=torch.Generator().manual_seed(0))
    values = network.rollout(x, steps)
    fed = x
    with torch.no_grad():
        for value in values:
            expected, _ = network._network(fed[None])
            assert value == pytest.approx(expected[0, -1].item(), abs=1e-5)
            fed = torch.cat([fed, expected[:, -1:]])
    assert len(values) == steps


def test_a_long_rollout_stops_where_it_settles_and_sums_to_the_same() -> None:
    network = OnlineLSTM(1, 8, seed=5)
    x = torch.randn(6, 1, generator=torch.Generator().manual_seed(1))
    values, fed = network.rollout(x, 60), x
    with torch.no_grad():
        for _ in range(60):
            fed = torch.cat([fed, network._network(fed[None])[0][:, -1:]])
    assert len(values) == 60 and values[-1] == values[-20], "it has settled"
    assert sum(values) == pytest.approx(fed[6:].sum().item(), rel=1e-3)


def test_slope_is_the_derivative_of_the_summed_rollout() -> None:
    network = OnlineLSTM(1, 6, seed=1)
    x = torch.randn(5, 1, generator=torch.Generator().manual_seed(2))
    up, down = x.clone(), x.clone()
    up[-1] += 1e-2
    down[-1] -= 1e-2
    numeric = (sum(network.rollout(up, 4)) - sum(network.rollout(down, 4))) / 2e-2
    assert network.slope(x, 4) == pytest.approx(numeric, rel=1e-2)


def test_equal_seeds_make_equal_networks_and_the_callers_random_state_stays() -> None:
    before = torch.get_rng_state()
    x = torch.ones(3, 1)
    assert OnlineLSTM(1, 4, 7).rollout(x, 2) == OnlineLSTM(1, 4, 7).rollout(x, 2) != OnlineLSTM(1, 4, 8).rollout(x, 2)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_loss_predictor_learns_a_falling_wave_better_than_the_last_value() -> None:
    predictor = LossPredictor(window=6, train_every=2, seed=0)
    errors, last_errors, before = [], [], 0.0
    for t in range(700):
        loss = 2 * math.exp(-t / 400) + 0.3 * math.sin(t * math.pi / 3)
        if t > 500:
            errors.append(abs(predictor.forecast(1)[0] - loss))
            last_errors.append(abs(before - loss))
        predictor.observe(loss)
        before = loss
    assert sum(errors) < 0.35 * sum(last_errors)


def test_forecasts_have_exactly_k_values_and_none_below_zero() -> None:
    predictor = LossPredictor(window=3, train_every=1, seed=0)
    for t in range(40):
        predictor.observe(0.01 * (t % 2))
    assert [len(predictor.forecast(k)) for k in (0, 1, 5)] == [0, 1, 5]
    assert min(predictor.forecast(20)) >= 0 and predictor.slope(0) == 0


def test_before_it_has_learned_the_last_value_stands_in() -> None:
    predictor = LossPredictor(window=3, train_every=1, seed=0)
    predictor.observe(2.5)
    assert predictor.forecast(3) == [2.5, 2.5, 2.5] and predictor.slope(3) == 3
    steps = StepPredictor(4, window=3, train_every=1, limit=6, seed=0)
    steps.observe(1, 9, 0.1, 1.0)
    assert steps.predict(1) == 6, "clamped"


def test_the_step_predictor_learns_which_worker_is_slow() -> None:
    """A fast worker counts 1 step, a slow one 7; their compute times tell them apart."""
    predictor = StepPredictor(5, window=4, train_every=2, limit=20, seed=0)
    for _ in range(120):
        predictor.observe(0, 1, 0.1, 1.0)
        predictor.observe(1, 7, 0.1, 4.0)
    assert (predictor.predict(0), predictor.predict(1)) == (1, 7)


@pytest.mark.parametrize("every", [1, 4])
def test_it_learns_once_in_so_many_arrivals(every: int) -> None:
    losses, steps = LossPredictor(3, every, 0), StepPredictor(2, 3, every, 9, 0)
    for t in range(41):
        losses.observe(1.0 + t % 3)
        steps.observe(t % 2, 1, 0.1, 1.0)
    assert losses.network.lessons == {1: 38, 4: 9}[every]
    assert steps.network.lessons == {1: 35, 4: 9}[every]


def test_switched_off_it_never_learns() -> None:
    losses, steps = LossPredictor(3, 1, 0, learns=False), StepPredictor(2, 3, 1, 9, 0, learns=False)
    for t in range(60):
        losses.observe(float(t))
        steps.observe(0, t, 0.1, 1.0)
    assert losses.network.lessons == steps.network.lessons == 0
    assert losses.forecast(2) == [59.0, 59.0] and steps.predict(0) == 9
