"""Facts of files and arrays for same_bits.py: digests, and plain values without times, versions and machines."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

Facts = dict[str, Any]
"""name -> a digest or a plain value; equal facts of two commits mean equal bits."""

NOT_COMPARED = {
    *("seconds", "cpu_seconds", "validation_seconds", "policy_seconds", "rate_seconds", "rate_cpu_seconds", "wall_seconds", "overhead_s"),
    *("predicted", "measured", "measured_cpu", "server_ms_per_call"),  # of time
    *("machine", "packages", "fineprune", "commit"),
    "sha256",  # of files that have facts of their own
}
"""Entries of JSON files that another run of the same bits may have otherwise."""


def folder_facts(folder: Path | str, *patterns: str) -> Facts:
    """Facts of the files in `folder` whose names match one of `patterns` (all of them by default)."""
    facts: Facts = {}
    for path in sorted(Path(folder).iterdir()):
        if path.is_file() and any(fnmatchcase(path.name, pattern) for pattern in patterns or ("*",)):
            facts |= prefixed(str(path), file_facts(path))
    return facts


def file_facts(path: Path) -> Facts:
    """JSON: its values. safetensors: the file's digest, and one of the numbers alone, whatever they are called. Else the file's digest."""
    if path.suffix == ".json":
        return flat(json.loads(path.read_text()))
    facts: Facts = {"file": digest(path.read_bytes())}
    if path.suffix == ".safetensors":
        from safetensors.numpy import load_file

        facts["numbers"] = digest(*sorted(array_digest(array).encode() for array in load_file(path).values()))
    return facts


def onnx_facts(path: str) -> Facts:
    """The file's digest, that of its graph alone, and each entry of its metadata."""
    import onnx

    model = onnx.load(path)
    facts: Facts = {"file": digest(Path(path).read_bytes())}
    facts |= {f"metadata {entry.key}": entry.value for entry in model.metadata_props if entry.key != "fineprune.version"}
    del model.metadata_props[:]
    model.producer_version = ""
    facts["graph"] = digest(model.SerializeToString(deterministic=True))
    return prefixed(path, facts)


def flat(value: Any, name: str = "") -> Facts:
    """{"a": {"b": [1, 2]}} -> {"a.b[0]": 1, "a.b[1]": 2}, without what is NOT_COMPARED; empty tables and lists are kept as they are."""
    if isinstance(value, Mapping) and value:
        items: Iterable[tuple[str, Any]] = (
            (f"{name}.{key}" if name else key, item) for key, item in value.items() if key not in NOT_COMPARED
        )
    elif isinstance(value, list) and value:
        items = ((f"{name}[{number}]", item) for number, item in enumerate(value))
    else:
        return {name: value}
    return {key: fact for path, item in items for key, fact in flat(item, path).items()}


def prefixed(prefix: str, facts: Facts) -> Facts:
    """The same facts under longer names."""
    return {f"{prefix}:{name}" if name else prefix: value for name, value in facts.items()}


def array_digest(array: np.ndarray) -> str:
    """Of type, shape and every bit."""
    return digest(f"{array.dtype} {array.shape}".encode(), np.ascontiguousarray(array).tobytes())


def digest(*parts: bytes) -> str:
    """sha256 of all parts in order."""
    found = hashlib.sha256()
    for part in parts:
        found.update(part)
    return found.hexdigest()
