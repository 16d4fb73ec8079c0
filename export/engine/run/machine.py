"""The costs of this machine (../ir/costs.py): measured when a kernel is chosen on it for the first time (measure.py), kept beside the
compiled code, and valid as long as that is.

FINEPRUNE_COSTS=assumed leaves machines unmeasured; so do folders that cannot be written, and kernels that are not compiled.
"""

import json
import os
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from types import MappingProxyType
from typing import Any

from fineprune.common.errors import UsageError
from fineprune.ops.machine_code import uncompiled

from ..ir import costs
from ..ir.costs import Costs
from ..kept import KEEPER

VARIABLE, MEASURED, ASSUMED = "FINEPRUNE_COSTS", "measured", "assumed"
"""What tells whether machines are measured, and its values."""
_KEPT, _VERSION = "costs", "ONNX Runtime"


def table() -> Costs:
    """The costs of this machine: kept from before, else measured and kept, else what is assumed."""
    return _kept_or_measured() if _is_measured() else costs.assumed()


def digest() -> str:
    """What stands for this table in the names of what is made by it; nothing where nobody has measured the machine yet."""
    if not _is_measured():
        return ASSUMED
    kept = _kept()
    return kept.digest if kept else ""


def redone() -> Costs:
    """The costs of this machine measured anew, and kept for later."""
    from .measure import measure

    found = measure(costs.assumed())
    KEEPER.write(_KEPT, json.dumps({**found.nanoseconds, _VERSION: _version()}).encode())
    _kept_or_measured.cache_clear()
    return found


def listed(redo: bool = False) -> dict[str, Any]:
    """Every cost in words beside what is assumed, JSON-able; `redo`: measured anew."""
    found, guess = redone() if redo else table(), costs.assumed()
    rows = [
        {"name": name, "what": what, "ns": found[name], "assumed_ns": guess[name]}
        for name, what, *_ in costs.ROWS
        if name in found.nanoseconds
    ]
    return {"registers": costs.registers(), "digest": found.digest, "measured": found.digest != guess.digest, "costs": rows}


def _is_measured() -> bool:
    wanted = os.environ.get(VARIABLE, MEASURED)
    if wanted not in (MEASURED, ASSUMED):
        raise UsageError(f"{VARIABLE} is {MEASURED} or {ASSUMED}, got {wanted!r}")
    return wanted == MEASURED and not uncompiled() and KEEPER.folder is not None


@cache
def _kept_or_measured() -> Costs:
    return _kept() or redone()


def _kept() -> Costs | None:
    """None where nothing was kept, or with another ONNX Runtime."""
    content = KEEPER.read(_KEPT)
    found = json.loads(bytes(content)) if content is not None else {}
    return Costs(MappingProxyType(found)) if found.pop(_VERSION, None) == _version() else None


def _version() -> str:
    """Of ONNX Runtime, whose convolutions are measured, too."""
    try:
        return version("onnxruntime")
    except PackageNotFoundError:  # one of its other distributions
        return ""
