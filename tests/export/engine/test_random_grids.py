"""Random networks on eight-bit grids make the integers of int64 arithmetic, and ONNX Runtime's; benchmarks/random_graphs.py tries more."""

import pytest

from support.onnx_comparison import compare_grids
from support.random_grids import RandomGrids


@pytest.mark.parametrize("start", range(0, 200, 50))
def test_networks_on_grids_are_exact(start: int) -> None:
    for seed in range(start, start + 50):
        outcome = compare_grids(RandomGrids(seed, 3 + seed % 12), threads=(1, 2) if seed % 3 == 0 else (1,))
        assert not outcome.fault, f"network {seed}: {outcome}"


def test_onnxruntime_is_asked() -> None:
    assert sum(compare_grids(RandomGrids(seed, 4)).why != "" for seed in range(40)) >= 4
