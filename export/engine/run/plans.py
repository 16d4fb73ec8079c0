"""Plans kept on disk, so that a network that was planned on this machine before is only read: no ONNX, no Numba, no search.

    content = length of a text (8 bytes), the text: JSON, then arrays, each from a cache line on

A plan is found by the bytes of the file, the options of its session, and the costs of the machine; the keeper
(ops/keeper.py) adds sources, versions and CPU, and sees that it is whole. The newest PLANS stay, MOST_BYTES in all. Nothing is kept of
networks with outputs that the engine could not hold, nor with FINEPRUNE_PLANS=anew.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fineprune.common.errors import UsageError

from ..ir.dtypes import DType
from ..ir.program import Foreign, Operation, Part, Program
from ..kept import KEEPER
from ..reader.ports import Interface, Port, Value
from . import machine

PLANS, MOST_BYTES = 32, 1 << 30
VARIABLE, KEPT, ANEW = "FINEPRUNE_PLANS", "kept", "anew"
"""What tells whether plans are kept, and its values."""
_LINE = 64
_ARRAYS = ("constants", "index", "steps", "meta", "costs")
_KIND = "plan"


def find(content: bytes, where: str, **options: bool | str) -> tuple[Interface, list[Part]] | None:
    """What was kept of a file of this content, opened with these options; `where`: what it is called now."""
    if not _wanted():
        return None
    name = _name(content, options)
    packed = KEEPER.read(name)
    if packed is None:
        return None
    KEEPER.used(name)
    return unpack(packed, where)


def keep(content: bytes, interface: Interface, parts: Sequence[Part], **options: bool | str) -> None:
    """For the next session of a file of this content, with these options."""
    if _wanted():
        packed = list(pack(interface, parts))
        if sum(memoryview(piece).nbytes for piece in packed) < MOST_BYTES:
            KEEPER.write(_name(content, options), *packed)
            KEEPER.bound(_KIND, PLANS, MOST_BYTES)


def pack(interface: Interface, parts: Sequence[Part]) -> Iterator[Any]:
    """All that `unpack` needs but the name of the file, as pieces of bytes."""
    ports = (*interface.inputs, *interface.outputs)
    named = {*(port.name for port in ports), *(name for part in parts for name in (*part.inputs, *part.outputs))}
    values = {name: value for name, value in interface.values.items() if name in named}
    tensors = named | {value.tensor for value in values.values()}
    dtypes = [interface.dtypes, *(part.dtypes for part in parts if isinstance(part, Program))]
    arrays = [array for part in parts for array in _arrays(part)]
    facts = {
        "inputs": [asdict(port) for port in interface.inputs],
        "outputs": [asdict(port) for port in interface.outputs],
        "values": {name: asdict(value) for name, value in values.items()},
        "dtypes": {name: dtype.name for types in dtypes for name, dtype in types.items() if name in tensors},
        "parts": [_facts(part) for part in parts],
        "arrays": [(array.dtype.str, array.shape) for array in arrays],
    }
    text = json.dumps(facts).encode()
    yield from _lines(len(text).to_bytes(8, "little") + text)
    for array in arrays:
        yield from _lines(np.ascontiguousarray(array).reshape(-1).view(np.uint8))


def _arrays(part: Part) -> list[NDArray[Any]]:
    if isinstance(part, Foreign):
        return [np.frombuffer(part.model, np.uint8)]
    return [np.concatenate(part.costs) if name == "costs" else getattr(part, name) for name in _ARRAYS]


def _facts(part: Part) -> dict[str, Any]:
    """All but the arrays."""
    if isinstance(part, Foreign):
        return asdict(replace(part, model=b"")) | {"model": None}
    runs = [list(run) for _, run in groupby(part.operations, key=id)]
    return {
        **{name: getattr(part, name) for name in ("arena", "scratch", "inputs", "outputs", "kernels")},
        "operations": [(asdict(run[0]), len(run)) for run in runs],
        "boxes": {name: part.boxes[name] for name in (*part.inputs, *part.outputs)},
    }


def unpack(packed: memoryview, where: str) -> tuple[Interface, list[Part]]:
    """What was packed."""
    end = 8 + int.from_bytes(packed[:8], "little")
    facts = json.loads(bytes(packed[8:end]))
    arrays = []
    for kind, shape in facts["arrays"]:
        start = -(-end // _LINE) * _LINE
        end = start + int(np.prod(shape)) * np.dtype(kind).itemsize
        arrays.append(np.frombuffer(packed[start:end], kind).reshape(shape))
    dtypes = {name: np.dtype(kind) for name, kind in facts["dtypes"].items()}
    interface = Interface(
        where=where,
        inputs=tuple(_port(port) for port in facts["inputs"]),
        outputs=tuple(_port(port) for port in facts["outputs"]),
        values={name: Value(tensor=value["tensor"], dims=tuple(value["dims"])) for name, value in facts["values"].items()},
        dtypes=dtypes,
    )
    following = iter(arrays)
    return interface, [_part(told, following, dtypes) for told in facts["parts"]]


def _part(told: dict[str, Any], arrays: Iterator[NDArray[Any]], dtypes: dict[str, DType]) -> Part:
    known: dict[str, Any] = {name: tuple(told[name]) for name in ("inputs", "outputs")}
    if "model" in told:
        return Foreign(**{**told, **known, "model": next(arrays).tobytes()})
    known |= {name: next(arrays) for name in _ARRAYS}
    costs = np.split(known.pop("costs"), np.cumsum(known["steps"][:, 1])[:-1])
    return Program(
        **known,
        costs=tuple(costs),
        arena=told["arena"],
        scratch=told["scratch"],
        kernels=tuple(told["kernels"]),
        operations=tuple(operation for facts, count in told["operations"] for operation in [Operation(**facts)] * count),
        boxes={name: tuple(box) for name, box in told["boxes"].items()},
        dtypes=dtypes,
    )


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


def _name(content: bytes, options: Mapping[str, bool | str]) -> str:
    digest = hashlib.sha256(content)
    digest.update(f" {sorted(options.items())} {machine.digest()}".encode())
    return f"{_KIND}-{digest.hexdigest()[:32]}"
