"""Passes over a list of layers that leave fewer of them.

y = f(x),          z = clip(y, l, h)   ->  z = clip(f(x), l, h)                 where only the clip reads y
y = conv(x),       z = y + r           ->  z = conv(x) + r                      where only the sum reads y
clip(clip(v, a, b), l, h)              =   clip(v, clip(a, l, h), clip(b, l, h))
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from .network import Conv, Layer, Map


def fuse(layers: Sequence[Layer], kept: set[str]) -> list[Layer]:
    """Fewer layers with the same outputs; tensors in `kept` are read from outside and remain."""
    readers = Counter(name for layer in layers for name in layer.inputs)
    made: dict[str, Layer] = {}

    def private(name: str) -> Layer | None:
        """The layer that makes a tensor which is read once."""
        return made.get(name) if readers[name] == 1 and name not in kept else None

    for layer in layers:
        fused = layer
        if isinstance(layer, Map) and layer.function == "identity":
            fused = _clip(private(layer.inputs[0]), layer)
        elif isinstance(layer, Map) and layer.function == "add":
            fused = _add([private(name) for name in layer.inputs], layer, list(made))
        for name in set(layer.inputs) - set(fused.inputs):
            made.pop(name, None)
        made[layer.output] = fused  # at this place: what the added tensor depends on has been made before
    return list(made.values())


def _clip(source: Layer | None, layer: Map) -> Layer:
    if not isinstance(source, Conv | Map):
        return layer
    low, high = (min(max(bound, layer.low), layer.high) for bound in (source.low, source.high))
    return replace(source, output=layer.output, low=low, high=high)


def _add(sources: list[Layer | None], layer: Map, order: list[str]) -> Layer:
    """Into the later of two convolutions: the other one is needed before it."""
    ready = [
        source
        for source in sources
        if isinstance(source, Conv) and len(source.inputs) == 1 and source.low == float("-inf") and source.high == float("inf")
    ]
    if not ready:
        return layer
    conv = max(ready, key=lambda source: order.index(source.output))
    other = layer.inputs[1 - layer.inputs.index(conv.output)]
    return replace(conv, inputs=(conv.inputs[0], other), output=layer.output, low=layer.low, high=layer.high)
