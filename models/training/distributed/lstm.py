"""A small LSTM that learns from a stream: two layers and a linear read-out of the last one."""

from copy import deepcopy
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

LEARNING_RATE = 1e-3
"""Of Adam."""
MAX_GRADIENT = 5.0
"""Norm that a lesson's gradient is clipped to."""
LESSON = 8
"""Sequences of a lesson at most: what the server spends on many workers grows less than they do."""
SETTLED = 1e-4
"""Largest change of a hidden unit, in [-1,1], in a step that changes nothing any more."""

Array = NDArray[np.float32]


class OnlineNetwork(Protocol):
    """[L,inputs] -> the next value. `lessons` counts how often it learned."""

    lessons: int

    def __init__(self, inputs: int, hidden: int, seed: int) -> None: ...

    @staticmethod
    def prepare() -> None:
        """What takes long the first time on a machine: before there is somebody who waits for an answer."""
        ...

    def learn(self, x_NLI: Array, y_NL: Array) -> float:
        """One step of Adam on the squared error of the value after each prefix; that error before the step.

        Of more than `LESSON` sequences every second, third, ... counts, other ones each time.
        """
        ...

    def predict(self, x_LI: Array) -> float:
        """The value after the sequence."""
        ...

    def rollout(self, x_L1: Array, steps: int) -> list[float]:
        """`steps` (at least 1) values after a sequence of single numbers, each fed back as input of the next.

        Fed with its own outputs a network soon settles; from there on the value is repeated, so long rollouts cost no more than short ones.
        """
        ...

    def slope(self, x_L1: Array, steps: int) -> float:
        """Derivative of the sum of `rollout` by the last number of the sequence."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Weights, Adam's moments and the count of lessons."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        ...


class TorchLSTM:
    """Torch's own network and optimizer."""

    def __init__(self, inputs: int, hidden: int, seed: int) -> None:
        self._lstm, self._output = initial_network(inputs, hidden, seed)
        self._parameters = [*self._lstm.parameters(), *self._output.parameters()]
        self._optimizer = torch.optim.Adam(self._parameters, lr=LEARNING_RATE)
        self.lessons = 0

    @staticmethod
    def prepare() -> None:
        """Nothing."""

    def learn(self, x_NLI: Array, y_NL: Array) -> float:
        chosen = lesson(self.lessons, len(x_NLI))
        x, y = _tensor(x_NLI[chosen]), _tensor(y_NL[chosen])
        with torch.enable_grad():
            loss = (self._output(self._lstm(x)[0]).squeeze(-1) - y).square().mean()
            self._optimizer.zero_grad()
            loss.backward()
        nn.utils.clip_grad_norm_(self._parameters, MAX_GRADIENT)
        self._optimizer.step()
        self.lessons += 1
        return float(loss.detach())

    def predict(self, x_LI: Array) -> float:
        return self.rollout(x_LI, 1)[0]

    def rollout(self, x_L1: Array, steps: int) -> list[float]:
        with torch.no_grad():
            out, state = self._lstm(_tensor(x_L1)[None])
            values = [self._output(out[:, -1:])]
            while len(values) < steps:
                before = state[0]
                out, state = self._lstm(values[-1], state)
                values.append(self._output(out))
                if bool((state[0] - before).abs().max() < SETTLED):
                    values += [values[-1]] * (steps - len(values))
            numbers: list[float] = torch.cat(values).flatten().tolist()
        return numbers

    def slope(self, x_L1: Array, steps: int) -> float:
        with torch.enable_grad():
            x = _tensor(x_L1)[None]
            last = x[:, -1:].clone().requires_grad_()
            out, state = self._lstm(torch.cat([x[:, :-1], last], dim=1))
            values: list[Tensor] = [self._output(out[:, -1:])]
            for _ in range(steps - 1):
                out, state = self._lstm(values[-1], state)
                values.append(self._output(out))
            (slope,) = torch.autograd.grad(torch.cat(values).sum(), last)
        return float(slope)

    def state_dict(self) -> dict[str, Any]:
        parts = {"lstm": self._lstm.state_dict(), "output": self._output.state_dict(), "optimizer": self._optimizer.state_dict()}
        return {**deepcopy(parts), "lessons": self.lessons}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._lstm.load_state_dict(state["lstm"])
        self._output.load_state_dict(state["output"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.lessons = state["lessons"]


def initial_network(inputs: int, hidden: int, seed: int) -> tuple[nn.LSTM, nn.Linear]:
    """Torch's initial weights from `seed`; the caller's random state stays."""
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        return nn.LSTM(inputs, hidden, num_layers=2, batch_first=True), nn.Linear(hidden, 1)


def lesson(number: int, sequences: int) -> slice:
    """Which of so many sequences lesson `number` takes: all of a few, of more every second, third, ..., other ones each time."""
    stride = -(-sequences // LESSON)
    return slice(number % stride, None, stride)


def _tensor(array: Array) -> Tensor:
    return torch.tensor(np.ascontiguousarray(array))
