"""A small LSTM that learns from a stream: two layers and a linear read-out of the last one.

Predictions that are fed back run cell by cell in NumPy on the network's own memory: a step takes a third of torch's time there.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

_LEARNING_RATE = 1e-3
_MAX_GRADIENT = 5.0
_HALF = np.float32(0.5)
_SETTLED = 1e-4
"""Largest change of a hidden unit, in [-1,1], in a step that changes nothing any more."""

Array = NDArray[np.float32]
State = list[tuple[Array, Array]]


class _Network(nn.Module):
    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(inputs, hidden, num_layers=2, batch_first=True)
        self.output = nn.Linear(hidden, 1)

    def forward(self, x_NLI: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        hidden, state = self.lstm(x_NLI, state)
        return self.output(hidden).squeeze(-1), state


class OnlineLSTM:
    """[L,inputs] -> the next value. `lessons` counts how often it learned."""

    def __init__(self, inputs: int, hidden: int, seed: int) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(seed)
            self._network = _Network(inputs, hidden)
        self._optimizer = torch.optim.Adam(self._network.parameters(), lr=_LEARNING_RATE, fused=True)
        self.lessons = 0
        self._cached: tuple[Any, Any, Any] | None = None

    def learn(self, x_NLI: Tensor, y_NL: Tensor) -> float:
        """One step of Adam on the squared error of the value after each prefix; that error before the step."""
        self._optimizer.zero_grad()
        with torch.enable_grad():
            predicted, _ = self._network(x_NLI)
            loss = (predicted - y_NL).square().mean()
            loss.backward()
        nn.utils.clip_grad_norm_(self._network.parameters(), _MAX_GRADIENT)
        self._optimizer.step()
        self.lessons += 1
        self._cached = None
        return loss.item()

    @torch.no_grad()
    def predict(self, x_LI: Tensor) -> tuple[float, State]:
        """The value after the sequence, and the state from which `rollout` goes on."""
        values, (h, c) = self._network(x_LI[None])
        return float(values[0, -1]), [(h[layer, 0].numpy(), c[layer, 0].numpy()) for layer in range(2)]

    def rollout(self, x_L1: Tensor, steps: int) -> list[float]:
        """`steps` (at least 1) values after a sequence of single numbers, each fed back as input of the next.

        Fed with its own outputs a network soon settles; from there on the value is repeated, so long rollouts cost no more than short ones.
        """
        value, state = self.predict(x_L1)
        values = [value]
        (w_in, w_first, b_first), (w_between, w_second, b_second), (w_out, b_out) = self._arrays()
        (h_first, c_first), (h_second, c_second) = state
        for _ in range(steps - 1):
            before = h_first, h_second
            h_first, c_first = _cell(w_in * np.float32(value) + w_first @ h_first + b_first, c_first)
            h_second, c_second = _cell(w_between @ h_first + w_second @ h_second + b_second, c_second)
            value = float(w_out @ h_second) + b_out
            values.append(value)
            if max(np.abs(h_first - before[0]).max(), np.abs(h_second - before[1]).max()) < _SETTLED:
                break
        return values + [value] * (steps - len(values))

    def slope(self, x_L1: Tensor, steps: int) -> float:
        """Derivative of the sum of `rollout` by the last number of the sequence."""
        with torch.enable_grad():
            last = x_L1[-1:].clone().requires_grad_()
            values, state = self._network(torch.cat([x_L1[:-1], last])[None])
            value = total = values[0, -1]
            for _ in range(steps - 1):
                values, state = self._network(value.view(1, 1, 1), state)
                value = values[0, -1]
                total = total + value
            (slope,) = torch.autograd.grad(total, last)
        return float(slope)

    def _arrays(self) -> tuple[Any, Any, Any]:
        """Weights of input (a column: one number) and state and the bias of both layers, and the read-out's; made once a lesson."""
        if self._cached is None:
            named = {name: value.detach().numpy() for name, value in self._network.named_parameters()}
            layers = [
                (named[f"lstm.weight_ih_l{i}"], named[f"lstm.weight_hh_l{i}"], named[f"lstm.bias_ih_l{i}"] + named[f"lstm.bias_hh_l{i}"])
                for i in range(2)
            ]
            first = (layers[0][0][:, 0], *layers[0][1:])
            self._cached = first, layers[1], (named["output.weight"][0], float(named["output.bias"][0]))
        return self._cached

    def state_dict(self) -> dict[str, Any]:
        """Weights, Adam's moments and the count of lessons."""
        return {"network": self._network.state_dict(), "optimizer": self._optimizer.state_dict(), "lessons": self.lessons}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self._network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.lessons = state["lessons"]
        self._cached = None


def _cell(gates: Array, c: Array) -> tuple[Array, Array]:
    """One step of a layer from its summed gates (input, forget, cell, output): new h and c."""
    size = len(c)
    gates[2 * size : 3 * size] *= 2  # sigmoid(x) = (1 + tanh(x/2)) / 2, so one tanh serves all four
    activations = np.tanh(gates * _HALF)
    i, f, o = ((1 + activations[k * size : (k + 1) * size]) * _HALF for k in (0, 1, 3))
    c = f * c + i * activations[2 * size : 3 * size]
    return o * np.tanh(c), c
