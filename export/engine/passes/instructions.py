"""Layers and their choices -> instructions: conversions are put in, and it is found out what may lie where."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from fineprune.ops.simd import LANES

from ..ir.conv import Margins, Op, View
from ..ir.dtypes import DType
from ..ir.network import NCHW, Box, Layer, Piece
from ..ops import copies
from ..ops.assemble import put_together
from . import memory
from .layouts import Choice
from .memory import Key


@dataclass(frozen=True, kw_only=True)
class Instruction:
    """Operations without meeting points between them: what they read and write, and what makes them once it is known where all lies."""

    layer: Layer | None
    name: str
    reads: tuple[Key, ...]
    writes: Key | None
    plan: Callable[..., list[Op]]
    choice: Choice


def instructions(
    layers: Sequence[Layer],
    boxes: Mapping[str, Box],
    dtypes: dict[str, DType],
    inputs: Sequence[str],
    outputs: Sequence[str],
    chosen: Sequence[Choice],
) -> "Instructions":
    """Everything from the caller's tensors to the caller's tensors."""
    readers = Counter([name for layer in layers for name in layer.reads] + list(outputs))
    made = Instructions(boxes, dtypes, {layer.output for layer in layers if layer.movable and readers[layer.output] == 1})
    for number, name in enumerate(inputs):
        made.load(name, number, layers, chosen)
    for layer, choice in zip(layers, chosen, strict=True):
        made.add(layer, choice)
    for number, name in enumerate(outputs, start=len(inputs)):
        made.save(name, number)
    return made


class Instructions:
    """The list while it is made: each tensor has one home layout and, where a reader needs it, a copy in the other.

    movable: tensors that are read once, by whom they may be made at any place. within: those that are made as parts of others.
    partial: those that have numbers which nobody writes, or margins of their own. ties: see memory.py.
    """

    def __init__(self, boxes: Mapping[str, Box], dtypes: dict[str, DType], movable: set[str]) -> None:
        self.dtypes = dtypes
        self.list: list[Instruction] = []
        self.margins: dict[Key, Margins] = {}
        self.over: dict[Key, Key] = {}
        self.within: dict[Key, tuple[Key, Piece]] = {}
        self.partial: set[Key] = set()
        self.ties: list[tuple[Key, Key]] = []
        self._movable = movable
        self.boxes = boxes
        self._homes: dict[str, Key] = {}
        self._made: set[Key] = set()

    def load(self, name: str, number: int, layers: Sequence[Layer], chosen: Sequence[Choice]) -> None:
        """The caller's tensor `number`, in the layout that its readers need, or as it comes."""
        needs = [c.needs[k] for layer, c in zip(layers, chosen, strict=True) for k, read in enumerate(layer.inputs) if read == name]
        layout = next((layout for layout in needs if layout), NCHW)
        key, box = self._home(name, layout), self.boxes[name]

        def plan(y: View) -> list[Op]:
            return [copies.plan(memory.outside(box, y.dtype), y, box, copies.IN, number)]

        self._append(None, f"load {name}", (), key, plan, Choice(layout=layout, needs=(), kernel="load"))

    def save(self, name: str, number: int) -> None:
        """To the caller's tensor `number`."""
        key, box = self._homes[name], self.boxes[name]

        def plan(x: View) -> list[Op]:
            return [copies.plan(x, memory.outside(box, x.dtype), box, copies.OUT, number)]

        self._append(None, f"save {name}", (key,), None, plan, Choice(layout=key.layout, needs=(), kernel="save"))

    def add(self, layer: Layer, choice: Choice) -> None:
        """A layer, behind the conversions that it needs."""
        reads = tuple(self._read(name, layout) for name, layout in zip(layer.inputs, choice.needs, strict=True))
        key = self._home(layer.output, choice.layout)
        if reads:
            old = self.margins.get(reads[0], (0, 0, 0, 0))
            top, left, bottom, right = (max(pair) for pair in zip(old, layer.margins, strict=True))
            self.margins[reads[0]] = (top, left, bottom, right)
        if layer.tied:
            self.ties += [(read, key) for read in reads]
        if layer.alone:
            self.partial.add(key)
        if layer.in_place:
            self.over[key] = reads[0]
        if layer.pieces_of_inputs is not None:
            self._assemble(layer, layer.pieces_of_inputs, choice, reads, key)
        else:
            self._append(layer, layer.name, reads, key, partial(layer.plan, choice.kernel), choice)

    def _assemble(self, layer: Layer, pieces: Sequence[Piece], choice: Choice, reads: tuple[Key, ...], key: Key) -> None:
        """What is made where it is to go needs no copy."""
        box = self.boxes[layer.output]
        if sum(math.prod(piece.size) for piece in pieces) < math.prod(box):
            self.partial.add(key)
        else:
            self.within |= {reads[p.source]: (key, p) for p in pieces if self._is_part(reads[p.source], key, p)}
            pieces = [p for p in pieces if reads[p.source] not in self.within]
        numbers = sorted({piece.source for piece in pieces})
        left = [replace(piece, source=numbers.index(piece.source)) for piece in pieces]
        if pieces or key in self.partial:  # else everything is at its place
            self._append(layer, layer.name, tuple(reads[number] for number in numbers), key, partial(put_together, left), choice)

    def _is_part(self, source: Key, target: Key, piece: Piece) -> bool:
        """Whether a tensor can be made where it is to go; channels that lie together have to be whole vectors."""
        plain = piece.start == (0, 0, 0) and piece.step == piece.to_step == (1, 1, 1) and piece.to[1:] == (0, 0)
        whole = piece.size == self.boxes[source.tensor] and piece.size[1:] == self.boxes[target.tensor][1:]
        vectors = target.layout == NCHW or (piece.size[0] % LANES == 0 and piece.to[0] % LANES == 0)
        return plain and whole and vectors and source.layout == target.layout and source.tensor in self._movable

    def _home(self, name: str, layout: str) -> Key:
        self._homes[name] = Key(name, layout, self.dtypes[name])
        self._made.add(self._homes[name])
        return self._homes[name]

    def _read(self, name: str, layout: str | None) -> Key:
        home = self._homes[name]
        key = replace(home, layout=layout) if layout else home
        if key not in self._made:
            self._made.add(key)
            box = self.boxes[name]
            choice = Choice(layout=key.layout, needs=(), kernel="copy")
            self._append(None, f"{name} to {layout}", (home,), key, lambda x, y: [copies.plan(x, y, box)], choice)
        return key

    def _append(
        self, layer: Layer | None, name: str, reads: tuple[Key, ...], writes: Key | None, plan: Callable[..., list[Op]], choice: Choice
    ) -> None:
        self.list.append(Instruction(layer=layer, name=name, reads=reads, writes=writes, plan=plan, choice=choice))
