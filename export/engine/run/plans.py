"""Programs kept on disk, so that a network that was planned on this machine before is only read: no ONNX, no Numba, no search.

    content = length of a text (8 bytes), the text: JSON, then arrays, each from a cache line on

A program is found by the bytes of the file, the options of its session, and the costs of the machine; the keeper
(ops/keeper.py) adds sources, versions and CPU, and sees that it is whole. The newest PLANS stay, MOST_BYTES in all. Nothing is kept of a
network of which ONNX Runtime runs a part, nor with FINEPRUNE_PLANS=anew.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from itertools import groupby
from typing import Any

import numpy as np

from fineprune.common.errors import UsageError

from ..ir.program import Operation, Program
from ..kept import KEEPER
from ..reader.ports import Interface, Port, Value
from . import machine

PLANS, MOST_BYTES = 32, 1 << 30
VARIABLE, KEPT, ANEW = "FINEPRUNE_PLANS", "kept", "anew"
"""What tells whether plans are kept, and its values."""
_LINE = 64
_ARRAYS = ("constants", "index", "steps", "meta", "costs")
_KIND = "plan"


def find(content: bytes, where: str, **options: bool) -> tuple[Interface, Program] | None:
    """What was kept of a file of this content, opened with these options; `where`: what it is called now."""
    if not _wanted():
        return None
    name = _name(content, options)
    packed = KEEPER.read(name)
    if packed is None:
        return None
    KEEPER.used(name)
    return unpack(packed, where)


def keep(content: bytes, interface: Interface, program: Program, **options: bool) -> None:
    """For the next session of a file of this content, with these options."""
    if _wanted():
        parts = list(pack(interface, program))
        if sum(memoryview(part).nbytes for part in parts) < MOST_BYTES:
            KEEPER.write(_name(content, options), *parts)
            KEEPER.bound(_KIND, PLANS, MOST_BYTES)


def pack(interface: Interface, program: Program) -> Iterator[Any]:
    """All that `unpack` needs but the name of the file, as parts of bytes."""
    ports, named = (*interface.inputs, *interface.outputs), (*program.inputs, *program.outputs)
    values = {port.name: interface.values[port.name] for port in ports if port.name in interface.values}
    tensors = {*(value.tensor for value in values.values()), *named}
    arrays = {name: np.concatenate(program.costs) if name == "costs" else getattr(program, name) for name in _ARRAYS}
    runs = [list(run) for _, run in groupby(program.operations, key=id)]
    facts = {
        "inputs": [asdict(port) for port in interface.inputs],
        "outputs": [asdict(port) for port in interface.outputs],
        "values": {name: asdict(value) for name, value in values.items()},
        "dtypes": {name: dtype.name for name, dtype in {**program.dtypes, **interface.dtypes}.items() if name in tensors},
        "arrays": {name: (array.dtype.str, array.shape) for name, array in arrays.items()},
        "kernels": program.kernels,
        "operations": [(asdict(run[0]), len(run)) for run in runs],
        "program": {"arena": program.arena, "scratch": program.scratch, "inputs": program.inputs, "outputs": program.outputs},
        "boxes": {name: program.boxes[name] for name in named},
    }
    text = json.dumps(facts).encode()
    yield from _lines(len(text).to_bytes(8, "little") + text)
    for array in arrays.values():
        yield from _lines(np.ascontiguousarray(array).reshape(-1).view(np.uint8))


def unpack(packed: memoryview, where: str) -> tuple[Interface, Program]:
    """What was packed."""
    end = 8 + int.from_bytes(packed[:8], "little")
    facts = json.loads(bytes(packed[8:end]))
    arrays: dict[str, Any] = {}
    for name, (kind, shape) in facts["arrays"].items():
        start = -(-end // _LINE) * _LINE
        end = start + int(np.prod(shape)) * np.dtype(kind).itemsize
        arrays[name] = np.frombuffer(packed[start:end], kind).reshape(shape)
    dtypes = {name: np.dtype(kind) for name, kind in facts["dtypes"].items()}
    items = arrays["steps"][:, 1]
    interface = Interface(
        where=where,
        inputs=tuple(_port(port) for port in facts["inputs"]),
        outputs=tuple(_port(port) for port in facts["outputs"]),
        values={name: Value(tensor=value["tensor"], dims=tuple(value["dims"])) for name, value in facts["values"].items()},
        dtypes=dtypes,
    )
    own = facts["program"]
    program = Program(
        **{**arrays, "costs": tuple(np.split(arrays["costs"], np.cumsum(items)[:-1]))},
        arena=own["arena"],
        scratch=own["scratch"],
        inputs=tuple(own["inputs"]),
        outputs=tuple(own["outputs"]),
        kernels=tuple(facts["kernels"]),
        operations=tuple(operation for told, count in facts["operations"] for operation in [Operation(**told)] * count),
        boxes={name: tuple(box) for name, box in facts["boxes"].items()},
        dtypes=dtypes,
    )
    return interface, program


def _lines(part: Any) -> Iterator[Any]:
    """A part, and zeros up to the next line."""
    yield part
    yield bytes(-len(part) % _LINE)


def _port(told: dict[str, Any]) -> Port:
    return Port(name=told["name"], type=told["type"], shape=None if told["shape"] is None else tuple(told["shape"]))


def _wanted() -> bool:
    told = os.environ.get(VARIABLE, KEPT)
    if told not in (KEPT, ANEW):
        raise UsageError(f"{VARIABLE} is {KEPT} or {ANEW}, got {told!r}")
    return told == KEPT


def _name(content: bytes, options: Mapping[str, bool]) -> str:
    digest = hashlib.sha256(content)
    digest.update(f" {sorted(options.items())} {machine.digest()}".encode())
    return f"{_KIND}-{digest.hexdigest()[:32]}"
