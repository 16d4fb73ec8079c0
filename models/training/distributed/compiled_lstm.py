"""The online LSTM in kernels of its own: for networks whose steps are too short for what torch's dispatch costs (docs/results.md)."""

import math
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .lstm import LEARNING_RATE, MAX_GRADIENT, SETTLED, Array, initial_network, lesson


class CompiledLSTM:
    """The network of `TorchLSTM`, within float addition."""

    def __init__(self, inputs: int, hidden: int, seed: int) -> None:
        self._weights = _initial_weights(inputs, hidden, seed)
        self._parts = split(self._weights, inputs, hidden)
        self._gradient = np.zeros_like(self._weights)
        self._gradient_parts = split(self._gradient, inputs, hidden)
        self._moments = np.zeros((2, self._weights.size), np.float32)
        self.lessons = 0

    @staticmethod
    def prepare() -> None:
        """Compile: once on a machine for about ten seconds, later loaded."""
        network, x_NLI = CompiledLSTM(1, 1, 0), np.zeros((1, 1, 1), np.float32)
        network.learn(x_NLI, x_NLI[:, :, 0])
        network.rollout(x_NLI[0], 2)

    def learn(self, x_NLI: Array, y_NL: Array) -> float:
        chosen = lesson(self.lessons, len(x_NLI))
        x, y = np.array(x_NLI[chosen].swapaxes(0, 1), order="C"), np.array(y_NL[chosen].T, order="C")
        loss = _kernels().gradient(x, y, self._parts, self._gradient_parts)
        self.lessons += 1
        _kernels().adam(self._weights, self._moments, self._gradient, self.lessons, LEARNING_RATE, MAX_GRADIENT)
        return float(loss)

    def predict(self, x_LI: Array) -> float:
        return float(_kernels().rollout(x_LI, 1, SETTLED, self._parts)[0])

    def rollout(self, x_L1: Array, steps: int) -> list[float]:
        values: list[float] = _kernels().rollout(x_L1, steps, SETTLED, self._parts).tolist()
        return values

    def slope(self, x_L1: Array, steps: int) -> float:
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
        return {"weights": torch.tensor(self._weights), "moments": torch.tensor(self._moments), "lessons": self.lessons}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._weights[:] = state["weights"].numpy()
        self._moments[:] = state["moments"].numpy()
        self.lessons = state["lessons"]


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
    lstm, output = initial_network(inputs, hidden, seed)
    return torch.cat([value.detach().t().reshape(-1) for value in (*lstm.parameters(), *output.parameters())]).numpy()


def _cell(x: Tensor, h: Tensor, c: Tensor, w_in: Tensor, w_h: Tensor, b_in: Tensor, b_h: Tensor) -> tuple[Tensor, Tensor]:
    i, f, g, o = (x @ w_in + h @ w_h + b_in + b_h).chunk(4)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c
