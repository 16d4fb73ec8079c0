"""Layers -> a program for the interpreter: kernels and layouts chosen, conversions put in, memory planned, operations put together."""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fineprune.common.errors import RunError
from fineprune.ops.simd import LANES

from ..ir.conv import CONSTANTS, INDEX, Epilogue, Op, View
from ..ir.dtypes import FLOAT32, SLOT, DType, slots
from ..ir.network import Assemble, Box, Conv, Layer, Map, Mean, Permute, Piece, Pool
from ..ops import copies, maps, permute, pools
from ..run.interpreter import KERNELS
from . import memory
from .fuse import fuse
from .kernels import CONVOLUTIONS, candidates
from .layouts import NCHW, Candidate, Choice, choose
from .memory import Key
from .reorder import reorder

_ALIGN = 16
"""Slots: constants of an operation begin at a cache line."""
_MOST_NUMBERS = (1 << 31) - 1


@dataclass(frozen=True, kw_only=True)
class Instruction:
    """Operations without meeting points between them: what they read and write, and what makes them once it is known where all lies."""

    layer: Layer | None
    name: str
    reads: tuple[Key, ...]
    writes: Key | None
    plan: Callable[..., list[Op]]
    choice: Choice


@dataclass(frozen=True, kw_only=True)
class Program:
    """The arrays of interpreter.py and what each operation is."""

    steps: NDArray[np.int64]
    costs: tuple[NDArray[np.float64], ...]
    meta: NDArray[np.int64]
    index: NDArray[np.int32]
    constants: NDArray[np.float32]
    arena: int
    scratch: int
    instructions: tuple[Instruction, ...]
    """One for each operation."""
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    boxes: dict[str, Box]
    dtypes: dict[str, DType]

    def splits(self, threads: int) -> NDArray[np.int64]:
        """[operations, threads + 1]: contiguous runs of work items of about equal cost."""
        return np.array([_split(costs, threads) for costs in self.costs], np.int64).reshape(len(self.costs), threads + 1)


Chooser = Callable[[Sequence[Layer], Sequence[Sequence[Candidate]]], Sequence[Sequence[Candidate]]]


def build(
    layers: Sequence[Layer],
    boxes: Mapping[str, Box],
    inputs: Sequence[str],
    outputs: Sequence[str],
    measure: Chooser | None = None,
    dtypes: Mapping[str, DType] | None = None,
) -> Program:
    """A program that makes `outputs` of `inputs`; `measure` may replace the kernels' own estimates.

    dtypes: of inputs; those that are not named are float32. TypeError where a layer cannot compute with what it reads.
    """
    estimated: dict[int, tuple[Conv, list[Candidate]]] = {}

    def kernels(layer: Conv) -> list[Candidate]:
        if id(layer) not in estimated:
            estimated[id(layer)] = layer, candidates(layer)[0]
        return estimated[id(layer)][1]

    layers, boxes = reorder(fuse(layers, set(outputs)), boxes, outputs, lambda conv: min(c.seconds for c in kernels(conv)))
    found = [kernels(layer) if isinstance(layer, Conv) else [] for layer in layers]
    types = typed(layers, {name: (dtypes or {}).get(name, FLOAT32) for name in inputs})
    chosen = choose(layers, boxes, measure(layers, found) if measure else found, types)
    readers = Counter([name for layer in layers for name in _read(layer)] + list(outputs))
    movable = {layer.output for layer in layers if isinstance(layer, Conv | Pool) and readers[layer.output] == 1}
    instructions = _Instructions(boxes, types, movable)
    for number, name in enumerate(inputs):
        instructions.load(name, number, layers, chosen)
    for layer, choice in zip(layers, chosen, strict=True):
        instructions.add(layer, choice)
    for number, name in enumerate(outputs, start=len(inputs)):
        instructions.save(name, number)
    return _assemble(instructions, boxes, tuple(inputs), tuple(outputs))


def typed(layers: Sequence[Layer], inputs: Mapping[str, DType]) -> dict[str, DType]:
    """The types of all tensors, of those of the inputs; TypeError where a layer cannot compute with what it reads."""
    types = dict(inputs)
    for layer in layers:
        made = layer.dtype([types[name] for name in layer.inputs])
        if made is None:
            read = ", ".join(f"{name!r} of {types[name]}" for name in layer.inputs)
            raise TypeError(f"{type(layer).__name__} {layer.name!r} cannot compute with {read}")
        types[layer.output] = made
    return types


def _read(layer: Layer) -> Sequence[str]:
    """The inputs, as often as they are read."""
    return [layer.inputs[piece.source] for piece in layer.pieces] if isinstance(layer, Assemble) else layer.inputs


class _Instructions:
    """The list while it is made: each tensor has one home layout and, where a reader needs it, a copy in the other.

    movable: tensors that are read once, by whom they may be made at any place. within: those that are made as parts of others.
    partial: those that have zeros which nobody writes.
    """

    def __init__(self, boxes: Mapping[str, Box], dtypes: dict[str, DType], movable: set[str]) -> None:
        self.dtypes = dtypes
        self.list: list[Instruction] = []
        self.margins: dict[Key, memory.Margins] = {}
        self.over: dict[Key, Key] = {}
        self.within: dict[Key, tuple[Key, Piece]] = {}
        self.partial: set[Key] = set()
        self._movable = movable
        self._boxes = boxes
        self._homes: dict[str, Key] = {}
        self._made: set[Key] = set()

    def load(self, name: str, number: int, layers: Sequence[Layer], chosen: Sequence[Choice]) -> None:
        """The caller's tensor `number`, in the layout that its readers need, or as it comes."""
        needs = [c.needs[k] for layer, c in zip(layers, chosen, strict=True) for k, read in enumerate(layer.inputs) if read == name]
        layout = next((layout for layout in needs if layout), NCHW)
        key, box = self._home(name, layout), self._boxes[name]

        def plan(y: View) -> list[Op]:
            return [copies.plan(memory.outside(box, y.dtype), y, box, kernel="load", tensor=number)]

        self._append(None, f"load {name}", (), key, plan, Choice(layout=layout, needs=(), kernel="load"))

    def save(self, name: str, number: int) -> None:
        """To the caller's tensor `number`."""
        key, box = self._homes[name], self._boxes[name]

        def plan(x: View) -> list[Op]:
            return [copies.plan(x, memory.outside(box, x.dtype), box, kernel="save", tensor=number)]

        self._append(None, f"save {name}", (key,), None, plan, Choice(layout=key.layout, needs=(), kernel="save"))

    def add(self, layer: Layer, choice: Choice) -> None:
        """A layer, behind the conversions that it needs."""
        reads = tuple(self._read(name, layout) for name, layout in zip(layer.inputs, choice.needs, strict=True))
        key = self._home(layer.output, choice.layout)
        if isinstance(layer, Conv):
            self._conv(layer, choice, reads, key)
        elif isinstance(layer, Assemble):
            self._assemble(layer, choice, reads, key)
        elif isinstance(layer, Pool):
            self._append(layer, layer.name, reads, key, lambda x, y: [pools.plan(layer, x, y)], choice)
        elif isinstance(layer, Permute):
            self._append(layer, layer.name, reads, key, lambda x, y: [permute.plan(layer.order, x, y)], choice)
        elif isinstance(layer, Mean):
            self._append(layer, layer.name, reads, key, lambda x, y: [pools.plan_mean(x, y)], choice)
        elif isinstance(layer, Map):
            self.over[key] = reads[0]
            self._append(layer, layer.name, reads, key, lambda *v: [maps.plan(layer, v[0], v[1] if len(v) == 3 else None, v[-1])], choice)
        else:
            raise TypeError(f"no kernel for {type(layer).__name__}")

    def _conv(self, layer: Conv, choice: Choice, reads: tuple[Key, ...], key: Key) -> None:
        old = self.margins.get(reads[0], (0, 0, 0, 0))
        top, left, bottom, right = (max(pair) for pair in zip(old, layer.shape.pads, strict=True))
        self.margins[reads[0]] = (top, left, bottom, right)

        def plan(x: View, *rest: View) -> list[Op]:
            epilogue = Epilogue(low=layer.low, high=layer.high, residual=rest[0] if len(rest) == 2 else None)
            return [CONVOLUTIONS[choice.kernel].plan(layer.shape, layer.weights, layer.mask, layer.bias, x, rest[-1], epilogue)]

        self._append(layer, layer.name, reads, key, plan, choice)

    def _assemble(self, layer: Assemble, choice: Choice, reads: tuple[Key, ...], key: Key) -> None:
        box = self._boxes[layer.output]
        pieces = layer.pieces
        if sum(_size(piece.size) for piece in pieces) < _size(box):
            self.partial.add(key)
        else:
            self.within |= {reads[p.source]: (key, p) for p in pieces if self._is_part(reads[p.source], key, p)}
            pieces = tuple(p for p in pieces if reads[p.source] not in self.within)
        numbers = sorted({piece.source for piece in pieces})

        def plan(*views: View) -> list[Op]:
            sources = dict(zip(numbers, views, strict=False))
            return [copies.plan(part(sources[p.source], p.start, p.step), part(views[-1], p.to, p.to_step), p.size) for p in pieces]

        if pieces or key in self.partial:  # else everything is at its place
            self._append(layer, layer.name, tuple(reads[number] for number in numbers), key, plan, choice)

    def _is_part(self, source: Key, target: Key, piece: Piece) -> bool:
        """Whether a tensor can be made where it is to go; channels that lie together have to be whole vectors."""
        plain = piece.start == (0, 0, 0) and piece.step == piece.to_step == (1, 1, 1) and piece.to[1:] == (0, 0)
        whole = piece.size == self._boxes[source.tensor] and piece.size[1:] == self._boxes[target.tensor][1:]
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
            box = self._boxes[name]
            choice = Choice(layout=key.layout, needs=(), kernel="copy")
            self._append(None, f"{name} to {layout}", (home,), key, lambda x, y: [copies.plan(x, y, box)], choice)
        return key

    def _append(
        self, layer: Layer | None, name: str, reads: tuple[Key, ...], writes: Key | None, plan: Callable[..., list[Op]], choice: Choice
    ) -> None:
        self.list.append(Instruction(layer=layer, name=name, reads=reads, writes=writes, plan=plan, choice=choice))


def part(view: View, start: Box, step: Box) -> View:
    """The elements from `start` in steps of `step`, as a view for copies."""
    strides = view.channel_stride * step[0], view.row_stride * step[1], view.pixel_stride * step[2]
    return replace(
        view, start=view.at(*start), channel_stride=strides[0], row_stride=strides[1], pixel_stride=strides[2], margins=(0, 0, 0, 0)
    )


def _size(box: Box) -> int:
    return box[0] * box[1] * box[2]


def _assemble(instructions: _Instructions, boxes: Mapping[str, Box], inputs: tuple[str, ...], outputs: tuple[str, ...]) -> Program:
    within = instructions.within
    uses: dict[Key, list[int]] = defaultdict(list)
    for number, instruction in enumerate(instructions.list):
        for key in (*instruction.reads, *([instruction.writes] if instruction.writes else [])):
            uses[within[key][0] if key in within else key].append(number)
    plan = memory.arena({key: boxes[key.tensor] for key in uses}, instructions.margins, uses, instructions.over, instructions.partial)
    views, buffers = dict(plan.views), dict(plan.buffers)
    for key, (whole, piece) in within.items():
        views[key], buffers[key] = replace(part(views[whole], piece.to, piece.to_step), channels=piece.size[0]), buffers[whole]
    tables, owners = _Tables(), []
    pending = _Pending()
    for instruction in instructions.list:
        keys = (*instruction.reads, *([instruction.writes] if instruction.writes else []))
        reads = {buffers[key] for key in instruction.reads}
        writes = {buffers[instruction.writes]} if instruction.writes else set()
        meet = pending.must_meet(reads, writes)
        for op in instruction.plan(*(views[key] for key in keys)):
            tables.add(op, meet)
            owners.append(instruction)
            meet = False
    facts = {"inputs": inputs, "outputs": outputs, "boxes": dict(boxes), "dtypes": instructions.dtypes}
    return tables.program(arena=plan.size, instructions=tuple(owners), **facts)


class _Pending:
    """Buffers that threads may still be reading and writing since they last met."""

    def __init__(self) -> None:
        self._read: set[int] = set()
        self._written: set[int] = set()

    def must_meet(self, reads: set[int], writes: set[int]) -> bool:
        """Whether threads have to meet before an instruction; it is counted as begun."""
        conflict = bool(reads & self._written or writes & (self._written | self._read))
        if conflict:
            self._read, self._written = set(), set()
        self._read |= reads
        self._written |= writes
        return conflict


class _Tables:
    """Numbers of operations one after another."""

    def __init__(self) -> None:
        self._ops: list[Op] = []
        self._meets: list[bool] = []

    def add(self, op: Op, meet: bool) -> None:
        self._ops.append(op)
        self._meets.append(meet)

    def program(self, **facts: Any) -> Program:
        """All of them."""
        numbers = [slots(op.constants) for op in self._ops]
        constants = np.zeros(sum(memory.rounded(len(own), _ALIGN) for own in numbers) + _ALIGN, np.float32)
        index = np.zeros(sum(len(op.index) for op in self._ops) + _ALIGN, np.int32)
        if max(len(constants), len(index)) > _MOST_NUMBERS:
            raise RunError("the network has more weights than the engine can address; run it in ONNX Runtime")
        shift = (-constants.ctypes.data // SLOT) % _ALIGN
        steps, metas, start, at, position = [], [], 0, shift, 0
        for op, meet, own in zip(self._ops, self._meets, numbers, strict=True):
            meta = op.meta.copy()
            meta[CONSTANTS], meta[INDEX] = at, position
            constants[at : at + len(own)] = own
            index[position : position + len(op.index)] = op.index
            steps.append((KERNELS.index(op.kernel), start, len(op.costs), int(meet)))
            metas.append(meta)
            start, at, position = start + len(meta), at + memory.rounded(len(own), _ALIGN), position + len(op.index)
        return Program(
            steps=np.array(steps, np.int64),
            costs=tuple(op.costs for op in self._ops),
            meta=np.concatenate(metas),
            index=index,
            constants=constants,
            scratch=memory.rounded(max(op.scratch for op in self._ops), _ALIGN) + memory.GUARD,
            **facts,
        )


def _split(costs: NDArray[np.float64], threads: int) -> list[int]:
    sums = np.concatenate([[0.0], np.cumsum(costs)])
    wanted = sums[-1] * np.arange(1, threads) / threads
    inner = np.searchsorted(sums, wanted)  # the nearer of the two ends around each wanted sum
    inner -= (inner > 0) & (sums[np.maximum(inner - 1, 0)] + sums[np.minimum(inner, len(costs))] > 2 * wanted)
    return [0, *np.maximum.accumulate(inner).tolist(), len(costs)]
