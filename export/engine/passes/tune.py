"""Times of kernels measured on this machine instead of estimated; kept on disk by machine, engine and layers."""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from fineprune.common.errors import RunError
from fineprune.common.files import write_json
from fineprune.ops import numba_door

from ..ir.dtypes import FLOAT32, QUAD
from ..ir.network import Box, Candidate, Layer
from ..kept import KEEPER
from ..run.profile import profile
from .program import build

_LOG = logging.getLogger(__name__)
_REPEATS = 15
_HOPELESS = 4
"""Times as slow by estimate as the best: not worth a measurement."""


def measured(layers: Sequence[Layer], boxes: Mapping[str, Box], found: Sequence[Sequence[Candidate]]) -> list[list[Candidate]]:
    """The candidates of each layer with measured seconds."""
    folder = KEEPER.folder
    path = folder / f"times-{_digest(layers)}.json" if folder else None
    times = _read(path.read_bytes() if path and path.is_file() else b"{}")
    missing = False
    result = []
    for number, (layer, candidates) in enumerate(zip(layers, found, strict=True)):
        best = min((c.seconds for c in candidates), default=0.0)
        kept = []
        for candidate in candidates:
            key = f"{number} {candidate.kernel} {candidate.layout}"
            if candidate.seconds > _HOPELESS * best:
                kept.append(replace(candidate, seconds=max(candidate.seconds, _HOPELESS * best)))
                continue
            if key not in times:
                times[key], missing = _measure(layer, boxes, candidate), True
            kept.append(replace(candidate, seconds=times[key]))
        result.append(kept)
    if missing and path:
        try:
            write_json(path, times)
        except RunError as error:
            _LOG.warning("measured times are not kept: %s", error)
    return result


def _measure(layer: Layer, boxes: Mapping[str, Box], candidate: Candidate) -> float:
    sizes = {"y": boxes[layer.output], **{f"x{k}": boxes[name] for k, name in enumerate(layer.inputs)}}
    inputs = tuple(f"x{k}" for k in range(len(layer.inputs)))
    alone = replace(layer, name="layer", inputs=inputs, output="y")
    dtype = next(dtype for dtype in (FLOAT32, QUAD) if layer.dtype([dtype] * len(inputs)) is not None)
    dtypes = dict.fromkeys(inputs, dtype)
    program = build([alone], sizes, inputs, ["y"], lambda layers, boxes, found: [[candidate] for _ in layers], dtypes)
    random = np.random.default_rng(0)
    tensors = [random.standard_normal((1, *sizes[name]), np.float32).view(dtype) for name in inputs]
    records = profile(program, tensors, _REPEATS)
    return sum(record.seconds for record in records if record.name == "layer")


def _read(content: bytes) -> dict[str, float]:
    """Empty where the file is damaged: everything is measured again."""
    try:
        times = json.loads(content)
    except ValueError:
        return {}
    good = isinstance(times, dict) and all(isinstance(seconds, int | float) and seconds >= 0 for seconds in times.values())
    return times if good else {}


def _digest(layers: Sequence[Layer]) -> str:
    digest = hashlib.sha256(f"{KEEPER.stamp} {numba_door.host_cpu()}".encode())
    for number, layer in enumerate(layers):
        digest.update(f"{number} ".encode() + layer.fingerprint)
    return digest.hexdigest()[:32]
