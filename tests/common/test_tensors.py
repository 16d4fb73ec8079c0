"""Safetensors files of all sorts: read, or named with what is wrong in them."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from fineprune.common.errors import RunError
from fineprune.common.tensors import read_tensors


def entry(kind: str, shape: list[int], size: int) -> dict[str, Any]:
    return {"dtype": kind, "shape": shape, "data_offsets": [0, size]}


def write(path: Path, header: dict[str, Any], data: bytes, length: int | None = None) -> Path:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


@pytest.mark.parametrize(
    ("header", "size", "length", "fault"),
    [
        ({"w": entry("F8_E4M3", [4], 4)}, 4, None, "w is of type float8_e4m3fn, which is not computed with here; do this"),
        ({"w": entry("C64", [1], 8)}, 8, None, "w is of type complex64, which is not computed with here; do this"),
        ({"w": entry("X9", [1], 8)}, 8, None, "is damaged or not a safetensors file .*; do this"),
        ({"w": entry("F32", [2**40], 4)}, 4, None, "is damaged or not a safetensors file .*; do this"),
        ({"w": entry("F32", [0, 2**62], 0)}, 0, None, f"w has an axis of {2**62}; do this"),
        ({"w": entry("F32", [2**63, 0], 0)}, 0, None, "is damaged or not a safetensors file .*; do this"),
        ({"w": entry("F32", [1], 4)}, 4, 2**63, "is damaged or not a safetensors file .*; do this"),
    ],
)
def test_odd_headers(header: dict[str, Any], size: int, length: int | None, fault: str, tmp_path: Path) -> None:
    path = write(tmp_path / "t.safetensors", header, bytes(size), length)
    with pytest.raises(RunError, match=rf"t\.safetensors:? {fault}$"):
        read_tensors(path, "do this")


def test_sound_ones(tmp_path: Path) -> None:
    kinds = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool)
    tensors = {str(kind): torch.ones(2, 3).to(kind) for kind in kinds} | {"empty": torch.zeros(0, 5), "scalar": torch.tensor(1.0)}
    save_file(tensors, tmp_path / "t.safetensors")
    read = read_tensors(tmp_path / "t.safetensors", "")
    assert read.keys() == tensors.keys() and all(torch.equal(read[key], value) for key, value in tensors.items())
