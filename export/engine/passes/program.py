"""Layers -> a program for the interpreter: kernels and layouts chosen, conversions put in, memory planned, operations put together."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fineprune.common.errors import RunError

from ..ir.conv import CONSTANTS, INDEX, Op
from ..ir.dtypes import FLOAT32, QUAD, DType, slots
from ..ir.network import Box, Candidate, Layer, typed
from ..ir.program import ALIGN, Operation, Program, aligned
from ..ops.assemble import part
from . import memory
from .fuse import fuse
from .instructions import Instruction, Instructions, instructions
from .integers import integers
from .layouts import choose
from .memory import Key
from .reorder import reorder

_MOST_NUMBERS = (1 << 31) - 1


Chooser = Callable[[Sequence[Layer], Mapping[str, Box], Sequence[Sequence[Candidate]]], Sequence[Sequence[Candidate]]]


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
    return assembled(planned(layers, boxes, inputs, outputs, measure, dtypes), tuple(inputs), tuple(outputs))


def planned(
    layers: Sequence[Layer],
    boxes: Mapping[str, Box],
    inputs: Sequence[str],
    outputs: Sequence[str],
    measure: Chooser | None = None,
    dtypes: Mapping[str, DType] | None = None,
) -> Instructions:
    """What is done in which order, before it is known where everything lies."""
    given = {name: (dtypes or {}).get(name, FLOAT32) for name in inputs}
    layers, boxes = integers(layers, boxes, given, outputs)
    layers = fuse(layers, set(outputs))
    layers, boxes = reorder(layers, boxes, outputs, _fastest)
    types = typed(layers, given)
    candidates: Sequence[Sequence[Candidate]] = [layer.candidates for layer in layers]
    if measure:
        candidates = measure(layers, boxes, candidates)
    chosen = choose(layers, boxes, candidates, types)
    return instructions(layers, boxes, types, inputs, outputs, chosen)


def _fastest(layer: Layer) -> float:
    return min(candidate.seconds for candidate in layer.candidates)


def assembled(instructions: Instructions, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> Program:
    """The program of what was planned for these inputs and outputs."""
    boxes, within = instructions.boxes, instructions.within
    uses: dict[Key, list[int]] = defaultdict(list)
    for number, instruction in enumerate(instructions.list):
        for key in (*instruction.reads, *([instruction.writes] if instruction.writes else [])):
            uses[within[key][0] if key in within else key].append(number)
    sizes = {key: boxes[key.tensor] for key in uses}
    ties = [pair for pair in instructions.ties if all(key.dtype == QUAD for key in pair)]
    ties = [(within.get(one, (one,))[0], within.get(other, (other,))[0]) for one, other in ties]
    plan = memory.arena(sizes, instructions.margins, uses, instructions.over, instructions.partial, ties)
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
        operation = _described(instruction)
        for op in instruction.plan(*(views[key] for key in keys)):
            tables.add(op, meet)
            owners.append(operation)
            meet = False
    facts = {"inputs": inputs, "outputs": outputs, "boxes": dict(boxes), "dtypes": instructions.dtypes}
    return tables.program(arena=plan.size, operations=tuple(owners), **facts)


def _described(instruction: Instruction) -> Operation:
    layer, choice = instruction.layer, instruction.choice
    return Operation(
        name=instruction.name,
        kernel=choice.kernel,
        layout=choice.layout,
        macs_dense=layer.macs_dense if layer else 0,
        macs=layer.macs if layer else 0,
        reason=choice.reason,
        expected=choice.seconds,
        limit=layer.limit if layer else "",
    )


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
        constants = aligned(sum(memory.rounded(len(own), ALIGN) for own in numbers) + ALIGN)
        index = np.zeros(sum(len(op.index) for op in self._ops) + ALIGN, np.int32)
        if max(len(constants), len(index)) > _MOST_NUMBERS:
            raise RunError("the network has more weights than the engine can address; run it in ONNX Runtime")
        steps, metas, start, at, position = [], [], 0, 0, 0
        for op, meet, own in zip(self._ops, self._meets, numbers, strict=True):
            meta = op.meta.copy()
            meta[CONSTANTS], meta[INDEX] = at, position
            constants[at : at + len(own)] = own
            index[position : position + len(op.index)] = op.index
            steps.append((start, len(op.costs), int(meet), -1 if op.tensor is None else op.tensor))
            metas.append(meta)
            start, at, position = start + len(meta), at + memory.rounded(len(own), ALIGN), position + len(op.index)
        return Program(
            steps=np.array(steps, np.int64),
            kernels=tuple(op.kernel for op in self._ops),
            costs=tuple(op.costs for op in self._ops),
            meta=np.concatenate(metas),
            index=index,
            constants=constants,
            scratch=memory.rounded(max(op.scratch for op in self._ops), ALIGN) + memory.GUARD,
            **facts,
        )
