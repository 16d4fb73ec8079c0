"""LC-ASGD's predictors (Algorithms 5 and 6): two LSTM layers and a linear one each, trained while the training goes on.

StepPredictor   (step_m, t_comm, t_comp) of worker m's last L iterations -> step_m of the next one
                step_m: how many states of other workers arrived between m's last two; hidden size 128, one network for all workers
LossPredictor   the last L losses in the order of arrival -> the next one; hidden size 64; k predictions, each fed back, are summed

Both learn by Adam (1e-3) on squared errors of normalised values, once every `train_every` arrivals from all of these (of many: from a
share of them) at once: that bounds what they cost where many workers report. Until they have learned `_LEAST_LESSONS` times (and with
`last`), the last value stands in for the prediction.
"""

from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

from ..device import derive_seed
from .lstm import Array, OnlineNetwork, TorchLSTM

Network = Callable[[int, int, int], OnlineNetwork]
"""Makes one from inputs, hidden units and a seed."""

_LEAST_LESSONS = 20
_LOSS_MEMORY = 0.98
"""Decay of the moving mean and variance that losses are normalised with: about fifty arrivals."""


class StepPredictor:
    """How many states of other workers will arrive before the gradient of a worker does."""

    HIDDEN, INPUTS = 128, 3

    def __init__(
        self, workers: int, window: int, train_every: int, limit: int, seed: int, *, learns: bool = True, network: Network = TorchLSTM
    ) -> None:
        self.workers, self.window, self.train_every, self.limit, self.learns = workers, window, train_every, limit, learns
        self.network = network(self.INPUTS, self.HIDDEN, derive_seed(seed, "step predictor"))
        self._history: dict[int, deque[tuple[float, float, float]]] = {}
        self._waiting: list[int] = []
        """Workers that reported since the last lesson."""
        self._means = [0.0, 0.0]
        """Of t_comm and t_comp, over all reports."""
        self._reports = 0

    def observe(self, worker: int, steps: int, t_comm: float, t_comp: float) -> None:
        """Worker's newest iteration: its step count and its times (seconds). Learns when it is due."""
        self._reports += 1
        for i, value in enumerate((t_comm, t_comp)):
            self._means[i] += (value - self._means[i]) / self._reports
        history = self._history.setdefault(worker, deque(maxlen=self.window + self.train_every + 1))
        history.append((steps, t_comm, t_comp))
        if not self.learns:
            return
        self._waiting.append(worker)
        if len(self._waiting) >= self.train_every:
            self._learn()

    def predict(self, worker: int) -> int:
        """k of the newest report of `worker`, in [0, limit]."""
        history = self._history[worker]
        if self.network.lessons < _LEAST_LESSONS:
            return min(int(history[-1][0]), self.limit)
        value = self.network.predict(self._inputs(list(history)[-self.window :]))
        return min(max(round(value * self._scale), 0), self.limit)

    @property
    def _scale(self) -> float:
        return max(1, self.workers - 1)

    def _learn(self) -> None:
        """From the sequence before each waiting report to the report itself."""
        counts = dict.fromkeys(self._waiting, 0)
        inputs, targets = [], []
        for worker in reversed(self._waiting):
            history = list(self._history[worker])
            end = len(history) - counts[worker]
            counts[worker] += 1
            if end > self.window:
                inputs.append(self._inputs(history[end - 1 - self.window : end - 1]))
                targets.append([steps / self._scale for steps, _, _ in history[end - self.window : end]])
        self._waiting = []
        if inputs:
            self.network.learn(np.stack(inputs), np.array(targets, np.float32))

    def _inputs(self, history: list[tuple[float, float, float]]) -> Array:
        """float32 [L,3]: steps per other worker, times against their means."""
        scales = np.array([self._scale, *(max(mean, 1e-9) for mean in self._means)], np.float32)
        return np.array(history, np.float32) / scales - np.array([0.0, 1.0, 1.0], np.float32)

    def state_dict(self) -> dict[str, Any]:
        """What `observe` changed."""
        history = {worker: list(values) for worker, values in self._history.items()}
        rest = {"waiting": list(self._waiting), "means": list(self._means), "reports": self._reports}
        return {"network": self.network.state_dict(), "history": history, **rest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.network.load_state_dict(state["network"])
        length = self.window + self.train_every + 1
        self._history = {worker: deque(map(tuple, values), maxlen=length) for worker, values in state["history"].items()}
        self._waiting, self._means, self._reports = list(state["waiting"]), list(state["means"]), state["reports"]


class LossPredictor:
    """What losses will arrive next, as one series over all workers."""

    HIDDEN = 64

    def __init__(self, window: int, train_every: int, seed: int, *, learns: bool = True, network: Network = TorchLSTM) -> None:
        self.window, self.train_every, self.learns = window, train_every, learns
        self.network = network(1, self.HIDDEN, derive_seed(seed, "loss predictor"))
        self._series: deque[float] = deque(maxlen=window + train_every)
        self._arrivals = 0
        self._mean = self._variance = 0.0

    def observe(self, loss: float) -> None:
        """The newest arrival, in nats. Learns when it is due."""
        self._series.append(loss)
        self._arrivals += 1
        share = max(1 - _LOSS_MEMORY, 1 / self._arrivals)
        difference = loss - self._mean
        self._mean += share * difference
        self._variance = (1 - share) * (self._variance + share * difference * difference)
        if self.learns and self._arrivals % self.train_every == 0 and len(self._series) == self.window + self.train_every:
            windows = np.lib.stride_tricks.sliding_window_view(self._normalised(), self.window + 1)
            self.network.learn(windows[:, :-1, None], windows[:, 1:])

    def forecast(self, steps: int) -> list[float]:
        """The next `steps` arrivals, in nats, none below 0."""
        if steps == 0:
            return []
        if self.network.lessons < _LEAST_LESSONS:
            return [self._series[-1]] * steps
        values = self.network.rollout(self._normalised()[-self.window :, None], steps)
        return [max(0.0, self._mean + value * self._deviation) for value in values]

    def slope(self, steps: int) -> float:
        """d (sum of the next `steps` predictions) / d (the newest loss), through the network and every prediction fed back."""
        if steps == 0 or self.network.lessons < _LEAST_LESSONS:
            return float(steps)  # of the stand-in, the last value `steps` times
        return self.network.slope(self._normalised()[-self.window :, None], steps)

    @property
    def _deviation(self) -> float:
        return max(self._variance**0.5, 1e-3 * (1e-3 + abs(self._mean)))

    def _normalised(self) -> Array:
        return (np.array(self._series, np.float32) - np.float32(self._mean)) / np.float32(self._deviation)

    def state_dict(self) -> dict[str, Any]:
        """What `observe` changed."""
        rest = {"arrivals": self._arrivals, "mean": self._mean, "variance": self._variance}
        return {"network": self.network.state_dict(), "series": list(self._series), **rest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.network.load_state_dict(state["network"])
        self._series = deque(state["series"], maxlen=self.window + self.train_every)
        self._arrivals, self._mean, self._variance = state["arrivals"], state["mean"], state["variance"]
