"""Passes over a list of layers that leave fewer of them.

y = f(x),          z = clip(y, l, h)   ->  z = clip(f(x), l, h)                 where only the clip reads y
y = conv(x),       z = y + r           ->  z = conv(x) + r                      where only the sum reads y
s = sigmoid(x),    z = x * s           ->  z = silu(x)                          where only the product reads s
clip(clip(v, a, b), l, h)              =   clip(v, clip(a, l, h), clip(b, l, h))
y = x[s::t],       z = y[u::v]         ->  z = x[s + u*t :: t*v]                where only the second slice (or other pieces) reads y
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from .network import Assemble, Box, Conv, Layer, Map, Piece

_FREE = (float("-inf"), float("inf"))


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
        elif isinstance(layer, Map) and layer.function == "multiply":
            fused = _silu([private(name) for name in layer.inputs], layer)
        elif isinstance(layer, Assemble):
            fused = _pick([private(name) for name in layer.inputs], layer)
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
    ready = [source for source in sources if isinstance(source, Conv) and len(source.inputs) == 1 and (source.low, source.high) == _FREE]
    if not ready:
        return layer
    conv = max(ready, key=lambda source: order.index(source.output))
    other = layer.inputs[1 - layer.inputs.index(conv.output)]
    return replace(conv, inputs=(conv.inputs[0], other), output=layer.output, low=layer.low, high=layer.high)


def _pick(sources: list[Layer | None], layer: Assemble) -> Layer:
    """Pieces of a slice become pieces of what was sliced."""
    inputs, pieces = list(layer.inputs), list(layer.pieces)
    for number, source in enumerate(sources):
        if isinstance(source, Assemble) and len(source.pieces) == 1:
            inner, readers = source.pieces[0], [piece for piece in pieces if piece.source == number]
            if all(_lies_in(inner, piece) for piece in readers):
                inputs[number] = source.inputs[inner.source]
                pieces = [_compose(inner, piece) if piece in readers else piece for piece in pieces]
    return replace(layer, inputs=tuple(inputs), pieces=tuple(pieces)) if inputs != list(layer.inputs) else layer


def _lies_in(inner: Piece, outer: Piece) -> bool:
    """Whether `outer` reads nothing but what `inner` wrote from (0, 0, 0) on without gaps: what it left is zero."""
    ends = (first + step * (count - 1) for first, step, count in zip(outer.start, outer.step, outer.size, strict=True))
    whole = inner.to == (0, 0, 0) and inner.to_step == (1, 1, 1)
    return whole and all(end < size for end, size in zip(ends, inner.size, strict=True))


def _compose(inner: Piece, outer: Piece) -> Piece:
    def axes(values: list[int]) -> Box:
        return values[0], values[1], values[2]

    start = axes([first + step * offset for first, step, offset in zip(inner.start, inner.step, outer.start, strict=True)])
    return replace(outer, start=start, step=axes([a * b for a, b in zip(inner.step, outer.step, strict=True)]))


def _silu(sources: list[Layer | None], layer: Map) -> Layer:
    for source, x in zip(sources, reversed(layer.inputs), strict=True):
        if isinstance(source, Map) and source.function == "sigmoid" and source.inputs == (x,) and (source.low, source.high) == _FREE:
            return replace(layer, inputs=(x,), function="silu")
    return layer
