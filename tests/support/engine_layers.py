"""Layers of the engine, small ones of one size, to put networks together."""

import numpy as np

from fineprune.export.engine.ir.conv import ConvShape
from fineprune.export.engine.ops.conv import Conv
from fineprune.export.engine.ops.maps import Map

BOX = (4, 6, 5)


def conv(name: str, *inputs: str, output: str | None = None, low: float = -np.inf) -> Conv:
    weights = np.random.default_rng(len(name)).standard_normal((4, 4, 3, 3), np.float32)
    shape = ConvShape(channels=4, filters=4, height=6, width=5, kernel=(3, 3), pads=(1, 1, 1, 1))
    return Conv(name=name, inputs=inputs, output=output or name, shape=shape, weights=weights, bias=np.ones(4, np.float32), low=low)


def relu(source: str, output: str, low: float = 0.0, high: float = np.inf) -> Map:
    return Map(name=output, inputs=(source,), output=output, function="identity", low=low, high=high)


def add(first: str, second: str, output: str) -> Map:
    return Map(name=output, inputs=(first, second), output=output, function="add")


def mapped(function: str, output: str, *inputs: str, low: float = -np.inf) -> Map:
    return Map(name=output, inputs=inputs, output=output, function=function, low=low)
