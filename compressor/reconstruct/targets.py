"""What layers should answer: outputs of the dense network, at some positions where there are very many.

Targets do not depend on what is refitted, so that one pass collects those of as many layers as the memory holds.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from fineprune.calibrate.calls import Call, acting
from fineprune.calibrate.moments import positions_taken

from .gram import outputs_at
from .layers import Output, Shared
from .passes import Tap, forward, stop
from .stream import Stream

Target = tuple[Tensor, Tensor]
"""Positions int64 [Q] of a call's output, and Y [groups, F/groups, N*Q] there."""


class Targets:
    """Of the layers `order` of `dense`. columns: samples of a layer's inputs for each weight of a filter; memory: bytes to keep."""

    def __init__(self, dense: nn.Module, order: Sequence[Shared], stream: Stream, columns: int, memory: float) -> None:
        self._dense, self._order, self._stream, self._columns, self._memory = dense, order, stream, columns, memory
        self._found: dict[int, dict[int, list[Target]]] = {}

    def of(self, place: int) -> dict[int, list[Target]]:
        """Of the layer at `place` of the order: by number of the batch, one for each of its calls in a pass."""
        if place not in self._found:
            self._found = {number: {} for number in self._that_fit(place)}
            self._collect()
        return self._found[place]

    def _that_fit(self, first: int) -> list[int]:
        """The layer at `first`, and as many after it as the memory holds too."""
        sizes = [self._bytes(shared) for shared in self._order[first:]]
        fit = int(np.searchsorted(np.cumsum(sizes), self._memory, side="right"))
        return list(range(first, first + max(1, fit)))

    def _bytes(self, shared: Shared) -> int:
        maps = ((y, y.places * self._taken(shared, y) // y.positions) for y in shared.outputs)
        return sum(4 * y.filters * self._stream.images * taken for y, taken in maps)

    def _taken(self, shared: Shared, y: Output) -> int:
        """How many positions are taken of each map: all, or what gives the columns that are asked for."""
        taken = positions_taken(y.places, self._stream.images, shared.inputs, self._columns)
        return -(-y.positions * taken // y.places)

    def _collect(self) -> None:
        taps = [
            Tap(self._dense.get_submodule(name), partial(self._see, place)) for place in self._found for name in self._order[place].names
        ]
        for number, images in self._stream:
            self._images = len(images)
            self._number, self._missing = number, sum(len(self._order[place].outputs) for place in self._found)
            for of_layer in self._found.values():
                of_layer[number] = []
            with acting(taps):
                forward(self._dense, images)

    def _see(self, place: int, call: Call) -> Tensor:
        y, calls = call.output(), self._found[place][self._number]
        positions = y.shape[2] * y.shape[3]
        count = self._taken(self._order[place], Output.of(y, self._images))
        at = torch.arange(positions)
        if count < positions:
            random = np.random.default_rng([self._stream.seed, place, self._number, len(calls)])
            at = torch.from_numpy(np.sort(random.choice(positions, count, replace=False)))
        at = at.to(y.device)
        calls.append((at, outputs_at(y, at, call.conv.groups)))
        self._missing -= 1
        if not self._missing:
            stop()
        return y
