"""Damaged QDQ and QOperator files: what ONNX Runtime makes of them, or a clear refusal, never a crash."""

import numpy as np
import pytest
from onnx import numpy_helper

from fineprune.common.errors import RunError
from fineprune.export.engine import Session
from support.mutated_grids import MutatedGrids, qoperators
from support.mutations import mutations
from support.onnx_comparison import compare

FAULTS = ("raw exception", "wrongly called damaged", "threads differ")


def test_damaged_networks_on_grids() -> None:
    kinds = []
    for seed in range(120):
        damaged = MutatedGrids(seed)
        outcome = compare(damaged.content, [{"x": damaged.x}])
        assert outcome.kind not in FAULTS and (outcome.kind != "different" or damaged.wraps), f"network {seed}: {outcome}"
        kinds.append(outcome.kind)
    assert kinds.count("equal") >= 10 and kinds.count("both refuse") >= 10


@pytest.mark.parametrize("seed", range(2))
def test_damaged_bytes(seed: int) -> None:
    sound = qoperators(seed)
    x = np.random.default_rng(seed).standard_normal((2, 4, 6, 6), np.float32)
    for content in mutations(sound.SerializeToString(), count=30, seed=seed):
        assert compare(content, [{"x": x}]).kind not in FAULTS


@pytest.mark.parametrize("name", ["g0.scale", "g1.zero", "a.z", "l.s"])
def test_empty_scales_never_reach_onnxruntime(name: str) -> None:
    """Which ends the process on some of them."""
    model = qoperators(0)
    [tensor] = [tensor for tensor in model.graph.initializer if tensor.name == name]
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).reshape(-1)[:0], name))
    with pytest.raises(RunError, match=f"reads '{name}', which is empty"):
        Session(model.SerializeToString())
