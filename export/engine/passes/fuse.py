"""Passes over a list of layers that leave fewer of them.

y = f(x),          z = clip(y, l, h)   ->  z = clip(f(x), l, h)                 where only the clip reads y
y = conv(x),       z = y + r           ->  z = conv(x) + r                      where only the sum reads y
s = sigmoid(x),    z = x * s           ->  z = silu(x)                          where only the product reads s
clip(clip(v, a, b), l, h)              =   clip(v, clip(a, l, h), clip(b, l, h))
y = x[s::t],       z = y[u::v]         ->  z = x[s + u*t :: t*v]                where only the second slice (or other pieces) reads y
y = concat(a, b),  z = shuffle(y)      ->  z = pieces of a and of b             where only the shuffle (or other pieces) reads y
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from ..ir.network import Box, Layer, Piece
from ..ops.assemble import Assemble
from ..ops.conv import Conv
from ..ops.maps import Map

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
    """Pieces of what was put together become pieces of what that was made of."""
    inputs: list[str] = []
    pieces: list[Piece] = []
    for number, (name, source) in enumerate(zip(layer.inputs, sources, strict=True)):
        readers = [piece for piece in layer.pieces if piece.source == number]
        inner = [_maker(source, piece) for piece in readers] if isinstance(source, Assemble) else [None]
        for k, piece in enumerate(readers):
            found = inner[k] if None not in inner else None
            origin = source.inputs[found.source] if found and source else name
            inputs += [origin] if origin not in inputs else []
            pieces.append(replace(_compose(found, piece) if found else piece, source=inputs.index(origin)))
    return replace(layer, inputs=tuple(inputs), pieces=tuple(pieces)) if inputs != list(layer.inputs) else layer


def _maker(source: Assemble, outer: Piece) -> Piece | None:
    """The piece that made all that `outer` reads, without gaps; what no piece made is zero."""

    def within(inner: Piece) -> bool:
        ends = (first + step * (count - 1) for first, step, count in zip(outer.start, outer.step, outer.size, strict=True))
        spans = zip(outer.start, ends, inner.to, inner.size, strict=True)
        return inner.to_step == (1, 1, 1) and all(to <= first and end < to + size for first, end, to, size in spans)

    return next(filter(within, source.pieces), None)


def _compose(inner: Piece, outer: Piece) -> Piece:
    def axes(values: list[int]) -> Box:
        return values[0], values[1], values[2]

    places = zip(inner.start, inner.step, outer.start, inner.to, strict=True)
    start = axes([first + step * (offset - to) for first, step, offset, to in places])
    return replace(outer, start=start, step=axes([a * b for a, b in zip(inner.step, outer.step, strict=True)]))


def _silu(sources: list[Layer | None], layer: Map) -> Layer:
    for source, x in zip(sources, reversed(layer.inputs), strict=True):
        if isinstance(source, Map) and source.function == "sigmoid" and source.inputs == (x,) and (source.low, source.high) == _FREE:
            return replace(layer, inputs=(x,), function="silu")
    return layer
