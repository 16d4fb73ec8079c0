"""A small LSTM that learns from a stream: two layers and a linear read-out of the last one, torch's network in kernels of its own."""

import math
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

_LEARNING_RATE = 1e-3
_MAX_GRADIENT = 5.0
_LESSON = 8
"""Sequences of a lesson at most: what the server spends on many workers grows less than they do."""
_SETTLED = 1e-4
"""Largest change of a hidden unit, in [-1,1], in a step that changes nothing any more."""

Array = NDArray[np.float32]


class OnlineLSTM:
    """[L,inputs] -> the next value. `lessons` counts how often it learned."""

    def __init__(self, inputs: int, hidden: int, seed: int) -> None:
        self._weights = _initial_weights(inputs, hidden, seed)
        self._parts = split(self._weights, inputs, hidden)
        self._gradient = np.zeros_like(self._weights)
        self._gradient_parts = split(self._gradient, inputs, hidden)
        self._moments = np.zeros((2, self._weights.size), np.float32)
        self.lessons = 0

    def learn(self, x_NLI: Array, y_NL: Array) -> float:
        """One step of Adam on the squared error of the value after each prefix; that error before the step.

        Of more than `_LESSON` sequences every second, third, ... counts, other ones each time.
        """
        stride = -(-len(x_NLI) // _LESSON)
        chosen = slice(self.lessons % stride, None, stride)
        x, y = np.array(x_NLI[chosen].swapaxes(0, 1), order="C"), np.array(y_NL[chosen].T, order="C")
        loss = _kernels().gradient(x, y, self._parts, self._gradient_parts)
        self.lessons += 1
        _kernels().adam(self._weights, self._moments, self._gradient, self.lessons, _LEARNING_RATE, _MAX_GRADIENT)
        return float(loss)

    def predict(self, x_LI: Array) -> float:
        """The value after the sequence."""
        return float(_kernels().rollout(x_LI, 1, _SETTLED, self._parts)[0])

    def rollout(self, x_L1: Array, steps: int) -> list[float]:
        """`steps` (at least 1) values after a sequence of single numbers, each fed back as input of the next.

        Fed with its own outputs a network soon settles; from there on the value is repeated, so long rollouts cost no more than short ones.
        """
        values: list[float] = _kernels().rollout(x_L1, steps, _SETTLED, self._parts).tolist()
        return values

    def slope(self, x_L1: Array, steps: int) -> float:
        """Derivative of the sum of `rollout` by the last number of the sequence."""
        parts = [torch.from_numpy(part) for part in self._parts]
        hidden = len(parts[8])
        states = [(torch.zeros(hidden), torch.zeros(hidden))] * 2
        with torch.enable_grad():
            last = torch.tensor(x_L1[-1], requires_grad=True)
            values: list[Tensor] = []
            for t in range(len(x_L1) + steps - 1):
                x = torch.from_numpy(x_L1[t]) if t < len(x_L1) - 1 else values[-1] if t >= len(x_L1) else last
                for layer in range(2):
                    states[layer] = _cell(x, *states[layer], *parts[4 * layer : 4 * layer + 4])
                    x = states[layer][0]
                values.append((x @ parts[8] + parts[9]).view(1))
            (slope,) = torch.autograd.grad(torch.cat(values[len(x_L1) - 1 :]).sum(), last)
        return float(slope)

    def state_dict(self) -> dict[str, Any]:
        """Weights, Adam's moments and the count of lessons."""
        return {"weights": torch.tensor(self._weights), "moments": torch.tensor(self._moments), "lessons": self.lessons}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self._weights[:] = state["weights"].numpy()
        self._moments[:] = state["moments"].numpy()
        self.lessons = state["lessons"]


def compile_kernels() -> None:
    """Once on a machine for about ten seconds, later loaded: before there is somebody who waits for an answer."""
    network, x_NLI = OnlineLSTM(1, 1, 0), np.zeros((1, 1, 1), np.float32)
    network.learn(x_NLI, x_NLI[:, :, 0])
    network.rollout(x_NLI[0], 2)


def split(weights: Array, inputs: int, hidden: int) -> tuple[Array, ...]:
    """Views of a vector's parts, in this order: W_in [I,4H], W_h [H,4H] and torch's two biases of both layers, then the read-out's two."""
    gates = 4 * hidden
    first, second = ([(size, gates), (hidden, gates), (gates,), (gates,)] for size in (inputs, hidden))
    shapes = [*first, *second, (hidden,), (1,)]
    ends = np.cumsum([math.prod(shape) for shape in shapes])[:-1]
    return tuple(part.reshape(shape) for part, shape in zip(np.split(weights, ends), shapes, strict=True))


@cache
def _kernels() -> Any:
    """Imported where something is predicted: Numba takes its time."""
    from . import lstm_kernels

    return lstm_kernels


def _initial_weights(inputs: int, hidden: int, seed: int) -> Array:
    """Torch's own, in the order of `split`."""
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        lstm, output = nn.LSTM(inputs, hidden, num_layers=2), nn.Linear(hidden, 1)
    return torch.cat([value.detach().t().reshape(-1) for value in (*lstm.parameters(), *output.parameters())]).numpy()


def _cell(x: Tensor, h: Tensor, c: Tensor, w_in: Tensor, w_h: Tensor, b_in: Tensor, b_h: Tensor) -> tuple[Tensor, Tensor]:
    i, f, g, o = (x @ w_in + h @ w_h + b_in + b_h).chunk(4)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c
