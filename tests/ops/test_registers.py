"""What is known of the CPU that code is compiled for."""

from pathlib import Path

import pytest

from fineprune.ops.simd import LANES
from fineprune.ops.simd.registers import AVX2, AVX512, CACHES, NEON, caches, registers


def test_registers_are_known_by_what_the_cpu_can_do() -> None:
    assert registers("+sse2,+avx2,+avx512f,+avx512vl") is AVX512
    assert registers("+sse2,-avx512f,+avx,+avx2,+fma") is AVX2
    assert registers("+fp-armv8,+neon") is NEON
    assert registers("") is AVX2


def test_vectors_that_registers_hold() -> None:
    assert LANES == 16
    assert [kind.vectors() for kind in (AVX512, AVX2, NEON)] == [32, 8, 8]
    assert [kind.vectors(beside=2) for kind in (AVX512, AVX2, NEON)] == [30, 7, 7]


def cache(folder: Path, number: int, **facts: str) -> None:
    place = folder / f"index{number}"
    place.mkdir(parents=True)
    for name, text in facts.items():
        (place / name).write_text(text + "\n")


def test_caches_of_data(tmp_path: Path) -> None:
    cache(tmp_path, 0, level="1", type="Instruction", size="64K")
    cache(tmp_path, 1, level="2", type="Unified", size="1024K")
    cache(tmp_path, 2, level="1", type="Data", size="48K")
    cache(tmp_path, 3, level="3", type="Unified", size="32768K")
    assert caches(tmp_path) == (48 << 10, 1 << 20)


@pytest.mark.parametrize("size", ["", "many", "K"])
def test_where_the_system_does_not_tell_it(tmp_path: Path, size: str) -> None:
    assert caches(tmp_path / "nowhere") == (32 << 10, 512 << 10)
    cache(tmp_path, 0, level="1", type="Data", size=size)
    (tmp_path / "index1").mkdir()
    assert caches(tmp_path) == (32 << 10, 512 << 10)
    assert CACHES.second >= CACHES.first >= 8 << 10
