"""The online LSTMs: their arithmetic against a plain loop of torch's, and what the predictors learn by them."""

import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fineprune.models.training.distributed import lstm_kernels
from fineprune.models.training.distributed.compiled_lstm import CompiledLSTM
from fineprune.models.training.distributed.lstm import LESSON, Array, OnlineNetwork, TorchLSTM
from fineprune.models.training.distributed.predictors import LossPredictor, StepPredictor


class Reference(nn.Module):
    """Torch's network with the same initial weights, and torch's Adam."""

    def __init__(self, inputs: int, hidden: int, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.lstm, self.output = nn.LSTM(inputs, hidden, num_layers=2, batch_first=True), nn.Linear(hidden, 1)
        self.optimizer = torch.optim.Adam(self.parameters(), lr=1e-3)

    def forward(self, x_NLI: Tensor) -> Tensor:
        values: Tensor = self.output(self.lstm(x_NLI)[0]).squeeze(-1)
        return values

    def learn(self, x_NLI: Array, y_NL: Array) -> float:
        self.optimizer.zero_grad()
        loss = (self(torch.tensor(x_NLI)) - torch.tensor(y_NL)).square().mean()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters(), 5.0)
        self.optimizer.step()
        return loss.item()

    def rollout(self, x_L1: Array, steps: int) -> list[float]:
        fed = torch.tensor(x_L1)
        with torch.no_grad():
            for _ in range(steps):
                fed = torch.cat([fed, self(fed[None])[0, -1:, None]])
        values: list[float] = fed[len(x_L1) :, 0].tolist()
        return values


def random(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


NETWORKS = pytest.mark.parametrize("network", [TorchLSTM, CompiledLSTM])


@NETWORKS
@given(
    inputs=st.integers(1, 3),
    hidden=st.sampled_from([1, 3, 5, 8, 18]),
    count=st.integers(1, 5),
    length=st.integers(1, 7),
    seed=st.integers(0, 99),
)
@settings(max_examples=30, deadline=None)
def test_lessons_and_predictions_are_torchs(
    network: type[OnlineNetwork], inputs: int, hidden: int, count: int, length: int, seed: int
) -> None:
    ours, reference = network(inputs, hidden, seed), Reference(inputs, hidden, seed)
    for lesson in range(4):
        x, y = random(seed + lesson, count, length, inputs), random(seed + 50 + lesson, count, length)
        y *= 100 if lesson == 2 else 1  # its gradient is clipped
        assert ours.learn(x, y) == pytest.approx(reference.learn(x, y), rel=1e-4)
    x = random(seed, length, inputs)
    assert ours.predict(x) == pytest.approx(reference(torch.tensor(x)[None])[0, -1].item(), abs=1e-5)


@NETWORKS
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_rollout_is_the_network_on_its_own_outputs(network: type[OnlineNetwork], steps: int) -> None:
    x = random(0, 4, 1)
    assert network(1, 5, seed=3).rollout(x, steps) == pytest.approx(Reference(1, 5, 3).rollout(x, steps), abs=1e-5)


@NETWORKS
def test_a_long_rollout_stops_where_it_settles_and_sums_to_the_same(network: type[OnlineNetwork]) -> None:
    x = random(1, 6, 1)
    values = network(1, 8, seed=5).rollout(x, 60)
    assert len(values) == 60 and values[-1] == values[-20], "it has settled"
    assert sum(values) == pytest.approx(sum(Reference(1, 8, 5).rollout(x, 60)), rel=1e-3)


@NETWORKS
def test_a_large_lesson_takes_every_so_many_sequences_and_others_the_next_time(network: type[OnlineNetwork]) -> None:
    ours, reference = network(1, 4, 0), Reference(1, 4, 0)
    x, y = random(2, 2 * LESSON + 3, 3, 1), random(3, 2 * LESSON + 3, 3)
    for lesson in range(4):
        assert ours.learn(x, y) == pytest.approx(reference.learn(x[lesson % 3 :: 3], y[lesson % 3 :: 3]), rel=1e-4)


@NETWORKS
def test_slope_is_the_derivative_of_the_summed_rollout(network: type[OnlineNetwork]) -> None:
    made = network(1, 6, seed=1)
    x = random(2, 5, 1)
    up, down = x.copy(), x.copy()
    up[-1] += 0.1
    down[-1] -= 0.1
    numeric = (sum(made.rollout(up, 4)) - sum(made.rollout(down, 4))) / 0.2
    assert made.slope(x, 4) == pytest.approx(numeric, rel=1e-2)


@NETWORKS
def test_a_network_goes_on_from_its_state(network: type[OnlineNetwork]) -> None:
    one, other = network(2, 5, 0), network(2, 5, 1)
    x, y = random(0, 3, 4, 2), random(1, 3, 4)
    for _ in range(3):
        one.learn(x, y)
    other.load_state_dict(one.state_dict())
    assert other.lessons == 3 and one.learn(x, y) == other.learn(x, y) and one.predict(x[0]) == other.predict(x[0])


@NETWORKS
def test_equal_seeds_make_equal_networks_and_the_callers_random_state_stays(network: type[OnlineNetwork]) -> None:
    before = torch.get_rng_state()
    x = np.ones((3, 1), np.float32)
    assert network(1, 4, 7).rollout(x, 2) == network(1, 4, 7).rollout(x, 2) != network(1, 4, 8).rollout(x, 2)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("window", "every"), [(1, 1), (3, 1), (4, 20)])
def test_what_was_compiled_before_serves_every_request(window: int, every: int) -> None:
    CompiledLSTM.prepare()
    losses, steps = LossPredictor(window, every, 0, network=CompiledLSTM), StepPredictor(4, window, every, 9, 0, network=CompiledLSTM)
    for t in range(45 * every):
        losses.observe(float(t % 3))
        losses.forecast(2)
        steps.observe(t % 4, t % 5, 0.1, 1.0)
        steps.predict(t % 4)
    assert losses.network.lessons >= 20 <= steps.network.lessons
    for kernel in (lstm_kernels.gradient, lstm_kernels.adam, lstm_kernels.rollout):
        assert len(kernel.signatures) == 1


SMALL_RUN = """
import numpy as np
from fineprune.models.training.distributed.compiled_lstm import CompiledLSTM
network = CompiledLSTM(1, 5, 0)
x = np.sin(np.arange(24, dtype=np.float32)).reshape(2, 12, 1)
values = [network.learn(x, x[:, :, 0]), network.learn(x, x[:, :, 0]), *network.rollout(x[0], 3)]
"""


def test_the_kernels_are_the_same_uncompiled() -> None:
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-W", "error", "-c", SMALL_RUN + "print(*values)"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    compiled: dict[str, list[float]] = {}
    exec(SMALL_RUN, compiled)
    assert [float(value) for value in done.stdout.split()] == pytest.approx(compiled["values"], rel=1e-5)


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
